//! The marks as memory knows them, so that a reader of what is not marked waits for no thread.
//!
//! Memory may know marks that the file does not have any more, never the other way round: it learns of a mark before the
//! file does, and forgets it after the file did.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use coral_schema::oci::Digest;
use rusqlite::Connection;
use tokio::time::Instant;

use crate::index::columns;
use crate::name::RepoKey;

/// All of them, and when memory learnt of each.
#[derive(Debug, Default)]
pub(in crate::index) struct Marks(RwLock<HashMap<Key, Instant>>);

type Key = (RepoKey, Digest);

impl Marks {
    /// Learns those of the file; whoever waits for their time waits from now on.
    pub(in crate::index) fn read(&self, db: &Connection) -> rusqlite::Result<()> {
        let mut statement = db.prepare_cached(SELECT_MARKS)?;
        let rows = statement.query_map([], |row| {
            Ok((columns::parsed(row, 0)?, columns::digest(row, 1)?))
        })?;
        let keys: Vec<Key> = rows.collect::<Result<_, _>>()?;
        let now = Instant::now();
        self.write().extend(keys.into_iter().map(|key| (key, now)));
        Ok(())
    }

    /// Learns those that there is room for, and says which.
    pub(super) fn insert(&self, repo: &RepoKey, mut digests: Vec<Digest>) -> Vec<Digest> {
        let (mut marks, now) = (self.write(), Instant::now());
        digests.truncate(MOST.saturating_sub(marks.len()));
        marks.extend(digests.iter().map(|digest| ((repo.clone(), *digest), now)));
        digests
    }

    pub(super) fn has(&self, repo: &RepoKey, digest: &Digest) -> bool {
        let marks = self.read_lock();
        !marks.is_empty() && marks.contains_key(&(repo.clone(), *digest))
    }

    pub(super) fn is_older(&self, repo: &RepoKey, digest: &Digest, than: Duration) -> bool {
        let marks = self.read_lock();
        let seen = marks.get(&(repo.clone(), *digest));
        seen.is_some_and(|seen| seen.elapsed() >= than)
    }

    /// Those of these that there are.
    pub(in crate::index) fn known(
        &self,
        repo: &RepoKey,
        digests: &[Digest],
    ) -> Vec<(Key, Instant)> {
        let marks = self.read_lock();
        if marks.is_empty() {
            return Vec::new();
        }
        let known = |digest: &Digest| {
            let key = (repo.clone(), *digest);
            marks.get(&key).map(|seen| (key, *seen))
        };
        digests.iter().filter_map(known).collect()
    }

    /// Forgets them, but not what was marked again since.
    pub(in crate::index) fn remove(&self, known: &[(Key, Instant)]) {
        let mut marks = self.write();
        for (key, seen) in known {
            if marks.get(key) == Some(seen) {
                marks.remove(key);
            }
        }
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, HashMap<Key, Instant>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Key, Instant>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Some 20 MiB of memory. What is more than that waits for the next pass.
const MOST: usize = 100_000;

const SELECT_MARKS: &str = "SELECT repo, digest FROM garbage WHERE NOT taken";
