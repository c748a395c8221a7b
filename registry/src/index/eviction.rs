//! What eviction needs: blobs in the order of their last use, and the claim by which it takes one away.

use std::collections::HashSet;
use std::time::Duration;

use coral_schema::oci::Digest;
use jiff::Timestamp;
use rusqlite::{Connection, Row};
use tokio::time::timeout;

use super::columns::{self, from_time};
use super::holds::Deleting;
use super::pins::pinned;
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
    /// Belongs to a pinned image, or was pushed here, so that nobody can fetch it again.
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
    /// Claims a blob for deletion; `None` when it is not held, or somebody publishes or deletes it. Remove the bytes,
    /// then [`Claim::finish`].
    pub async fn claim(&self, digest: &Digest) -> Result<Option<Claim>, IndexError> {
        self.claim_if(digest, async || Ok(true)).await
    }

    /// As [`Index::claim`], if no repository has or names it.
    pub async fn claim_unnamed(&self, digest: &Digest) -> Result<Option<Claim>, IndexError> {
        let is_unnamed = async || {
            let digest = *digest;
            let query = move |db: &Connection| {
                let mut named = db.prepare_cached(IS_NAMED)?;
                named.exists([digest.bytes()]).map(|named| !named)
            };
            self.0.worker.read(query).await
        };
        self.claim_if(digest, is_unnamed).await
    }

    /// Asks `may_go` when nobody can publish the blob any more.
    async fn claim_if(
        &self,
        digest: &Digest,
        may_go: impl AsyncFnOnce() -> Result<bool, IndexError>,
    ) -> Result<Option<Claim>, IndexError> {
        let Some(deleting) = self.0.holds.delete(*digest) else {
            return Ok(None);
        };
        let Some(row) = self.blob(digest).await? else {
            return Ok(None);
        };
        if !may_go().await? {
            return Ok(None);
        }
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
            let pinned = pinned(db, now)?;
            let mut statement = db.prepare_cached(SELECT_CANDIDATES)?;
            let mut rows = statement.query_map([], |row| candidate(row, &pinned))?;
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

    /// Was its deletion begun before, and not finished?
    pub fn was_deleting(&self) -> bool {
        self.row.state == BlobState::Deleting
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

fn candidate(row: &Row<'_>, pinned: &HashSet<Digest>) -> rusqlite::Result<EvictionCandidate> {
    let digest = columns::digest(row, 0)?;
    Ok(EvictionCandidate {
        digest,
        size: columns::size(row, 1)?,
        manifest: row.get(2)?,
        stored: columns::time(row, 3)?,
        last_use: columns::time(row, 4)?,
        bare_since: columns::time_if_any(row, 5)?,
        pinned: row.get(7)? || pinned.contains(&digest),
        missing: row.get(6)?,
    })
}

/// Commits take milliseconds; a claim without one is safe, too.
const CLAIM_DEADLINE: Duration = Duration::from_secs(1);

const IS_NAMED: &str = "
SELECT 1 WHERE EXISTS (SELECT 1 FROM members WHERE digest = ?1)
    OR EXISTS (SELECT 1 FROM manifests WHERE digest = ?1)
    OR EXISTS (SELECT 1 FROM children WHERE child = ?1)";

const CLAIM: &str = "UPDATE blobs SET state = 1 WHERE digest = ?1";

const RELEASE: &str = "UPDATE blobs SET state = 0 WHERE digest = ?1";

const SELECT_DELETING: &str = "SELECT digest FROM blobs WHERE state = 1";

const SELECT_CANDIDATES: &str = "
WITH RECURSIVE missing (repo, digest) AS (
    SELECT repo, digest FROM tags WHERE missing_since IS NOT NULL
    UNION
    SELECT c.repo, c.child FROM children c JOIN missing m ON c.repo = m.repo AND c.parent = m.digest
)
SELECT digest, size, manifest, stored, last_use, bare_since,
    digest IN (SELECT digest FROM missing),
    EXISTS (SELECT 1 FROM members WHERE members.digest = blobs.digest AND hosted)
    OR EXISTS (SELECT 1 FROM manifests WHERE manifests.digest = blobs.digest AND hosted)
FROM blobs WHERE state = 0 ORDER BY last_use, digest";

const NOTE_BARE: &str = "
UPDATE blobs SET bare_since = ?1
WHERE manifest = 1 AND bare_since IS NULL AND NOT EXISTS (
    SELECT 1 FROM children c JOIN blobs b ON b.digest = c.child WHERE c.parent = blobs.digest)";

const NOTE_CLOTHED: &str = "
UPDATE blobs SET bare_since = NULL
WHERE manifest = 1 AND bare_since IS NOT NULL AND EXISTS (
    SELECT 1 FROM children c JOIN blobs b ON b.digest = c.child WHERE c.parent = blobs.digest)";
