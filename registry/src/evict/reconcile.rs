//! Finishes deletions that somebody began: a process that was killed, or a volume that refused.
//!
//! A deletion marks the row, removes the bytes, drops the row. A crash in between leaves a marked row, with bytes or
//! without, and both end here. Rows whose bytes are missing otherwise are dropped by their next reader, bytes without a
//! row get one from a rebuild or from whoever asks the store for them.

use coral_schema::oci::Digest;

use super::Error;
use crate::index::{Claim, Index};
use crate::store::BlobStore;

/// Finishes all of them; says how many there were. One that fails stays for the next time.
pub(super) async fn finish_deletions(index: &Index, store: &dyn BlobStore) -> Result<usize, Error> {
    let mut finished = 0;
    for digest in index.deleting().await? {
        match finish_deletion(index, store, &digest).await {
            Ok(true) => finished += 1,
            Ok(false) => {}
            Err(error) => tracing::warn!(%digest, %error, "a deletion cannot be finished yet"),
        }
    }
    Ok(finished)
}

async fn finish_deletion(
    index: &Index,
    store: &dyn BlobStore,
    digest: &Digest,
) -> Result<bool, Error> {
    match index.claim(digest).await? {
        Some(claim) if claim.was_deleting() => {
            delete(claim, store).await?;
            Ok(true)
        }
        // Published again since.
        Some(claim) => {
            claim.release().await?;
            Ok(false)
        }
        None => Ok(false),
    }
}

/// Removes what is claimed. If its bytes cannot be removed, it is served again.
pub(super) async fn delete(claim: Claim, store: &dyn BlobStore) -> Result<(), Error> {
    match store.remove(claim.digest()).await {
        Ok(()) => Ok(claim.finish().await?),
        Err(error) => {
            claim.release().await?;
            Err(error.into())
        }
    }
}
