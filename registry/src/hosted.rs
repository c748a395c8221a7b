//! Repositories that take pushes: uploads, manifests, tags, and their deletion. Reading them is the puller's business.
//!
//! What is acknowledged is on disk, and so is its record, before the answer; the index row is committed. The order is
//! blob, manifest record, tag record, so that a crash never leaves a name without its content; deletions go the other
//! way. A push always publishes its own synced bytes, even where a proxied copy lies. Bytes that no repository names
//! any more are left to eviction, unless [`gc`] took them from there.
//!
//! Every change runs in a task of its own that a leaving client does not stop: it ends, one way or the other, and gives
//! its session back ([`upload`]). Changes to the manifests and tags of one repository take turns ([`manifest`]).

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use coral_schema::oci::manifest::ManifestError;
use coral_schema::oci::{Digest, Tag};
use coral_schema::process::tasks::Tasks;
use futures::stream::BoxStream;
use moka::sync::Cache;
use tokio::sync::{Mutex, MutexGuard, Semaphore};

use self::active::Active;
pub use self::fill::skip;
pub use self::gc::GcConfig;
pub use self::manifest::{Accepted, Pushed};
pub use self::metrics::HostedMetrics;
use self::sessions::Sessions;
pub use self::tag::Condition;
pub use self::upload::Chunk;
use crate::access::Access;
use crate::evict::Evictor;
use crate::index::{Index, IndexError};
use crate::name::RepoKey;
use crate::rebuild::{Rebuild, RebuildError};
use crate::store::key::{Entry, RecordKey};
use crate::store::record::{self, RepoKind, RepoRecord};
use crate::store::{BlobStore, DigestMismatch, RecordStore, Room, StoreError, UploadStore};

mod active;
mod fill;
mod gc;
mod manifest;
mod member;
mod metrics;
mod sessions;
mod tag;
mod upload;

/// The bytes of a request as they arrive; an error means that no more will come.
pub type Body = BoxStream<'static, Result<Bytes, Box<dyn std::error::Error + Send + Sync>>>;

/// What hosted repositories stand on.
#[derive(Debug)]
pub struct Parts {
    /// What is known.
    pub index: Index,
    /// Content.
    pub blobs: Arc<dyn BlobStore>,
    /// Content that is being pushed.
    pub uploads: Arc<dyn UploadStore>,
    /// Records.
    pub records: Arc<dyn RecordStore>,
    /// Brings a lost index back.
    pub rebuild: Rebuild,
    /// What is hosted.
    pub access: Arc<Access>,
    /// Makes room.
    pub evictor: Evictor,
    /// Counters.
    pub metrics: HostedMetrics,
    /// Owner of the work that was begun.
    pub tasks: Tasks,
}

/// Limits and times (configuration `manifest` and `gc`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Longest manifest, bytes.
    pub manifest_max_bytes: u64,
    /// When what is not needed goes.
    pub gc: GcConfig,
}

/// Takes pushes. Clones share everything.
#[derive(Debug, Clone)]
pub struct Hosted(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    parts: Parts,
    sessions: Sessions,
    /// Hosted repositories whose record was written by this process.
    repos: Cache<RepoKey, ()>,
    /// One of these is held while manifests or tags of a repository change.
    turns: Vec<Mutex<()>>,
    hasher: RandomState,
    settings: ArcSwap<Settings>,
    /// Who pushes where.
    active: Active,
    /// Held by the pass that runs.
    collecting: Mutex<()>,
    /// MiB of manifests in flight.
    manifest_room: Semaphore,
    /// Steps that write to uploads at once.
    steps: Semaphore,
}

/// Why a push, or a deletion, was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HostedError {
    /// No such session, or not in this repository.
    #[error("there is no such upload session; it ended, expired, or never was")]
    UnknownUpload,
    /// The chunk does not begin where the session ends, or somebody else writes to the session now.
    #[error("the session has {received} bytes, and the next chunk begins there")]
    OutOfOrder {
        /// Bytes that the session has.
        received: u64,
    },
    /// The body is not as long as was said.
    #[error("the body has {found} bytes, but {said} were announced")]
    Length {
        /// What was said.
        said: u64,
        /// What there is; more than said: so many at least.
        found: u64,
    },
    /// The body ended early.
    #[error("the body ended before its time: {0}")]
    Broken(String),
    /// The content has another digest.
    #[error("{0}, which is not the one that was named")]
    WrongDigest(#[from] DigestMismatch),
    /// The repository has no such manifest or tag.
    #[error("the repository has no such manifest")]
    UnknownManifest,
    /// The repository has no such blob.
    #[error("the repository has no such blob")]
    UnknownBlob,
    /// The manifest is none, or one that is not accepted.
    #[error("{0}")]
    Invalid(Arc<ManifestError>),
    /// Longer than `manifest.maxBytes`.
    #[error("the manifest is longer than {limit} bytes, the limit set by manifest.maxBytes")]
    TooLarge {
        /// The limit, bytes.
        limit: u64,
    },
    /// It names what the repository does not have, and `sparse` is false.
    #[error("the manifest names {0}, which this repository does not have")]
    MissingChild(Digest),
    /// The tag is immutable.
    #[error("the tag {0} is immutable here (immutableTags), and means another manifest already")]
    Immutable(Tag),
    /// The condition of the request does not hold.
    #[error("the tag is not what the request demands (If-Match, If-None-Match)")]
    Precondition,
    /// The store or the index fails.
    #[error("this cannot be stored now: {0}")]
    Unavailable(String),
}

impl From<StoreError> for HostedError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<IndexError> for HostedError {
    fn from(error: IndexError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<RebuildError> for HostedError {
    fn from(error: RebuildError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<io::Error> for HostedError {
    fn from(error: io::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl Hosted {
    /// Over its parts.
    pub fn new(parts: Parts, settings: Settings) -> Self {
        Self(Arc::new(Shared {
            parts,
            sessions: Sessions::default(),
            repos: Cache::new(REPOS),
            turns: (0..TURNS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            settings: ArcSwap::from_pointee(settings),
            active: Active::default(),
            collecting: Mutex::default(),
            manifest_room: Semaphore::new(MANIFEST_ROOM_MIB),
            steps: Semaphore::new(STEPS),
        }))
    }

    /// Takes over a changed configuration.
    pub fn reconfigure(&self, settings: Settings) {
        self.0.settings.store(Arc::new(settings));
    }

    /// Runs `work` to its end, whether the client waits for that or not.
    async fn finish_in_any_case<T, F>(&self, work: F) -> Result<T, HostedError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, HostedError>> + Send + 'static,
    {
        let task = self.0.parts.tasks.spawn("push", work);
        let ended = task.await;
        ended.map_err(|error| HostedError::Unavailable(error.to_string()))?
    }
}

impl Shared {
    /// The store's records of this repository are in the index.
    async fn recall(&self, repo: &RepoKey) -> Result<(), HostedError> {
        Ok(self.parts.rebuild.repository(repo).await?)
    }

    /// Waits until nobody else changes manifests or tags of this repository.
    async fn turn(&self, repo: &RepoKey) -> MutexGuard<'_, ()> {
        let place = usize::try_from(self.hasher.hash_one(repo)).unwrap_or_default();
        self.turns[place % self.turns.len()].lock().await
    }

    /// Before its first content a repository says that it is hosted.
    async fn introduce(&self, repo: &RepoKey) -> Result<(), HostedError> {
        if self.repos.contains_key(repo) {
            return Ok(());
        }
        let record = RepoRecord {
            kind: RepoKind::Hosted,
            visibility: None,
            missing_since: None,
        };
        self.put(repo, Entry::Repo, record::encode(&record)).await?;
        self.repos.insert(repo.clone(), ());
        Ok(())
    }

    async fn put(&self, repo: &RepoKey, entry: Entry, record: Bytes) -> Result<(), HostedError> {
        let key = RecordKey::new(repo.clone(), entry);
        Ok(self.parts.records.put(&key, record).await?)
    }

    async fn remove(&self, repo: &RepoKey, entry: Entry) -> Result<(), HostedError> {
        let key = RecordKey::new(repo.clone(), entry);
        Ok(self.parts.records.remove(&key).await?)
    }

    /// A rebuild that has read a record must not bring back what is deleted meanwhile.
    async fn may_delete(&self) -> Result<(), HostedError> {
        if self.parts.rebuild.settled().await {
            return Ok(());
        }
        let reason = "the index is being rebuilt, and nothing is deleted until it is done";
        Err(HostedError::Unavailable(reason.to_owned()))
    }

    fn room(&self) -> &Room {
        self.parts.evictor.room()
    }

    /// Is there room for more? Tries to make some first.
    async fn need_room(&self) -> Result<(), HostedError> {
        let blobs = &self.parts.blobs;
        if !blobs.may_fill() {
            self.room().ask().await;
        }
        if blobs.may_fill() {
            return Ok(());
        }
        self.room().failed(&StoreError::Full);
        Err(StoreError::Full.into())
    }
}

/// Repositories that are remembered as written; one more write is all that forgetting costs.
const REPOS: u64 = 10_000;

/// More repositories than change at the same moment, mostly; two that share one wait some milliseconds.
const TURNS: usize = 256;

/// As for manifests that are pulled.
const MANIFEST_ROOM_MIB: usize = 64;

/// As many MiB are in memory at most, whatever the number of clients, besides what each connection buffers itself.
const STEPS: usize = 64;

/// A client that sends nothing for so long has gone, or will not finish; its session stays.
const SILENCE: Duration = Duration::from_mins(1);
