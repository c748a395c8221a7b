//! The evictor over a real index and a real folder.

use std::sync::Mutex;

use super::*;
use crate::index::BlobState;
use crate::store::{
    BufferSize, Buffers, Limits, LocalStore, Spool, StoredBlob, VerifiedManifest, VerifiedSpool,
    Volume,
};
use bytes::Bytes;
use coral_schema::oci::Digest;
use futures::TryStreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::BoxStream;
use tempfile::TempDir;

/// A folder whose volume says what the test wants, and which can refuse to remove.
#[derive(Debug)]
struct Rigged {
    inner: LocalStore,
    volume: Mutex<Volume>,
    refuses: AtomicBool,
}

impl BlobStore for Rigged {
    fn open<'a>(
        &'a self,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Arc<StoredBlob>>, StoreError>> {
        self.inner.open(digest)
    }

    fn spool<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Spool, StoreError>> {
        self.inner.spool(digest)
    }

    fn publish(&self, spool: VerifiedSpool) -> BoxFuture<'_, Result<Arc<StoredBlob>, StoreError>> {
        self.inner.publish(spool)
    }

    fn put_manifest<'a>(
        &'a self,
        manifest: &'a VerifiedManifest,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.inner.put_manifest(manifest)
    }

    fn remove<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<(), StoreError>> {
        if self.refuses.load(Ordering::Relaxed) {
            return async { Err(StoreError::Damaged("rigged".into())) }.boxed();
        }
        self.inner.remove(digest)
    }

    fn list(&self) -> BoxStream<'_, Result<(Digest, u64), StoreError>> {
        self.inner.list()
    }

    fn volume(&self) -> BoxFuture<'_, Result<Volume, StoreError>> {
        let volume = *self.volume.lock().unwrap();
        async move { Ok(volume) }.boxed()
    }

    fn may_fill(&self) -> bool {
        true
    }

    fn fits(&self, size: u64) -> bool {
        self.inner.fits(size)
    }

    fn spool_bytes(&self) -> u64 {
        self.inner.spool_bytes()
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.sync()
    }
}

struct Bench {
    folder: TempDir,
    tasks: Tasks,
    index: Index,
    store: Arc<Rigged>,
}

const ROOMY: Volume = Volume {
    free: 1 << 40,
    total: 1 << 41,
};

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let (index, store) = Self::open(&folder, &tasks);
        index.set_complete(0).await.unwrap();
        Self {
            folder,
            tasks,
            index,
            store,
        }
    }

    fn open(folder: &TempDir, tasks: &Tasks) -> (Index, Arc<Rigged>) {
        let index = Index::open(&folder.path().join("index.db"), tasks).unwrap();
        let root = folder.path().join("store");
        let store = Rigged {
            inner: LocalStore::open(&root, Limits::default(), Buffers::default()).unwrap(),
            volume: Mutex::new(ROOMY),
            refuses: AtomicBool::new(false),
        };
        (index.index, Arc::new(store))
    }

    /// The process is killed after all that was put is in the file, and starts again.
    async fn restart(mut self) -> Self {
        self.index.flush().await.unwrap();
        (self.index, self.store) = Self::open(&self.folder, &self.tasks);
        self
    }

    fn evictor(&self, limit: u64) -> Evictor {
        let mut registry = Registry::default();
        Evictor::new(self.index.clone(), self.store.clone(), limit, &mut registry)
    }

    async fn put(&self, number: usize, size: usize, manifest: bool) -> Digest {
        let content = content(number, size);
        let digest = Digest::sha256(&content);
        let _publishing = self.index.publishing(&digest).await.unwrap();
        let checked = VerifiedManifest::check(content, &digest).unwrap();
        self.store.put_manifest(&checked).await.unwrap();
        let put = self.index.put_blob(&digest, size as u64, true, manifest);
        put.await.unwrap();
        self.index.flush().await.unwrap();
        digest
    }

    async fn is_stored(&self, digest: &Digest) -> bool {
        self.store.open(digest).await.unwrap().is_some()
    }

    async fn is_present(&self, digest: &Digest) -> bool {
        let row = self.index.blob(digest).await.unwrap();
        row.is_some_and(|row| row.state == BlobState::Present)
    }

    async fn stored(&self) -> Vec<(Digest, u64)> {
        let mut all: Vec<_> = self.store.list().try_collect().await.unwrap();
        all.sort_unstable();
        all
    }
}

fn content(number: usize, size: usize) -> Bytes {
    let mut content = vec![b'x'; size];
    content[..8].copy_from_slice(&number.to_le_bytes());
    content.into()
}

/// Young blobs go when nothing else is left, and no further than to the high watermark.
#[tokio::test]
async fn evicts_to_the_watermark_and_keeps_what_was_used_last() {
    let bench = Bench::new().await;
    let mut digests = Vec::new();
    for number in 0..10 {
        digests.push(bench.put(number, 100, false).await);
    }
    bench.index.touch(&digests[0]);
    assert_eq!(bench.evictor(2000).relieve().await.unwrap(), 0);
    assert_eq!(bench.evictor(800).relieve().await.unwrap(), 300);
    for (number, digest) in digests.iter().enumerate() {
        let held = !(1..=3).contains(&number);
        assert_eq!(bench.is_present(digest).await, held, "{number}");
        assert_eq!(bench.is_stored(digest).await, held, "{number}");
    }
    assert_eq!(bench.index.totals().borrow().bytes(), 700);
}

/// H-08: others fill the volume.
#[tokio::test]
async fn h08_a_full_volume_makes_room() {
    let bench = Bench::new().await;
    for number in 0..10 {
        bench.put(number, 100, false).await;
    }
    let evictor = bench.evictor(1 << 30);
    assert_eq!(evictor.relieve().await.unwrap(), 0);
    *bench.store.volume.lock().unwrap() = Volume {
        free: 0,
        total: 1100,
    };
    assert_eq!(evictor.relieve().await.unwrap(), 200);
}

/// H-01: whoever reads a blob that is evicted reads it to its end.
#[tokio::test]
async fn h01_a_reader_outlives_its_blob() {
    let bench = Bench::new().await;
    let size = 3 * BufferSize::Large.bytes();
    let digest = bench.put(0, size, false).await;
    let blob = bench.store.open(&digest).await.unwrap().unwrap();
    let mut read = blob
        .read(0, BufferSize::Large.bytes())
        .await
        .unwrap()
        .to_vec();
    assert_eq!(bench.evictor(1).relieve().await.unwrap(), size as u64);
    assert!(!bench.is_stored(&digest).await && !bench.is_present(&digest).await);
    while read.len() < size {
        let part = blob.read(read.len() as u64, BufferSize::Large.bytes());
        read.extend_from_slice(&part.await.unwrap());
    }
    assert_eq!(Digest::sha256(&read), digest);
}

/// A digest that is being published while eviction looks at it stays, with its bytes.
#[tokio::test]
async fn what_is_being_published_is_not_evicted() {
    let bench = Bench::new().await;
    let digest = bench.put(0, 100, false).await;
    let publishing = bench.index.publishing(&digest).await.unwrap();
    assert_eq!(bench.evictor(1).relieve().await.unwrap(), 0);
    assert!(bench.is_stored(&digest).await && bench.is_present(&digest).await);
    drop(publishing);
    assert_eq!(bench.evictor(1).relieve().await.unwrap(), 100);
}

#[tokio::test]
async fn what_cannot_be_removed_is_served_again() {
    let bench = Bench::new().await;
    let digest = bench.put(0, 100, false).await;
    bench.store.refuses.store(true, Ordering::Relaxed);
    assert!(bench.evictor(1).relieve().await.is_err());
    assert!(bench.is_present(&digest).await);
    bench.store.refuses.store(false, Ordering::Relaxed);
    assert_eq!(bench.evictor(1).relieve().await.unwrap(), 100);
}

/// Where a deletion is killed.
#[derive(Debug, Clone, Copy)]
enum Killed {
    AfterTheMark,
    AfterTheBytes,
    BeforeTheMarkWasOnDisk,
}

/// Mark, bytes, row: killed between any two, the next start (or reader) repairs it.
#[rstest::rstest]
#[case(Killed::AfterTheMark)]
#[case(Killed::AfterTheBytes)]
#[case(Killed::BeforeTheMarkWasOnDisk)]
#[tokio::test]
async fn h03_a_killed_deletion_is_finished(#[case] killed: Killed) {
    let bench = Bench::new().await;
    let digest = bench.put(0, 100, false).await;
    let other = bench.put(1, 100, false).await;
    match killed {
        Killed::AfterTheMark => drop(bench.index.claim(&digest).await.unwrap().unwrap()),
        Killed::AfterTheBytes => {
            let claim = bench.index.claim(&digest).await.unwrap().unwrap();
            bench.store.remove(&digest).await.unwrap();
            drop(claim);
        }
        Killed::BeforeTheMarkWasOnDisk => bench.store.remove(&digest).await.unwrap(),
    }
    let bench = bench.restart().await;
    let store = bench.store.clone();
    let finished = reconcile::finish_deletions(&bench.index, store.as_ref()).await;
    if let Killed::BeforeTheMarkWasOnDisk = killed {
        assert_eq!(finished.unwrap(), 0);
        assert!(!bench.is_stored(&digest).await);
        bench.index.drop_blob(&digest).await.unwrap();
    } else {
        assert_eq!(finished.unwrap(), 1);
    }
    assert!(!bench.is_stored(&digest).await);
    assert_eq!(bench.index.blob(&digest).await.unwrap(), None);
    assert!(bench.is_stored(&other).await && bench.is_present(&other).await);
    bench.put(0, 100, false).await;
    assert!(bench.is_stored(&digest).await && bench.is_present(&digest).await);
}

/// H-15: blobs, manifests and indexes come and go independently; index and store always agree.
#[tokio::test]
async fn h15_random_histories_keep_index_and_store_together() {
    let mut bench = Bench::new().await;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for step in 0..400_u64 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let number = usize::try_from(state % 24).unwrap();
        let size = 64 + number * 16;
        let digest = Digest::sha256(&content(number, size));
        match state >> 40 & 7 {
            0..=2 => drop(bench.put(number, size, number % 5 == 0).await),
            3 => bench.index.touch(&digest),
            4 => drop(bench.index.claim(&digest).await.unwrap()),
            5 if step % 5 == 0 => bench = bench.restart().await,
            _ => {
                let limit = 500 + (state >> 20) % 3000;
                bench.evictor(limit).look_after(&mut None).await.unwrap();
                let held = bench.index.totals().borrow().bytes();
                assert!(held <= limit - limit / 10, "step {step}: {held} of {limit}");
                let stored = bench.stored().await;
                let bytes: u64 = stored.iter().map(|(_, size)| size).sum();
                assert_eq!(bytes, held, "step {step}");
                for (digest, size) in stored {
                    let row = bench.index.blob(&digest).await.unwrap().unwrap();
                    assert_eq!((row.size, row.state), (size, BlobState::Present));
                }
            }
        }
    }
}

/// H-30: at no time does a wrong clock by itself evict anything.
#[tokio::test]
async fn h30_a_wrong_clock_evicts_nothing() {
    let bench = Bench::new().await;
    for number in 0..8 {
        bench.put(number, 100, false).await;
    }
    bench.index.flush().await.unwrap();
    for hours in [24, -24, 24 * 40] {
        bench.index.jump(jiff::SignedDuration::from_hours(hours));
        assert_eq!(bench.evictor(1000).relieve().await.unwrap(), 0);
    }
    assert_eq!(bench.stored().await.len(), 8);
    let newest = bench.put(8, 100, false).await;
    assert_eq!(bench.evictor(900).relieve().await.unwrap(), 200);
    assert!(bench.is_present(&newest).await);
}

/// The task sees the limit crossed without being told.
#[tokio::test]
async fn the_task_wakes_when_the_limit_is_crossed() {
    let bench = Bench::new().await;
    let evictor = bench.evictor(1000);
    let task = evictor.start(&bench.tasks);
    let mut totals = bench.index.totals();
    for number in 0..20 {
        bench.put(number, 100, false).await;
    }
    bench.index.flush().await.unwrap();
    totals
        .wait_for(|totals| totals.bytes() <= 900 && totals.bytes() > 0)
        .await
        .unwrap();
    assert!(bench.tasks.stop(Duration::from_secs(10)).await);
    task.await.unwrap();
}

#[tokio::test]
async fn metrics_say_what_is_held_and_what_went() {
    let bench = Bench::new().await;
    bench.put(0, 100, false).await;
    bench.put(1, 50, true).await;
    let mut registry = Registry::default();
    let index = bench.index.clone();
    let evictor = Evictor::new(index, bench.store.clone(), 100, &mut registry);
    evictor.room().failed(&StoreError::Full);
    evictor.look_after(&mut None).await.unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "store_bytes{class=\"blob\"} 0",
        "store_bytes{class=\"manifest\"} 50",
        "store_limit_bytes 100",
        "store_degraded 1",
        "evicted_bytes_total{reason=\"limit\"} 100",
        "evicted_bytes_total{reason=\"volume\"} 0",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

/// Until all records are back, nothing says which blobs were pushed here.
#[tokio::test]
async fn nothing_goes_before_a_rebuild_is_done() {
    let mut bench = Bench::new().await;
    let digest = bench.put(1, 100, false).await;
    std::fs::remove_file(bench.folder.path().join("index.db")).unwrap();
    bench = bench.restart().await;
    bench
        .index
        .put_blob(&digest, 100, true, false)
        .await
        .unwrap();
    bench.index.flush().await.unwrap();
    assert_eq!(bench.evictor(10).relieve().await.unwrap(), 0);
    bench.index.set_complete(0).await.unwrap();
    assert_eq!(bench.evictor(10).relieve().await.unwrap(), 100);
}
