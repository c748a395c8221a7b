//! CRI-O: one drop-in in `registries.conf.d`, read on reload or with `auto_reload_registries`. Blocks.

use std::fs;
use std::io;
use std::path::Path;

use coral_schema::mirror_config::{Registry, crio};

use super::files::{self, Content};
use super::{Outcome, Wanted};

const DROP_IN: &str = "50-coral.conf";

/// Makes the drop-in in `folder` what is wanted, or removes it if it is ours.
pub(super) fn apply(folder: &Path, wanted: Option<&Wanted>) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    fs::metadata(folder)?;
    let Some(wanted) = wanted else {
        outcome.removed = files::remove(folder, DROP_IN)?;
        files::remove_temporary(folder)?;
        return Ok(outcome);
    };
    let registries: Vec<Registry> = wanted.registries.iter().map(registry).collect();
    let text = crio(&wanted.cache, &registries).content;
    let theirs = match files::read(&folder.join(DROP_IN))? {
        Content::Theirs(theirs) => Some(theirs),
        Content::Ours(before) if before == text => None,
        Content::Ours(_) | Content::Absent => {
            files::write(folder, DROP_IN, &text)?;
            None
        }
    };
    for registry in registries {
        let name = registry.host.to_string();
        match &theirs {
            Some(theirs) => outcome.foreign(name, DROP_IN.to_owned(), theirs.contains(&text)),
            // A mirror's location cannot hold a port.
            None if registry.host.port().is_some() => {
                let problem = io::Error::other("CRI-O cannot mirror a registry with a port");
                outcome.failed(&name, &problem);
            }
            None => outcome.written(name),
        }
    }
    Ok(outcome)
}

fn registry(host: &coral_schema::mirror_config::HostPort) -> Registry {
    Registry {
        host: host.clone(),
        aliases: Vec::new(),
        plain_http: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            cache: "http://10.96.0.10:5000".parse().unwrap(),
            authority: None,
            registries: ["docker.io", "r.test:5000"]
                .map(|name| name.parse().unwrap())
                .into(),
        }
    }

    #[test]
    fn the_drop_in_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let outcome = apply(folder.path(), Some(&wanted())).unwrap();
        assert_eq!(outcome.written, ["docker.io".to_owned()].into());
        assert!(outcome.problems[0].contains("r.test:5000"));
        let text = fs::read_to_string(folder.path().join(DROP_IN)).unwrap();
        assert!(
            text.contains("location = \"10.96.0.10:5000/docker.io\""),
            "{text}"
        );
        assert!(apply(folder.path(), None).unwrap().removed);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_administrators_drop_in_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DROP_IN);
        fs::write(&path, "unqualified-search-registries = []\n").unwrap();
        let outcome = apply(folder.path(), Some(&wanted())).unwrap();
        assert!(outcome.written.is_empty() && !outcome.foreign["docker.io"].leads_to_cache);
        assert!(!apply(folder.path(), None).unwrap().removed);
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .starts_with("unqualified")
        );
    }
}
