//! The lock on the data folder: one process at a time writes to it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::time::{Instant, sleep};

/// A predecessor that was just killed may hold the lock for this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(100);

/// Held until it is dropped, and by the kernel no longer than the process lives.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

/// Why the data folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process works on it.
    #[error(
        "the data folder {} is used by {holder}; stop it, or choose another folder with --data",
        .folder.display()
    )]
    Held {
        /// Which.
        folder: PathBuf,
        /// What that process wrote about itself.
        holder: String,
    },
    /// It cannot be made or locked.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl DataLock {
    /// Makes the folder (mode 0700) if it is not there, and locks it.
    pub async fn acquire(folder: &Path) -> Result<Self, LockError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let folder = folder.to_owned();
            let tried = tokio::task::spawn_blocking(move || try_lock(&folder))
                .await
                .expect("locking does not panic");
            match tried {
                Err(LockError::Held { .. }) if Instant::now() < deadline => sleep(RETRY).await,
                Ok(file) => return Ok(Self { _file: file }),
                Err(error) => return Err(error),
            }
        }
    }
}

fn try_lock(folder: &Path) -> Result<File, LockError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| LockError::Io {
            action,
            path,
            source,
        }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed("make the folder", folder))?;
    let path = folder.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(LockError::Held {
                folder: folder.to_owned(),
                holder: read_holder(&mut file),
            });
        }
        Err(error) => return Err(failed("lock", &path)(error.into())),
    }
    write_holder(&mut file).map_err(failed("write", &path))?;
    Ok(file)
}

/// For the error of whoever comes second. Names the host, since volumes travel between machines.
fn write_holder(file: &mut File) -> io::Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "process {} on {}", std::process::id(), host.trim())
}

fn read_holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(200).read_to_string(&mut text) {
        Ok(length) if length > 0 => text.trim().to_owned(),
        _ => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_and_the_error_says_who() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("data");
        let lock = DataLock::acquire(&folder).await.unwrap();
        let mode = folder.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);

        let error = DataLock::acquire(&folder).await.unwrap_err().to_string();
        let me = format!("process {}", std::process::id());
        assert!(error.contains(&me) && error.contains("--data"), "{error}");

        drop(lock);
        DataLock::acquire(&folder).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_a_predecessor() {
        let folder = tempfile::tempdir().unwrap();
        let predecessor = DataLock::acquire(folder.path()).await.unwrap();
        let leaving = async {
            sleep(PATIENCE / 2).await;
            drop(predecessor);
        };
        let (lock, ()) = tokio::join!(DataLock::acquire(folder.path()), leaving);
        lock.unwrap();
    }

    #[tokio::test]
    async fn says_which_path_is_the_trouble() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = DataLock::acquire(&file.join("data")).await.unwrap_err();
        assert!(error.to_string().contains("file/data"), "{error}");
    }
}
