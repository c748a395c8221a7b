//! Who wrote a state file, and so what its hash state is worth; and names that nobody can guess.
//!
//! What this run of the process wrote is as it says: the bytes went into the file before their hash was saved. What an
//! earlier run wrote in this boot reached the page cache, but the volume may have been detached, repaired or restored
//! since: its bytes are read again before anybody gets them (H-03). After another boot the file may have the length
//! without the bytes, and is dropped (H-09).

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// One run of the process, or rather one opening of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Run {
    boot_id: String,
    id: String,
}

impl Run {
    /// The one that begins now.
    pub(super) fn begin() -> io::Result<Self> {
        Ok(Self {
            boot_id: read(BOOT_ID)?,
            id: uuid()?,
        })
    }

    /// Has the machine not been started anew between the two?
    pub(super) fn shares_boot(&self, other: &Self) -> bool {
        self.boot_id == other.boot_id
    }
}

/// A random one: 122 bits that nobody can guess, with hyphens.
pub(super) fn uuid() -> io::Result<String> {
    read(RANDOM_UUID)
}

fn read(path: &str) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{path}: {error}"))),
    }
}

/// Changes with every boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A new one at every read (random(4)).
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";

#[cfg(test)]
impl Run {
    /// One of another boot.
    pub(super) fn of_another_boot() -> Self {
        Self {
            boot_id: "another".to_owned(),
            id: uuid().unwrap(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_differ_and_share_their_boot() {
        let [first, second] = [(); 2].map(|()| Run::begin().unwrap());
        assert_ne!(first, second);
        assert!(first.shares_boot(&second) && !first.shares_boot(&Run::of_another_boot()));
    }
}
