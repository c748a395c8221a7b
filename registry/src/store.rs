//! Where bytes and records are kept.
//!
//! Blobs are write-once: they come into being only by [`Spool`]s whose digest was checked ([`verified`]), by a rename
//! on one volume. A crash leaves behind at most part files in `spool/`, which are resumed or dropped, never a blob with
//! wrong bytes. Records are small JSON objects under the keys of [`key`]; they say what the index can be rebuilt from.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coral_schema::oci::{Algorithm, Digest};
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::name::RepoKey;

pub use self::bucket::Bucket;
pub use self::buffers::{BufferSize, Buffers};
pub use self::local::LocalStore;
pub use self::reader::{FileReader, StoredBlob};
pub use self::room::Room;
pub use self::space::{Limits, Space};
pub use self::spool::Spool;
pub use self::spool::tail::Mark;
pub use self::upload::{Upload, UploadId, VerifiedUpload, VerifyError};
pub use self::verified::{DigestMismatch, VerifiedManifest, VerifiedSpool};

pub mod bucket;
pub mod buffers;
#[cfg(test)]
mod conformance;
pub mod key;
pub mod local;
pub mod reader;
pub mod record;
pub mod room;
mod run;
pub mod space;
pub mod spool;
pub mod upload;
pub mod verified;

/// Why the store did not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No space left, or our own limit is reached.
    #[error("no space is left")]
    Full,
    /// What is there contradicts its name or the index.
    #[error("stored content is damaged: {0}")]
    Damaged(Arc<str>),
    /// Everything else.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What went wrong.
        source: Arc<io::Error>,
    },
}

impl StoreError {
    /// For `map_err`: sorts a failure of `operation` into those that free space would cure and the rest.
    fn io(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| {
            if is_full(&error) {
                Self::Full
            } else {
                Self::Io {
                    operation,
                    source: Arc::new(error),
                }
            }
        }
    }
}

/// Does the error say that the volume, a quota or a file size limit is used up?
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A later release wrote it.
    #[error(
        "the store in {} has format {found}, this release knows formats up to {known}; start the release that wrote it, \
         or use another folder",
        folder.display()
    )]
    Newer {
        /// The store's folder.
        folder: PathBuf,
        /// What its `v1/format` says.
        found: u32,
        /// What we understand.
        known: u32,
    },
    /// A folder or file in it cannot be made, read or written.
    #[error("cannot use {} for the store", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    /// For `map_err`.
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// Blobs by digest.
pub trait BlobStore: fmt::Debug + Send + Sync {
    /// The blob, open for reading; `None` when it is not held.
    fn open<'a>(
        &'a self,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Arc<StoredBlob>>, StoreError>>;

    /// A part file for this digest: an earlier one of this boot, with its offset and hash state, or an empty one.
    /// The caller is the only one to hold a spool of this digest.
    fn spool<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Spool, StoreError>>;

    /// Makes a checked part file the blob. Finding the blob there already is success.
    fn publish(&self, spool: VerifiedSpool) -> BoxFuture<'_, Result<Arc<StoredBlob>, StoreError>>;

    /// Stores a checked manifest as a blob.
    fn put_manifest<'a>(
        &'a self,
        manifest: &'a VerifiedManifest,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Removes the bytes; readers that have the blob open keep it. Nothing there is success.
    fn remove<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<(), StoreError>>;

    /// All blobs with their sizes, for rebuilding the index and reconciling.
    fn list(&self) -> BoxStream<'_, Result<(Digest, u64), StoreError>>;

    /// Bytes free and in all on the volume.
    fn volume(&self) -> BoxFuture<'_, Result<Volume, StoreError>>;

    /// May fills start and go on? Cheap enough to ask at every step; see [`Space::may_fill`].
    fn may_fill(&self) -> bool;

    /// Could a blob of `size` bytes ever be held?
    fn fits(&self, size: u64) -> bool;

    /// Bytes of all part files.
    fn spool_bytes(&self) -> u64;

    /// Returns once everything published before is on disk, even after a power loss.
    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Blobs that are pushed.
pub trait UploadStore: fmt::Debug + Send + Sync {
    /// A new upload for this repository, hashed with `algorithm` while it arrives.
    fn create<'a>(
        &'a self,
        repo: &'a RepoKey,
        algorithm: Algorithm,
    ) -> BoxFuture<'a, Result<Upload, StoreError>>;

    /// The upload of this name; `None` when there is none that can be gone on with. The caller is the only one to change
    /// it.
    fn find<'a>(&'a self, id: &'a UploadId) -> BoxFuture<'a, Result<Option<Upload>, StoreError>>;

    /// Makes a checked upload the blob, whatever lies there already. It is on disk when this returns, even after a power
    /// loss.
    fn accept(&self, upload: VerifiedUpload) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Stores a checked manifest as [`UploadStore::accept`] does a blob.
    fn accept_manifest<'a>(
        &'a self,
        manifest: &'a VerifiedManifest,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Removes uploads that nobody has gone on with for so long.
    fn sweep(
        &self,
        max_age: Duration,
        is_written: Box<IsWritten>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Is this upload being written now?
pub type IsWritten = dyn Fn(&UploadId) -> bool + Send;

/// A volume's space, bytes.
#[derive(Debug, Clone, Copy)]
pub struct Volume {
    /// Available to us.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// Records by key (see [`key`]).
pub trait RecordStore: fmt::Debug + Send + Sync {
    /// The record, if there is one.
    fn get<'a>(
        &'a self,
        key: &'a key::RecordKey,
    ) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>>;

    /// Creates or overwrites.
    fn put<'a>(
        &'a self,
        key: &'a key::RecordKey,
        record: Bytes,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Removes; nothing there is success.
    fn remove<'a>(&'a self, key: &'a key::RecordKey) -> BoxFuture<'a, Result<(), StoreError>>;

    /// All records of one repository, or of all.
    fn list<'a>(
        &'a self,
        repo: Option<&'a RepoKey>,
    ) -> BoxStream<'a, Result<(key::RecordKey, Bytes), StoreError>>;
}
