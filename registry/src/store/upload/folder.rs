//! The folder of uploads: beginning them, finding them again, dropping old ones.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coral_schema::oci::{Algorithm, Hasher};

use super::{DATA, STATE, State, Upload, UploadId};
use crate::name::RepoKey;
use crate::store::local::{create_file, create_folder};
use crate::store::run::Run;
use crate::store::space::Space;
use crate::store::spool::folder::{is_older, remove_if_there};
use crate::store::spool::tail::{Mark, Tail};

/// `uploads/`, on the volume of the blobs, because accepting is a rename.
#[derive(Debug)]
pub(in crate::store) struct UploadFolder {
    path: PathBuf,
    pub(super) space: Arc<Space>,
    pub(super) run: Run,
}

impl UploadFolder {
    /// Opens the folder and counts what is in it. Blocking.
    pub(in crate::store) fn open(path: PathBuf, space: Arc<Space>, run: Run) -> io::Result<Self> {
        create_folder(&path)?;
        for entry in fs::read_dir(&path)? {
            let data = entry?.path().join(DATA);
            space.add_spool(fs::metadata(data).map_or(0, |metadata| metadata.len()));
        }
        Ok(Self { path, space, run })
    }

    /// A new upload for `repo`, hashed with `algorithm` while it arrives. Blocking. Not found again after a restart
    /// before [`Upload::save`].
    pub(in crate::store) fn create(
        self: &Arc<Self>,
        repo: &RepoKey,
        algorithm: Algorithm,
    ) -> io::Result<Upload> {
        let id = UploadId::random()?;
        let folder = self.folder_of(&id);
        create_folder(&folder)?;
        let file = create_file(&folder.join(DATA))?;
        Ok(Upload {
            folder: Arc::clone(self),
            id,
            repo: repo.clone(),
            algorithm,
            tail: Tail::new(file, Hasher::new(algorithm)),
        })
    }

    /// The upload of this name, as far as it came; `None` when there is none that can be gone on with. Blocking.
    pub(in crate::store) fn find(self: &Arc<Self>, id: &UploadId) -> io::Result<Option<Upload>> {
        let folder = self.folder_of(id);
        let Some((state, mark)) = self.saved(&folder) else {
            return Ok(None);
        };
        let (Ok(repo), Ok(algorithm)) = (state.repository.parse(), state.algorithm.parse()) else {
            return Ok(None);
        };
        let data = folder.join(DATA);
        let file = match OpenOptions::new().read(true).write(true).open(data) {
            // Accepted, or cancelled, by a process that was killed before it could remove the rest.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let is_ours = state.saved.is_of(&self.run);
        let Some(tail) = Tail::take_up(file, mark, is_ours)? else {
            tracing::warn!(%repo, "an upload is not what was written to it; its client has to begin anew");
            return Ok(None);
        };
        let upload = Upload {
            folder: Arc::clone(self),
            id: id.clone(),
            repo,
            algorithm,
            tail,
        };
        if !is_ours {
            // Every further piece asks for the session again: once is enough to read it all.
            upload.write_state()?;
        }
        Ok(Some(upload))
    }

    /// Removes uploads that were last written longer than `max_age` before `now`, and of those that are not written
    /// now what cannot be gone on with. Blocking.
    pub(in crate::store) fn sweep(
        &self,
        max_age: Duration,
        now: SystemTime,
        is_written: impl Fn(&UploadId) -> bool,
    ) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let folder = entry?.path();
            let name = folder.file_name().and_then(|name| name.to_str());
            let id = name.and_then(|name| name.parse().ok());
            if id.is_some_and(|id| is_written(&id)) {
                continue;
            }
            // A process that was killed when it accepted the bytes has left the rest.
            let data = Some(folder.join(DATA)).filter(|data| data.exists());
            let dated = data.as_ref().unwrap_or(&folder);
            let is_older = |than| is_older(dated, than, now);
            let is_lost = || is_older(JUST_BEGUN) && self.saved(&folder).is_none();
            if is_older(max_age) || is_lost() {
                self.remove(&folder)?;
            }
        }
        Ok(())
    }

    fn saved(&self, folder: &Path) -> Option<(State, Mark)> {
        let state: State = serde_json::from_slice(&fs::read(folder.join(STATE)).ok()?).ok()?;
        if !state.saved.is_usable(&self.run) {
            return None;
        }
        let mark = state.saved.mark(state.algorithm.parse().ok()?)?;
        Some((state, mark))
    }

    pub(super) fn remove(&self, folder: &Path) -> io::Result<()> {
        let length = fs::metadata(folder.join(DATA)).map_or(0, |metadata| metadata.len());
        // Without its state it is not found again, whatever fails after.
        remove_if_there(&folder.join(STATE))?;
        fs::remove_dir_all(folder)?;
        self.space.release_spool(length);
        Ok(())
    }

    pub(super) fn folder_of(&self, id: &UploadId) -> PathBuf {
        self.path.join(&id.0)
    }
}

/// Longer than it takes to save the first state.
pub(super) const JUST_BEGUN: Duration = Duration::from_mins(1);
