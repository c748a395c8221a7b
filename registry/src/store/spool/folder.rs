//! The folder of part files: who holds which, taking them up again, dropping old ones.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use coral_schema::oci::{Digest, Hasher};

use super::Spool;
use super::state::{self, SavedState};
use super::tail::{Mark, Tail};
use crate::store::buffers::Buffers;
use crate::store::key;
use crate::store::local::create_file;
use crate::store::run::Run;
use crate::store::space::Space;

/// `spool/`, on the volume of the blobs, because publishing is a rename.
#[derive(Debug)]
pub(in crate::store) struct SpoolFolder {
    path: PathBuf,
    space: Arc<Space>,
    buffers: Buffers,
    run: Run,
    /// The digests whose part files somebody holds. Sweeping locks it while it removes a file.
    held: Mutex<HashSet<Digest>>,
}

impl SpoolFolder {
    /// Opens the folder and counts its part files. Blocking.
    pub(in crate::store) fn open(
        path: PathBuf,
        space: Arc<Space>,
        buffers: Buffers,
        run: Run,
    ) -> io::Result<Self> {
        let folder = Self {
            path,
            space,
            buffers,
            run,
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

    pub(super) fn run(&self) -> &Run {
        &self.run
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
        if let Some((state, tail)) = self.take_up(digest, &path)? {
            let mut spool = Spool::new(claim, tail);
            (spool.size, spool.origins) = (state.size, state.origins);
            spool.resumed = spool.tail.offset > 0;
            return Ok(spool);
        }
        self.remove(digest)?;
        let hasher = Hasher::new(digest.algorithm());
        let spool = Spool::new(claim, Tail::new(create_file(&path)?, hasher));
        // From the first byte on there is a state, so what came before the first real one is not lost.
        spool.write_state()?;
        Ok(spool)
    }

    /// What an earlier fill left, if it is what its state says.
    fn take_up(&self, digest: &Digest, part: &Path) -> io::Result<Option<(SavedState, Tail)>> {
        let Some((state, mark)) = self.saved(digest, part) else {
            return Ok(None);
        };
        let file = OpenOptions::new().read(true).write(true).open(part)?;
        let tail = Tail::take_up(file, mark, state.saved.is_of(&self.run))?;
        if tail.is_none() {
            tracing::warn!(%digest, "a part file is not what was written to it; it is dropped and fetched again");
        }
        Ok(tail.map(|tail| (state, tail)))
    }

    /// What is known about a part file that can be taken up.
    fn saved(&self, digest: &Digest, part: &Path) -> Option<(SavedState, Mark)> {
        let state = SavedState::read(&self.state_path(digest), &self.run)?;
        let mark = state.saved.mark(digest.algorithm())?;
        let length = fs::metadata(part).ok()?.len();
        (length >= mark.offset).then_some((state, mark))
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

const NO_PANIC: &str = "nothing panics while it holds the set of claims";
