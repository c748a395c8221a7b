//! The folder of part files: who holds which, taking them up again, dropping old ones.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use coral_schema::oci::{Digest, Hasher};

use super::Spool;
use super::state::{self, SavedState};
use crate::store::buffers::Buffers;
use crate::store::key;
use crate::store::space::Space;

/// `spool/`, on the volume of the blobs, because publishing is a rename.
#[derive(Debug)]
pub(in crate::store) struct SpoolFolder {
    path: PathBuf,
    space: Arc<Space>,
    buffers: Buffers,
    /// Which boot this is; unknown: nothing is ever taken up again.
    boot_id: Option<String>,
    /// The digests whose part files somebody holds. Sweeping locks it while it removes a file.
    held: Mutex<HashSet<Digest>>,
}

impl SpoolFolder {
    /// Opens the folder and counts its part files. Blocking.
    pub(in crate::store) fn open(
        path: PathBuf,
        space: Arc<Space>,
        buffers: Buffers,
    ) -> io::Result<Self> {
        let folder = Self {
            path,
            space,
            buffers,
            boot_id: boot_id(),
            held: Mutex::default(),
        };
        for entry in fs::read_dir(&folder.path)? {
            let entry = entry?;
            if let Some((_, Kind::Part)) = parse_name(&entry.file_name()) {
                folder.space.add_spool(entry.metadata()?.len());
            }
        }
        Ok(folder)
    }

    pub(super) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    pub(super) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    pub(super) fn boot_id(&self) -> Option<&str> {
        self.boot_id.as_deref()
    }

    pub(in crate::store) fn part_path(&self, digest: &Digest) -> PathBuf {
        self.path.join(format!("{}.{PART}", key::flat(digest)))
    }

    pub(super) fn state_path(&self, digest: &Digest) -> PathBuf {
        self.path.join(format!("{}.{STATE}", key::flat(digest)))
    }

    /// A name for a file that is written here and renamed at once; swept at the next start otherwise.
    pub(in crate::store) fn temporary_path(&self, digest: &Digest, number: u64) -> PathBuf {
        self.path
            .join(format!("{}-{number}.{TEMPORARY}", key::flat(digest)))
    }

    /// The spool of this digest: what an earlier fill of this boot left, or an empty one. Blocking.
    pub(in crate::store) fn spool(self: &Arc<Self>, digest: &Digest) -> io::Result<Spool> {
        let claim = Claim::new(self, digest)?;
        let path = self.part_path(digest);
        let found = self.saved(digest, &path);
        if found.is_none() {
            self.remove(digest)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        let mut spool = Spool::new(claim, file, Hasher::new(digest.algorithm()));
        if let Some((state, hasher)) = found {
            (spool.tail.offset, spool.tail.hasher) = (state.offset, hasher);
            (spool.size, spool.origins) = (state.size, state.origins);
            spool.tail.catch_up()?;
            spool.resumed = spool.tail.offset > 0;
        } else {
            // From the first byte on there is a state, so what came before the first real one is not lost.
            spool.write_state()?;
        }
        Ok(spool)
    }

    /// What is known about a part file that can be taken up.
    fn saved(&self, digest: &Digest, part: &Path) -> Option<(SavedState, Hasher)> {
        let state = SavedState::read(&self.state_path(digest), self.boot_id())?;
        let hasher = state.hasher(digest.algorithm())?;
        let length = fs::metadata(part).ok()?.len();
        (length >= state.offset).then_some((state, hasher))
    }

    /// Removes both files; the part file's bytes are free again. Blocking.
    pub(in crate::store) fn remove(&self, digest: &Digest) -> io::Result<()> {
        self.remove_state(digest)?;
        let path = self.part_path(digest);
        let length = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata?.len(),
        };
        fs::remove_file(&path)?;
        self.space.release_spool(length);
        Ok(())
    }

    pub(in crate::store) fn remove_state(&self, digest: &Digest) -> io::Result<()> {
        remove_if_there(&self.state_path(digest))
    }

    /// Removes part files that nobody holds and that are older than `max_age` at `now` or cannot be taken up. Blocking.
    pub(in crate::store) fn sweep(&self, max_age: Duration, now: SystemTime) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let Some((digest, kind)) = parse_name(&entry.file_name()) else {
                continue;
            };
            let held = self.held.lock().expect(NO_PANIC);
            if held.contains(&digest) {
                continue;
            }
            let part = self.part_path(&digest);
            let keep = match kind {
                Kind::Part => {
                    self.saved(&digest, &part).is_some() && !is_older(&part, max_age, now)
                }
                Kind::State => part.exists(),
            };
            if !keep {
                self.remove(&digest)?;
            }
        }
        Ok(())
    }

    /// Removes what was being written when the process ended. Only at start: nobody writes yet. Blocking.
    pub(in crate::store) fn sweep_temporary(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let extension = path.extension().and_then(OsStr::to_str);
            if matches!(extension, Some(TEMPORARY | state::TEMPORARY)) {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }
}

/// The right to write the part file of one digest; given back when dropped.
#[derive(Debug)]
pub(in crate::store) struct Claim {
    folder: Arc<SpoolFolder>,
    digest: Digest,
}

impl Claim {
    /// Callers make sure that there is one fill per digest. One that was given up may still be writing, though.
    fn new(folder: &Arc<SpoolFolder>, digest: &Digest) -> io::Result<Self> {
        if !folder.held.lock().expect(NO_PANIC).insert(*digest) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(Self {
            folder: Arc::clone(folder),
            digest: *digest,
        })
    }

    pub(in crate::store) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(in crate::store) fn folder(&self) -> &Arc<SpoolFolder> {
        &self.folder
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.folder
            .held
            .lock()
            .expect(NO_PANIC)
            .remove(&self.digest);
    }
}

/// Which boot this is.
pub(in crate::store) fn boot_id() -> Option<String> {
    let text = fs::read_to_string(BOOT_ID).ok()?;
    Some(text.trim().to_owned())
}

/// Was the file last written longer ago? A time in the future says nothing.
pub(in crate::store) fn is_older(path: &Path, max_age: Duration, now: SystemTime) -> bool {
    let written = fs::metadata(path).and_then(|metadata| metadata.modified());
    let age = written
        .ok()
        .and_then(|written| now.duration_since(written).ok());
    age.is_some_and(|age| age > max_age)
}

pub(in crate::store) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

enum Kind {
    Part,
    State,
}

fn parse_name(name: &OsStr) -> Option<(Digest, Kind)> {
    let (digest, extension) = name.to_str()?.split_once('.')?;
    let kind = match extension {
        PART => Kind::Part,
        STATE => Kind::State,
        _ => return None,
    };
    Some((key::parse_flat(digest)?, kind))
}

const PART: &str = "part";
const STATE: &str = "state";
const TEMPORARY: &str = "tmp";

/// Changes with every boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const NO_PANIC: &str = "nothing panics while it holds the set of claims";
