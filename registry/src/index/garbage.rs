//! What hosted repositories do not need any more: marked first, taken away in a later pass unless somebody used it since
//! (H-02).
//!
//! A mark is a row, and is known in memory, too ([`marks`]). Who finds none in memory, and answers, has at least the time
//! that a mark has to wait before the content goes; who finds one removes it first ([`Index::renew`]).

use std::time::Duration;

use coral_schema::oci::Digest;
use jiff::Timestamp;
use rusqlite::Connection;

pub(super) use self::marks::Marks;
use super::columns::{self, from_size, from_time};
use super::{Index, IndexError, manifests};
use crate::name::RepoKey;

mod marks;

/// What something is to its repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Pushed or mounted to it.
    Blob,
    /// A manifest, or an index.
    Manifest,
}

/// Something that its repository does not need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unneeded {
    /// What.
    pub digest: Digest,
    /// Its length, bytes; 0 when that is not known.
    pub size: u64,
    /// When it was marked, if it was.
    pub since: Option<Timestamp>,
}

/// Some of what a hosted repository has.
#[derive(Debug, Default)]
pub struct Page {
    /// What it does not need.
    pub unneeded: Vec<Unneeded>,
    /// What is marked, and needed all the same.
    pub needed: Vec<Digest>,
    /// Where the next page begins; `None` when this is the last.
    pub last: Option<Digest>,
}

/// Something that its repository does not have any more, while its record and its bytes are still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// From here.
    pub repo: RepoKey,
    /// What.
    pub digest: Digest,
    /// What it was there.
    pub role: Role,
}

impl Index {
    /// The hosted repository after this one, by name.
    pub async fn next_hosted(
        &self,
        after: Option<&RepoKey>,
    ) -> Result<Option<RepoKey>, IndexError> {
        let after = after.map_or_else(String::new, ToString::to_string);
        let query = move |db: &Connection| {
            let mut statement = db.prepare_cached(NEXT_HOSTED)?;
            let next = |row: &rusqlite::Row<'_>| columns::if_any(row, 0, columns::parsed);
            statement.query_row([&after], next)
        };
        self.0.worker.scan(query).await
    }

    /// What a hosted repository has behind `after`, some of it, and whether it needs it: a blob because a manifest names
    /// it; a manifest because it has a tag or a pin, or belongs to one that has, as part of it or as its referrer.
    pub async fn needs(
        &self,
        repo: &RepoKey,
        role: Role,
        after: Option<Digest>,
    ) -> Result<Page, IndexError> {
        let (name, now) = (repo.to_string(), self.now());
        let query = move |db: &Connection| {
            let after = after.as_ref().map_or([].as_slice(), Digest::bytes);
            let mut statement = db.prepare_cached(match role {
                Role::Blob => SELECT_BLOBS,
                Role::Manifest => SELECT_MANIFESTS,
            })?;
            let mut rows = statement.query((&name, after, from_size(PAGE)))?;
            let (mut page, mut seen) = (Page::default(), 0);
            while let Some(row) = rows.next()? {
                let digest = columns::digest(row, 0)?;
                let since = columns::time_if_any(row, 2)?;
                seen += 1;
                page.last = Some(digest);
                if is_needed(db, &name, &digest, role, (None, now))? {
                    page.needed.extend(since.map(|_| digest));
                } else {
                    let size = columns::if_any(row, 1, columns::size)?.unwrap_or_default();
                    let unneeded = Unneeded {
                        digest,
                        size,
                        since,
                    };
                    page.unneeded.push(unneeded);
                }
            }
            page.last = page.last.filter(|_| seen == PAGE);
            Ok(page)
        };
        self.0.worker.scan(query).await
    }

    /// From now on these are marked, unless they turn out to be needed or there are too many marks. How many are?
    pub async fn mark(
        &self,
        repo: &RepoKey,
        role: Role,
        digests: Vec<Digest>,
    ) -> Result<usize, IndexError> {
        let digests = self.0.marks.insert(repo, digests);
        // Later than what memory has just learnt: whoever did not find the mark there was earlier.
        let (name, since) = (repo.to_string(), self.now());
        let write = move |db: &Connection| {
            let mut marked = 0;
            for digest in &digests {
                if !is_needed(db, &name, digest, role, (None, since))? {
                    let row = (
                        &name,
                        digest.bytes(),
                        role == Role::Manifest,
                        from_time(since),
                    );
                    marked += db.prepare_cached(INSERT)?.execute(row)?;
                }
            }
            Ok(marked)
        };
        self.0.worker.call(write).await
    }

    /// Somebody was, or will be, told that the repository has this: a mark is removed before that. Costs nothing where
    /// there is none.
    pub async fn renew(&self, repo: &RepoKey, digest: &Digest) -> Result<(), IndexError> {
        if self.0.marks.has(repo, digest) {
            self.unmark(repo, vec![*digest]).await?;
        }
        Ok(())
    }

    /// Removes marks.
    pub async fn unmark(&self, repo: &RepoKey, digests: Vec<Digest>) -> Result<(), IndexError> {
        let (name, marks) = (repo.to_string(), self.0.marks.known(repo, &digests));
        let write = move |db: &Connection| {
            let mut digests = digests.iter();
            digests.try_for_each(|digest| forget(db, &name, digest))
        };
        self.0.worker.call(write).await?;
        self.0.marks.remove(&marks);
        Ok(())
    }

    /// Takes something away from its repository, if it was marked at or before `since`, no less than `grace` ago, and is
    /// still not needed. Was it? Then [`Index::taken`] has it until [`Index::forget_taken`]. Nobody else may change the
    /// repository meanwhile.
    pub async fn take(
        &self,
        taken: &Taken,
        since: Timestamp,
        grace: Duration,
    ) -> Result<bool, IndexError> {
        let Taken { repo, digest, role } = taken.clone();
        let (name, now) = (repo.to_string(), self.now());
        if !self.0.marks.is_older(&repo, &digest, grace) {
            return Ok(false);
        }
        let write = move |db: &Connection| {
            if is_needed(db, &name, &digest, role, (Some(since), now))? {
                return Ok(false);
            }
            let row = (
                &name,
                digest.bytes(),
                role == Role::Manifest,
                from_time(since),
            );
            if db.prepare_cached(TAKE)?.execute(row)? == 0 {
                return Ok(false);
            }
            let delete = match role {
                Role::Blob => super::hosted::DELETE_MEMBER,
                Role::Manifest => manifests::DELETE,
            };
            let delete = db.prepare_cached(delete)?.execute((&name, digest.bytes()));
            delete.map(|_| true)
        };
        let (memory, key) = (self.0.memory.clone(), (repo, digest));
        // Before whoever waits to remove the mark is told that it is gone, and asks what the repository has.
        let settled = move || match role {
            Role::Blob => memory.members.forget(&key),
            Role::Manifest => memory.manifests.forget(&key),
        };
        self.0.worker.call_then(write, settled).await
    }

    /// What was taken away and not forgotten yet, some of it.
    pub async fn taken(&self) -> Result<Vec<Taken>, IndexError> {
        let query = |db: &Connection| {
            let mut statement = db.prepare_cached(SELECT_TAKEN)?;
            let rows = statement.query_map([from_size(PAGE)], |row| {
                Ok(Taken {
                    repo: columns::parsed(row, 0)?,
                    digest: columns::digest(row, 1)?,
                    role: if row.get(2)? {
                        Role::Manifest
                    } else {
                        Role::Blob
                    },
                })
            })?;
            rows.collect()
        };
        self.0.worker.scan(query).await
    }

    /// Is it still away? It is not when it was pushed again.
    pub async fn is_taken(&self, taken: &Taken) -> Result<bool, IndexError> {
        let (name, digest) = (taken.repo.to_string(), taken.digest);
        let query =
            move |db: &Connection| db.prepare_cached(IS_TAKEN)?.exists((&name, digest.bytes()));
        self.0.worker.read(query).await
    }

    /// Nothing is left of it.
    pub async fn forget_taken(&self, taken: &Taken) -> Result<(), IndexError> {
        let (name, digest) = (taken.repo.to_string(), taken.digest);
        let marks = self.0.marks.known(&taken.repo, &[digest]);
        let write = move |db: &Connection| {
            db.prepare_cached(FORGET_TAKEN)?
                .execute((&name, digest.bytes()))
                .map(drop)
        };
        self.0.worker.call(write).await?;
        self.0.marks.remove(&marks);
        Ok(())
    }
}

/// Does the repository need it at `now`? With `since`, what a manifest belongs to counts as needed, too, unless it was
/// marked at or before that time.
fn is_needed(
    db: &Connection,
    repo: &str,
    digest: &Digest,
    role: Role,
    (since, now): (Option<Timestamp>, Timestamp),
) -> rusqlite::Result<bool> {
    match role {
        Role::Blob => db.prepare_cached(IS_NAMED)?.exists((repo, digest.bytes())),
        Role::Manifest => db.prepare_cached(IS_REACHED)?.exists((
            repo,
            digest.bytes(),
            since.map(from_time),
            from_time(now),
        )),
    }
}

/// A mark is worth nothing any more.
pub(super) fn forget(db: &Connection, repo: &str, digest: &Digest) -> rusqlite::Result<()> {
    db.prepare_cached(DELETE)?
        .execute((repo, digest.bytes()))
        .map(drop)
}

/// Some tens of milliseconds of the one thread that writes.
const PAGE: u64 = 1000;

const NEXT_HOSTED: &str = "
SELECT MIN(repo) FROM (
    SELECT MIN(repo) AS repo FROM members WHERE hosted AND repo > ?1
    UNION ALL SELECT MIN(repo) FROM manifests WHERE hosted AND repo > ?1)";

const SELECT_BLOBS: &str = "
SELECT m.digest, b.size, g.since FROM members m
LEFT JOIN blobs b ON b.digest = m.digest
LEFT JOIN garbage g ON g.repo = m.repo AND g.digest = m.digest AND NOT g.manifest AND NOT g.taken
WHERE m.repo = ?1 AND m.digest > ?2 ORDER BY m.digest LIMIT ?3";

const SELECT_MANIFESTS: &str = "
SELECT m.digest, m.size, g.since FROM manifests m
LEFT JOIN garbage g ON g.repo = m.repo AND g.digest = m.digest AND g.manifest AND NOT g.taken
WHERE m.repo = ?1 AND m.digest > ?2 ORDER BY m.digest LIMIT ?3";

const IS_NAMED: &str = "SELECT 1 FROM children WHERE child = ?2 AND repo = ?1";

/// Upwards from the manifest: what has it as a part, and what it refers to.
const IS_REACHED: &str = "
WITH RECURSIVE above (digest) AS (
    SELECT ?2
    UNION SELECT c.parent FROM above a JOIN children c ON c.child = a.digest AND c.repo = ?1
    UNION SELECT m.subject FROM above a JOIN manifests m ON m.repo = ?1 AND m.digest = a.digest
        WHERE m.subject IS NOT NULL
)
SELECT 1 FROM above a WHERE
    EXISTS (SELECT 1 FROM tags t WHERE t.repo = ?1 AND t.digest = a.digest)
    OR EXISTS (SELECT 1 FROM pins p JOIN pin_sources s ON s.source = p.source
        WHERE p.repo = ?1 AND s.until > ?4 AND (p.frozen = a.digest OR p.reference =
            IIF(length(a.digest) = 64, 'sha512:', 'sha256:') || lower(hex(a.digest))))
    OR (?3 IS NOT NULL AND EXISTS (SELECT 1 FROM manifests m
        LEFT JOIN garbage g ON g.repo = m.repo AND g.digest = m.digest AND g.manifest
        WHERE m.repo = ?1 AND m.digest = a.digest AND (g.since IS NULL OR g.since > ?3)))";

const INSERT: &str = "
INSERT OR IGNORE INTO garbage (repo, digest, manifest, since, taken) VALUES (?1, ?2, ?3, ?4, 0)";

const DELETE: &str = "DELETE FROM garbage WHERE repo = ?1 AND digest = ?2";

const TAKE: &str = "
UPDATE garbage SET taken = 1
WHERE repo = ?1 AND digest = ?2 AND manifest = ?3 AND since <= ?4 AND NOT taken";

const SELECT_TAKEN: &str = "SELECT repo, digest, manifest FROM garbage WHERE taken LIMIT ?1";

const IS_TAKEN: &str = "SELECT 1 FROM garbage WHERE repo = ?1 AND digest = ?2 AND taken";

const FORGET_TAKEN: &str = "DELETE FROM garbage WHERE repo = ?1 AND digest = ?2 AND taken";
