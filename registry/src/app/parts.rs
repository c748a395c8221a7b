//! What lies on disk, opened: index, blobs, records, and what keeps them within their limits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use coral_schema::process::tasks::Tasks;
use prometheus_client::registry::Registry;

use super::durability;
use crate::access::Key;
use crate::config::Config;
use crate::evict::Evictor;
use crate::index::{Index, OpenState};
use crate::store::{
    BlobStore, Bucket, Buffers, Limits, LocalStore, RecordStore, Space, UploadStore, Volume,
};

/// Open parts.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) index: Index,
    pub(super) blobs: Arc<dyn BlobStore>,
    pub(super) uploads: Arc<dyn UploadStore>,
    pub(super) records: Arc<dyn RecordStore>,
    pub(super) space: Arc<Space>,
    /// What the store may hold, bytes.
    pub(super) limit: u64,
    pub(super) evictor: Evictor,
    /// Proves logins.
    pub(super) key: Key,
}

/// Opens everything, and starts what looks after it.
pub(super) async fn open(
    config: &Config,
    metrics: &mut Registry,
    tasks: &Tasks,
) -> anyhow::Result<Opened> {
    let (wanted, owner) = (config.clone(), tasks.clone());
    let disk = tokio::task::spawn_blocking(move || open_disk(&wanted, &owner)).await??;
    let Disk {
        index,
        state,
        store,
        records,
        limit,
        key,
    } = disk;
    let space = Arc::clone(store.space());
    let parts = store.clone();
    let uploads: Arc<dyn UploadStore> = Arc::new(store.clone());
    let blobs: Arc<dyn BlobStore> = Arc::new(store);
    let records: Arc<dyn RecordStore> = Arc::new(records);
    let evictor = Evictor::new(index.clone(), Arc::clone(&blobs), limit, metrics);
    evictor.start(tasks);
    report(&state);
    let syncing = durability::sync_forever(Arc::clone(&blobs), index.clone(), tasks.stopping());
    tasks.spawn("sync", syncing);
    let stopping = tasks.stopping();
    tasks.spawn("sweep", async move {
        stopping.run_until_cancelled(sweep(parts)).await
    });
    let totals = keep_totals(index.clone(), Arc::clone(&space));
    let stopping = tasks.stopping();
    tasks.spawn("totals", async move {
        stopping.run_until_cancelled(totals).await
    });
    Ok(Opened {
        index,
        blobs,
        uploads,
        records,
        space,
        limit,
        evictor,
        key,
    })
}

struct Disk {
    index: Index,
    state: OpenState,
    store: LocalStore,
    records: Bucket,
    limit: u64,
    key: Key,
}

fn open_disk(config: &Config, tasks: &Tasks) -> anyhow::Result<Disk> {
    let opened = Index::open(&config.data.join("index.db"), tasks)?;
    let key = config.data.join("token.key");
    let key = Key::keep(&key).with_context(|| format!("cannot keep {}", key.display()))?;
    let folder = &config.store.folder;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let volume = volume(folder)
        .with_context(|| format!("cannot measure the volume of {}", folder.display()))?;
    let held = opened.index.totals().borrow().bytes();
    let limit = config
        .store
        .max_bytes
        .bytes(volume.total, volume.free, held);
    let limits = Limits {
        max_bytes: Some(limit),
        reserve: limit / 20,
        spool_bytes: None,
    };
    let store = LocalStore::open(folder, limits, Buffers::default())?;
    store.space().set_stored(held);
    let records = Bucket::folder(folder)?;
    Ok(Disk {
        index: opened.index,
        state: opened.state,
        store,
        records,
        limit,
        key,
    })
}

/// Takes the index away, with the files that SQLite keeps beside it.
pub(super) async fn remove_index(data: &Path) -> anyhow::Result<()> {
    for name in ["index.db", "index.db-wal", "index.db-shm"] {
        let path = data.join(name);
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn volume(folder: &Path) -> std::io::Result<Volume> {
    let stat = rustix::fs::statvfs(folder)?;
    // What root keeps for itself is no room for us: as df counts it.
    let usable = stat.f_blocks - stat.f_bfree + stat.f_bavail;
    Ok(Volume {
        free: stat.f_bavail * stat.f_frsize,
        total: usable * stat.f_frsize,
    })
}

fn report(state: &OpenState) {
    match state {
        OpenState::Fresh | OpenState::Existing { clean: true, .. } => {}
        OpenState::Existing {
            clean: false,
            same_boot: true,
        } => {
            tracing::info!("the last run was killed; what it published is kept");
        }
        OpenState::Existing {
            clean: false,
            same_boot: false,
        } => {
            tracing::warn!(
                "the machine went down; what may not have reached the disk is hashed before it is served"
            );
        }
        OpenState::Replaced(reason) => {
            tracing::warn!(
                reason,
                "the index was moved aside and is rebuilt from the store"
            );
        }
    }
}

/// Part files that nobody goes on with must not fill the volume of a process that runs for months.
async fn sweep(store: LocalStore) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        if let Err(error) = store.sweep_parts().await {
            tracing::warn!(%error, "old part files could not be removed; it is tried again");
        }
    }
}

/// They are dropped after a day.
const SWEEP_EVERY: Duration = Duration::from_hours(1);

/// The store's own limit counts from what the index knows.
async fn keep_totals(index: Index, space: Arc<Space>) {
    let mut totals = index.totals();
    loop {
        space.set_stored(totals.borrow_and_update().bytes());
        if totals.changed().await.is_err() {
            return;
        }
    }
}
