//! The steps that touch the files of blobs. All of it blocks.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use coral_schema::oci::Digest;

use super::{Inner, create_file, create_folder};
use crate::store::key;
use crate::store::reader::{FileReader, StoredBlob};
use crate::store::spool::Spool;
use crate::store::spool::folder::remove_if_there;
use crate::store::upload::VerifiedUpload;
use crate::store::verified::VerifiedManifest;

impl Inner {
    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(key::blob(digest))
    }

    pub(super) fn open_blob(&self, digest: &Digest) -> io::Result<Option<Arc<StoredBlob>>> {
        let file = match File::open(self.blob_path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let size = file.metadata()?.len();
        let reader = FileReader::new(Arc::new(file), self.buffers.clone());
        Ok(Some(self.remember(*digest, StoredBlob::new(reader, size))))
    }

    pub(super) fn remember(&self, digest: Digest, blob: StoredBlob) -> Arc<StoredBlob> {
        let blob = Arc::new(blob);
        self.open.insert(digest, Arc::clone(&blob));
        // Removed since we opened it? Then its remover may have looked for it here before it came.
        if blob.is_removed() {
            self.forget(digest);
        }
        blob
    }

    /// Lets the cache close the file: its bytes are free once nobody reads it any more.
    fn forget(&self, digest: Digest) {
        self.open.invalidate(&digest);
        self.open.run_pending_tasks();
    }

    pub(super) fn publish(&self, spool: &Spool) -> io::Result<Arc<StoredBlob>> {
        let (digest, size) = (spool.digest(), spool.offset());
        let path = self.blob_path(digest);
        // One of the same length stays: it may be synced already. Another length is damage, which this repairs.
        let existing = fs::metadata(&path).ok().map(|metadata| metadata.len());
        if existing == Some(size)
            && let Some(blob) = self.open_blob(digest)?
        {
            self.spool.remove(digest)?;
            return Ok(blob);
        }
        rename_into(&self.spool.part_path(digest), &path)?;
        self.space.release_spool(size);
        self.space.release_stored(existing.unwrap_or(0));
        self.space.add_stored(size);
        if let Err(error) = self.spool.remove_state(digest) {
            tracing::warn!(%digest, %error, "cannot remove the state of a published part file; the next start will");
        }
        let reader = FileReader::new(Arc::clone(spool.file()), self.buffers.clone());
        Ok(self.remember(*digest, StoredBlob::new(reader, size)))
    }

    pub(super) fn put_manifest(&self, manifest: &VerifiedManifest) -> io::Result<()> {
        let (digest, bytes) = (manifest.digest(), manifest.bytes());
        let path = self.blob_path(digest);
        let existing = fs::metadata(&path).ok().map(|metadata| metadata.len());
        if existing == Some(bytes.len() as u64) {
            return Ok(());
        }
        let temporary = self.write_temporary(manifest)?;
        if let Err(error) = rename_into(&temporary, &path) {
            let _ = remove_if_there(&temporary);
            return Err(error);
        }
        self.space.release_stored(existing.unwrap_or(0));
        self.space.add_stored(bytes.len() as u64);
        self.forget(*digest);
        Ok(())
    }

    /// Its own synced file takes the place of whatever lies there.
    pub(super) fn accept(&self, upload: VerifiedUpload) -> io::Result<()> {
        let (digest, size) = (*upload.digest(), upload.size());
        upload.file().sync_all()?;
        self.rename_synced(&upload.path(), &digest, size)?;
        let reader = FileReader::new(Arc::clone(upload.file()), self.buffers.clone());
        self.forget(digest);
        self.remember(digest, StoredBlob::new(reader, size));
        if let Err(error) = upload.finish() {
            tracing::warn!(%digest, %error, "cannot remove the rest of an upload; the next sweep will");
        }
        Ok(())
    }

    pub(super) fn accept_manifest(&self, manifest: &VerifiedManifest) -> io::Result<()> {
        let (digest, bytes) = (manifest.digest(), manifest.bytes());
        let temporary = self.write_temporary(manifest)?;
        let synced = File::open(&temporary).and_then(|file| file.sync_all());
        let renamed =
            synced.and_then(|()| self.rename_synced(&temporary, digest, bytes.len() as u64));
        if let Err(error) = renamed {
            let _ = remove_if_there(&temporary);
            return Err(error);
        }
        self.forget(*digest);
        Ok(())
    }

    /// Gives a synced file its final name, which is on disk, too, when this returns.
    fn rename_synced(&self, from: &Path, digest: &Digest, size: u64) -> io::Result<()> {
        let path = self.blob_path(digest);
        let existing = fs::metadata(&path).ok().map(|metadata| metadata.len());
        let folders: Vec<&Path> = path.ancestors().skip(1).take(3).collect();
        let is_first = folders.first().is_some_and(|folder| !folder.exists());
        rename_into(from, &path)?;
        let changed = if is_first { folders.len() } else { 1 };
        for folder in &folders[..changed] {
            File::open(folder)?.sync_all()?;
        }
        self.space.release_stored(existing.unwrap_or(0));
        self.space.add_stored(size);
        Ok(())
    }

    /// The bytes in a file of their own beside the part files. One that cannot be written whole does not stay: the
    /// volume may be full.
    fn write_temporary(&self, manifest: &VerifiedManifest) -> io::Result<PathBuf> {
        let number = self.temporary.fetch_add(1, Relaxed);
        let temporary = self.spool.temporary_path(manifest.digest(), number);
        let written = create_file(&temporary).and_then(|mut file| file.write_all(manifest.bytes()));
        if let Err(error) = written {
            let _ = remove_if_there(&temporary);
            return Err(error);
        }
        Ok(temporary)
    }

    pub(super) fn remove(&self, digest: &Digest) -> io::Result<()> {
        let path = self.blob_path(digest);
        let size = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            metadata => metadata?.len(),
        };
        remove_if_there(&path)?;
        self.space.release_stored(size);
        self.forget(*digest);
        Ok(())
    }
}

/// Renames, making the folder (`<hh>`) when it is the first file in it.
fn rename_into(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = to.parent() {
                create_folder(folder)?;
            }
            fs::rename(from, to)
        }
        result => result,
    }
}
