//! One download per digest, shared by everybody who waits.
//!
//! ```text
//! Connecting → Running(size, watermark) → Verifying → Verified → Published | Unpublished
//!     └────────────┴──────────┬──────────────┴→ Failed | Detached
//! ```
//!
//! A [`Transfer`] is written by one task of its own ([`fill`]), never inside a request: it hashes and writes what
//! arrives into a spool file and moves the *watermark*, the number of bytes that are on disk. [`reader`]s follow the
//! watermark in that file, each at its own pace; they never slow the download down, and a client that leaves changes
//! nothing. What is promised:
//!
//! - The upstream is asked once, whoever waits; breaks are resumed where they happened ([`download`]).
//! - Nobody gets the last byte of a blob before its digest was verified, so a complete body is always right. On
//!   failure the body ends with an error, which aborts the connection, never cleanly.
//! - A transfer is found here until its blob is published: whoever comes in between reads its file.
//! - A store that fails does not fail a client: the transfer is *detached*, and each reader goes on with an upstream
//!   request of its own ([`bypass`]) that it verifies itself.
//!
//! Who may join is not decided here: callers hand in an [`Origin`] that they may read from.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use coral_schema::oci::Digest;
use coral_schema::process::tasks::Tasks;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

pub use self::budget::{FillOnRange, FinishTransfers};
pub use self::metrics::TransferMetrics;
pub use self::progress::{Detached, Phase, Progress, TransferError};
use self::rate::Rate;
use self::suspects::Suspects;
use self::table::Table;
use crate::index::Index;
use crate::name::RepoKey;
use crate::store::{BlobStore, FileReader, RecordStore, Room};
use crate::upstream::{Priority, Upstream};

pub mod budget;
pub mod bypass;
mod download;
mod fill;
mod metrics;
mod part;
mod piece;
mod progress;
pub mod rate;
pub mod reader;
mod resume;
mod stall;
mod suspects;
mod table;
#[cfg(test)]
mod tests;

/// Where a blob may be fetched from: a repository that the caller may read.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The repository.
    pub repo: RepoKey,
    /// Its upstream.
    pub upstream: Arc<Upstream>,
    /// May the anonymous public read it?
    pub public: bool,
}

/// How transfers behave (configuration `cache`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferConfig {
    /// Does a transfer that nobody reads any more go on?
    pub finish: FinishTransfers,
    /// Does a bounded range start a fill?
    pub fill_on_range: FillOnRange,
}

/// One running download of one blob.
pub struct Transfer {
    digest: Digest,
    /// Who waits for it; never falls.
    priority: watch::Sender<Priority>,
    started: Instant,
    rate: Mutex<Rate>,
    origins: Mutex<Vec<Origin>>,
    /// Repositories whose upstream has delivered something of it, and whether they are public.
    delivered: Mutex<Vec<(RepoKey, bool)>>,
    /// It was stored already, and may be read by everybody.
    stored_as_public: AtomicBool,
    progress: watch::Sender<Progress>,
    file: OnceLock<FileReader>,
    readers: AtomicUsize,
    readers_changed: Notify,
}

/// A running transfer, for the status API.
#[derive(Debug, Clone)]
pub struct TransferStatus {
    /// What is fetched.
    pub digest: Digest,
    /// Where from, first.
    pub repo: RepoKey,
    /// Where it stands.
    pub progress: Progress,
    /// Who reads it now.
    pub readers: usize,
    /// How fast it is.
    pub rate: Rate,
}

/// Where transfers put what they fetch.
#[derive(Debug)]
pub struct Stores {
    /// Content.
    pub blobs: Arc<dyn BlobStore>,
    /// Proofs of membership.
    pub records: Arc<dyn RecordStore>,
    /// Where to ask for room.
    pub room: Room,
}

/// All running transfers.
#[derive(Debug, Clone)]
pub struct Transfers(Arc<Shared>);

/// What fills and readers share.
#[derive(Debug)]
struct Shared {
    table: Arc<Table>,
    store: Arc<dyn BlobStore>,
    records: Arc<dyn RecordStore>,
    room: Room,
    index: Index,
    tasks: Tasks,
    config: arc_swap::ArcSwap<TransferConfig>,
    metrics: TransferMetrics,
    suspects: Suspects,
    ranges: budget::RangeLedger,
    pieces: piece::Pieces,
    hash_steps: Semaphore,
}

impl Transfers {
    /// No transfers yet.
    pub fn new(
        config: TransferConfig,
        stores: Stores,
        index: Index,
        tasks: Tasks,
        metrics: TransferMetrics,
    ) -> Self {
        Self(Arc::new(Shared {
            table: Arc::new(Table::default()),
            store: stores.blobs,
            records: stores.records,
            room: stores.room,
            index,
            tasks,
            config: arc_swap::ArcSwap::from_pointee(config),
            metrics,
            suspects: Suspects::default(),
            ranges: budget::RangeLedger::default(),
            pieces: piece::Pieces::default(),
            hash_steps: Semaphore::new(HASH_STEPS),
        }))
    }

    /// Takes over a changed configuration; running transfers see it at their next decision.
    pub fn reconfigure(&self, config: TransferConfig) {
        self.0.config.store(Arc::new(config));
    }

    /// The transfer of `digest`, if one runs.
    pub fn running(&self, digest: &Digest) -> Option<Arc<Transfer>> {
        self.0.table.get(digest)
    }

    /// Finds the transfer of `digest`, or starts it from `origin`, one that the caller may read from. One that runs
    /// already only learns who waits for it: the caller has to know that its repository has the digest before it looks
    /// at it.
    pub fn join(&self, digest: &Digest, origin: &Origin, priority: Priority) -> Joined {
        let (transfer, permit) = self.0.table.join(digest, origin, priority);
        let started = permit.is_some();
        if let Some(permit) = permit {
            let running = self.0.metrics.running();
            let shared = Arc::clone(&self.0);
            self.0.tasks.spawn("transfer", async move {
                fill::run(&shared, permit).await;
                drop(running);
            });
        }
        Joined { transfer, started }
    }

    /// What runs now.
    pub fn list(&self) -> Vec<TransferStatus> {
        self.0
            .table
            .all()
            .iter()
            .map(|transfer| transfer.status())
            .collect()
    }
}

/// See [`Transfers::join`].
#[derive(Debug)]
pub struct Joined {
    /// The transfer.
    pub transfer: Arc<Transfer>,
    /// Did this call start it?
    pub started: bool,
}

impl Transfer {
    fn new(digest: Digest, origin: Origin, priority: Priority) -> Self {
        Self {
            digest,
            priority: watch::Sender::new(priority),
            started: Instant::now(),
            rate: Mutex::new(Rate::new(0, Instant::now())),
            origins: Mutex::new(vec![origin]),
            delivered: Mutex::default(),
            stored_as_public: AtomicBool::new(false),
            progress: watch::Sender::new(Progress {
                phase: Phase::Connecting,
                watermark: 0,
                size: None,
            }),
            file: OnceLock::new(),
            readers: AtomicUsize::new(0),
            readers_changed: Notify::new(),
        }
    }

    /// What is fetched.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Follows the transfer.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// May everybody have these bytes: did a public repository deliver some of them?
    pub fn is_public(&self) -> bool {
        self.stored_as_public.load(Ordering::Acquire)
            || lock(&self.delivered).iter().any(|(_, public)| *public)
    }

    /// Is this repository one of those that are asked?
    pub fn comes_from(&self, repo: &RepoKey) -> bool {
        lock(&self.origins)
            .iter()
            .any(|origin| origin.repo == *repo)
    }

    /// Has the upstream of this repository answered with the blob?
    pub fn was_delivered_by(&self, repo: &RepoKey) -> bool {
        lock(&self.delivered).iter().any(|(one, _)| one == repo)
    }

    /// Did the store take nothing of it at all? Then each client needs a download of its own.
    pub fn is_detached_from_start(&self) -> bool {
        matches!(&self.progress.borrow().phase, Phase::Detached(detached) if detached.offset == 0)
    }

    /// Waits until an origin has answered: the size, if it said one. Errors stay errors this way, and do not become
    /// broken bodies.
    pub async fn opened(&self) -> Result<Option<u64>, TransferError> {
        let mut progress = self.watch();
        let opened = progress
            .wait_for(|now| !matches!(now.phase, Phase::Connecting))
            .await;
        let now = opened.map_err(|_| TransferError::Interrupted)?;
        match &now.phase {
            Phase::Failed(error) => Err(error.clone()),
            _ => Ok(now.size),
        }
    }

    fn origins(&self) -> Vec<Origin> {
        lock(&self.origins).clone()
    }

    fn note_delivery(&self, origin: &Origin) {
        let mut delivered = lock(&self.delivered);
        if !delivered.iter().any(|(repo, _)| *repo == origin.repo) {
            delivered.push((origin.repo.clone(), origin.public));
        }
    }

    /// Adds a repository that is known to have the digest: it is asked when the others fail.
    pub fn add_origin(&self, origin: Origin) {
        let mut origins = lock(&self.origins);
        let known =
            |one: &Origin| one.repo == origin.repo && Arc::ptr_eq(&one.upstream, &origin.upstream);
        if origins.len() < MAX_ORIGINS && !origins.iter().any(known) {
            origins.push(origin);
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.progress.send_modify(|progress| progress.phase = phase);
    }

    /// A client may wait for it from now on: it does not queue behind what nobody waits for.
    fn raise(&self, priority: Priority) {
        self.priority.send_if_modified(|now| {
            let raised = priority > *now;
            *now = priority.max(*now);
            raised
        });
    }

    /// Can somebody new be given what comes of it?
    fn is_usable(&self) -> bool {
        !matches!(
            self.progress.borrow().phase,
            Phase::Failed(_) | Phase::Detached(_)
        )
    }

    /// Nobody works on it any more: what was not brought to an end until now has none.
    fn end(&self) {
        self.progress.send_if_modified(|progress| {
            progress.phase = match progress.phase {
                Phase::Connecting | Phase::Running | Phase::Verifying => {
                    Phase::Failed(TransferError::Interrupted)
                }
                Phase::Verified => Phase::Unpublished,
                Phase::Published | Phase::Unpublished | Phase::Detached(_) | Phase::Failed(_) => {
                    return false;
                }
            };
            true
        });
    }

    fn status(&self) -> TransferStatus {
        let progress = self.progress.borrow().clone();
        let mut rate = lock(&self.rate);
        rate.observe(progress.watermark, Instant::now());
        TransferStatus {
            digest: self.digest,
            repo: self.origins()[0].repo.clone(),
            readers: self.readers.load(Ordering::Relaxed),
            rate: *rate,
            progress,
        }
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer")
            .field("digest", &self.digest)
            .field("progress", &*self.progress.borrow())
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Repositories that one transfer may draw from. Real blobs are shared by a handful; the bound keeps a hostile set of
/// repositories from growing a list.
const MAX_ORIGINS: usize = 16;

/// Hash-and-write steps at once. Each holds at most 1 MiB and one blocking thread; more would only wait for the CPUs.
const HASH_STEPS: usize = 64;
