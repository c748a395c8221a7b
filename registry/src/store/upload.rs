//! A blob that is being pushed: its bytes and its hash state in `uploads/<id>/`, for as long as the session lasts.
//!
//! Unlike a [`Spool`](super::Spool) nobody knows its digest before its end, and nobody can fetch it again: what is
//! accepted is synced, with its directory, before [`UploadStore::accept`](super::UploadStore::accept) returns. A session
//! goes on after a restart of the process, if its bytes are still there ([`super::run`]), but not of the machine.
//!
//! Everything that says *blocking* touches the disk: callers run it in `spawn_blocking`.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use coral_schema::oci::{Algorithm, Digest, Hasher};
use serde::{Deserialize, Serialize};

use self::folder::UploadFolder;
use super::run;
use super::spool::folder::remove_if_there;
use super::spool::state::SavedMark;
use super::spool::tail::{Mark, Tail, hash_file};
use super::{DigestMismatch, StoreError};
use crate::name::RepoKey;

pub(super) mod folder;

/// Names a session: 128 random bits that nobody can guess.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UploadId(String);

impl UploadId {
    /// A new one.
    fn random() -> io::Result<Self> {
        Ok(Self(run::uuid()?.replace('-', "")))
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UploadId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 32 && text.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(StoreError::Damaged("no id of an upload".into()))
        }
    }
}

/// One upload, held by one writer. Dropping it keeps what was saved.
#[derive(Debug)]
pub struct Upload {
    folder: Arc<UploadFolder>,
    id: UploadId,
    repo: RepoKey,
    algorithm: Algorithm,
    tail: Tail,
}

/// A complete upload whose content has its digest.
#[derive(Debug)]
pub struct VerifiedUpload {
    upload: Upload,
    digest: Digest,
}

/// What lies beside the bytes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    #[serde(flatten)]
    saved: SavedMark,
    repository: String,
    algorithm: String,
}

impl Upload {
    /// Its name.
    pub fn id(&self) -> &UploadId {
        &self.id
    }

    /// The repository that it belongs to.
    pub fn repo(&self) -> &RepoKey {
        &self.repo
    }

    /// How many bytes are there.
    pub fn offset(&self) -> u64 {
        self.tail.offset
    }

    /// Where it is now, to go back there.
    pub fn mark(&self) -> Mark {
        self.tail.mark()
    }

    /// Writes and hashes the next bytes. Blocking.
    ///
    /// On an error the first bytes may have been kept, as the offset says; the rest was not.
    pub fn append(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.tail.append(&self.folder.space, chunks)
    }

    /// Forgets what came after `mark`. Blocking.
    pub fn go_back(&mut self, mark: Mark) -> Result<(), StoreError> {
        let after = self.tail.offset - mark.offset;
        // The state first: it must never say more than the file has.
        (self.tail.offset, self.tail.hasher) = (mark.offset, mark.hasher);
        self.save()?;
        let cut = self.tail.file.set_len(self.tail.offset);
        cut.map_err(StoreError::io("cut an upload"))?;
        self.folder.space.release_spool(after);
        Ok(())
    }

    /// Saves what is needed to go on after a restart. Blocking.
    pub fn save(&self) -> Result<(), StoreError> {
        self.write_state()
            .map_err(StoreError::io("save the state of an upload"))
    }

    fn write_state(&self) -> io::Result<()> {
        let state = State {
            saved: SavedMark::new(&self.folder.run, &self.tail.mark()),
            repository: self.repo.to_string(),
            algorithm: self.algorithm.name().to_owned(),
        };
        let folder = self.folder.folder_of(&self.id);
        let temporary = folder.join(TEMPORARY);
        fs::write(&temporary, serde_json::to_vec(&state)?)?;
        fs::rename(temporary, folder.join(STATE))
    }

    /// Removes it. Blocking.
    pub fn discard(self) -> Result<(), StoreError> {
        let folder = self.folder.folder_of(&self.id);
        self.folder
            .remove(&folder)
            .map_err(StoreError::io("remove an upload"))
    }

    /// Is the content what `expected` says? Reads all of it again if that names another algorithm than the one it was
    /// hashed with. If not, the upload comes back. Blocking.
    pub fn verify(self, expected: &Digest) -> Result<VerifiedUpload, (Box<Self>, VerifyError)> {
        let computed = if expected.algorithm() == self.algorithm {
            self.tail.hasher.clone().finish()
        } else {
            let mut hasher = Hasher::new(expected.algorithm());
            match hash_file(&self.tail.file, &mut hasher, 0..self.tail.offset) {
                Ok(_) => hasher.finish(),
                Err(error) => {
                    let error = StoreError::io("read an upload")(error);
                    return Err((Box::new(self), error.into()));
                }
            }
        };
        if computed == *expected {
            Ok(VerifiedUpload {
                upload: self,
                digest: computed,
            })
        } else {
            Err((Box::new(self), DigestMismatch { computed }.into()))
        }
    }
}

/// Why an upload is not a blob.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VerifyError {
    /// It has other bytes.
    #[error(transparent)]
    Mismatch(#[from] DigestMismatch),
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl VerifiedUpload {
    /// What it is.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Length, bytes.
    pub fn size(&self) -> u64 {
        self.upload.tail.offset
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.upload.tail.file
    }

    pub(super) fn path(&self) -> PathBuf {
        self.upload.folder.folder_of(&self.upload.id).join(DATA)
    }

    /// The bytes have their final name: removes the rest. Blocking.
    pub(super) fn finish(self) -> io::Result<()> {
        let folder = &self.upload.folder;
        folder.space.release_spool(self.size());
        let path = folder.folder_of(&self.upload.id);
        remove_if_there(&path.join(STATE))?;
        fs::remove_dir_all(path)
    }
}

const DATA: &str = "data";
const STATE: &str = "state";
const TEMPORARY: &str = "state-tmp";

#[cfg(test)]
mod tests;
