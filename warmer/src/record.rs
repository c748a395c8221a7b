//! What the warmer knows about the images of its node and cannot ask the runtime: which were absent before it pulled
//! them, what the node removed, which tries failed. A small file in the state folder.
//!
//! Losing it is safe: then nothing counts as ours, and nothing is ever removed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use coral_schema::crd::Reason;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::disk::Ratios;
use crate::presence::Evictions;

/// The file's name within the state folder.
pub const FILE: &str = "record.json";
const TEMPORARY: &str = "record.json.new";
const ASIDE: &str = "record.json.damaged";
const VERSION: u32 = 1;

/// What is known, by the spelling of the image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// One per image that is or was wished for and is still on the node.
    pub images: BTreeMap<String, Entry>,
    /// How much room compressed bytes take.
    pub ratios: Ratios,
    /// When the node held everything for the first time.
    #[serde(default)]
    pub first_ready: Option<FirstReady>,
}

/// When a node held everything for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstReady {
    /// Another UID under the same name is another node.
    #[serde(rename = "nodeUID")]
    pub node_uid: String,
    /// When.
    pub time: Timestamp,
}

/// What is known of one image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The image that our pull brought; `None` if we never pulled it, or it was there before.
    #[serde(default)]
    pub ours: Option<String>,
    /// The revision that was pulled, or found present.
    #[serde(default)]
    pub revision: u64,
    /// Since when the node holds it, as of the last look.
    #[serde(default)]
    pub held_since: Option<Timestamp>,
    /// How the node removed it.
    #[serde(default)]
    pub evictions: Evictions,
    /// Tries that failed since it was last held.
    #[serde(default)]
    pub failure: Option<Failure>,
}

/// A row of failed tries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// How many.
    pub attempts: u32,
    /// The revision that was tried.
    pub revision: u64,
    /// Why the last one failed.
    pub reason: Reason,
    /// The same in the runtime's words.
    pub message: String,
    /// Not tried again before.
    pub next: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Stored<R> {
    version: u32,
    #[serde(flatten)]
    record: R,
}

impl Record {
    /// What the folder holds. A damaged file, or one of a later version, is moved aside.
    pub fn load(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let stored =
            serde_json::from_slice::<Stored<Self>>(&text).map_err(|error| error.to_string());
        let problem = match stored {
            Ok(stored) if stored.version == VERSION => return Ok(stored.record),
            Ok(stored) => format!("it has version {}", stored.version),
            Err(error) => error,
        };
        tracing::warn!(
            problem,
            "the record of our pulls cannot be read and is moved aside: no image counts as pulled by us"
        );
        fs::rename(&path, folder.join(ASIDE))?;
        Ok(Self::default())
    }

    /// Replaces the file as a whole; afterwards it survives a power cut.
    pub fn store(&self, folder: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(&Stored {
            version: VERSION,
            record: self,
        })?;
        let temporary = folder.join(TEMPORARY);
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, folder.join(FILE))?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let mut record = Record::default();
        let entry = Entry {
            ours: Some("sha256:1".to_owned()),
            revision: 3,
            failure: Some(Failure {
                attempts: 2,
                revision: 3,
                reason: Reason::RateLimited,
                message: "slow down".to_owned(),
                next: Timestamp::UNIX_EPOCH,
            }),
            ..Entry::default()
        };
        record.images.insert("nginx:1.27".to_owned(), entry);
        record
    }

    #[test]
    fn l22_what_was_stored_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Record::load(folder.path()).unwrap(), Record::default());
        record().store(folder.path()).unwrap();
        assert_eq!(Record::load(folder.path()).unwrap(), record());
        assert!(!folder.path().join(TEMPORARY).exists());
    }

    #[rstest::rstest]
    #[case::garbage("{\"version\":1,\"images\":")]
    #[case::empty("")]
    #[case::of_a_later_version(r#"{"version":2,"images":{},"ratios":{}}"#)]
    fn l08_with_a_damaged_record_nothing_is_ours(#[case] text: &str) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), text).unwrap();
        assert_eq!(Record::load(folder.path()).unwrap(), Record::default());
        let aside = fs::read_to_string(folder.path().join(ASIDE)).unwrap();
        assert_eq!(aside, text, "kept for whoever wants to know");
        record().store(folder.path()).unwrap();
        assert_eq!(Record::load(folder.path()).unwrap(), record());
    }

    /// The file outlives the program that wrote it.
    #[test]
    fn the_form_is_a_promise() {
        let text = r#"{"version":1,"images":{"nginx:1.27":{"ours":"sha256:1","revision":3,"heldSince":null,
            "evictions":{"total":0,"recent":[],"pauses":0,"until":null,"cause":null},"failure":{"attempts":2,"revision":3,
            "reason":"RateLimited","message":"slow down","next":"1970-01-01T00:00:00Z"}}},
            "ratios":{"images":{},"mean":3.0},"firstReady":null}"#;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), text).unwrap();
        assert_eq!(Record::load(folder.path()).unwrap(), record());
    }
}
