//! Pins over the admin API: what a source wants kept stays when the store is full, until the source or its time ends
//! it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use coral_integration_tests::ask::{json, post, put, without_body};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::{Blob, Image};
use coral_integration_tests::pull::{eventually, get, pull};
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::{Upstream, When};
use coral_schema::oci::Digest;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

const REPOSITORY: &str = "team/app";
const OPERATOR: &str = "/api/v1/pins/coral-operator/ml/inference";
const LIMIT: u64 = 4 << 20;

/// A full cache of three images, and the image `pinned`.
struct Scene {
    upstream: Upstream,
    cache: Cache,
    pinned: Image,
}

impl Scene {
    /// Tags are looked at with every pull.
    async fn new() -> anyhow::Result<Self> {
        let upstream = Upstream::start().await?;
        let pinned = image(100);
        upstream.publish(REPOSITORY, "pinned", &pinned);
        for number in 0..OTHERS {
            upstream.publish(REPOSITORY, &format!("v{number}"), &image(number));
        }
        let tags = "    tags: [{ match: \"*\", freshness: 0s }]\n";
        let configuration = configuration(&upstream, tags);
        let store = format!("store: {{ maxBytes: {LIMIT} }}\n");
        let cache = Cache::start(&(configuration + &store)).await?;
        Ok(Self {
            upstream,
            cache,
            pinned,
        })
    }

    async fn pin(&self, images: &[&str], expires: Timestamp) -> anyhow::Result<()> {
        let images: Vec<_> = images.iter().map(|image| named(image)).collect();
        let body = json!({ "images": images, "expires": expires });
        assert_eq!(
            put(self.cache.admin(), OPERATOR, &body).await?,
            (204, Value::Null)
        );
        Ok(())
    }

    async fn sources(&self) -> Value {
        json(&get(self.cache.admin(), "/api/v1/pins", &[]).await.unwrap())
    }

    /// The digest that a client gets for the tag `pinned`.
    async fn means(&self, headers: &[(&str, &str)]) -> Digest {
        let path = format!("/v2/{REPOSITORY}/manifests/pinned");
        let got = get(self.cache.address(), &path, headers).await.unwrap();
        assert_eq!(got.status, 200);
        Digest::sha256(&got.body)
    }

    /// What a job that asks the upstream says of an image.
    async fn refresh(&self, image: &str) -> anyhow::Result<Value> {
        let job = json!({ "images": [image], "refresh": true });
        let (_, answer) = post(self.cache.admin(), "/api/v1/prefetch", &job).await?;
        let path = format!("/api/v1/prefetch/{}", answer["id"].as_str().unwrap());
        let mut last = Value::Null;
        eventually("the job ends", async || {
            last = json(&get(self.cache.admin(), &path, &[]).await.unwrap());
            last["state"] == "done"
        })
        .await;
        Ok(last["images"][0].clone())
    }

    async fn pull(&self, tag: &str) -> anyhow::Result<()> {
        pull(self.cache.address(), REPOSITORY, tag).await.map(drop)
    }

    /// Pulls so much that nothing stays that may go.
    async fn press(&self) -> anyhow::Result<()> {
        for number in 0..OTHERS {
            self.pull(&format!("v{number}")).await?;
        }
        eventually("the store is within its watermark", async || {
            let sizes = self.cache.stored().into_values().map(std::fs::metadata);
            let held: u64 = sizes.filter_map(|file| Some(file.ok()?.len())).sum();
            held <= LIMIT - LIMIT / 10
        })
        .await;
        Ok(())
    }

    fn holds(&self, image: &Image) -> bool {
        let stored = self.cache.stored();
        let blobs = image.blobs.iter().chain([&image.manifest]);
        blobs
            .into_iter()
            .all(|blob| stored.contains_key(&blob.digest))
    }

    fn holds_a_layer(&self, image: &Image) -> bool {
        let stored = self.cache.stored();
        let held = |layer: &Blob| stored.contains_key(&layer.digest);
        image.layers().iter().any(held)
    }

    /// What is not pinned goes, sooner or later.
    async fn assert_goes(&self, image: &Image) -> anyhow::Result<()> {
        let mut rounds = 0;
        while self.holds_a_layer(image) {
            rounds += 1;
            assert!(rounds < 50, "it stays");
            self.press().await?;
        }
        Ok(())
    }
}

/// About 1.2 MiB: three of them fill the store.
fn image(seed: u64) -> Image {
    Image::new(seed, &[700_000, 400_000, 100_000])
}

const OTHERS: u64 = 8;

fn named(image: &str) -> String {
    format!("{UPSTREAM_NAME}/{REPOSITORY}{image}")
}

fn in_an_hour() -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn l35_a_pinned_image_outlives_pressure_and_restarts() -> anyhow::Result<()> {
    let mut scene = Scene::new().await?;
    // Before anything of it is here.
    scene.pin(&[":pinned"], in_an_hour()).await?;
    scene.pull("pinned").await?;
    scene.press().await?;
    assert!(scene.holds(&scene.pinned));
    scene.cache.restart().await?;
    scene.press().await?;
    assert!(scene.holds(&scene.pinned));
    let source = "coral-operator/ml/inference";
    let sources = scene.sources().await;
    assert_eq!(sources[0]["source"], source);
    assert_eq!(sources[0]["images"], 1);
    scene.upstream.refuse().await;
    scene.pull("pinned").await?;
    scene.upstream.accept().await?;

    for _ in 0..2 {
        let deleted = without_body(scene.cache.admin(), Method::DELETE, OPERATOR, &[]).await?;
        assert_eq!(deleted.status, 204, "also when there is nothing");
    }
    assert_eq!(scene.sources().await, json!([]));
    scene.assert_goes(&scene.pinned).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_pin_holds_nothing() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.pin(&[":pinned"], in_an_hour()).await?;
    scene.pull("pinned").await?;
    scene.press().await?;
    assert!(scene.holds(&scene.pinned));
    let soon = Timestamp::now() + SignedDuration::from_millis(500);
    scene.pin(&[":pinned"], soon).await?;
    eventually("it expires", async || scene.sources().await == json!([])).await;
    scene.assert_goes(&scene.pinned).await
}

/// What a source pinned before is not pinned any more; a tag holds what it means.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_replaced_and_follows_its_tag() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.pin(&[":pinned"], in_an_hour()).await?;
    scene.pull("pinned").await?;
    let moved = image(200);
    scene.upstream.publish(REPOSITORY, "pinned", &moved);
    scene.pull("pinned").await?;
    scene.assert_goes(&scene.pinned).await?;
    assert!(scene.holds(&moved));

    let digest = format!("@{}", scene.pinned.digest());
    scene.upstream.add(REPOSITORY, &scene.pinned);
    scene.pin(&[&digest], in_an_hour()).await?;
    scene.pull(&scene.pinned.digest().to_string()).await?;
    scene.assert_goes(&moved).await?;
    assert!(scene.holds(&scene.pinned));
    Ok(())
}

/// `tagPolicy: Freeze`: whoever asks for the tag gets what it meant, and whoever wants to know hears what it means.
#[tokio::test(flavor = "multi_thread")]
async fn l12_a_frozen_tag_goes_on_meaning_what_it_meant() -> anyhow::Result<()> {
    let mut scene = Scene::new().await?;
    scene.pull("pinned").await?;
    let (old, new) = (scene.pinned.clone(), image(200));
    let tag = named(":pinned");
    let frozen = json!([{ "ref": tag, "digest": old.digest() }]);
    let body = json!({ "images": [tag], "frozen": frozen, "expires": in_an_hour() });
    assert_eq!(put(scene.cache.admin(), OPERATOR, &body).await?.0, 204);
    assert_eq!(scene.sources().await[0]["images"], 1);
    scene.upstream.publish(REPOSITORY, "pinned", &new);
    for restart in [false, true] {
        if restart {
            scene.cache.restart().await?;
        }
        assert_eq!(scene.means(&[]).await, old.digest());
        let inside = [("cache-control", "only-if-cached")];
        assert_eq!(scene.means(&inside).await, old.digest());
        let told = scene.refresh(&tag).await?;
        assert_eq!(told["digest"], old.digest().to_string());
        assert_eq!(told["upstreamDigest"], new.digest().to_string());
    }
    scene.press().await?;
    assert!(scene.holds(&old));

    let by_digest = format!("{tag}@{}", old.digest());
    let frozen = json!([{ "ref": by_digest, "digest": old.digest() }]);
    let wrong = json!({ "images": [tag], "frozen": frozen, "expires": in_an_hour() });
    let (status, answer) = put(scene.cache.admin(), OPERATOR, &wrong).await?;
    assert_eq!(status, 400, "{answer}");

    let deleted = without_body(scene.cache.admin(), Method::DELETE, OPERATOR, &[]).await?;
    assert_eq!(deleted.status, 204);
    assert_eq!(scene.means(&[]).await, new.digest());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l13_only_the_wanted_platforms_of_an_index_are_pinned() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let platforms = ["linux/amd64", "linux/arm64"];
    let index = Image::multi_platform(3, &platforms, &[700_000, 100_000]);
    scene.upstream.publish(REPOSITORY, "multi", &index);
    let images = [named(":multi")];
    let (amd, arm) = (&index.children[0], &index.children[1]);
    let body = json!({ "images": images, "platforms": ["linux/arm64"], "expires": in_an_hour() });
    assert_eq!(put(scene.cache.admin(), OPERATOR, &body).await?.0, 204);
    let both = json!({ "images": images, "platforms": platforms });
    assert_eq!(
        post(scene.cache.admin(), "/api/v1/prefetch", &both)
            .await?
            .0,
        202
    );
    eventually("both are held", async || {
        scene.holds(amd) && scene.holds(arm)
    })
    .await;
    scene.assert_goes(amd).await?;
    assert!(scene.holds(arm) && scene.cache.stored().contains_key(&index.digest()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_and_changes_nothing() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.pin(&[":pinned", ":v1"], in_an_hour()).await?;
    let (later, image) = (in_an_hour(), named(":v1"));
    let many = vec![image.clone(); 10_001];
    for (body, hint) in [
        (json!({ "images": [image] }), "expires"),
        (json!({ "images": [image], "expires": "soon" }), "expires"),
        (
            json!({ "images": [image], "expires": Timestamp::UNIX_EPOCH }),
            "passed",
        ),
        (
            json!({ "images": [image], "expires": later, "until": later }),
            "until",
        ),
        (
            json!({ "images": ["quay.io/A/b"], "expires": later }),
            "quay.io/A/b",
        ),
        (
            json!({ "images": [image], "platforms": ["arm64"], "expires": later }),
            "platform",
        ),
        (json!({ "images": many, "expires": later }), "10000"),
        (json!("nginx"), "PinRequest"),
    ] {
        let (status, answer) = put(scene.cache.admin(), OPERATOR, &body).await?;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && error.contains(hint), "{status}: {error}");
    }
    let good = json!({ "images": [image], "expires": later });
    for source in [
        "a//b".to_owned(),
        "a%20b".to_owned(),
        "a%0Ab".to_owned(),
        "x".repeat(257),
    ] {
        let path = format!("/api/v1/pins/{source}");
        assert_eq!(put(scene.cache.admin(), &path, &good).await?.0, 400);
    }
    let huge = json!({ "images": ["x".repeat(5 << 20)], "expires": later });
    let (status, answer) = put(scene.cache.admin(), OPERATOR, &huge).await?;
    assert!(status == 413 && answer["error"].is_string(), "{answer}");
    assert_eq!(scene.sources().await[0]["images"], 2, "as it was");

    // A registry that is not configured yet, and a list of the full length.
    let mut images: Vec<_> = (0..9_999).map(|tag| named(&format!(":t{tag}"))).collect();
    images.push("not.configured.example/a/b:c".to_owned());
    let full = json!({ "images": images, "expires": later });
    assert_eq!(put(scene.cache.admin(), OPERATOR, &full).await?.0, 204);
    assert_eq!(scene.sources().await[0]["images"], 10_000);
    assert_eq!(scene.upstream.requests(&When::any()), 0);
    Ok(())
}

/// A page in a browser on the same machine must not pin.
#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_kept_out() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let url = format!("http://{}{OPERATOR}", scene.cache.admin());
    let body = json!({ "images": [], "expires": in_an_hour() }).to_string();
    let client = reqwest::Client::builder().no_proxy().build()?;
    let plain = client.put(&url).body(body.clone()).send().await?;
    assert_eq!(plain.status().as_u16(), 415);
    let foreign = client.put(&url).header("origin", "http://evil.example");
    let foreign = foreign.header("content-type", "application/json");
    assert_eq!(foreign.body(body).send().await?.status().as_u16(), 403);
    assert_eq!(scene.sources().await, json!([]));
    Ok(())
}
