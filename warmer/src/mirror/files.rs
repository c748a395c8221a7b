//! Files with our marker, and nothing else: reading, replacing and removing them. Blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use coral_schema::mirror_config::MARKER;

/// A file that is being written. Its name is hidden and ends like no file that a runtime reads.
pub(super) const TEMPORARY: &str = ".coral-warmer.new";
/// Ours are shorter; of others' only the beginning matters.
const LONGEST: u64 = 256 << 10;

/// What stands under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Absent,
    /// With our marker; what follows it.
    Ours(String),
    /// Somebody else's; its text, if it is a file with text.
    Theirs(String),
}

/// A link is never ours, wherever it leads.
pub(super) fn read(path: &Path) -> io::Result<Content> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if is_absent(&error) => return Ok(Content::Absent),
        Err(error) => return Err(error),
    };
    if !kind.is_file() {
        let text = fs::metadata(path).is_ok_and(|target| target.is_file());
        let text = if text { text_of(path)? } else { String::new() };
        return Ok(Content::Theirs(text));
    }
    let text = text_of(path)?;
    let after_marker = text
        .strip_prefix(MARKER)
        .and_then(|rest| rest.strip_prefix('\n'));
    Ok(match after_marker {
        Some(rest) => Content::Ours(rest.to_owned()),
        None => Content::Theirs(text),
    })
}

fn text_of(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Puts `content` behind our marker into `folder/name`, as a whole or not at all. The caller has made sure that what is
/// there is ours.
pub(super) fn write(folder: &Path, name: &str, content: &str) -> io::Result<()> {
    let temporary = folder.join(TEMPORARY);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)?;
    write!(file, "{MARKER}\n{content}")?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(name))
}

/// Removes `folder/name` if it is ours. Was it there?
pub(super) fn remove(folder: &Path, name: &str) -> io::Result<bool> {
    let path = folder.join(name);
    if !matches!(read(&path)?, Content::Ours(_)) {
        return Ok(false);
    }
    fs::remove_file(path)?;
    Ok(true)
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// A missing file is as good as a removed one.
pub(super) fn remove_temporary(folder: &Path) -> io::Result<()> {
    match fs::remove_file(folder.join(TEMPORARY)) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_with_the_marker_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(read(&path("none")).unwrap(), Content::Absent);
        write(folder.path(), "ours", "text\n").unwrap();
        assert_eq!(
            read(&path("ours")).unwrap(),
            Content::Ours("text\n".to_owned())
        );
        assert!(!path(TEMPORARY).exists());
        fs::write(path("theirs"), "text\n").unwrap();
        assert_eq!(
            read(&path("theirs")).unwrap(),
            Content::Theirs("text\n".to_owned())
        );
        std::os::unix::fs::symlink(path("ours"), path("link")).unwrap();
        assert!(matches!(read(&path("link")).unwrap(), Content::Theirs(_)));
        fs::create_dir(path("folder")).unwrap();
        assert_eq!(
            read(&path("folder")).unwrap(),
            Content::Theirs(String::new())
        );

        for (name, removed) in [
            ("ours", true),
            ("theirs", false),
            ("link", false),
            ("none", false),
        ] {
            assert_eq!(remove(folder.path(), name).unwrap(), removed, "{name}");
        }
        assert!(path("theirs").exists() && !path("ours").exists());
    }
}
