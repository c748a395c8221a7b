//! What is known without touching the store: a SQLite file that may be deleted at any time.
//!
//! One thread writes, a few read; answers that requests need again and again (tags, membership, visibility, manifest
//! and blob rows) stay in bounded memory caches, which every write keeps true: a hit waits for no thread. Everything in
//! it can be rebuilt from the store, lazily per repository and as a whole.
//!
//! Writes are in memory at once and in the file some milliseconds later; a file that cannot be written (disk full) is
//! tried again and fails no caller. A file that is damaged, deleted or replaced, at start or while running, is moved
//! aside; an empty one takes its place, gets what memory holds, and is not [`Index::complete`] until a rebuild was done.
//!
//! A row is the lock between publishing and deleting: a blob row in state [`BlobState::Deleting`] is never served, and
//! publishing such a digest waits until the row is gone. Hold [`Index::publishing`] from before the bytes get their
//! final name until [`Index::put_blob`] was called.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coral_schema::oci::manifest::ChildKind;
use coral_schema::oci::{Digest, Manifest, Platform};
use coral_schema::process::tasks::Tasks;
use jiff::Timestamp;
use tokio::sync::watch;

use self::frozen::Frozen;
use self::garbage::Marks;
use self::holds::Holds;
use self::memory::Memories;
use self::touches::{Clock, Touches};
use self::worker::Worker;
use crate::name::RepoKey;

pub use self::eviction::{Claim, EvictionCandidate};
pub use self::garbage::{Page, Role, Taken, Unneeded};
pub use self::holds::Publishing;
pub use self::images::{Image, ImageFilter};
pub use self::pins::{MAX_PIN_SOURCES, MAX_PINS, PinSource, PinnedImage, Pins};
pub use self::restore::Restored;

mod blobs;
mod columns;
mod eviction;
mod file;
mod frozen;
mod garbage;
mod holds;
mod hosted;
mod images;
mod manifests;
mod members;
mod memory;
mod migrations;
mod pins;
mod reader;
mod restore;
mod tags;
mod touches;
mod worker;
mod writer;

/// A handle to the index; clones share it.
#[derive(Debug, Clone)]
pub struct Index(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    worker: Worker,
    memory: Arc<Memories>,
    touches: Touches,
    holds: Arc<Holds>,
    frozen: Arc<Frozen>,
    marks: Marks,
    clock: Clock,
    /// Do bytes that the index finds in the store, but has no row of, need a check before they are trusted? So after a
    /// power loss, and when the file that could tell was lost.
    distrust: AtomicBool,
}

/// What opening found.
#[derive(Debug)]
pub struct Opened {
    /// The index, ready.
    pub index: Index,
    /// What was there.
    pub state: OpenState,
}

/// What was there before the index was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenState {
    /// No file.
    Fresh,
    /// A usable file.
    Existing {
        /// Was it closed, after everything that it says was on disk?
        clean: bool,
        /// Has the machine run since?
        same_boot: bool,
    },
    /// A file that was moved aside, for this reason; the new one is empty.
    Replaced(String),
}

/// Why the index has no answer. None of them is a reason to fail a pull: the store and the upstream can still be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IndexError {
    /// SQLite's write-ahead log needs a local disk.
    #[error(
        "the index cannot lie on {0}, a network file system; use a data folder on a local disk"
    )]
    NetworkFileSystem(&'static str),
    /// Its threads do not keep up, or do not answer in time.
    #[error("the index is busy")]
    Busy,
    /// It was closed.
    #[error("the index is closed")]
    Closed,
    /// The blob was claimed by eviction, which did not finish in time.
    #[error("the blob is being deleted")]
    Deleting,
    /// Its files cannot be handled.
    #[error("{operation}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// What went wrong.
        source: Arc<std::io::Error>,
    },
    /// SQLite failed.
    #[error("index: {0}")]
    Database(Arc<rusqlite::Error>),
}

/// Bytes of the blobs that are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Layers and configs.
    pub blobs: u64,
    /// Manifests and indexes.
    pub manifests: u64,
}

impl Totals {
    /// Bytes in all.
    pub fn bytes(self) -> u64 {
        self.blobs + self.manifests
    }
}

impl Index {
    /// Opens the index at `path`, or an empty one in place of a file that is missing or cannot be used. Blocks; needs a
    /// runtime for its ticking task.
    pub fn open(path: &Path, tasks: &Tasks) -> Result<Opened, IndexError> {
        Self::open_in_boot(path, tasks, &file::boot_id()?)
    }

    fn open_in_boot(path: &Path, tasks: &Tasks, boot: &str) -> Result<Opened, IndexError> {
        let (file, found) = file::open_or_replace(path, boot)?;
        let memory = Arc::new(Memories::new());
        let clock = Clock::starting_at(touches::latest(&file)?);
        let holds = Arc::new(Holds::default());
        let frozen = Arc::new(Frozen::default());
        frozen.read(&file.db).map_err(file::database)?;
        let marks = Marks::default();
        marks.read(&file.db).map_err(file::database)?;
        let distrust = match &found.state {
            OpenState::Fresh | OpenState::Replaced(_) => true,
            OpenState::Existing { clean, same_boot } => !clean && !same_boot,
        };
        let worker = Worker::start(file, found.complete, memory.clone())?;
        let index = Self(Arc::new(Inner {
            worker,
            memory,
            touches: Touches::default(),
            holds,
            frozen,
            marks,
            clock,
            distrust: AtomicBool::new(distrust),
        }));
        touches::spawn_ticker(tasks, Arc::downgrade(&index.0));
        Ok(Opened {
            index,
            state: found.state,
        })
    }

    /// Does it know all that the store holds? Not so from the loss of its file until [`Index::set_complete`].
    pub fn complete(&self) -> bool {
        self.0.worker.shared().is_complete()
    }

    /// A rebuild that began at `replacement` (see [`Index::replacements`]) has brought back everything. `false` when the
    /// file was lost again since.
    pub async fn set_complete(&self, replacement: u64) -> Result<bool, IndexError> {
        self.0.worker.set_complete(replacement).await
    }

    /// Counts how often the file was lost and replaced while running. A change asks for a rebuild.
    pub fn replacements(&self) -> watch::Receiver<u64> {
        self.0.worker.shared().replacements()
    }

    /// Bytes of all blobs, as last committed.
    pub fn totals(&self) -> watch::Receiver<Totals> {
        self.0.worker.shared().totals()
    }

    /// The time by which uses are ordered: the wall clock, but never backwards (H-30).
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Did the writing thread make progress `within` this time, or had it nothing to do?
    pub fn progressing(&self, within: Duration) -> bool {
        self.0.worker.shared().progressing(within)
    }

    /// Returns when everything written so far is in the file. [`IndexError::Busy`] while it cannot be written.
    pub async fn flush(&self) -> Result<(), IndexError> {
        self.flush_touches().await
    }

    /// Leaves a clean file. Call it last, after the store has synced: the marker says that all that the rows promise is
    /// on disk.
    pub async fn close(self) -> Result<(), IndexError> {
        // Some seconds of last uses are no loss.
        let _ = self.flush_touches().await;
        self.0.worker.close().await
    }

    fn distrusts(&self) -> bool {
        self.0.distrust.load(Ordering::Relaxed)
    }
}

/// Is a blob there to be served?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobState {
    /// Its bytes are in the store.
    Present,
    /// Eviction has claimed it; its bytes may be gone.
    Deleting,
}

/// A blob (a manifest's bytes are one, too).
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that do not depend on each other"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    /// Length, bytes.
    pub size: u64,
    /// Is it there?
    pub state: BlobState,
    /// Did its bytes come from, or were they confirmed by, a public repository?
    pub public: bool,
    /// Is it a manifest?
    pub manifest: bool,
    /// Known to be on disk even after a power loss.
    pub durable: bool,
    /// The machine went down before it was durable: its bytes are hashed before they are trusted (H-09).
    pub suspect: bool,
    /// Last time it was served, to within some seconds.
    pub last_use: Timestamp,
}

/// A manifest of a repository: what its record in the store says, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRow {
    /// As served.
    pub media_type: String,
    /// Length, bytes.
    pub size: u64,
    /// The manifest that it refers to.
    pub subject: Option<Digest>,
    /// What it is, for referrers.
    pub artifact_type: Option<String>,
    /// Its annotations, for referrers.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// What it names.
    pub children: Vec<ChildRow>,
    /// When it was first stored.
    pub stored: Timestamp,
}

impl ManifestRow {
    /// Of a manifest of `size` bytes, which is stored now.
    pub fn new(manifest: &Manifest, size: u64, now: Timestamp) -> Self {
        let children = manifest.children.iter().map(|child| ChildRow {
            digest: child.digest,
            kind: child.kind,
            size: child.size,
            media_type: child.media_type.clone(),
            platform: child.platform.clone(),
        });
        Self {
            media_type: manifest.media_type.clone(),
            size,
            subject: manifest.subject,
            artifact_type: manifest.artifact_type.clone(),
            annotations: manifest.annotations.clone(),
            children: children.collect(),
            stored: now,
        }
    }
}

/// A descriptor of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildRow {
    /// What it names.
    pub digest: Digest,
    /// Its place in the manifest.
    pub kind: ChildKind,
    /// Its length as the manifest says, bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// What it runs on, for children of an index.
    pub platform: Option<Platform>,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRow {
    /// What it means.
    pub digest: Digest,
    /// What it meant before.
    pub previous: Option<Digest>,
    /// The upstream's `ETag`, as received.
    pub etag: Option<String>,
    /// When `digest` last changed.
    pub updated: Timestamp,
    /// When the upstream last confirmed it.
    pub checked: Timestamp,
    /// Since when the upstream says that it does not exist.
    pub missing_since: Option<Timestamp>,
    /// Which endpoint said so, without credentials.
    pub origin: Arc<str>,
}

/// Who may read a repository that `visibility: auto` decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisibilityRow {
    /// Could anonymous callers read it upstream?
    pub public: bool,
    /// When this was found out.
    pub checked: Timestamp,
    /// Since when the upstream refuses it, while it is still served within `revokeGrace`.
    pub refused_since: Option<Timestamp>,
}

/// A repository with what is stored of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoSummary {
    /// Which.
    pub repo: RepoKey,
    /// Its tags.
    pub tags: u64,
    /// Its manifests.
    pub manifests: u64,
}

#[cfg(test)]
mod tests;
