//! What wrong bytes leave behind for a while.

use std::sync::Arc;
use std::time::Duration;

use coral_schema::oci::Digest;
use moka::sync::Cache;

use super::download::Source;

/// Remembers who sent wrong bytes, and which blobs could not be blamed on one source.
#[derive(Debug)]
pub(super) struct Suspects {
    poisoned: Cache<(Digest, Arc<str>), ()>,
    mixed: Cache<Digest, ()>,
}

impl Default for Suspects {
    fn default() -> Self {
        let bounded = || Cache::builder().max_capacity(MOST).time_to_live(LASTS);
        Self {
            poisoned: bounded().build(),
            mixed: Cache::builder()
                .max_capacity(MOST)
                .time_to_live(LASTS)
                .build(),
        }
    }
}

impl Suspects {
    /// `source` alone sent bytes that do not match.
    pub(super) fn poison(&self, digest: &Digest, source: &Source) {
        self.poisoned.insert((*digest, source.key()), ());
    }

    /// Shall `source` not be asked for this digest now?
    pub(super) fn is_poisoned(&self, digest: &Digest, source: &Source) -> bool {
        self.poisoned.contains_key(&(*digest, source.key()))
    }

    /// Bytes of several sources, or of a resumed part, do not match: nobody is to blame yet.
    pub(super) fn fetch_whole(&self, digest: &Digest) {
        self.mixed.insert(*digest, ());
    }

    /// Shall the next download come from one source, from its first byte?
    pub(super) fn must_fetch_whole(&self, digest: &Digest) -> bool {
        self.mixed.contains_key(digest)
    }
}

/// How long a source that sent wrong bytes is not asked for that blob.
const LASTS: Duration = Duration::from_secs(30);
/// Entries kept; beyond that the oldest is forgotten, which costs one more download.
const MOST: u64 = 10_000;
