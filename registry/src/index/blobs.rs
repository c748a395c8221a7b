//! Rows of blobs: what is held.

use coral_schema::oci::Digest;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};
use tokio::sync::oneshot;

use super::columns::{self, from_size, from_time};
use super::{BlobRow, BlobState, Index, IndexError};

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

    pub(super) async fn remove_row(&self, digest: &Digest) -> Result<(), IndexError> {
        self.write_blob(
            digest,
            |_| None,
            |db, digest| db.prepare_cached(DELETE)?.execute([digest.bytes()]),
        )
        .await
        .map(drop)
    }

    pub(super) async fn set_state(
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

const MARK_DURABLE: &str = "UPDATE blobs SET durability = 1 WHERE durability = 0 AND stored <= ?1";
