//! CRI-O: one drop-in in `registries.conf.d`. Blocks.
//!
//! Of two files that speak of the same prefix the last one counts, and the longest prefix before all: a drop-in of ours
//! could undo an administrator's, or theirs ours. So a registry of which another file speaks is left to that file. The
//! main file lies elsewhere and is not seen: for the registries of the cache, the drop-in counts instead of it.

use std::fs;
use std::io;
use std::path::Path;

use coral_schema::mirror_config::{HostPort, Registry, crio};

use super::files::{self, Content};
use super::{Outcome, Wanted};

const DROP_IN: &str = "50-coral.conf";
/// Entries looked at: far more than files that anybody has there.
const MOST_FILES: usize = 4096;

/// Makes the drop-in in `folder` what is wanted, or removes it if it is ours.
pub(super) fn apply(folder: &Path, wanted: Option<&Wanted>) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    fs::metadata(folder)?;
    let Some(wanted) = wanted else {
        outcome.removed = files::remove(folder, DROP_IN)?;
        files::remove_temporary(folder)?;
        return Ok(outcome);
    };
    let theirs = theirs(folder)?;
    let standing = files::read(&folder.join(DROP_IN))?;
    let mut ours = Vec::new();
    for host in &wanted.registries {
        let (name, registry) = (host.to_string(), registry(host));
        let location = format!("{}/{name}", wanted.cache.address);
        if host.port().is_some() || name.starts_with('[') {
            let problem = "CRI-O cannot mirror it: the location of a mirror holds no port";
            outcome.failed(&name, &io::Error::other(problem));
        } else if let Some(table) = theirs.iter().find(|table| table.speaks_of(&name)) {
            let leads = table.prefix == name && table.mirrors.first() == Some(&location);
            let paste = (!leads).then(|| crio(&wanted.cache, &[registry]).content);
            outcome.foreign(name, table.file.clone(), paste);
        } else if let Content::Theirs(_) = standing {
            let paste = crio(&wanted.cache, &[registry]).content;
            outcome.foreign(name, DROP_IN.to_owned(), Some(paste));
        } else {
            ours.push(registry);
            outcome.written(name);
        }
    }
    let text = crio(&wanted.cache, &ours).content;
    match standing {
        Content::Theirs(_) => {}
        Content::Ours(before) if before == text && !ours.is_empty() => {}
        _ if ours.is_empty() => outcome.removed = files::remove(folder, DROP_IN)?,
        Content::Ours(_) | Content::Absent => files::write(folder, DROP_IN, &text)?,
    }
    outcome.note = Some(note(wanted));
    Ok(outcome)
}

fn note(wanted: &Wanted) -> String {
    let follows =
        "CRI-O follows after `systemctl reload crio`, or by auto_reload_registries".to_owned();
    if wanted.authority.is_none() {
        return follows;
    }
    let address = &wanted.cache.address;
    format!(
        "{follows}, and trusts the cache by /etc/containers/certs.d/{address}/ca.crt, which is the administrator's to put there"
    )
}

fn registry(host: &HostPort) -> Registry {
    Registry {
        host: host.clone(),
        aliases: Vec::new(),
        plain_http: false,
    }
}

/// What one of an administrator's files says of one registry, or of a part of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    file: String,
    prefix: String,
    /// Their locations, in the order in which they are asked.
    mirrors: Vec<String>,
}

impl Table {
    fn speaks_of(&self, host: &str) -> bool {
        let part = self.prefix.strip_prefix(host);
        let subdomain = self.prefix.strip_prefix('*');
        part.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            || subdomain.is_some_and(|domain| host.ends_with(domain))
    }
}

fn theirs(folder: &Path) -> io::Result<Vec<Table>> {
    let mut tables = Vec::new();
    for entry in fs::read_dir(folder)?.take(MOST_FILES) {
        let path = entry?.path();
        let is_read = path.extension().is_some_and(|ending| ending == "conf");
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_read && let Content::Theirs(text) = files::read(&path)? {
            tables.extend(parse(&name, &text));
        }
    }
    Ok(tables)
}

/// The tables of registries in a file, as far as they matter here. Not all of TOML: a file that hides them in inline tables
/// or in strings of several lines is not understood.
fn parse(file: &str, text: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let mut section = "";
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.split('#').next().unwrap_or(line).trim();
            if section == "[[registry]]" {
                tables.push(Table {
                    file: file.to_owned(),
                    ..Table::default()
                });
            }
            continue;
        }
        let (Some((key, value)), Some(table)) = (line.split_once('='), tables.last_mut()) else {
            continue;
        };
        let value = quoted(value.trim()).to_owned();
        match (section, key.trim()) {
            ("[[registry]]", "prefix") => table.prefix = value,
            // Where there is no prefix, the location is it.
            ("[[registry]]", "location") if table.prefix.is_empty() => table.prefix = value,
            ("[[registry.mirror]]", "location") => table.mirrors.push(value),
            _ => {}
        }
    }
    tables
}

fn quoted(value: &str) -> &str {
    let quote = if value.starts_with('\'') { '\'' } else { '"' };
    value.split(quote).nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(authority: Option<&str>) -> Wanted {
        Wanted {
            cache: "http://10.96.0.10:5000".parse().unwrap(),
            authority: authority.map(str::to_owned),
            registries: ["docker.io", "quay.test", "r.test:5000"]
                .map(|name| name.parse().unwrap())
                .into(),
        }
    }

    #[test]
    fn the_drop_in_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let outcome = apply(folder.path(), Some(&wanted(None))).unwrap();
        assert!(outcome.written.contains("docker.io") && outcome.written.contains("quay.test"));
        assert!(outcome.problems[0].contains("r.test:5000"));
        assert!(outcome.note.unwrap().contains("systemctl reload crio"));
        let text = fs::read_to_string(folder.path().join(DROP_IN)).unwrap();
        for location in ["10.96.0.10:5000/docker.io", "10.96.0.10:5000/quay.test"] {
            assert!(
                text.contains(&format!("location = \"{location}\"")),
                "{text}"
            );
        }
        assert!(apply(folder.path(), None).unwrap().removed);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_caches_authority_is_told_since_it_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let note = apply(folder.path(), Some(&wanted(Some("PEM"))))
            .unwrap()
            .note;
        assert!(
            note.unwrap()
                .contains("certs.d/10.96.0.10:5000/ca.crt, which is the administrator's")
        );
    }

    /// Ours stood there before: its part goes, since it would change what theirs means.
    #[rstest::rstest]
    #[case("[[registry]]\nprefix = \"docker.io\" # the hub\nlocation = \"hub.test\"\n")]
    #[case("[[registry]]\nlocation='docker.io'\n")]
    #[case("[[registry]]\n  location = \"elsewhere.test\"\n  prefix = \"docker.io/library\"\n")]
    #[case("[[registry]] # all\nprefix = \"*.io\"\nblocked = true\n")]
    #[case(
        "[[registry]]\nprefix = \"docker.io\"\n[[registry.mirror]]\nlocation = \"m.test/hub\"\n"
    )]
    fn an_administrators_registry_is_left_to_their_file(#[case] text: &str) {
        let folder = tempfile::tempdir().unwrap();
        apply(folder.path(), Some(&wanted(None))).unwrap();
        let path = folder.path().join("10-theirs.conf");
        fs::write(&path, text).unwrap();
        let outcome = apply(folder.path(), Some(&wanted(None))).unwrap();
        assert_eq!(outcome.written, ["quay.test".to_owned()].into());
        let foreign = &outcome.foreign["docker.io"];
        assert_eq!(foreign.what, "10-theirs.conf");
        let paste = foreign.paste.as_ref().unwrap();
        assert!(
            paste.contains("location = \"10.96.0.10:5000/docker.io\""),
            "{paste}"
        );
        let ours = fs::read_to_string(folder.path().join(DROP_IN)).unwrap();
        assert!(
            ours.contains("quay.test") && !ours.contains("docker.io"),
            "{ours}"
        );
        apply(folder.path(), None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn pasted_lines_lead_to_the_cache_and_other_registries_are_not_meant() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = wanted(None);
        let pasted = crio(&wanted.cache, &[registry(&"docker.io".parse().unwrap())]).content;
        let others = "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nprefix = \"notquay.test\"\n\
                      [aliases]\n\"docker.io\" = \"quay.test/x\"\n";
        fs::write(folder.path().join("theirs.conf"), pasted + others).unwrap();
        fs::write(
            folder.path().join("quay.test.conf.bak"),
            "[[registry]]\nprefix = \"quay.test\"\n",
        )
        .unwrap();
        let outcome = apply(folder.path(), Some(&wanted)).unwrap();
        assert_eq!(outcome.foreign["docker.io"].paste, None);
        assert_eq!(outcome.written, ["quay.test".to_owned()].into());
    }

    #[test]
    fn an_administrators_drop_in_of_our_name_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DROP_IN);
        fs::write(&path, "unqualified-search-registries = []\n").unwrap();
        let outcome = apply(folder.path(), Some(&wanted(None))).unwrap();
        assert!(outcome.written.is_empty() && outcome.foreign["docker.io"].paste.is_some());
        assert!(!apply(folder.path(), None).unwrap().removed);
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .starts_with("unqualified")
        );
    }
}
