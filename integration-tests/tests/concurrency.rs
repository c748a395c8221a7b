//! Promise 1, one download: whatever the number of clients and whatever they do, a blob is fetched once.

use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::{eventually, get, pull};
use coral_integration_tests::registry::configuration;
use coral_integration_tests::upstream::{Fault, Gate, Kind, Upstream, When};
use coral_schema::oci::Digest;
use futures::future::{join_all, try_join_all};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use http::Method;

const REPOSITORY: &str = "team/app";

struct Scene {
    upstream: Upstream,
    cache: Cache,
    image: Image,
}

impl Scene {
    async fn new(sizes: &[u64], more: &str) -> anyhow::Result<Self> {
        let upstream = Upstream::start().await?;
        let image = Image::new(1, sizes);
        upstream.publish(REPOSITORY, "v1", &image);
        let cache = Cache::start(&format!("{}{more}", configuration(&upstream, ""))).await?;
        Ok(Self {
            upstream,
            cache,
            image,
        })
    }

    fn layer(&self) -> Digest {
        self.image.layers()[0].digest
    }

    async fn open(&self, headers: &[(&str, &str)]) -> anyhow::Result<Reading> {
        let mut connection = Connection::open(self.cache.address()).await?;
        let reply = connection.get(&path(&self.layer()), headers).await?;
        Ok(Reading { connection, reply })
    }

    /// Each blob was asked for once, and all are in the store.
    async fn assert_one_download(&self) {
        for blob in &self.image.blobs {
            let asked = When::blob(&blob.digest);
            assert_eq!(self.upstream.requests(&asked), 1, "{}", blob.digest);
            assert_eq!(self.upstream.bytes(&asked), blob.size());
        }
        eventually("all is stored", async || self.holds_all()).await;
        eventually("no part is left", async || self.cache.parts().is_empty()).await;
        self.cache.assert_sound();
    }

    fn holds_all(&self) -> bool {
        let stored = self.cache.stored();
        self.image
            .blobs
            .iter()
            .all(|blob| stored.contains_key(&blob.digest))
    }

    async fn readers(&self) -> f64 {
        let readers = self.cache.metric("transfer_readers").await;
        readers.expect("metrics").expect("the metric is there")
    }
}

struct Reading {
    connection: Connection,
    reply: coral_integration_tests::client::Reply,
}

impl Reading {
    async fn some(&mut self) -> anyhow::Result<usize> {
        let chunk = self.connection.chunk(&mut self.reply).await?;
        Ok(chunk.map_or(0, |chunk| chunk.len()))
    }
}

fn path(digest: &Digest) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

#[rstest::rstest]
#[case::with_length(Fault::new())]
#[case::chunked(Fault::new().chunked())]
#[case::no_length(Fault::new().without_length())]
#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_are_one_download(#[case] fault: Fault) -> anyhow::Result<()> {
    let scene = Scene::new(&[300_000, 70_000, 5], "").await?;
    let gate = Gate::new();
    scene.upstream.always(
        When::blob(&scene.layer()),
        fault.clone().hold(&gate, 100_000),
    );
    scene.upstream.always(When::kind(Kind::Blob), fault);
    let address = scene.cache.address();
    let pulls = (0..50).map(|_| pull(address, REPOSITORY, "v1"));
    let opened = async {
        eventually("all wait for one transfer", async || {
            scene.readers().await >= 50.0
        })
        .await;
        gate.open();
    };
    let (pulled, ()) = tokio::join!(try_join_all(pulls), opened);
    assert_eq!(pulled?.len(), 50);
    assert_eq!(scene.upstream.requests(&When::kind(Kind::Manifest)), 1);
    scene.assert_one_download().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_change_nothing_for_the_others() -> anyhow::Result<()> {
    let scene = Scene::new(&[1 << 20], "").await?;
    let gate = Gate::new();
    let held = Fault::new().hold(&gate, 1 << 19);
    scene.upstream.always(When::blob(&scene.layer()), held);
    let address = scene.cache.address();
    let staying = (0..20).map(|_| pull(address, REPOSITORY, "v1"));
    let leaving = (0..30).map(async |number| {
        let mut reading = scene.open(&[]).await?;
        // Some at once, some after a while, some with bytes unread.
        for _ in 0..number % 4 {
            reading.some().await?;
        }
        anyhow::Ok(())
    });
    let leaving = async {
        let left = try_join_all(leaving).await;
        gate.open();
        left
    };
    let (stayed, left) = tokio::join!(try_join_all(staying), leaving);
    assert_eq!((stayed?.len(), left?.len()), (20, 30));
    scene.assert_one_download().await;
    assert!(scene.readers().await < 1.0, "nobody is counted any more");
    Ok(())
}

/// H-24: containerd asks for the rest of the blob from eight places, takes its chunk of each, and drops them.
#[tokio::test(flavor = "multi_thread")]
async fn h24_eight_open_ranges_dropped_each_are_one_download() -> anyhow::Result<()> {
    let scene = Scene::new(&[8 << 20], "").await?;
    get(
        scene.cache.address(),
        &format!("/v2/{REPOSITORY}/manifests/v1"),
        &[],
    )
    .await?;
    let content = scene.image.layers()[0].content.read_all();
    let parts = (0..8_usize).map(async |part| {
        let first = part << 20;
        let mut reading = scene.open(&[("range", &format!("bytes={first}-"))]).await?;
        assert_eq!(reading.reply.status, 206);
        let mut taken = Vec::new();
        // The last byte of the last one comes only when all is verified.
        while taken.len() < 1 << 20 {
            let chunk = reading.connection.chunk(&mut reading.reply).await?;
            taken.extend_from_slice(&chunk.expect("more bytes"));
        }
        taken.truncate(1 << 20);
        assert!(taken == content[first..first + (1 << 20)], "part {part}");
        anyhow::Ok(())
    });
    try_join_all(parts).await?;
    let config = scene.image.blobs[0].digest;
    get(scene.cache.address(), &path(&config), &[]).await?;
    scene.assert_one_download().await;
    Ok(())
}

/// H-25: what slow clients hold is bounded, and fast ones do not wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn h25_clients_that_do_not_read_hold_little_and_nobody_up() -> anyhow::Result<()> {
    const CLIENTS: usize = 400;
    let scene = Scene::new(&[6 << 20], "").await?;
    let address = scene.cache.address();
    pull(address, REPOSITORY, "v1").await?;
    let before = resident();
    // Some at a time: on a busy machine the last of 400 would be silent for longer than a server waits for a request.
    let opened = (0..CLIENTS).map(|_| scene.open(&[]));
    let mut slow: Vec<_> = stream::iter(opened).buffered(32).try_collect().await?;
    // Each has been sent something, and asks for no more.
    try_join_all(slow.iter_mut().map(Reading::some)).await?;
    pull(address, REPOSITORY, "v1").await?;
    // The pool of 64 MiB, and for each client a buffer of its own here (256 KiB) and small change there.
    let bound = (64 << 20) + CLIENTS * ((256 << 10) + (64 << 10));
    let grown = resident().saturating_sub(before);
    assert!(grown < bound, "{grown} bytes for {CLIENTS} clients");
    scene.assert_one_download().await;
    Ok(())
}

/// `VmRSS` of this process, bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc(5)");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    kib.and_then(|kib| kib.trim().parse::<usize>().ok())
        .expect("VmRSS")
        << 10
}

/// One client takes the first MiB and goes; the upstream holds the rest back until `eventually`.
async fn left_behind(setting: &str) -> anyhow::Result<(Scene, Gate)> {
    let more = format!("cache: {{ finishTransfers: {setting} }}\n");
    let scene = Scene::new(&[2 << 20], &more).await?;
    let gate = Gate::new();
    let held = Fault::new().hold(&gate, 1 << 20);
    scene.upstream.script(When::blob(&scene.layer()), [held]);
    let mut reading = scene.open(&[]).await?;
    let mut taken = 0;
    while taken < 1 << 20 {
        taken += reading.some().await?;
    }
    drop(reading);
    eventually("nobody reads", async || scene.readers().await < 1.0).await;
    Ok((scene, gate))
}

#[rstest::rstest]
#[case("always")]
#[case("after(10%)")]
#[tokio::test(flavor = "multi_thread")]
async fn what_shall_be_finished_is(#[case] setting: &str) -> anyhow::Result<()> {
    let (scene, gate) = left_behind(setting).await?;
    gate.open();
    let layer = scene.layer();
    eventually("it is stored", async || {
        scene.cache.stored().contains_key(&layer)
    })
    .await;
    assert_eq!(scene.upstream.requests(&When::blob(&layer)), 1);
    scene.cache.assert_sound();
    Ok(())
}

/// What was given up is not lost: the next client goes on from there.
#[rstest::rstest]
#[case("never")]
#[case("after(60%)")]
#[tokio::test(flavor = "multi_thread")]
async fn what_shall_not_be_finished_is_given_up_and_resumed(
    #[case] setting: &str,
) -> anyhow::Result<()> {
    let (scene, _gate) = left_behind(setting).await?;
    eventually("it is given up", async || {
        let running = scene.cache.metric("transfers_running").await;
        matches!(running, Ok(Some(0.0)))
    })
    .await;
    let layer = scene.layer();
    assert!(!scene.cache.stored().contains_key(&layer));
    assert_eq!(scene.cache.parts().len(), 1);
    pull(scene.cache.address(), REPOSITORY, "v1").await?;
    let asked = scene.upstream.seen(&When::blob(&layer));
    let ranges: Vec<_> = asked.iter().map(|seen| seen.header("range")).collect();
    assert_eq!(ranges, ["", "bytes=1048576-"]);
    eventually("it is stored", async || {
        scene.cache.stored().contains_key(&layer)
    })
    .await;
    assert!(scene.cache.parts().is_empty());
    scene.cache.assert_sound();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_and_clients_share_a_download() -> anyhow::Result<()> {
    let scene = Scene::new(&[1 << 20], "").await?;
    let gate = Gate::new();
    let held = Fault::new().hold(&gate, 1 << 19);
    scene.upstream.always(When::blob(&scene.layer()), held);
    let image = format!("upstream.example/{REPOSITORY}:v1");
    let body = serde_json::json!({ "images": [image] });
    let url = format!("http://{}/api/v1/prefetch", scene.cache.admin());
    let asked = reqwest::Client::new().post(url);
    let asked = asked.header("content-type", "application/json");
    let answer = asked.body(body.to_string()).send().await?;
    let status = answer.status();
    assert_eq!(status, 202, "{}", answer.text().await?);
    gate.reached(1).await;
    let clients = (0..5).map(|_| pull(scene.cache.address(), REPOSITORY, "v1"));
    let opened = async {
        eventually("all wait", async || scene.readers().await >= 5.0).await;
        gate.open();
    };
    let (pulled, ()) = tokio::join!(join_all(clients), opened);
    assert!(pulled.iter().all(Result::is_ok), "{pulled:?}");
    scene.assert_one_download().await;
    let gets = When::kind(Kind::Manifest).method(Method::GET);
    assert_eq!(scene.upstream.requests(&gets), 1);
    Ok(())
}

/// Lazy loaders of many pods ask for the same footer at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn identical_far_ranges_are_one_request() -> anyhow::Result<()> {
    let scene = Scene::new(&[32 << 20], "").await?;
    let (address, layer) = (scene.cache.address(), scene.layer());
    get(address, &format!("/v2/{REPOSITORY}/manifests/v1"), &[]).await?;
    let gate = Gate::new();
    let held = Fault::new().hold(&gate, (20 << 20) + 1000);
    scene.upstream.always(When::blob(&layer), held);
    let range = format!("bytes={}-{}", 20 << 20, (20 << 20) + 65_535);
    let mut readers = Vec::new();
    for _ in 0..10 {
        readers.push(scene.open(&[("range", &range)]).await?);
    }
    gate.open();
    let content = &scene.image.layers()[0].content;
    let mut expected = Vec::new();
    while expected.len() < 65_536 {
        let offset = (20 << 20) + expected.len() as u64;
        expected.extend_from_slice(&content.chunk(offset, 65_536 - expected.len()));
    }
    for mut reader in readers {
        let Reading { connection, reply } = &mut reader;
        assert_eq!(reply.status, 206);
        assert!(connection.read_all(reply).await? == expected);
    }
    assert_eq!(scene.upstream.requests(&When::blob(&layer)), 1);
    assert!(scene.cache.parts().is_empty() && !scene.cache.stored().contains_key(&layer));
    Ok(())
}
