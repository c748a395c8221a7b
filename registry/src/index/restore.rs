//! What a rebuild brings back from the store, and what a new file gets from memory.
//!
//! Restoring never overwrites: what was learned while serving is newer than what a record says.

use coral_schema::oci::{Digest, Tag};
use rusqlite::{Connection, TransactionBehavior, params};

use super::columns::{self, from_size, from_time};
use super::memory::Memories;
use super::{
    Index, IndexError, ManifestRow, TagRow, VisibilityRow, blobs, manifests, members, tags,
};
use crate::name::RepoKey;

/// Something that the store holds.
#[derive(Debug, Clone)]
pub enum Restored {
    /// Bytes. Whether they are a manifest follows from the manifests restored before.
    Blob {
        /// Of this blob.
        digest: Digest,
        /// So many.
        size: u64,
        /// Did they certainly come from a public repository?
        public: bool,
    },
    /// A manifest record.
    Manifest(RepoKey, Digest, ManifestRow),
    /// A tag record.
    Tag(RepoKey, Tag, TagRow),
    /// A proven membership.
    Member(RepoKey, Digest),
    /// A repository record.
    Visibility(RepoKey, VisibilityRow),
}

impl Index {
    /// Adds the rows that are not there yet, and returns when they are committed.
    pub async fn restore(&self, found: Vec<Restored>) -> Result<(), IndexError> {
        let now = from_time(self.now());
        // Only a file that can tell durable rows from others vouches for bytes after a power loss.
        let durability = if self.distrusts() { 2 } else { 0 };
        let found = std::sync::Arc::new(found);
        let write = {
            let found = found.clone();
            move |db: &Connection| {
                found
                    .iter()
                    .try_for_each(|one| restore(db, one, durability, now))
            }
        };
        self.0.worker.call(write).await?;
        for one in found.iter() {
            self.forget_absence(one);
        }
        Ok(())
    }

    /// Repositories that have, name or are proven to have each of these digests.
    pub async fn repositories_of(
        &self,
        digests: Vec<Digest>,
    ) -> Result<Vec<(Digest, Vec<RepoKey>)>, IndexError> {
        let query = move |db: &Connection| {
            let mut statement = db.prepare_cached(SELECT_REPOSITORIES)?;
            let mut answer = Vec::with_capacity(digests.len());
            for digest in &digests {
                let repos = statement
                    .query_map([digest.bytes()], |row| columns::parsed(row, 0))?
                    .collect::<Result<_, _>>()?;
                answer.push((*digest, repos));
            }
            Ok(answer)
        };
        self.0.worker.scan(query).await
    }

    /// Memory may have it that this does not exist.
    fn forget_absence(&self, restored: &Restored) {
        let memory = &self.0.memory;
        match restored {
            Restored::Blob { digest, .. } => memory.blobs.forget(digest),
            Restored::Manifest(repo, digest, row) => {
                memory.manifests.forget(&(repo.clone(), *digest));
                for child in &row.children {
                    memory.children.forget(&(repo.clone(), child.digest));
                }
            }
            Restored::Tag(repo, tag, _) => memory.tags.forget(&(repo.clone(), tag.clone())),
            Restored::Member(repo, digest) => memory.members.forget(&(repo.clone(), *digest)),
            Restored::Visibility(repo, _) => memory.visibility.forget(repo),
        }
    }
}

fn restore(db: &Connection, found: &Restored, durability: u8, now: i64) -> rusqlite::Result<()> {
    match found {
        Restored::Blob {
            digest,
            size,
            public,
        } => db
            .prepare_cached(RESTORE_BLOB)?
            .execute(params![
                digest.bytes(),
                from_size(*size),
                public,
                durability,
                now
            ])
            .map(drop),
        Restored::Manifest(repo, digest, row) => {
            let repo = repo.to_string();
            if manifests::exists(db, &repo, digest)? {
                return Ok(());
            }
            manifests::insert(db, &repo, digest, row)
        }
        Restored::Tag(repo, tag, row) => tags::restore(db, &repo.to_string(), tag, row),
        Restored::Member(repo, digest) => members::insert_member(db, &repo.to_string(), digest),
        Restored::Visibility(repo, row) => members::restore_visibility(db, &repo.to_string(), row),
    }
}

/// Writes what memory holds into a file that was just made.
pub(super) fn reenter(db: &mut Connection, memory: &Memories) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (digest, row) in memory.blobs.held() {
        blobs::reenter(&transaction, &digest, &row)?;
    }
    for (key, row) in memory.manifests.held() {
        manifests::insert(&transaction, &key.0.to_string(), &key.1, &row)?;
    }
    for (key, row) in memory.tags.held() {
        tags::put(&transaction, &key.0.to_string(), &key.1, &row)?;
    }
    for (key, ()) in memory.members.held() {
        members::insert_member(&transaction, &key.0.to_string(), &key.1)?;
    }
    for (repo, row) in memory.visibility.held() {
        members::put_visibility(&transaction, &repo.to_string(), &row)?;
    }
    transaction.commit()
}

/// Its last use is unknown: it counts as used now, and as stored long ago.
const RESTORE_BLOB: &str = "
INSERT INTO blobs (digest, size, state, public, manifest, durability, stored, last_use)
VALUES (?1, ?2, 0, ?3, EXISTS (SELECT 1 FROM manifests WHERE digest = ?1), ?4, 0, ?5)
ON CONFLICT (digest) DO UPDATE SET public = MAX(public, excluded.public)";

const SELECT_REPOSITORIES: &str = "
SELECT repo FROM children WHERE child = ?1
UNION SELECT repo FROM manifests WHERE digest = ?1
UNION SELECT repo FROM members WHERE digest = ?1";
