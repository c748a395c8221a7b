//! The `.state` file beside a part file, and what of it an upload's has, too.

use std::fs;
use std::io;
use std::path::Path;

use coral_schema::oci::{Algorithm, Hasher};
use serde::{Deserialize, Serialize};

use super::tail::Mark;
use crate::store::run::Run;

/// What a fill needs to go on after a restart.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SavedState {
    #[serde(flatten)]
    pub(super) saved: SavedMark,
    pub(super) size: Option<u64>,
    pub(super) origins: Vec<String>,
}

/// How far a file is, as its state says it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::store) struct SavedMark {
    version: u32,
    /// Who wrote it.
    run: Run,
    /// So many bytes are in the file, at least.
    offset: u64,
    /// The hash state at that offset, hexadecimal.
    hash: String,
}

impl SavedMark {
    pub(in crate::store) fn new(run: &Run, mark: &Mark) -> Self {
        Self {
            version: VERSION,
            run: run.clone(),
            offset: mark.offset,
            hash: to_hex(&mark.hasher.save()),
        }
    }

    /// Is it of a form that we know, and written in the boot of `run`?
    pub(in crate::store) fn is_usable(&self, run: &Run) -> bool {
        self.version == VERSION && self.run.shares_boot(run)
    }

    /// Did `run` write it?
    pub(in crate::store) fn is_of(&self, run: &Run) -> bool {
        self.run == *run
    }

    /// How far the file was, if `algorithm` is the one that it was hashed with.
    pub(in crate::store) fn mark(&self, algorithm: Algorithm) -> Option<Mark> {
        Some(Mark {
            offset: self.offset,
            hasher: Hasher::restore(algorithm, &from_hex(&self.hash)?)?,
        })
    }
}

impl SavedState {
    pub(super) fn new(run: &Run, mark: &Mark, size: Option<u64>, origins: &[String]) -> Self {
        Self {
            saved: SavedMark::new(run, mark),
            size,
            origins: origins.to_vec(),
        }
    }

    /// Replaces the file. Not synced: after a power loss it is not believed anyway.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension(TEMPORARY);
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(&temporary, path)
    }

    /// The state in the file, if it was written in the boot of `run`.
    pub(super) fn read(path: &Path, run: &Run) -> Option<Self> {
        let state: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        state.saved.is_usable(run).then_some(state)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::try_from(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?).ok();
    pairs.map(byte).collect()
}

/// The extension of a state that is being written.
pub(super) const TEMPORARY: &str = "state-tmp";

const VERSION: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_comes_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        for text in ["0", "0g", "012", "ä"] {
            assert_eq!(from_hex(text), None);
        }
    }

    #[test]
    fn a_state_counts_only_in_its_boot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.state");
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(b"12345");
        let origins = ["https://a.example/x".to_owned()];
        let run = Run::begin().unwrap();
        let mark = Mark { offset: 5, hasher };
        let state = SavedState::new(&run, &mark, Some(9), &origins);
        state.write(&path).unwrap();

        let read = SavedState::read(&path, &Run::begin().unwrap()).unwrap();
        assert_eq!((&read.saved.run, read.size), (&run, Some(9)));
        assert_eq!(read.origins, origins);
        let restored = read.saved.mark(Algorithm::Sha256).unwrap();
        assert_eq!(restored.offset, 5);
        assert_eq!(restored.hasher.finish(), mark.hasher.finish());
        assert!(read.saved.mark(Algorithm::Sha512).is_none());
        assert!(SavedState::read(&path, &Run::of_another_boot()).is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
