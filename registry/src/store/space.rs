//! How much room there is: the volume, our own limit, and what the part files take.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::Volume;

/// What a store may take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Blobs and part files together, bytes; none: only the volume counts.
    pub max_bytes: Option<u64>,
    /// Bytes above `max_bytes` that may be in use, while eviction catches up, before fills stop.
    pub reserve: u64,
    /// Part files, bytes; none: no limit. Beyond it, appending is as on a full volume.
    pub spool_bytes: Option<u64>,
}

/// The room of one store; its parts share it.
#[derive(Debug)]
pub struct Space {
    limits: Limits,
    /// On the volume that is measured.
    folder: File,
    /// Bytes of all blobs: told by [`Space::set_stored`], kept current in between.
    stored: AtomicU64,
    /// Bytes of all part files.
    spool: AtomicU64,
    measured: Mutex<(Volume, Instant)>,
    measuring: AtomicBool,
}

impl Space {
    /// Measures the volume of `folder` for the first time. Blocking.
    pub(super) fn new(folder: File, limits: Limits) -> std::io::Result<Self> {
        let volume = measure(&folder)?;
        Ok(Self {
            limits,
            folder,
            stored: AtomicU64::new(0),
            spool: AtomicU64::new(0),
            measured: Mutex::new((volume, Instant::now())),
            measuring: AtomicBool::new(false),
        })
    }

    /// May fills start and go on? Not on a volume that is 95 % full (H-08), nor above our own limit and its reserve.
    ///
    /// Cheap: the volume is measured at most once a second, on a blocking thread, and the last result counts until then.
    pub fn may_fill(self: &Arc<Self>) -> bool {
        has_room(self.recent_volume()) && self.is_within_limit()
    }

    /// Could a blob of `size` bytes ever be held?
    pub(super) fn fits(&self, size: u64) -> bool {
        self.limits.max_bytes.is_none_or(|max| size <= max)
    }

    /// Bytes of all part files, whether a fill is writing them or they wait for one.
    pub fn spool_bytes(&self) -> u64 {
        self.spool.load(Relaxed)
    }

    /// Bytes of all blobs, as far as known: zero after a start until [`Space::set_stored`].
    pub fn stored_bytes(&self) -> u64 {
        self.stored.load(Relaxed)
    }

    /// Says how many bytes all blobs have. Blobs that come and go afterwards are counted from there.
    pub fn set_stored(&self, bytes: u64) {
        self.stored.store(bytes, Relaxed);
    }

    /// Measures the volume now. Blocking.
    pub(super) fn measure(&self) -> std::io::Result<Volume> {
        let volume = measure(&self.folder)?;
        *self.measured.lock().expect(NO_PANIC) = (volume, Instant::now());
        Ok(volume)
    }

    /// The volume as it was within the last second. Cheap.
    pub fn recent_volume(self: &Arc<Self>) -> Volume {
        let (volume, at) = *self.measured.lock().expect(NO_PANIC);
        if at.elapsed() >= MEASURE_EVERY
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !self.measuring.swap(true, Relaxed)
        {
            let space = Arc::clone(self);
            runtime.spawn_blocking(move || {
                if let Err(error) = space.measure() {
                    tracing::warn!(%error, "cannot measure the store's volume");
                }
                space.measuring.store(false, Relaxed);
            });
        }
        volume
    }

    fn is_within_limit(&self) -> bool {
        let used = self.stored_bytes().saturating_add(self.spool_bytes());
        let allowed = |max: u64| max.saturating_add(self.limits.reserve);
        self.limits.max_bytes.is_none_or(|max| used < allowed(max))
    }

    /// Takes up to `wanted` bytes for part files: how many there were.
    pub(super) fn claim_spool(&self, wanted: u64) -> u64 {
        let limit = self.limits.spool_bytes.unwrap_or(u64::MAX);
        let grant = |used: u64| wanted.min(limit.saturating_sub(used));
        let claim = |used: u64| Some(used + grant(used));
        let used = self.spool.fetch_update(Relaxed, Relaxed, claim);
        used.map_or(0, grant)
    }

    /// Part files that exist already, whatever the limit.
    pub(super) fn add_spool(&self, bytes: u64) {
        self.spool.fetch_add(bytes, Relaxed);
    }

    pub(super) fn release_spool(&self, bytes: u64) {
        subtract(&self.spool, bytes);
    }

    pub(super) fn add_stored(&self, bytes: u64) {
        self.stored.fetch_add(bytes, Relaxed);
    }

    pub(super) fn release_stored(&self, bytes: u64) {
        subtract(&self.stored, bytes);
    }
}

/// Stops at zero: after [`Space::set_stored`] the sum may be a little behind.
fn subtract(sum: &AtomicU64, bytes: u64) {
    // The closure never refuses, so neither does the update.
    let _ = sum.fetch_update(Relaxed, Relaxed, |sum| Some(sum.saturating_sub(bytes)));
}

fn measure(folder: &File) -> std::io::Result<Volume> {
    let volume = rustix::fs::fstatvfs(folder)?;
    // Blocks that only root may use are neither free nor there for us.
    let free = volume.f_bavail;
    let total = volume.f_blocks.saturating_sub(volume.f_bfree) + free;
    Ok(Volume {
        free: free.saturating_mul(volume.f_frsize),
        total: total.saturating_mul(volume.f_frsize),
    })
}

/// Is less than 95 % in use? A file system that cannot tell always has room.
fn has_room(volume: Volume) -> bool {
    volume.total == 0 || volume.free > volume.total / 20
}

const MEASURE_EVERY: Duration = Duration::from_secs(1);

const NO_PANIC: &str = "nothing panics while it holds the measurement";

#[cfg(test)]
mod tests {
    use super::*;

    fn space(limits: Limits) -> (tempfile::TempDir, Arc<Space>) {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(File::open(folder.path()).unwrap(), limits).unwrap();
        (folder, Arc::new(space))
    }

    fn pretend(space: &Space, free: u64) {
        *space.measured.lock().unwrap() = (Volume { free, total: 1000 }, Instant::now());
    }

    #[test]
    fn h08_stops_at_95_percent_of_the_volume() {
        let (_folder, space) = space(Limits::default());
        pretend(&space, 51);
        assert!(space.may_fill());
        pretend(&space, 50);
        assert!(!space.may_fill());
        pretend(&space, 51);
        assert!(space.may_fill(), "recovers without a restart");
        assert!(has_room(Volume { free: 0, total: 0 }));
    }

    /// H-08: a full volume that has been emptied is seen without anybody asking for a measurement.
    #[tokio::test(start_paused = true)]
    async fn h08_measures_again_after_a_second() {
        let (_folder, space) = space(Limits::default());
        let real = space.measure().unwrap();
        *space.measured.lock().unwrap() = (
            Volume {
                free: 0,
                total: real.total,
            },
            Instant::now(),
        );
        assert!(!space.may_fill());
        tokio::time::advance(MEASURE_EVERY).await;
        space.may_fill();
        while space.measuring.load(Relaxed) {
            tokio::task::yield_now().await;
        }
        assert!(space.measured.lock().unwrap().0.free > 0);
    }

    #[test]
    fn h08_stops_above_our_own_limit_and_reserve() {
        let (_folder, space) = space(Limits {
            max_bytes: Some(100),
            reserve: 10,
            spool_bytes: None,
        });
        pretend(&space, 1000);
        space.set_stored(100);
        assert_eq!(space.claim_spool(9), 9);
        assert!(space.may_fill());
        space.add_stored(1);
        assert!(!space.may_fill());
        space.release_stored(50);
        assert!(space.may_fill());
        space.release_stored(1000);
        assert_eq!(space.stored_bytes(), 0);
    }

    #[test]
    fn the_spool_budget_is_never_exceeded() {
        let (_folder, space) = space(Limits {
            spool_bytes: Some(10),
            ..Limits::default()
        });
        assert_eq!(space.claim_spool(7), 7);
        assert_eq!(space.claim_spool(7), 3);
        assert_eq!(space.claim_spool(7), 0);
        space.release_spool(4);
        assert_eq!(space.claim_spool(7), 4);
        space.add_spool(5);
        assert_eq!((space.spool_bytes(), space.claim_spool(1)), (15, 0));
    }

    #[test]
    fn measures_a_real_volume() {
        let (_folder, space) = space(Limits::default());
        let volume = space.measure().unwrap();
        assert!(volume.total > 0 && volume.free <= volume.total);
    }
}
