//! What a hit is answered from: per table a bounded cache of rows, absent ones included, and over it everything that
//! was written but is not in the file yet. Both change under one lock, so a slow read never overwrites a newer write.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coral_schema::oci::{Digest, Tag};
use moka::sync::Cache;

use super::{BlobRow, ChildRow, ManifestRow, TagRow, VisibilityRow};
use crate::name::RepoKey;

/// The memory of all tables.
#[derive(Debug)]
pub(super) struct Memories {
    pub(super) blobs: Memory<Digest, BlobRow>,
    pub(super) manifests: Memory<(RepoKey, Digest), Arc<ManifestRow>>,
    pub(super) children: Memory<(RepoKey, Digest), ChildRow>,
    pub(super) tags: Memory<(RepoKey, Tag), Arc<TagRow>>,
    pub(super) members: Memory<(RepoKey, Digest), ()>,
    pub(super) visibility: Memory<RepoKey, VisibilityRow>,
}

impl Memories {
    /// Some 40 MiB when all are full; a busy cluster's working set fits several times.
    pub(super) fn new() -> Self {
        Self {
            blobs: Memory::new(65_536),
            manifests: Memory::weighing(16 << 20, |row| manifest_weight(row)),
            children: Memory::new(65_536),
            tags: Memory::new(32_768),
            members: Memory::new(65_536),
            visibility: Memory::new(16_384),
        }
    }

    /// Rows of repositories may have changed in ways that nobody listed.
    pub(super) fn forget_repositories(&self) {
        self.manifests.forget_all();
        self.children.forget_all();
        self.tags.forget_all();
        self.members.forget_all();
        self.visibility.forget_all();
    }
}

/// Bytes, roughly: a manifest may name 10,000 children.
fn manifest_weight(row: &ManifestRow) -> usize {
    let annotations: usize = row.annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    512 + annotations + row.children.len() * 256
}

/// The memory of one table.
pub(super) struct Memory<K, V> {
    cache: Cache<K, Option<V>>,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    /// Written, not committed: bounded by the writer's queue and backlog.
    pending: HashMap<K, (Version, Option<V>)>,
    version: Version,
}

/// Grows with every change; a read that was begun before a change must not be remembered after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version(u64);

impl<K, V> Memory<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn new(entries: u64) -> Self {
        Self::over(Cache::new(entries))
    }

    fn weighing(bytes: u64, weight: fn(&V) -> usize) -> Self {
        let weigher = move |_: &K, row: &Option<V>| {
            u32::try_from(row.as_ref().map_or(256, weight)).unwrap_or(u32::MAX)
        };
        Self::over(
            Cache::builder()
                .max_capacity(bytes)
                .weigher(weigher)
                .build(),
        )
    }

    fn over(cache: Cache<K, Option<V>>) -> Self {
        Self {
            cache,
            state: Mutex::new(State {
                pending: HashMap::new(),
                version: Version(0),
            }),
        }
    }

    /// The row if it is known (`Some(None)`: known to be absent), else the version to give to [`Memory::fill`].
    pub(super) fn get(&self, key: &K) -> Result<Option<V>, Version> {
        if let Some(known) = self.cache.get(key) {
            return Ok(known);
        }
        let state = self.lock();
        match state.pending.get(key) {
            Some((_, row)) => Ok(row.clone()),
            None => Err(state.version),
        }
    }

    /// Remembers what was read from the file, unless something was written since.
    pub(super) fn fill(&self, key: K, read: Option<V>, since: Version) -> Option<V> {
        let state = self.lock();
        if let Some((_, row)) = state.pending.get(&key) {
            return row.clone();
        }
        if state.version == since {
            self.cache.insert(key, read.clone());
        }
        read
    }

    /// A write: known to everybody from now on. [`Memory::settled`] must follow.
    pub(super) fn set(&self, key: K, row: Option<V>) -> Version {
        self.update(key, |_| row)
    }

    /// A write that depends on the present row, as far as it is known.
    pub(super) fn update(&self, key: K, change: impl FnOnce(Option<V>) -> Option<V>) -> Version {
        let mut state = self.lock();
        let present = match state.pending.get(&key) {
            Some((_, row)) => row.clone(),
            None => self.cache.get(&key).flatten(),
        };
        let row = change(present);
        let version = state.advance();
        state.pending.insert(key.clone(), (version, row.clone()));
        self.cache.insert(key, row);
        version
    }

    /// The write of this version is in the file, or was given up.
    pub(super) fn settled(&self, key: &K, version: Version) {
        let mut state = self.lock();
        if state.pending.get(key).is_some_and(|(of, _)| *of == version) {
            state.pending.remove(key);
        }
        state.advance();
    }

    /// The file may say something else than what is remembered of this key.
    pub(super) fn forget(&self, key: &K) {
        let mut state = self.lock();
        state.advance();
        self.cache.invalidate(key);
    }

    fn forget_all(&self) {
        let mut state = self.lock();
        state.advance();
        self.cache.invalidate_all();
    }

    /// Rows that are written but not committed.
    pub(super) fn pending(&self, matching: impl Fn(&K) -> bool) -> Vec<(K, Option<V>)> {
        let state = self.lock();
        let pending = state.pending.iter().filter(|(key, _)| matching(key));
        pending
            .map(|(key, (_, row))| (key.clone(), row.clone()))
            .collect()
    }

    /// All rows that the cache holds.
    pub(super) fn held(&self) -> impl Iterator<Item = (Arc<K>, V)> + '_ {
        self.cache.iter().filter_map(|(key, row)| Some((key, row?)))
    }

    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V> State<K, V> {
    fn advance(&mut self) -> Version {
        self.version.0 += 1;
        self.version
    }
}

impl<K, V> fmt::Debug for Memory<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_began_before_a_write_is_not_remembered() {
        let memory = Memory::<u8, u8>::new(10);
        let since = memory.get(&1).unwrap_err();
        let version = memory.set(1, Some(2));
        assert_eq!(memory.fill(1, None, since), Some(2), "pending wins");
        memory.settled(&1, version);
        assert_eq!(
            memory.fill(1, None, since),
            None,
            "answered, as the read began first"
        );
        assert_eq!(memory.get(&1), Ok(Some(2)), "but not remembered");
    }

    #[test]
    fn what_is_not_committed_survives_the_cache() {
        let memory = Memory::<u8, u8>::new(10);
        let first = memory.set(1, Some(2));
        let second = memory.set(1, Some(3));
        memory.cache.invalidate_all();
        memory.settled(&1, first);
        assert_eq!(memory.get(&1), Ok(Some(3)));
        memory.settled(&1, second);
        assert!(memory.get(&1).is_err());
    }

    #[test]
    fn absence_is_remembered_until_it_ends() {
        let memory = Memory::<u8, u8>::new(10);
        let since = memory.get(&1).unwrap_err();
        memory.fill(1, None, since);
        assert_eq!(memory.get(&1), Ok(None));
        memory.forget(&1);
        assert!(memory.get(&1).is_err());
    }
}
