//! What the store has: found, compared with the index, and taken out of service when it is damaged.

use std::sync::Arc;

use coral_schema::oci::Digest;

use super::{Puller, Shared, known};
use crate::index::{BlobRow, BlobState};
use crate::store::{StoreError, StoredBlob};

impl Puller {
    /// What is known of the bytes. An index that does not know asks the store before anybody asks the upstream; what
    /// only the store knows is hashed before it is believed.
    pub(super) async fn present(&self, digest: &Digest) -> Option<BlobRow> {
        let index = &self.0.index;
        let mut row = known(index.blob(digest).await);
        if row.is_none() {
            let stored = self.0.blobs.open(digest).await.ok().flatten()?;
            // Between its rename and its row a blob is the business of its transfer, which knows whose it is.
            if self.0.transfers.running(digest).is_some() {
                return None;
            }
            // Who may read it is known only when all records are back; a row put before would hide it for good.
            if !index.complete() && !self.0.rebuild.settled().await {
                return None;
            }
            row = known(index.blob(digest).await);
            if row.is_none() {
                if !self.is_sound(digest, &stored).await {
                    self.discard(digest, "its bytes do not match its digest")
                        .await;
                    return None;
                }
                let _ = index.put_blob(digest, stored.size(), false, false).await;
                row = known(index.blob(digest).await);
            }
        }
        row.filter(|row| row.state == BlobState::Present)
    }

    /// Does the file hold what its name says? Found out once at a time.
    async fn is_sound(&self, digest: &Digest, stored: &Arc<StoredBlob>) -> bool {
        let ask = || survived(Arc::clone(&self.0), *digest, Arc::clone(stored));
        self.0
            .healing
            .join(digest, ask)
            .answer
            .await
            .unwrap_or(false)
    }

    /// The open blob, if its bytes are what the index says (H-43) and survived what happened since (H-09).
    pub(super) async fn open_checked(
        &self,
        digest: &Digest,
        row: &BlobRow,
    ) -> Option<Arc<StoredBlob>> {
        let stored = self.open(digest, row.size).await?;
        if !self.0.index.suspect(row) || self.0.sound.contains_key(digest) {
            return Some(stored);
        }
        if self.is_sound(digest, &stored).await {
            return Some(stored);
        }
        self.discard(digest, "it did not survive a power loss")
            .await;
        None
    }

    /// The open blob, if it has the length that the index says.
    pub(super) async fn open(&self, digest: &Digest, size: u64) -> Option<Arc<StoredBlob>> {
        match self.0.blobs.open(digest).await {
            Ok(Some(stored)) if stored.size() == size => Some(stored),
            Ok(None) => {
                self.discard(digest, "its file is gone").await;
                None
            }
            Ok(Some(_)) | Err(StoreError::Damaged(_)) => {
                self.discard(digest, "its file has another length").await;
                None
            }
            Err(error) => {
                tracing::warn!(%digest, %error, "a stored blob cannot be read; it is fetched again");
                None
            }
        }
    }

    /// Takes damaged content out of service; the next demand fetches it again.
    pub(super) async fn discard(&self, digest: &Digest, reason: &str) {
        tracing::warn!(%digest, reason, "stored content is damaged and is fetched again");
        let removed = self.0.blobs.remove(digest).await;
        let dropped = self.0.index.drop_blob(digest).await;
        if removed.is_err() || dropped.is_err() {
            tracing::warn!(%digest, "damaged content could not be removed");
        }
    }
}

/// Hashes a blob that a power loss may have damaged, before it is served.
async fn survived(shared: Arc<Shared>, digest: Digest, stored: Arc<StoredBlob>) -> bool {
    let mut hasher = coral_schema::oci::Hasher::new(digest.algorithm());
    let mut offset = 0;
    while offset < stored.size() {
        let Ok(chunk) = stored.read(offset, usize::MAX).await else {
            return false;
        };
        offset += chunk.len() as u64;
        let step = tokio::task::spawn_blocking(move || {
            hasher.update(&chunk);
            hasher
        });
        let Ok(back) = step.await else { return false };
        hasher = back;
    }
    let right = hasher.finish() == digest;
    if right {
        shared.sound.insert(digest, ());
    }
    right
}
