//! What is here, whatever its freshness: answers to `Cache-Control: only-if-cached` (RFC 9111, section 5.2.1.7).
//!
//! A node asks this before it has its runtime pull. Nothing here asks an upstream, starts a download, or remembers a
//! refusal; membership is required as ever, but only what is known of it counts.

use coral_schema::oci::{Digest, ManifestRef};

use super::stored::from_store;
use super::{
    BlobAnswer, BlobHead, ManifestAnswer, Outcome, PullError, Puller, RangeSpec, Want, known,
};
use crate::access::cap::ReadCap;
use crate::index::BlobRow;
use crate::transfer::Phase;
use crate::upstream::OnMissing;

impl Puller {
    /// A manifest, if it is held; of a tag what it meant when the upstream was last asked.
    pub async fn cached_manifest(
        &self,
        cap: &ReadCap,
        reference: &ManifestRef,
        want: Want,
    ) -> Option<ManifestAnswer> {
        self.0.remember(cap.repo()).await;
        let digest = match reference {
            ManifestRef::Digest(digest) => *digest,
            ManifestRef::Tag(tag) => {
                if let Some(frozen) = self.0.index.frozen(cap.repo(), tag) {
                    return self.held(cap, &frozen, want).await;
                }
                let row = known(self.0.index.tag(cap.repo(), tag).await)?;
                let on_missing = cap.upstream().policy.on_missing;
                if row.missing_since.is_some() && on_missing == OnMissing::Refuse {
                    return None;
                }
                row.digest
            }
        };
        self.held(cap, &digest, want).await
    }

    /// The length of a blob that is held, or that arrives: whoever pulls it now shares the download that runs.
    pub async fn cached_head(&self, cap: &ReadCap, digest: &Digest) -> Option<BlobHead> {
        self.0.remember(cap.repo()).await;
        // In this order: a download that ends in between has left its row.
        if let Some(size) = self.arriving(cap, digest).await {
            return Some(BlobHead {
                size,
                outcome: Outcome::Join,
            });
        }
        let row = self.readable(cap, digest).await?;
        let stored = self.open(digest, row.size).await?;
        Some(BlobHead {
            size: stored.size(),
            outcome: Outcome::Hit,
        })
    }

    /// A blob that is held, or a part of it. Not one that still arrives: its readers ask the upstream when the store
    /// fails under them.
    pub async fn cached_blob(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        range: Option<RangeSpec>,
    ) -> Result<Option<BlobAnswer>, PullError> {
        self.0.remember(cap.repo()).await;
        let Some(row) = self.readable(cap, digest).await else {
            return Ok(None);
        };
        let Some(stored) = self.open_checked(digest, &row).await else {
            return Ok(None);
        };
        self.0.index.touch(digest);
        from_store(stored, range).map(Some)
    }

    /// The row of a blob that is held and known to belong to this repository.
    async fn readable(&self, cap: &ReadCap, digest: &Digest) -> Option<BlobRow> {
        let row = self.present(digest).await?;
        let proven = self.is_proven(cap, digest, row.public).await;
        proven.then_some(row)
    }

    /// The length of a blob whose download has begun, if this repository is known to have it.
    async fn arriving(&self, cap: &ReadCap, digest: &Digest) -> Option<u64> {
        let transfer = self.0.transfers.running(digest)?;
        let now = transfer.watch().borrow().clone();
        let arrives = match now.phase {
            Phase::Running | Phase::Verifying | Phase::Verified | Phase::Published => true,
            Phase::Connecting | Phase::Unpublished | Phase::Detached(_) | Phase::Failed(_) => false,
        };
        let size = now.size.filter(|_| arrives)?;
        let proven = transfer.was_delivered_by(cap.repo())
            || self.is_proven(cap, digest, transfer.is_public()).await;
        proven.then_some(size)
    }
}
