//! Rows of blobs: what is held, and the claim by which eviction takes one away.

use std::time::Duration;

use coral_schema::oci::Digest;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::columns::{self, from_size, from_time};
use super::holds::Deleting;
use super::{BlobRow, BlobState, Index, IndexError};

/// What eviction chooses from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvictionCandidate {
    /// Which blob.
    pub digest: Digest,
    /// Its length, bytes.
    pub size: u64,
    /// Is it a manifest?
    pub manifest: bool,
    /// When it was stored; 1970 when a rebuild found it.
    pub stored: Timestamp,
    /// When it was last served.
    pub last_use: Timestamp,
    /// For manifests: since when nothing that it names is held.
    pub bare_since: Option<Timestamp>,
    /// Belongs to a pinned image.
    pub pinned: bool,
    /// Belongs to a tag that the upstream does not have any more.
    pub missing: bool,
}

/// The right to delete one blob: it is served no more, and not published until this is gone.
#[derive(Debug)]
pub struct Claim {
    index: Index,
    digest: Digest,
    row: BlobRow,
    _deleting: Deleting,
}

impl Index {
    /// The blob's row.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<BlobRow>, IndexError> {
        let memory = &self.0.memory.blobs;
        let since = match memory.get(digest) {
            Ok(known) => return Ok(known),
            Err(since) => since,
        };
        let digest = *digest;
        let row = self.0.worker.read(move |db| select(db, &digest)).await?;
        Ok(memory.fill(digest, row, since))
    }

    /// The blob's bytes are in the store. `public` (they came from, or were confirmed by, a public repository) and
    /// `manifest` are only ever added. Before putting other bytes in the place of damaged ones, [`Index::drop_blob`].
    pub async fn put_blob(
        &self,
        digest: &Digest,
        size: u64,
        public: bool,
        manifest: bool,
    ) -> Result<(), IndexError> {
        let _publishing = self.publishing(digest).await?;
        // Without an answer the flags may be too small in memory for a while; never in the file.
        let known = self.blob(digest).await.ok().flatten();
        let now = self.now();
        self.write_blob(
            digest,
            |present| Some(published(present.or(known), size, public, manifest, now)),
            move |db, digest| {
                db.prepare_cached(PUT)?.execute((
                    digest.bytes(),
                    from_size(size),
                    public,
                    manifest,
                    from_time(now),
                ))
            },
        )
        .await
        .map(drop)
    }

    /// The blob turned out not to be in the store, or to be damaged there.
    pub async fn drop_blob(&self, digest: &Digest) -> Result<(), IndexError> {
        // Who is publishing or deleting it knows better.
        let Some(_deleting) = self.0.holds.delete(*digest) else {
            return Ok(());
        };
        self.remove_row(digest).await
    }

    /// Must its bytes be hashed before they are trusted (H-09)?
    pub fn suspect(&self, row: &BlobRow) -> bool {
        row.suspect
    }

    /// The store has synced everything that was put before `before` (see [`Index::now`]).
    pub async fn mark_durable(&self, before: Timestamp) -> Result<(), IndexError> {
        let write = move |db: &Connection| db.execute(MARK_DURABLE, [from_time(before)]).map(drop);
        self.0.worker.call(write).await
    }

    /// Claims a blob for deletion; `None` when it is not held, or somebody publishes or deletes it. Remove the bytes,
    /// then [`Claim::finish`].
    pub async fn claim(&self, digest: &Digest) -> Result<Option<Claim>, IndexError> {
        let Some(deleting) = self.0.holds.delete(*digest) else {
            return Ok(None);
        };
        let Some(row) = self.blob(digest).await? else {
            return Ok(None);
        };
        let claim = Claim {
            index: self.clone(),
            digest: *digest,
            row: row.clone(),
            _deleting: deleting,
        };
        let committed = self
            .set_state(digest, row, BlobState::Deleting, CLAIM)
            .await?;
        // A full disk may be why this blob has to go, so an index that cannot be written must not prevent it. A crash
        // then leaves a row without bytes, which its next reader drops.
        if !self.0.worker.shared().is_failing() {
            let _ = timeout(CLAIM_DEADLINE, committed).await;
        }
        Ok(Some(claim))
    }

    /// Blobs whose deletion was begun.
    pub async fn deleting(&self) -> Result<Vec<Digest>, IndexError> {
        let query = |db: &Connection| {
            let mut statement = db.prepare_cached(SELECT_DELETING)?;
            let rows = statement.query_map([], |row| columns::digest(row, 0))?;
            rows.collect()
        };
        self.0.worker.scan(query).await
    }

    /// Lets `choose` look at the blobs, least recently used first, for as long as it likes to.
    pub async fn choose<T: Send + 'static>(
        &self,
        choose: impl Fn(&mut dyn Iterator<Item = EvictionCandidate>) -> T + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let now = self.now();
        let query = move |db: &Connection| {
            let mut statement = db.prepare_cached(SELECT_CANDIDATES)?;
            let mut rows = statement.query_map([from_time(now)], candidate)?;
            let mut failed = Ok(());
            let mut candidates = std::iter::from_fn(|| match rows.next()? {
                Ok(candidate) => Some(candidate),
                Err(error) => {
                    failed = Err(error);
                    None
                }
            });
            let chosen = choose(&mut candidates);
            failed.map(|()| chosen)
        };
        self.0.worker.scan(query).await
    }

    /// Notes which manifests have nothing left of what they name, and since when.
    pub async fn note_bare_manifests(&self) -> Result<(), IndexError> {
        let now = from_time(self.now());
        let write = move |db: &Connection| {
            db.execute(NOTE_BARE, [now])?;
            db.execute(NOTE_CLOTHED, []).map(drop)
        };
        self.0.worker.call(write).await
    }

    async fn remove_row(&self, digest: &Digest) -> Result<(), IndexError> {
        self.write_blob(
            digest,
            |_| None,
            |db, digest| db.prepare_cached(DELETE)?.execute([digest.bytes()]),
        )
        .await
        .map(drop)
    }

    async fn set_state(
        &self,
        digest: &Digest,
        row: BlobRow,
        state: BlobState,
        sql: &'static str,
    ) -> Result<oneshot::Receiver<()>, IndexError> {
        self.write_blob(
            digest,
            |present| {
                let row = present.unwrap_or(row);
                Some(BlobRow { state, ..row })
            },
            move |db, digest| db.prepare_cached(sql)?.execute([digest.bytes()]),
        )
        .await
    }

    /// Changes the row in memory now, in the file soon. The receiver learns of the commit.
    async fn write_blob(
        &self,
        digest: &Digest,
        change: impl FnOnce(Option<BlobRow>) -> Option<BlobRow>,
        apply: impl Fn(&Connection, &Digest) -> rusqlite::Result<usize> + Send + 'static,
    ) -> Result<oneshot::Receiver<()>, IndexError> {
        let digest = *digest;
        let memory = self.0.memory.clone();
        let version = memory.blobs.update(digest, change);
        let (committed, receiver) = oneshot::channel();
        let settled = move || {
            memory.blobs.settled(&digest, version);
            // Most callers do not wait.
            let _ = committed.send(());
        };
        let apply = move |db: &Connection| apply(db, &digest).map(drop);
        self.0.worker.submit(apply, settled).await?;
        Ok(receiver)
    }
}

impl Claim {
    /// Which blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its length, bytes.
    pub fn size(&self) -> u64 {
        self.row.size
    }

    /// The bytes are gone: drops the row.
    pub async fn finish(self) -> Result<(), IndexError> {
        self.index.remove_row(&self.digest).await
    }

    /// The bytes cannot be removed: the blob is served again.
    pub async fn release(self) -> Result<(), IndexError> {
        self.index
            .set_state(&self.digest, self.row.clone(), BlobState::Present, RELEASE)
            .await
            .map(drop)
    }
}

/// The row after publishing; `PUT` does the same in the file.
fn published(
    present: Option<BlobRow>,
    size: u64,
    public: bool,
    manifest: bool,
    now: Timestamp,
) -> BlobRow {
    let fresh = BlobRow {
        size,
        state: BlobState::Present,
        public,
        manifest,
        durable: false,
        suspect: false,
        last_use: now,
    };
    match present {
        None => fresh,
        Some(old) => BlobRow {
            public: public || old.public,
            manifest: manifest || old.manifest,
            durable: old.durable && old.size == size,
            ..fresh
        },
    }
}

fn select(db: &Connection, digest: &Digest) -> rusqlite::Result<Option<BlobRow>> {
    db.prepare_cached(SELECT)?
        .query_row([digest.bytes()], |row| {
            let durability: u8 = row.get(4)?;
            Ok(BlobRow {
                size: columns::size(row, 0)?,
                state: if row.get(1)? {
                    BlobState::Deleting
                } else {
                    BlobState::Present
                },
                public: row.get(2)?,
                manifest: row.get(3)?,
                durable: durability == 1,
                suspect: durability == 2,
                last_use: columns::time(row, 5)?,
            })
        })
        .optional()
}

fn candidate(row: &Row<'_>) -> rusqlite::Result<EvictionCandidate> {
    Ok(EvictionCandidate {
        digest: columns::digest(row, 0)?,
        size: columns::size(row, 1)?,
        manifest: row.get(2)?,
        stored: columns::time(row, 3)?,
        last_use: columns::time(row, 4)?,
        bare_since: columns::time_if_any(row, 5)?,
        pinned: row.get(6)?,
        missing: row.get(7)?,
    })
}

/// Writes a row as memory knows it, into a file that was just made.
pub(super) fn reenter(db: &Connection, digest: &Digest, row: &BlobRow) -> rusqlite::Result<()> {
    let durability = match (row.durable, row.suspect) {
        (true, _) => 1,
        (false, false) => 0,
        (false, true) => 2,
    };
    db.prepare_cached(REENTER)?.execute((
        digest.bytes(),
        from_size(row.size),
        row.state == BlobState::Deleting,
        row.public,
        row.manifest,
        durability,
        from_time(row.last_use),
    ))?;
    Ok(())
}

/// Commits take milliseconds; a claim without one is safe, too.
const CLAIM_DEADLINE: Duration = Duration::from_secs(1);

const SELECT: &str =
    "SELECT size, state, public, manifest, durability, last_use FROM blobs WHERE digest = ?1";

const PUT: &str = "
INSERT INTO blobs (digest, size, state, public, manifest, durability, stored, last_use)
VALUES (?1, ?2, 0, ?3, ?4, 0, ?5, ?5)
ON CONFLICT (digest) DO UPDATE SET
    size = excluded.size,
    state = 0,
    public = MAX(public, excluded.public),
    manifest = MAX(manifest, excluded.manifest),
    stored = IIF(durability = 1 AND size = excluded.size, stored, excluded.stored),
    durability = IIF(durability = 1 AND size = excluded.size, 1, 0),
    last_use = MAX(last_use, excluded.last_use)";

const REENTER: &str = "
INSERT INTO blobs (digest, size, state, public, manifest, durability, stored, last_use)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)
ON CONFLICT (digest) DO NOTHING";

const DELETE: &str = "DELETE FROM blobs WHERE digest = ?1";

const CLAIM: &str = "UPDATE blobs SET state = 1 WHERE digest = ?1";

const RELEASE: &str = "UPDATE blobs SET state = 0 WHERE digest = ?1";

const MARK_DURABLE: &str = "UPDATE blobs SET durability = 1 WHERE durability = 0 AND stored <= ?1";

const SELECT_DELETING: &str = "SELECT digest FROM blobs WHERE state = 1";

const SELECT_CANDIDATES: &str = "
WITH RECURSIVE
pinned (repo, digest) AS (
    SELECT repo, digest FROM pins WHERE until > ?1
    UNION
    SELECT c.repo, c.child FROM children c JOIN pinned p ON c.repo = p.repo AND c.parent = p.digest
),
missing (repo, digest) AS (
    SELECT repo, digest FROM tags WHERE missing_since IS NOT NULL
    UNION
    SELECT c.repo, c.child FROM children c JOIN missing m ON c.repo = m.repo AND c.parent = m.digest
)
SELECT digest, size, manifest, stored, last_use, bare_since,
    digest IN (SELECT digest FROM pinned), digest IN (SELECT digest FROM missing)
FROM blobs WHERE state = 0 ORDER BY last_use, digest";

const NOTE_BARE: &str = "
UPDATE blobs SET bare_since = ?1
WHERE manifest = 1 AND bare_since IS NULL AND NOT EXISTS (
    SELECT 1 FROM children c JOIN blobs b ON b.digest = c.child WHERE c.parent = blobs.digest)";

const NOTE_CLOTHED: &str = "
UPDATE blobs SET bare_since = NULL
WHERE manifest = 1 AND bare_since IS NOT NULL AND EXISTS (
    SELECT 1 FROM children c JOIN blobs b ON b.digest = c.child WHERE c.parent = blobs.digest)";
