//! Proxied content is not synced file by file: everything is, every 30 seconds, and the index notes what that covered
//! (H-09). After a power loss only what came later is looked at again.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::index::Index;
use crate::store::BlobStore;

/// Syncs until told to stop.
pub(super) async fn sync_forever(
    store: Arc<dyn BlobStore>,
    index: Index,
    stopping: CancellationToken,
) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        sync(&*store, &index).await;
    }
}

/// Syncs once, and notes that what was published before is on disk. Is it?
pub(super) async fn sync(store: &dyn BlobStore, index: &Index) -> bool {
    let before = index.now();
    if let Err(error) = store.sync().await {
        tracing::warn!(%error, "the store could not be synced; it is tried again");
        return false;
    }
    if let Err(error) = index.mark_durable(before).await {
        tracing::warn!(%error, "the index did not note what is on disk");
    }
    true
}

/// What a power loss may cost: blobs of this many seconds are hashed again before they are served.
const PERIOD: Duration = Duration::from_secs(30);
