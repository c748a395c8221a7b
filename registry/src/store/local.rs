//! Blobs in a folder, read and written by our own code, because here we need the files themselves.
//!
//! `<root>/v1/blobs/<alg>/<hh>/<hex>` come into being by a rename from `<root>/spool/`, so both lie on one volume. They
//! are not synced one by one: [`BlobStore::sync`] does it for all, and whoever keeps the index knows which blobs it
//! covered (H-09).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use coral_schema::oci::{Algorithm, Digest};
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::BoxStream;
use moka::sync::Cache;

use super::buffers::Buffers;
use super::reader::StoredBlob;
use super::run::Run;
use super::space::{Limits, Space};
use super::spool::Spool;
use super::spool::folder::SpoolFolder;
use super::upload::folder::UploadFolder;
use super::upload::{Upload, UploadId, VerifiedUpload};
use super::verified::{VerifiedManifest, VerifiedSpool};
use super::{BlobStore, IsWritten, OpenError, StoreError, UploadStore, Volume, key};
use crate::name::RepoKey;

mod files;
mod format;
mod list;

/// A folder of blobs. The process lock on the data folder makes it the only one. Clones are the same store.
#[derive(Debug, Clone)]
pub struct LocalStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    space: Arc<Space>,
    buffers: Buffers,
    spool: Arc<SpoolFolder>,
    uploads: Arc<UploadFolder>,
    /// A hit on a popular blob opens nothing. What is not there is not remembered.
    open: Cache<Digest, Arc<StoredBlob>>,
    temporary: AtomicU64,
}

impl LocalStore {
    /// Opens the store in `root`, makes it if there is none, and sweeps what the last run left behind. Blocking.
    pub fn open(root: &Path, limits: Limits, buffers: Buffers) -> Result<Self, OpenError> {
        let spool_path = root.join(SPOOL);
        for folder in [&root.join(key::BLOBS), &root.join(key::REPOS), &spool_path] {
            create_folder(folder).map_err(OpenError::io(folder))?;
        }
        format::check(root)?;
        let space = File::open(root).and_then(|folder| Space::new(folder, limits));
        let space = Arc::new(space.map_err(OpenError::io(root))?);
        let run = Run::begin().map_err(OpenError::io(root))?;
        let sweep = || {
            let (path, space) = (spool_path.clone(), Arc::clone(&space));
            let spool = SpoolFolder::open(path, space, buffers.clone(), run.clone())?;
            spool.sweep_temporary()?;
            spool.sweep(PART_MAX_AGE, SystemTime::now())?;
            Ok(spool)
        };
        let spool = sweep().map_err(OpenError::io(&spool_path))?;
        let uploads_path = root.join(UPLOADS);
        let uploads = UploadFolder::open(uploads_path.clone(), Arc::clone(&space), run.clone());
        let uploads = uploads
            .and_then(|uploads| {
                uploads.sweep(PART_MAX_AGE, SystemTime::now(), |_| false)?;
                Ok(uploads)
            })
            .map_err(OpenError::io(&uploads_path))?;
        Ok(Self(Arc::new(Inner {
            root: root.to_owned(),
            space,
            buffers,
            spool: Arc::new(spool),
            uploads: Arc::new(uploads),
            open: Cache::new(OPEN_FILES),
            temporary: AtomicU64::new(0),
        })))
    }

    /// The room that there is. Whoever knows the sum of all blobs tells it by [`Space::set_stored`].
    pub fn space(&self) -> &Arc<Space> {
        &self.0.space
    }

    /// Drops part files that nobody writes, if they were last written longer than a day ago or cannot be taken up.
    pub async fn sweep_parts(&self) -> Result<(), StoreError> {
        self.sweep_parts_older_than(PART_MAX_AGE).await
    }

    async fn sweep_parts_older_than(&self, max_age: Duration) -> Result<(), StoreError> {
        self.blocking("sweep part files", move |store| {
            store.spool.sweep(max_age, SystemTime::now())
        })
        .await
    }

    /// Runs `work` where it may block.
    async fn blocking<T, F>(&self, operation: &'static str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    {
        self.blocking_within(DEADLINE, operation, work).await
    }

    async fn blocking_within<T, F>(
        &self,
        deadline: Duration,
        operation: &'static str,
        work: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    {
        let store = Arc::clone(&self.0);
        let work = tokio::task::spawn_blocking(move || work(&store));
        let result = match tokio::time::timeout(deadline, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(panicked)) => Err(io::Error::other(panicked)),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        result.map_err(StoreError::io(operation))
    }
}

impl BlobStore for LocalStore {
    fn open<'a>(
        &'a self,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Arc<StoredBlob>>, StoreError>> {
        async move {
            if let Some(blob) = self.0.open.get(digest) {
                return Ok(Some(blob));
            }
            let digest = *digest;
            self.blocking("open a blob", move |store| store.open_blob(&digest))
                .await
        }
        .boxed()
    }

    fn spool<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Spool, StoreError>> {
        let digest = *digest;
        self.blocking("open a part file", move |store| store.spool.spool(&digest))
            .boxed()
    }

    fn publish(&self, spool: VerifiedSpool) -> BoxFuture<'_, Result<Arc<StoredBlob>, StoreError>> {
        self.blocking("publish a blob", move |store| {
            store.publish(&spool.into_spool())
        })
        .boxed()
    }

    fn put_manifest<'a>(
        &'a self,
        manifest: &'a VerifiedManifest,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let manifest = manifest.clone();
        self.blocking("store a manifest", move |store| {
            store.put_manifest(&manifest)
        })
        .boxed()
    }

    fn remove<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<(), StoreError>> {
        let digest = *digest;
        self.blocking("remove a blob", move |store| store.remove(&digest))
            .boxed()
    }

    fn list(&self) -> BoxStream<'_, Result<(Digest, u64), StoreError>> {
        list::blobs(self)
    }

    fn volume(&self) -> BoxFuture<'_, Result<Volume, StoreError>> {
        self.blocking("measure the volume", |store| store.space.measure())
            .boxed()
    }

    fn may_fill(&self) -> bool {
        self.0.space.may_fill()
    }

    fn fits(&self, size: u64) -> bool {
        self.0.space.fits(size)
    }

    fn spool_bytes(&self) -> u64 {
        self.0.space.spool_bytes()
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.blocking_within(SYNC_DEADLINE, "sync the volume", |store| {
            Ok(rustix::fs::syncfs(File::open(&store.root)?)?)
        })
        .boxed()
    }
}

impl UploadStore for LocalStore {
    fn create<'a>(
        &'a self,
        repo: &'a RepoKey,
        algorithm: Algorithm,
    ) -> BoxFuture<'a, Result<Upload, StoreError>> {
        let repo = repo.clone();
        self.blocking("begin an upload", move |store| {
            store.uploads.create(&repo, algorithm)
        })
        .boxed()
    }

    fn find<'a>(&'a self, id: &'a UploadId) -> BoxFuture<'a, Result<Option<Upload>, StoreError>> {
        let id = id.clone();
        self.blocking_within(SYNC_DEADLINE, "open an upload", move |store| {
            store.uploads.find(&id)
        })
        .boxed()
    }

    fn accept(&self, upload: VerifiedUpload) -> BoxFuture<'_, Result<(), StoreError>> {
        self.blocking_within(SYNC_DEADLINE, "accept an upload", move |store| {
            store.accept(upload)
        })
        .boxed()
    }

    fn accept_manifest<'a>(
        &'a self,
        manifest: &'a VerifiedManifest,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let manifest = manifest.clone();
        self.blocking("accept a manifest", move |store| {
            store.accept_manifest(&manifest)
        })
        .boxed()
    }

    fn sweep(
        &self,
        max_age: Duration,
        is_written: Box<IsWritten>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.blocking("sweep uploads", move |store| {
            store.uploads.sweep(max_age, SystemTime::now(), is_written)
        })
        .boxed()
    }
}

/// Folders above it, too; only we may look into them.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

pub(super) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Below the root, beside `v1/`.
const SPOOL: &str = "spool";
const UPLOADS: &str = "uploads";

/// A broken download that nobody has asked for since is not waited for any longer, nor is an upload.
const PART_MAX_AGE: Duration = Duration::from_hours(24);

/// Popular blobs whose files stay open: far below the limit of open files that the process raises at start.
const OPEN_FILES: u64 = 1024;

/// A disk that is silent for longer fails the operation: clients have given up by then.
const DEADLINE: Duration = Duration::from_secs(30);

/// Everything that was written since the last time, by other programs, too; or the whole of a large upload, at once.
const SYNC_DEADLINE: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests;
