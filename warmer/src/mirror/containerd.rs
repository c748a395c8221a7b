//! containerd: a folder per registry below `certs.d`, with a `hosts.toml` of ours. Blocks.
//!
//! containerd takes the first folder that exists of `host_port_`, `host:port` and `_default`, and nothing from the
//! others. So a folder of ours beside one of these would change what an administrator's means: then ours is taken away.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use coral_schema::mirror_config::{HostPort, containerd_hosts};

use super::files::{self, Content, TEMPORARY};
use super::{Outcome, Wanted};

const HOSTS: &str = "hosts.toml";
// Not `.crt`: with that ending it would count by itself as soon as hosts.toml is gone.
const AUTHORITY: &str = "coral-ca.pem";
const DEFAULT: &str = "_default";
/// Folders looked at: far more than registries that anybody configures.
const MOST_FOLDERS: usize = 4096;

/// Makes the folders below `root` what is wanted, and removes what is ours and not wanted.
pub(super) fn apply(root: &Path, wanted: Option<&Wanted>) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut folders = folders(root)?;
    for registry in wanted.iter().flat_map(|wanted| &wanted.registries) {
        let name = registry.to_string();
        let before = folders.remove(&name);
        let others = obstacle(root, registry, before.as_ref());
        let applied = match (wanted, others) {
            (Some(wanted), None) => write(root, &name, before, wanted).map(|()| None),
            (Some(wanted), Some((what, hosts))) => {
                let lines = || containerd_hosts(&wanted.cache, None);
                let paste = (!leads_to(&hosts, wanted)).then(lines);
                retreat(root, &name).map(|_| Some((what, paste)))
            }
            (None, _) => continue,
        };
        match applied {
            Ok(None) => outcome.written(name),
            Ok(Some((what, paste))) => outcome.foreign(name, what, paste),
            Err(error) => outcome.failed(&name, &error),
        }
    }
    for name in folders.into_keys() {
        match retreat(root, &name) {
            Ok(removed) => outcome.removed |= removed,
            Err(error) => outcome.failed(&name, &error),
        }
    }
    Ok(outcome)
}

/// One folder below `certs.d`.
#[derive(Debug, Default)]
struct Folder {
    hosts: Option<String>,
    authority: Option<String>,
    /// Something that we did not write, and the text of a foreign `hosts.toml`.
    foreign: Option<(String, String)>,
}

fn folders(root: &Path) -> io::Result<BTreeMap<String, Folder>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root)?.take(MOST_FOLDERS) {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string() {
            found.insert(name, folder(&entry.path())?);
        }
    }
    Ok(found)
}

fn folder(path: &Path) -> io::Result<Folder> {
    let mut folder = Folder::default();
    if !fs::symlink_metadata(path)?.is_dir() {
        folder.foreign = Some(("it is no folder".to_owned(), String::new()));
        return Ok(folder);
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let slot = match name.as_str() {
            HOSTS => &mut folder.hosts,
            AUTHORITY => &mut folder.authority,
            TEMPORARY => continue,
            _ => {
                folder.foreign.get_or_insert((name, String::new()));
                continue;
            }
        };
        match files::read(&entry.path())? {
            Content::Absent => {}
            Content::Ours(text) => *slot = Some(text),
            Content::Theirs(text) => folder.foreign = Some((name, text)),
        }
    }
    Ok(folder)
}

/// What of an administrator's is in the way, and the text of the `hosts.toml` that counts instead of ours.
fn obstacle(root: &Path, registry: &HostPort, own: Option<&Folder>) -> Option<(String, String)> {
    let twin = registry
        .port()
        .map(|port| format!("{}_{port}_", registry.host()));
    if let Some(foreign) = own.and_then(|own| own.foreign.clone()) {
        return Some(foreign);
    }
    let in_the_way = twin.into_iter().chain([DEFAULT.to_owned()]);
    in_the_way
        .into_iter()
        .find(|name| fs::symlink_metadata(root.join(name)).is_ok())
        .map(|name| {
            let hosts = match files::read(&root.join(&name).join(HOSTS)) {
                Ok(Content::Theirs(text)) => text,
                _ => String::new(),
            };
            (name, hosts)
        })
}

/// Has an administrator pasted our lines?
fn leads_to(hosts: &str, wanted: &Wanted) -> bool {
    let section = format!("[host.\"{}\"]", wanted.cache.url());
    hosts.lines().any(|line| line.trim() == section)
}

fn write(root: &Path, name: &str, before: Option<Folder>, wanted: &Wanted) -> io::Result<()> {
    let path = root.join(name);
    if before.is_none() {
        fs::create_dir(&path)?;
    }
    let before = before.unwrap_or_default();
    // The certificate stands before, and as long as, the file that names it.
    if let Some(authority) = &wanted.authority
        && before.authority.as_ref() != Some(authority)
    {
        files::write(&path, AUTHORITY, authority)?;
    }
    let hosts = containerd_hosts(&wanted.cache, wanted.authority.as_ref().map(|_| AUTHORITY));
    if before.hosts.as_ref() != Some(&hosts) {
        files::write(&path, HOSTS, &hosts)?;
    }
    if wanted.authority.is_none() {
        files::remove(&path, AUTHORITY)?;
    }
    files::remove_temporary(&path)
}

/// Takes away what is ours; and the folder, if that leaves it empty. Was there anything?
fn retreat(root: &Path, name: &str) -> io::Result<bool> {
    let path = root.join(name);
    let hosts = files::remove(&path, HOSTS)?;
    let authority = files::remove(&path, AUTHORITY)?;
    if hosts || authority {
        files::remove_temporary(&path)?;
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => return Err(error),
            _ => {}
        }
    }
    Ok(hosts || authority)
}

#[cfg(test)]
mod tests {
    use coral_schema::mirror_config::MARKER;

    use super::*;

    fn wanted(registries: &[&str], authority: Option<&str>) -> Wanted {
        Wanted {
            cache: "http://10.96.0.10:5000".parse().unwrap(),
            authority: authority.map(str::to_owned),
            registries: registries
                .iter()
                .map(|name| name.parse().unwrap())
                .collect(),
        }
    }

    /// Every file below the folder, by its path, with its content.
    fn tree(root: &Path) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for folder in fs::read_dir(root).unwrap() {
            let folder = folder.unwrap().path();
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            found.insert(name.clone(), String::new());
            for file in fs::read_dir(&folder).unwrap() {
                let file = file.unwrap();
                let text = fs::read_to_string(file.path()).unwrap();
                found.insert(
                    format!("{name}/{}", file.file_name().to_str().unwrap()),
                    text,
                );
            }
        }
        found
    }

    #[test]
    fn files_come_change_and_go() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let first = apply(root, Some(&wanted(&["docker.io", "r.test:5000"], None))).unwrap();
        assert_eq!(
            first.written,
            ["docker.io".to_owned(), "r.test:5000".to_owned()].into()
        );
        let text = "[host.\"http://10.96.0.10:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"400ms\"\n";
        assert_eq!(
            tree(root)["docker.io/hosts.toml"],
            format!("{MARKER}\n{text}")
        );
        assert_eq!(tree(root).len(), 4);

        apply(root, Some(&wanted(&["r.test:5000"], Some("PEM\n")))).unwrap();
        let found = tree(root);
        assert_eq!(
            found["r.test:5000/coral-ca.pem"],
            format!("{MARKER}\nPEM\n")
        );
        assert!(found["r.test:5000/hosts.toml"].ends_with("  ca = \"coral-ca.pem\"\n"));
        assert!(
            !found.contains_key("docker.io"),
            "the registry left the spec"
        );

        fs::write(root.join("r.test:5000").join(TEMPORARY), "half").unwrap();
        apply(root, Some(&wanted(&["r.test:5000"], None))).unwrap();
        assert_eq!(tree(root).len(), 2, "{:?}", tree(root));
        assert!(apply(root, None).unwrap().removed);
        assert!(tree(root).is_empty());
        assert!(!apply(root, None).unwrap().removed);
    }

    #[test]
    fn what_stands_already_is_not_written_again() {
        use std::os::unix::fs::MetadataExt as _;
        let root = tempfile::tempdir().unwrap();
        let wanted = wanted(&["docker.io"], Some("PEM\n"));
        let inode = || {
            fs::metadata(root.path().join("docker.io/hosts.toml"))
                .unwrap()
                .ino()
        };
        apply(root.path(), Some(&wanted)).unwrap();
        let before = inode();
        apply(root.path(), Some(&wanted)).unwrap();
        assert_eq!(inode(), before);
    }

    /// A lone certificate would lose its meaning beside a hosts.toml.
    #[rstest::rstest]
    #[case("r.test:5000/hosts.toml", "server = \"https://r.test:5000\"\n")]
    #[case("r.test:5000/ca.crt", "PEM")]
    #[case("r.test:5000/notes.txt", "")]
    #[case("r.test_5000_/hosts.toml", "")]
    #[case("r.test_5000_/ca.crt", "")]
    #[case("_default/hosts.toml", "")]
    fn an_administrators_files_are_left_alone(#[case] path: &str, #[case] text: &str) {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let wanted = wanted(&["r.test:5000"], Some("PEM\n"));
        // Ours stood there before: it goes, since it would change what theirs means.
        apply(root, Some(&wanted)).unwrap();
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), text).unwrap();
        let outcome = apply(root, Some(&wanted)).unwrap();
        assert!(outcome.written.is_empty());
        let foreign = &outcome.foreign["r.test:5000"];
        assert!(foreign.paste.is_some(), "{foreign:?}");
        let mut left = tree(root);
        left.retain(|_, text| !text.is_empty());
        let theirs: BTreeMap<_, _> = [(path.to_owned(), text.to_owned())].into();
        assert!(left.is_empty() || left == theirs, "{left:?}");
        assert_eq!(fs::read_to_string(root.join(path)).unwrap(), text);
        apply(root, None).unwrap();
        assert_eq!(fs::read_to_string(root.join(path)).unwrap(), text);
    }

    #[test]
    fn pasted_lines_lead_to_the_cache() {
        let root = tempfile::tempdir().unwrap();
        let wanted = wanted(&["r.test"], None);
        fs::create_dir(root.path().join("r.test")).unwrap();
        let text = containerd_hosts(&wanted.cache, None);
        fs::write(root.path().join("r.test/hosts.toml"), text).unwrap();
        let outcome = apply(root.path(), Some(&wanted)).unwrap();
        assert_eq!(outcome.foreign["r.test"].paste, None);
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        assert!(apply(&root.path().join("none"), None).is_err());
    }
}
