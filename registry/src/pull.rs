//! Pull-through: answers for manifests, blobs, tags and referrers, from what is held or from the upstream.
//!
//! The life of a pull, after `access` has said that the caller may read the repository:
//!
//! 1. [`manifests`] answers a tag from what is held if it is fresh ([`freshness`]), else asks the upstream whether it
//!    still means the same ([`revalidate`]); a digest is answered from memory, from the store, or fetched.
//! 2. [`blobs`] answers a blob only if its repository is known to have it ([`membership`]): from the store, or by
//!    joining the one transfer that fetches it.
//! 3. What was learnt is written down behind the answer ([`recorder`]).
//!
//! Who asks for nothing but what is here gets it from [`cached`]. What was pushed here has no upstream: [`hosted`].
//!
//! Whatever fails below becomes a [`PullError`], each variant a row of the status table that clients see.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use coral_schema::oci::{Digest, ManifestRef, Tag};
use coral_schema::process::tasks::Tasks;
use jiff::Timestamp;
use moka::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use self::answer::{
    BlobAnswer, BlobBody, BlobHead, BodyError, Ensure, Kind, ManifestAnswer, Outcome, PullError,
    RangeSpec, ReferrersAnswer, TagsAnswer, Want,
};
use self::fetch::{Fetched, PendingTag};
use self::flight::Flights;
pub use self::metrics::PullMetrics;
use self::negative::Negative;
use self::recorder::Recorder;
use self::revalidate::Verdict;
pub use self::stored::StoredPart;
use crate::access::cap::ReadCap;
use crate::index::{Index, IndexError};
use crate::name::RepoKey;
use crate::rebuild::Rebuild;
use crate::store::{BlobStore, RecordStore};
use crate::transfer::{Origin, Transfers};

mod answer;
mod blobs;
mod cached;
mod failure;
mod fetch;
pub mod flight;
pub mod freshness;
mod held;
mod hosted;
mod lists;
mod manifests;
mod membership;
mod metrics;
mod negative;
pub mod prefetch;
mod recorder;
mod revalidate;
mod stored;

/// Answers pulls. Clones share everything.
#[derive(Debug, Clone)]
pub struct Puller(Arc<Shared>);

/// Limits of pulls (configuration `manifest` and `cache`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullConfig {
    /// Longest manifest, bytes.
    pub manifest_max_bytes: u64,
    /// How long a 404 is remembered.
    pub negative_ttl: Duration,
}

/// What the puller stands on.
#[derive(Debug)]
pub struct Parts {
    /// What is known.
    pub index: Index,
    /// Content.
    pub blobs: Arc<dyn BlobStore>,
    /// Records.
    pub records: Arc<dyn RecordStore>,
    /// Downloads.
    pub transfers: Transfers,
    /// Brings a lost index back.
    pub rebuild: Rebuild,
    /// Owner of background work.
    pub tasks: Tasks,
    /// Counters.
    pub metrics: PullMetrics,
}

#[derive(Debug)]
struct Shared {
    index: Index,
    blobs: Arc<dyn BlobStore>,
    transfers: Transfers,
    rebuild: Rebuild,
    recorder: Recorder,
    metrics: PullMetrics,
    config: ArcSwap<PullConfig>,
    clock: Clock,
    /// Manifests by digest: who may have one is decided before this is looked at.
    manifests: Cache<Digest, Bytes>,
    fetches: Flights<(RepoKey, ManifestRef), Result<Fetched, PullError>>,
    checks: Flights<(RepoKey, Tag), Verdict>,
    proofs: Flights<(RepoKey, Digest), Result<Option<u64>, PullError>>,
    healing: Flights<Digest, bool>,
    /// Blobs that were hashed again after an unclean stop, and are right.
    sound: Cache<Digest, ()>,
    negative: Negative,
    /// Tags that a HEAD has told us, until the manifest itself is fetched by digest.
    pending: Cache<(RepoKey, Digest), Arc<PendingTag>>,
    referrers: Cache<(RepoKey, Digest), Arc<Vec<serde_json::Value>>>,
    /// MiB of manifests in flight.
    room: Semaphore,
}

impl Puller {
    /// A puller over its parts; `manifest_memory` bytes of manifests are kept in memory.
    pub fn new(parts: Parts, config: PullConfig, manifest_memory: u64) -> Self {
        let Parts {
            index,
            blobs,
            records,
            transfers,
            rebuild,
            tasks,
            metrics,
        } = parts;
        let recorder = Recorder::start(&tasks, Arc::clone(&blobs), records, index.clone());
        let weigh =
            |_: &Digest, bytes: &Bytes| u32::try_from(bytes.len() + OVERHEAD).unwrap_or(u32::MAX);
        Self(Arc::new(Shared {
            index,
            blobs,
            transfers,
            rebuild,
            recorder,
            metrics,
            config: ArcSwap::from_pointee(config),
            clock: Clock::default(),
            manifests: Cache::builder()
                .max_capacity(manifest_memory)
                .weigher(weigh)
                .build(),
            fetches: Flights::new("manifest", tasks.clone()),
            checks: Flights::new("tag check", tasks.clone()),
            proofs: Flights::new("membership", tasks.clone()),
            healing: Flights::new("healing", tasks),
            sound: Cache::new(1_000_000),
            negative: Negative::default(),
            pending: Cache::builder()
                .max_capacity(10_000)
                .time_to_live(PENDING)
                .build(),
            referrers: Cache::builder()
                .max_capacity(10_000)
                .time_to_live(REFERRERS_TTL)
                .build(),
            room: Semaphore::new(ROOM_MIB as usize),
        }))
    }

    /// Takes over a changed configuration.
    pub fn reconfigure(&self, config: PullConfig) {
        self.0.config.store(Arc::new(config));
    }
}

impl Shared {
    /// Before something of `repo` is believed to be unknown: a lost index gets back what the store says of it.
    async fn remember(&self, repo: &RepoKey) {
        if self.index.complete() {
            return;
        }
        if let Err(error) = self.rebuild.repository(repo).await {
            tracing::warn!(%repo, %error, "not brought back yet; the upstream is asked instead");
        }
    }

    fn origin(cap: &ReadCap) -> Origin {
        Origin {
            repo: cap.repo().clone(),
            upstream: Arc::clone(cap.upstream()),
            public: cap.is_public(),
        }
    }
}

/// What the index knows; when it cannot say, nothing is known, and the upstream is asked.
fn known<T>(answer: Result<Option<T>, IndexError>) -> Option<T> {
    answer.unwrap_or_else(|error| {
        tracing::warn!(%error, "the index cannot be read; the upstream is asked instead");
        None
    })
}

/// Wall-clock time that does not jump while the process runs (H-30).
#[derive(Debug)]
struct Clock(Instant, Timestamp);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now(), Timestamp::now())
    }
}

impl Clock {
    fn now(&self) -> Timestamp {
        self.1.saturating_add(self.0.elapsed()).unwrap_or(self.1)
    }
}

/// Memory of a cached manifest besides its bytes.
const OVERHEAD: usize = 256;
/// A tag that was only looked up by HEAD is forgotten after this time; its client has its manifest within seconds.
const PENDING: Duration = Duration::from_mins(10);
/// How long referrers are answered without asking: a fresh signature must be seen soon (H-39).
const REFERRERS_TTL: Duration = Duration::from_mins(1);
/// MiB of manifests that may be on their way at once.
const ROOM_MIB: u32 = 64;
/// Longest wait for a manifest in all.
const MANIFEST_TOTAL: Duration = Duration::from_secs(10);
