//! Promise 8, nothing lost: the registry may end at any moment, and its files may be damaged while it is away. The
//! store never holds wrong bytes, and what was there is used.

use std::path::PathBuf;

use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::{eventually, get, pull};
use coral_integration_tests::registry::configuration;
use coral_integration_tests::upstream::{Fault, Gate, Kind, Upstream, When};
use coral_registry::app::{App, Origin};
use coral_registry::config::{self, Overrides};
use coral_schema::oci::Digest;
use coral_schema::process::tasks::Tasks;

const REPOSITORY: &str = "team/app";
const SIZE: u64 = 6 << 20;

struct Scene {
    upstream: Upstream,
    cache: Cache,
    image: Image,
}

impl Scene {
    async fn new(sizes: &[u64]) -> anyhow::Result<Self> {
        let upstream = Upstream::start().await?;
        let image = Image::new(1, sizes);
        upstream.publish(REPOSITORY, "v1", &image);
        let cache = Cache::start(&configuration(&upstream, "")).await?;
        Ok(Self {
            upstream,
            cache,
            image,
        })
    }

    /// One that has the image already.
    async fn filled() -> anyhow::Result<Self> {
        let scene = Self::new(&[700_000, 3000]).await?;
        scene.pull().await?;
        eventually("all is stored", async || scene.holds_all()).await;
        Ok(scene)
    }

    async fn pull(&self) -> anyhow::Result<Vec<Digest>> {
        pull(self.cache.address(), REPOSITORY, "v1").await
    }

    fn layer(&self) -> Digest {
        self.image.layers()[0].digest
    }

    fn holds_all(&self) -> bool {
        let stored = self.cache.stored();
        let blobs = self.image.blobs.iter().chain([&self.image.manifest]);
        blobs
            .into_iter()
            .all(|blob| stored.contains_key(&blob.digest))
    }

    fn index(&self) -> PathBuf {
        self.cache.data().join("index.db")
    }

    /// Stops it when half of the layer is on disk.
    async fn stop_in_mid_download(&mut self) -> anyhow::Result<()> {
        let gate = Gate::new();
        let half = self.image.layers()[0].content.len() / 2;
        let held = Fault::new().hold(&gate, half);
        self.upstream.script(When::blob(&self.layer()), [held]);
        let mut connection = Connection::open(self.cache.address()).await?;
        let path = format!("/v2/{REPOSITORY}/blobs/{}", self.layer());
        let mut reply = connection.get(&path, &[]).await?;
        let mut read = 0;
        while read < half {
            let chunk = connection.chunk(&mut reply).await?;
            read += chunk.expect("more bytes").len() as u64;
        }
        self.cache.stop().await?;
        let rest = connection.read_all(&mut reply).await;
        assert!(rest.is_err(), "the client sees that it is not all");
        assert!(!self.cache.stored().contains_key(&self.layer()));
        assert_eq!(self.cache.parts().len(), 1);
        self.upstream.reset_counters();
        Ok(())
    }

    /// The whole image can be pulled, and the store holds it and nothing else.
    async fn assert_heals(&self) -> anyhow::Result<()> {
        self.pull().await?;
        eventually("all is stored", async || self.holds_all()).await;
        self.cache.assert_sound();
        assert!(self.cache.parts().is_empty());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h03_a_download_goes_on_after_a_restart() -> anyhow::Result<()> {
    let mut scene = Scene::new(&[SIZE]).await?;
    scene.stop_in_mid_download().await?;
    scene.cache.restart().await?;
    scene.assert_heals().await?;
    let asked = scene.upstream.seen(&When::blob(&scene.layer()));
    let ranges: Vec<_> = asked.iter().map(|seen| seen.header("range")).collect();
    assert_eq!(ranges, [format!("bytes={}-", SIZE / 2)]);
    assert_eq!(scene.upstream.bytes(&When::blob(&scene.layer())), SIZE / 2);
    Ok(())
}

/// All bytes were there, but the process died before it published them.
#[tokio::test(flavor = "multi_thread")]
async fn h03_a_complete_part_is_published_without_a_download() -> anyhow::Result<()> {
    let mut scene = Scene::new(&[SIZE]).await?;
    scene.stop_in_mid_download().await?;
    let content = scene.image.layers()[0].content.read_all();
    std::fs::write(&scene.cache.parts()[0], &content)?;
    scene.cache.restart().await?;
    scene.assert_heals().await?;
    assert_eq!(scene.upstream.bytes(&When::blob(&scene.layer())), 0);
    Ok(())
}

/// What lies there is not the beginning of the blob: it must cost one client an error at most, and no wrong byte stays.
#[rstest::rstest]
#[case::as_long_as_before(SIZE / 2)]
#[case::as_long_as_the_blob(SIZE)]
#[case::longer_than_the_blob(SIZE + 5)]
#[case::empty(0)]
#[tokio::test(flavor = "multi_thread")]
async fn h03_a_garbage_part_is_never_served_as_the_blob(#[case] size: u64) -> anyhow::Result<()> {
    let mut scene = Scene::new(&[SIZE]).await?;
    scene.stop_in_mid_download().await?;
    std::fs::write(&scene.cache.parts()[0], vec![b'x'; usize::try_from(size)?])?;
    scene.cache.restart().await?;
    let path = format!("/v2/{REPOSITORY}/blobs/{}", scene.layer());
    let got = get(scene.cache.address(), &path, &[]).await?;
    let right = got.status == 200 && got.body == scene.image.layers()[0].content.read_all();
    assert!(right || got.is_refusal());
    scene.cache.assert_sound();
    scene.assert_heals().await
}

/// The state vouches for bytes that are others by now: nobody gets one of them, and no client notices.
#[tokio::test(flavor = "multi_thread")]
async fn h03_a_part_that_changed_under_its_state_is_fetched_again() -> anyhow::Result<()> {
    let size = 40 << 20;
    let mut scene = Scene::new(&[size]).await?;
    scene.stop_in_mid_download().await?;
    let part = &scene.cache.parts()[0];
    let mut bytes = std::fs::read(part)?;
    bytes[1000] ^= 1;
    std::fs::write(part, bytes)?;
    scene.cache.restart().await?;
    scene.assert_heals().await?;
    let asked = scene.upstream.seen(&When::blob(&scene.layer()));
    assert_eq!(asked.len(), 1);
    assert_eq!(scene.upstream.bytes(&When::blob(&scene.layer())), size);
    Ok(())
}

#[rstest::rstest]
#[case::garbage(Some("garbage"))]
#[case::empty(Some(""))]
#[case::gone(None)]
#[tokio::test(flavor = "multi_thread")]
async fn h03_a_part_whose_state_is_lost_is_fetched_again(
    #[case] state: Option<&str>,
) -> anyhow::Result<()> {
    let mut scene = Scene::new(&[SIZE]).await?;
    scene.stop_in_mid_download().await?;
    let file = scene.cache.parts()[0].with_extension("state");
    match state {
        Some(text) => std::fs::write(&file, text)?,
        None => std::fs::remove_file(&file)?,
    }
    scene.cache.restart().await?;
    scene.assert_heals().await?;
    assert_eq!(scene.upstream.bytes(&When::blob(&scene.layer())), SIZE);
    Ok(())
}

/// The upstream has another blob of that name by now, or a proxy lies: a resumed part does not make it right.
#[tokio::test(flavor = "multi_thread")]
async fn h03_h05_wrong_bytes_behind_a_right_part_are_refused() -> anyhow::Result<()> {
    let mut scene = Scene::new(&[SIZE]).await?;
    scene.stop_in_mid_download().await?;
    scene.cache.restart().await?;
    let flipped = Fault::new().flip_bit(SIZE - 1000);
    scene.upstream.script(When::blob(&scene.layer()), [flipped]);
    let path = format!("/v2/{REPOSITORY}/blobs/{}", scene.layer());
    let got = get(scene.cache.address(), &path, &[]).await?;
    assert!(got.is_refusal());
    assert!(!scene.cache.stored().contains_key(&scene.layer()));
    scene.assert_heals().await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_still_known_after_a_restart() -> anyhow::Result<()> {
    let mut scene = Scene::filled().await?;
    scene.upstream.refuse().await;
    scene.cache.restart().await?;
    scene.pull().await?;
    Ok(())
}

#[rstest::rstest]
#[case::gone(None)]
#[case::garbled(Some("this is no database"))]
#[case::empty(Some(""))]
#[tokio::test(flavor = "multi_thread")]
async fn h31_a_lost_index_costs_nothing_that_was_cached(
    #[case] left: Option<&str>,
) -> anyhow::Result<()> {
    let mut scene = Scene::filled().await?;
    scene.upstream.refuse().await;
    scene.cache.stop().await?;
    for name in ["index.db-wal", "index.db-shm"] {
        let _ = std::fs::remove_file(scene.cache.data().join(name));
    }
    match left {
        Some(text) => std::fs::write(scene.index(), text.repeat(1000))?,
        None => std::fs::remove_file(scene.index())?,
    }
    scene.cache.restart().await?;
    scene.pull().await?;
    scene.cache.assert_sound();
    Ok(())
}

#[rstest::rstest]
#[case::deleted(false)]
#[case::garbled(true)]
#[tokio::test(flavor = "multi_thread")]
async fn h31_the_index_may_vanish_while_it_runs(#[case] garbled: bool) -> anyhow::Result<()> {
    let mut scene = Scene::filled().await?;
    for name in ["index.db", "index.db-wal", "index.db-shm"] {
        let file = scene.cache.data().join(name);
        if garbled && name == "index.db" {
            let length = std::fs::metadata(&file)?.len();
            std::fs::write(&file, vec![b'x'; usize::try_from(length)?])?;
        } else {
            let _ = std::fs::remove_file(&file);
        }
    }
    // Something new makes it write, and notice.
    let other = Image::new(2, &[1000]);
    scene.upstream.publish(REPOSITORY, "v2", &other);
    pull(scene.cache.address(), REPOSITORY, "v2").await?;
    scene.upstream.refuse().await;
    scene.pull().await?;
    scene.cache.restart().await?;
    scene.pull().await?;
    pull(scene.cache.address(), REPOSITORY, "v2").await?;
    scene.cache.assert_sound();
    Ok(())
}

#[rstest::rstest]
#[case::shorter(1000)]
#[case::empty(0)]
#[case::longer(900_000)]
#[tokio::test(flavor = "multi_thread")]
async fn h43_a_file_of_another_length_is_fetched_again(#[case] size: u64) -> anyhow::Result<()> {
    let mut scene = Scene::filled().await?;
    scene.cache.stop().await?;
    let file = scene.cache.stored()[&scene.layer()].clone();
    std::fs::File::options()
        .write(true)
        .open(file)?
        .set_len(size)?;
    scene.upstream.reset_counters();
    scene.cache.restart().await?;
    scene.assert_heals().await?;
    assert_eq!(scene.upstream.requests(&When::blob(&scene.layer())), 1);
    assert_eq!(
        scene.upstream.requests(&When::kind(Kind::Blob)),
        1,
        "the others are right"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_file_is_fetched_again() -> anyhow::Result<()> {
    let mut scene = Scene::filled().await?;
    scene.cache.stop().await?;
    std::fs::remove_file(&scene.cache.stored()[&scene.layer()])?;
    scene.cache.restart().await?;
    scene.assert_heals().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_registry_on_the_same_folder_is_refused() -> anyhow::Result<()> {
    let scene = Scene::filled().await?;
    let overrides = Overrides {
        listen: Some("127.0.0.1:0".parse()?),
        admin_listen: Some("127.0.0.1:0".parse()?),
        data: Some(scene.cache.data()),
    };
    let loaded = config::load(Some(&scene.cache.configuration()), &overrides)?;
    let second = App::build(
        loaded.config,
        Origin::default(),
        prometheus_client::registry::Registry::default(),
        Tasks::new(),
    );
    let refusal = second.await.map(|_| ()).expect_err("one at a time");
    let refusal = format!("{refusal:#}");
    assert!(refusal.contains("is used by process"), "{refusal}");
    scene.pull().await?;
    Ok(())
}
