//! Who may read what: proven membership of digests, and visibility of repositories.

use coral_schema::oci::Digest;
use rusqlite::{Connection, OptionalExtension as _};

use super::columns::{self, from_time};
use super::{Index, IndexError, VisibilityRow};
use crate::name::RepoKey;

impl Index {
    /// Was it proven that this digest belongs to this repository, other than by a manifest?
    pub async fn is_member(&self, repo: &RepoKey, digest: &Digest) -> Result<bool, IndexError> {
        let memory = &self.0.memory.members;
        let key = (repo.clone(), *digest);
        let since = match memory.get(&key) {
            Ok(known) => return Ok(known.is_some()),
            Err(since) => since,
        };
        let (repo, digest) = key.clone();
        let query = move |db: &Connection| {
            db.prepare_cached(SELECT_MEMBER)?
                .exists((repo.to_string(), digest.bytes()))
        };
        let found = self.0.worker.read(query).await?;
        Ok(memory.fill(key, found.then_some(()), since).is_some())
    }

    /// It was proven now.
    pub async fn put_member(&self, repo: &RepoKey, digest: &Digest) -> Result<(), IndexError> {
        let memory = self.0.memory.clone();
        let key = (repo.clone(), *digest);
        let version = memory.members.set(key.clone(), Some(()));
        let (name, digest) = (repo.to_string(), *digest);
        self.0
            .worker
            .submit(
                move |db| insert_member(db, &name, &digest),
                move || memory.members.settled(&key, version),
            )
            .await
    }

    /// What is known of who may read the repository.
    pub async fn visibility(&self, repo: &RepoKey) -> Result<Option<VisibilityRow>, IndexError> {
        let memory = &self.0.memory.visibility;
        let since = match memory.get(repo) {
            Ok(known) => return Ok(known),
            Err(since) => since,
        };
        let name = repo.to_string();
        let query = move |db: &Connection| select_visibility(db, &name);
        let row = self.0.worker.read(query).await?;
        Ok(memory.fill(repo.clone(), row, since))
    }

    /// This was found out.
    pub async fn put_visibility(
        &self,
        repo: &RepoKey,
        row: VisibilityRow,
    ) -> Result<(), IndexError> {
        let memory = self.0.memory.clone();
        let repo = repo.clone();
        let version = memory.visibility.set(repo.clone(), Some(row));
        let name = repo.to_string();
        self.0
            .worker
            .submit(
                move |db| put_visibility(db, &name, &row),
                move || memory.visibility.settled(&repo, version),
            )
            .await
    }
}

fn select_visibility(db: &Connection, repo: &str) -> rusqlite::Result<Option<VisibilityRow>> {
    db.prepare_cached(SELECT_VISIBILITY)?
        .query_row([repo], |row| {
            Ok(VisibilityRow {
                public: row.get(0)?,
                checked: columns::time(row, 1)?,
                refused_since: columns::time_if_any(row, 2)?,
            })
        })
        .optional()
}

/// Once is enough.
pub(super) fn insert_member(db: &Connection, repo: &str, digest: &Digest) -> rusqlite::Result<()> {
    db.prepare_cached(INSERT_MEMBER)?
        .execute((repo, digest.bytes()))
        .map(drop)
}

/// Puts the row in the place of an earlier one.
pub(super) fn put_visibility(
    db: &Connection,
    repo: &str,
    row: &VisibilityRow,
) -> rusqlite::Result<()> {
    execute(db, PUT_VISIBILITY, repo, row)
}

/// Puts the row where none is.
pub(super) fn restore_visibility(
    db: &Connection,
    repo: &str,
    row: &VisibilityRow,
) -> rusqlite::Result<()> {
    execute(db, RESTORE_VISIBILITY, repo, row)
}

fn execute(db: &Connection, sql: &str, repo: &str, row: &VisibilityRow) -> rusqlite::Result<()> {
    db.prepare_cached(sql)?.execute((
        repo,
        row.public,
        from_time(row.checked),
        row.refused_since.map(from_time),
    ))?;
    Ok(())
}

const SELECT_MEMBER: &str = "SELECT 1 FROM members WHERE repo = ?1 AND digest = ?2";

const INSERT_MEMBER: &str = "INSERT OR IGNORE INTO members (repo, digest) VALUES (?1, ?2)";

const SELECT_VISIBILITY: &str =
    "SELECT public, checked, refused_since FROM visibility WHERE repo = ?1";

const PUT_VISIBILITY: &str = "
INSERT OR REPLACE INTO visibility (repo, public, checked, refused_since) VALUES (?1, ?2, ?3, ?4)";

const RESTORE_VISIBILITY: &str = "
INSERT OR IGNORE INTO visibility (repo, public, checked, refused_since) VALUES (?1, ?2, ?3, ?4)";
