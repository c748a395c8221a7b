//! Transfers between a scripted upstream and a real store.

use std::time::Duration;

use coral_schema::process::tasks::Tasks;
use futures::TryStreamExt as _;
use prometheus_client::registry::Registry;
use tempfile::TempDir;

use super::*;
use crate::store::{Bucket, Buffers, Limits, LocalStore};
use crate::upstream::tests::fake::{Fake, Reply, head, reply};
use crate::upstream::tests::upstream;

const CONTENT: &str = "a blob that is longer than its last byte";

struct Bench {
    folder: TempDir,
    fake: Fake,
    index: Index,
    store: Arc<dyn BlobStore>,
    transfers: Transfers,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let index = Index::open(&folder.path().join("index.db"), &tasks).unwrap();
        let root = folder.path().join("store");
        let store = LocalStore::open(&root, Limits::default(), Buffers::default()).unwrap();
        let store = Arc::new(store);
        let stores = Stores {
            blobs: Arc::clone(&store) as Arc<dyn BlobStore>,
            records: Arc::new(Bucket::folder(&root).unwrap()),
            room: Room::default(),
        };
        let config = TransferConfig {
            finish: FinishTransfers::Always,
            fill_on_range: FillOnRange::Auto,
        };
        let metrics = TransferMetrics::register(&mut Registry::default());
        let transfers = Transfers::new(config, stores, index.index.clone(), tasks, metrics);
        Self {
            folder,
            fake: Fake::start(|_| reply(200, &[], CONTENT)).await,
            index: index.index,
            store,
            transfers,
        }
    }

    fn origin(&self) -> Origin {
        Origin {
            repo: "registry.example/team/app".parse().unwrap(),
            upstream: Arc::new(upstream(&self.fake.url())),
            public: true,
        }
    }

    /// The whole body for one more client. Did its request start the transfer?
    async fn pull(&self, digest: &Digest) -> (bool, Arc<Transfer>) {
        let joined = self
            .transfers
            .join(digest, &self.origin(), Priority::Interactive);
        joined.transfer.opened().await.unwrap();
        let body = self
            .transfers
            .read(&joined.transfer, self.origin(), 0, None);
        let chunks: Vec<_> = body.try_collect().await.unwrap();
        assert_eq!(chunks.concat(), CONTENT.as_bytes());
        (joined.started, joined.transfer)
    }
}

async fn ending(transfer: &Transfer) -> Phase {
    let mut progress = transfer.watch();
    let ended = |now: &Progress| matches!(now.phase, Phase::Published | Phase::Unpublished);
    progress.wait_for(ended).await.unwrap().phase.clone()
}

/// A deletion that takes its time stands for everything that may keep store and index waiting.
#[tokio::test]
async fn a_publication_that_is_held_back_holds_back_no_byte() {
    let bench = Bench::new().await;
    let digest = Digest::sha256(CONTENT.as_bytes());
    let size = CONTENT.len() as u64;
    bench
        .index
        .put_blob(&digest, size, true, false)
        .await
        .unwrap();
    let deletion = bench.index.claim(&digest).await.unwrap().unwrap();

    let (started, transfer) = bench.pull(&digest).await;
    assert!(started);
    let (started, joined) = bench.pull(&digest).await;
    assert!(!started && Arc::ptr_eq(&joined, &transfer), "it is found");
    assert!(matches!(transfer.watch().borrow().phase, Phase::Verified));
    assert!(bench.store.open(&digest).await.unwrap().is_none());

    deletion.finish().await.unwrap();
    assert!(matches!(ending(&transfer).await, Phase::Published));
    assert!(bench.store.open(&digest).await.unwrap().is_some());
    assert!(bench.index.blob(&digest).await.unwrap().is_some());
    assert_eq!(bench.fake.seen().len(), 1);
}

#[tokio::test]
async fn a_publication_that_fails_is_known_and_costs_the_client_nothing() {
    let bench = Bench::new().await;
    let digest = Digest::sha256(CONTENT.as_bytes());
    let blobs = bench.folder.path().join("store/v1/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(&digest.hex()[..2]), "not a folder").unwrap();

    let (_, transfer) = bench.pull(&digest).await;
    assert!(matches!(ending(&transfer).await, Phase::Unpublished));
}

/// What jobs fetch has a quarter of the places; a client that comes for a blob that waits for one takes another.
#[tokio::test]
async fn a_client_does_not_wait_behind_background_work() {
    let mut bench = Bench::new().await;
    let digest = Digest::sha256(CONTENT.as_bytes());
    let path = format!("/v2/team/app/blobs/{digest}");
    bench.fake = Fake::start(move |seen| {
        if seen.target == path {
            reply(200, &[], CONTENT)
        } else {
            Reply::Stall(head(200, &[("content-length", "9")], ""))
        }
    })
    .await;
    let origin = bench.origin();
    let in_background = |digest| bench.transfers.join(&digest, &origin, Priority::Background);
    for stuck in [b"1", b"2"] {
        let joined = in_background(Digest::sha256(stuck));
        joined.transfer.opened().await.unwrap();
    }
    let waiting = in_background(digest);
    assert!(waiting.started);
    let (started, _) = bench.pull(&digest).await;
    assert!(!started);
    bench.transfers.0.tasks.stop(Duration::from_secs(5)).await;
}
