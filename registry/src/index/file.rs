//! The file itself: opening it, judging it, moving it aside, and the marker that it was closed in order.
//!
//! All of this blocks. A file that cannot be used is never repaired in place: it is renamed to
//! `index.db.damaged-<time>` or `index.db.newer-<time>` (the last two are kept for whoever wants to look), and an empty
//! one takes its place.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::writer::Fault;
use super::{IndexError, OpenState, migrations};

/// An open file, the one writing connection to it, and how to know it again.
#[derive(Debug)]
pub(super) struct IndexFile {
    pub(super) path: PathBuf,
    pub(super) db: Connection,
    boot: String,
    identity: Identity,
}

/// Device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

/// What opening found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) state: OpenState,
    pub(super) complete: bool,
}

/// Why a file is moved aside.
struct Unusable {
    label: &'static str,
    reason: String,
}

/// Opens the file, or puts an empty one in its place.
pub(super) fn open_or_replace(path: &Path, boot: &str) -> Result<(IndexFile, Found), IndexError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed("create the index's folder"))?;
    refuse_network_file_system(folder)?;
    if !path.try_exists().map_err(failed("look for the index"))? {
        return Ok((create(path, boot)?, found(OpenState::Fresh, false)));
    }
    match open_existing(path)? {
        Ok(mut db) => {
            let (state, complete) = begin_run(&mut db, boot)?;
            Ok((opened(path, db, boot)?, found(state, complete)))
        }
        Err(Unusable { label, reason }) => {
            let aside = set_aside(path, label)?;
            tracing::warn!(
                file = %path.display(), aside = %aside.display(), reason,
                "the index cannot be used: it is moved aside and rebuilt from the store"
            );
            let file = create(path, boot)?;
            Ok((file, found(OpenState::Replaced(reason), false)))
        }
    }
}

/// An empty file; log and shared memory of an earlier one must not be applied to it.
fn create(path: &Path, boot: &str) -> Result<IndexFile, IndexError> {
    remove_if_there(&suffixed(path, "-wal"))?;
    remove_if_there(&suffixed(path, "-shm"))?;
    let mut db = connect(path, OpenFlags::SQLITE_OPEN_CREATE).map_err(database)?;
    migrations::migrate(&mut db).map_err(database)?;
    begin_run(&mut db, boot)?;
    opened(path, db, boot)
}

fn open_existing(path: &Path) -> Result<Result<Connection, Unusable>, IndexError> {
    let attempt = || -> rusqlite::Result<Result<Connection, Unusable>> {
        let mut db = connect(path, OpenFlags::empty())?;
        let version = migrations::version(&db)?;
        if migrations::is_newer(version) {
            return Ok(Err(Unusable {
                label: "newer",
                reason: format!("its version {version} is of a newer program"),
            }));
        }
        let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Ok(Err(damaged(&verdict)));
        }
        migrations::migrate(&mut db)?;
        Ok(Ok(db))
    };
    match attempt() {
        Ok(judged) => Ok(judged),
        Err(error) if Fault::of(&error) == Fault::File => Ok(Err(damaged(&error))),
        Err(error) => Err(database(error)),
    }
}

/// A connection that reads only, for reader threads.
pub(super) fn connect_reader(path: &Path) -> rusqlite::Result<Connection> {
    let db = connect_as_found(path, OpenFlags::empty())?;
    db.pragma_update(None, "query_only", true)?;
    Ok(db)
}

/// The connection that writes. Only it sets the file's mode: that needs the file for itself.
fn connect(path: &Path, create: OpenFlags) -> rusqlite::Result<Connection> {
    let db = connect_as_found(path, create)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "NORMAL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    Ok(db)
}

fn connect_as_found(path: &Path, create: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    // A connection to a file that was deleted must not touch the log of the file that took its name.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(db)
}

fn opened(path: &Path, db: Connection, boot: &str) -> Result<IndexFile, IndexError> {
    let identity = identity(path)
        .map_err(failed("look at the index"))?
        .ok_or_else(|| failed("look at the index")(io::ErrorKind::NotFound.into()))?;
    Ok(IndexFile {
        path: path.to_owned(),
        db,
        boot: boot.to_owned(),
        identity,
    })
}

impl IndexFile {
    /// Does the path still lead to the file that is open? SQLite would go on writing into a deleted one (H-31).
    pub(super) fn is_current(&self) -> io::Result<bool> {
        Ok(identity(&self.path)? == Some(self.identity))
    }

    /// Closes this file, moves aside whatever has its name, and opens an empty one.
    pub(super) fn replace(self) -> Result<Self, (Lost, IndexError)> {
        let Self { path, db, boot, .. } = self;
        drop(db);
        Lost { path, boot }.recreate()
    }

    /// The clean marker, and everything out of the log.
    pub(super) fn finish(&self) -> rusqlite::Result<()> {
        self.db.execute_batch("PRAGMA optimize")?;
        set_meta(&self.db, "clean", "1")?;
        self.db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }
}

/// A file that is gone, while no new one can be made.
#[derive(Debug)]
pub(super) struct Lost {
    path: PathBuf,
    boot: String,
}

impl Lost {
    /// Tries to make one.
    pub(super) fn recreate(self) -> Result<IndexFile, (Self, IndexError)> {
        let attempt = || {
            let folder = self.path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder).map_err(failed("create the index's folder"))?;
            if self
                .path
                .try_exists()
                .map_err(failed("look for the index"))?
            {
                set_aside(&self.path, "damaged")?;
            }
            create(&self.path, &self.boot)
        };
        attempt().map_err(|error| (self, error))
    }
}

/// Takes note of this run: what the last one left is returned, and rows that a power loss may have hit become suspect,
/// or are forgotten, to be read from the store again.
/// Synced, because a marker that survives a power loss by being stale would hide it.
fn begin_run(db: &mut Connection, boot: &str) -> Result<(OpenState, bool), IndexError> {
    let mut begin = || -> rusqlite::Result<(OpenState, bool)> {
        let clean = meta(db, "clean")?.as_deref() == Some("1");
        let same_boot = meta(db, "boot")?.as_deref() == Some(boot);
        let survived = clean || same_boot;
        let complete = survived && meta(db, "complete")?.as_deref() == Some("1");
        db.pragma_update(None, "synchronous", "FULL")?;
        let transaction = db.transaction()?;
        if !survived {
            transaction.execute(SUSPECT_WHAT_IS_NOT_DURABLE, [])?;
            // Their records are on disk, but of these rows the last ones may not be.
            transaction.execute_batch(FORGET_HOSTED)?;
            set_meta(&transaction, "complete", "0")?;
        }
        transaction.execute(SUM_UP, [])?;
        set_meta(&transaction, "clean", "0")?;
        set_meta(&transaction, "boot", boot)?;
        transaction.commit()?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        Ok((OpenState::Existing { clean, same_boot }, complete))
    };
    begin().map_err(database)
}

/// Everything that the store holds is in the index.
pub(super) fn mark_complete(db: &Connection) -> rusqlite::Result<()> {
    set_meta(db, "complete", "1")
}

fn meta(db: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
        row.get(0)
    })
    .optional()
}

fn set_meta(db: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [key, value],
    )?;
    Ok(())
}

/// A rebuild brings them back.
const FORGET_HOSTED: &str = "
DELETE FROM tags WHERE repo IN (SELECT repo FROM manifests WHERE hosted);
DELETE FROM manifests WHERE hosted;
DELETE FROM members WHERE hosted;
DELETE FROM garbage;
";

/// Renames the file with its log, and forgets all but the latest of those renamed before.
fn set_aside(path: &Path, label: &str) -> Result<PathBuf, IndexError> {
    let move_aside = failed("move the unusable index aside");
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%S%.3fZ");
    let aside = suffixed(path, &format!(".{label}-{time}"));
    fs::rename(path, &aside).map_err(&move_aside)?;
    match fs::rename(suffixed(path, "-wal"), suffixed(&aside, "-wal")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(move_aside(error)),
        _ => remove_if_there(&suffixed(path, "-shm"))?,
    }
    for old in kept_aside(path)
        .map_err(&move_aside)?
        .into_iter()
        .skip(KEPT_ASIDE)
    {
        remove_if_there(&old)?;
        remove_if_there(&suffixed(&old, "-wal"))?;
    }
    Ok(aside)
}

/// Files that were moved aside, latest first.
fn kept_aside(path: &Path) -> io::Result<Vec<PathBuf>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefixes = ["damaged", "newer"].map(|label| format!("{name}.{label}-"));
    let mut aside = Vec::new();
    for entry in fs::read_dir(path.parent().unwrap_or(Path::new(".")))? {
        let entry = entry?.file_name().to_string_lossy().into_owned();
        let time = prefixes
            .iter()
            .find_map(|prefix| entry.strip_prefix(prefix));
        if let Some(time) = time.filter(|time| time.ends_with('Z')) {
            aside.push((time.to_owned(), path.with_file_name(&entry)));
        }
    }
    aside.sort_unstable_by(|a, b| b.cmp(a));
    Ok(aside.into_iter().map(|(_, path)| path).collect())
}

fn identity(path: &Path) -> io::Result<Option<Identity>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(Identity(meta.dev(), meta.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn refuse_network_file_system(folder: &Path) -> Result<(), IndexError> {
    let stat = rustix::fs::statfs(folder)
        .map_err(|error| failed("look at the index's file system")(error.into()))?;
    match network_file_system(stat.f_type) {
        Some(name) => Err(IndexError::NetworkFileSystem(name)),
        None => Ok(()),
    }
}

/// By the magic numbers of statfs(2).
fn network_file_system(magic: i64) -> Option<&'static str> {
    match magic {
        0x6969 => Some("NFS"),
        0x517b | 0xfe53_4d42 => Some("SMB"),
        0xff53_4d42 => Some("CIFS"),
        _ => None,
    }
}

/// Names this boot of the machine.
pub(super) fn boot_id() -> Result<String, IndexError> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(failed("read the machine's boot id"))?;
    Ok(id.trim().to_owned())
}

fn remove_if_there(path: &Path) -> Result<(), IndexError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove an old index file")(error))
        }
        _ => Ok(()),
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn found(state: OpenState, complete: bool) -> Found {
    Found { state, complete }
}

fn damaged(reason: &impl ToString) -> Unusable {
    Unusable {
        label: "damaged",
        reason: reason.to_string(),
    }
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> IndexError {
    move |source| IndexError::File {
        operation,
        source: Arc::new(source),
    }
}

pub(super) fn database(error: rusqlite::Error) -> IndexError {
    IndexError::Database(Arc::new(error))
}

/// One writer in one process: only a foreign tool that looks into the file can lock it, and not for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// More than there are statements.
const STATEMENTS: usize = 64;

/// Enough to see whether damage repeats; each may be large.
const KEPT_ASIDE: usize = 2;

const SUSPECT_WHAT_IS_NOT_DURABLE: &str = "UPDATE blobs SET durability = 2 WHERE durability = 0";

const SUM_UP: &str = "UPDATE totals SET bytes =
    (SELECT COALESCE(SUM(size), 0) FROM blobs WHERE blobs.manifest = totals.manifest)";

#[cfg(test)]
mod tests {
    use super::*;

    /// H-31: SQLite's log does not work on network file systems.
    #[rstest::rstest]
    #[case(0x6969, Some("NFS"))]
    #[case(0xff53_4d42, Some("CIFS"))]
    #[case(0xfe53_4d42, Some("SMB"))]
    #[case(0xef53, None)] // ext4
    #[case(0x0102_1994, None)] // tmpfs
    fn h31_knows_network_file_systems(#[case] magic: i64, #[case] name: Option<&str>) {
        assert_eq!(network_file_system(magic), name);
    }

    #[test]
    fn h31_keeps_the_last_two_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        for (time, label) in ["1Z", "2Z", "3Z"]
            .iter()
            .zip(["damaged", "newer", "damaged"])
        {
            fs::write(suffixed(&path, &format!(".{label}-2020{time}")), "").unwrap();
        }
        fs::write(&path, "garbage").unwrap();
        let aside = set_aside(&path, "damaged").unwrap();
        let kept = kept_aside(&path).unwrap();
        assert_eq!(kept, [aside, suffixed(&path, ".damaged-20203Z")]);
        assert!(!path.exists());
    }
}
