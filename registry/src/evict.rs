//! Keeps the store within its limit and the volume from filling up, by deleting what can be fetched again.
//!
//! Above 90 % of the limit blobs go, least recently used first, until 80 % are left ([`policy`] has the details).
//! Layers, configs, manifests and indexes go one by one: an image that lost some of them gets them again when somebody
//! asks. Whoever reads a blob while it is deleted has it open and reads to its end.
//!
//! Deleting is: claim the row (from here on nobody is served), remove the bytes, drop the row. It can be killed
//! anywhere; [`reconcile`] finishes what was begun.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coral_schema::oci::Digest;
use coral_schema::process::tasks::Tasks;
use futures::StreamExt as _;
use futures::stream;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::metrics::Metrics;
use self::policy::{Pressure, Reason, Victim};
use crate::index::{Index, IndexError};
use crate::store::{BlobStore, Room, StoreError};

mod metrics;
pub mod policy;
mod reconcile;

/// Why a round of eviction failed. The next one starts over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The evictor; clones are the same.
#[derive(Debug, Clone)]
pub struct Evictor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    index: Index,
    store: Arc<dyn BlobStore>,
    limit: u64,
    metrics: Metrics,
    room: Room,
    /// Was there pressure left after the last round?
    stuck: AtomicBool,
}

impl Evictor {
    /// An evictor that keeps the blobs of `store` within `limit` bytes. Registers the metrics of the store's size.
    pub fn new(
        index: Index,
        store: Arc<dyn BlobStore>,
        limit: u64,
        registry: &mut Registry,
    ) -> Self {
        let room = Room::default();
        Self(Arc::new(Inner {
            index,
            store,
            limit,
            metrics: Metrics::new(registry, limit, room.degraded()),
            room,
            stuck: AtomicBool::new(false),
        }))
    }

    /// Starts the task: looks after the store every few seconds, at once when the index sees the limit crossed, and when
    /// somebody asks for room.
    pub fn start(&self, tasks: &Tasks) -> JoinHandle<()> {
        let (evictor, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("evict", async move { evictor.run(stopping).await })
    }

    /// Where to ask for room, and to say how the store does.
    pub fn room(&self) -> &Room {
        &self.0.room
    }

    /// Deletes until there is no pressure left, or nothing that may go. Says how many bytes went.
    pub async fn relieve(&self) -> Result<u64, Error> {
        let mut freed = 0;
        // Until a rebuild has brought back all records, what was pushed looks like what can be fetched again.
        if !self.0.index.complete() {
            return Ok(freed);
        }
        while let Some(pressure) = self.pressure().await? {
            let round = self.round(pressure).await?;
            freed += round;
            // The volume gets its room back when the last reader of a deleted blob has gone: look again later.
            if round == 0 || pressure.reason == Reason::Volume {
                break;
            }
            self.0.index.flush().await?;
        }
        Ok(freed)
    }

    /// Deletes bytes that no repository has or names any more, at once. How many there were; those that cannot be deleted
    /// now are evicted in their turn.
    pub async fn remove_unnamed(&self, digest: &Digest) -> u64 {
        let Inner { index, store, .. } = &*self.0;
        let remove = async {
            let Some(claim) = index.claim_unnamed(digest).await? else {
                return Ok(0);
            };
            let size = claim.size();
            reconcile::delete(claim, store.as_ref()).await?;
            Ok::<_, Error>(size)
        };
        remove.await.unwrap_or_else(|error| {
            tracing::warn!(%digest, %error, "what nobody needs cannot be deleted now; it is evicted later");
            0
        })
    }

    async fn run(&self, stopping: CancellationToken) {
        let mut totals = self.0.index.totals();
        let mut tidied = None;
        let high = self.0.limit - self.0.limit / 10;
        loop {
            if let Err(error) = self.look_after(&mut tidied).await {
                tracing::warn!(%error, "evicting failed; it is tried again");
            }
            self.0.room.tried(self.0.store.may_fill());
            // What could not be helped now cannot be helped at once.
            let helped = totals.borrow_and_update().bytes() <= high;
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(EVERY) => {}
                () = self.0.room.wanted() => {}
                Ok(_) = totals.wait_for(|totals| totals.bytes() > high), if helped => {}
            }
        }
    }

    async fn look_after(&self, tidied: &mut Option<Instant>) -> Result<(), Error> {
        let Inner { index, store, .. } = &*self.0;
        reconcile::finish_deletions(index, store.as_ref()).await?;
        if tidied.is_none_or(|seen| seen.elapsed() >= TIDY_EVERY) {
            match self.tidy().await {
                Ok(()) => *tidied = Some(Instant::now()),
                // A full disk may be why, and must not keep room from being made.
                Err(error) => tracing::warn!(%error, "the index was not tidied; it is tried again"),
            }
        }
        let freed = self.relieve().await?;
        if freed > 0 {
            tracing::info!(bytes = freed, "evicted what was not used for longest");
        }
        self.report_remaining_pressure().await
    }

    /// Notes manifests without content, and drops pins that hold nothing any more.
    async fn tidy(&self) -> Result<(), IndexError> {
        self.0.index.note_bare_manifests().await?;
        self.0.index.drop_expired_pins().await
    }

    async fn pressure(&self) -> Result<Option<Pressure>, Error> {
        let Inner {
            index,
            store,
            limit,
            metrics,
            ..
        } = &*self.0;
        let totals = *index.totals().borrow();
        metrics.set_held(totals);
        // What is on its way needs its room, too, or a full store would never take another large blob.
        let held = totals.bytes().saturating_add(store.spool_bytes());
        Ok(policy::pressure(held, *limit, store.volume().await?))
    }

    async fn round(&self, pressure: Pressure) -> Result<u64, Error> {
        let index = &self.0.index;
        // Last uses first. An index that cannot be written does not keep room from being made.
        let _ = index.flush().await;
        let now = index.now();
        let victims = index
            .choose(move |candidates| policy::victims(candidates, pressure, now))
            .await?;
        let mut outcomes = stream::iter(victims)
            .map(|victim| self.evict(victim, pressure.reason))
            .buffer_unordered(AT_ONCE);
        let (mut freed, mut failure) = (0, None);
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(bytes) => freed += bytes,
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if freed == 0 => Err(error),
            _ => Ok(freed),
        }
    }

    async fn evict(&self, victim: Victim, reason: Reason) -> Result<u64, Error> {
        let Some(claim) = self.0.index.claim(&victim.digest).await? else {
            return Ok(0);
        };
        let size = claim.size();
        reconcile::delete(claim, self.0.store.as_ref()).await?;
        self.0.metrics.evicted(reason, size);
        tracing::debug!(digest = %victim.digest, bytes = size, ?reason, "evicted");
        Ok(size)
    }

    /// Says it once when nothing more may go, and once when that is over.
    async fn report_remaining_pressure(&self) -> Result<(), Error> {
        let remaining = self.pressure().await?;
        let stuck = remaining.is_some();
        match (remaining, self.0.stuck.swap(stuck, Ordering::Relaxed)) {
            (Some(pressure), false) => tracing::warn!(
                reason = ?pressure.reason, bytes = pressure.need,
                "there is more than there should be, and nothing of it may be deleted now"
            ),
            (None, true) => tracing::info!("the store is within its limits again"),
            _ => {}
        }
        Ok(())
    }
}

/// Filling a tenth of a small limit takes longer; crossing it wakes the task anyway.
const EVERY: Duration = Duration::from_secs(5);

/// Manifests without content matter after 30 days, and expired pins hold nothing.
const TIDY_EVERY: Duration = Duration::from_hours(1);

/// Removing files is waiting for the disk; more at once would only delay reads.
const AT_ONCE: usize = 8;

#[cfg(test)]
mod tests;
