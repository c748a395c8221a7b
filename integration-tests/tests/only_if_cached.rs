//! `Cache-Control: only-if-cached`: what is here is answered whatever its freshness, everything else is 504, and the
//! upstream hears nothing of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use coral_integration_tests::ask::{code, json, status, without_body};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::{Blob, Image};
use coral_integration_tests::pull::{Got, eventually, get, pull};
use coral_integration_tests::registry::configuration;
use coral_integration_tests::upstream::{Auth, Bearer, Fault, Gate, Kind, Login, Upstream, When};
use coral_schema::oci::Digest;
use http::Method;
use serde_json::json;

const ONLY: (&str, &str) = ("cache-control", "only-if-cached");
const REPOSITORY: &str = "team/app";

/// An upstream with an image, and a cache before it whose tags have to be checked with every pull.
struct Scene {
    upstream: Upstream,
    cache: Cache,
    image: Image,
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        Self::with("    tags: [{ match: \"*\", freshness: 0s }]\n").await
    }

    async fn with(more: &str) -> anyhow::Result<Self> {
        let upstream = Upstream::start().await?;
        let image = Image::new(1, &[3 << 20]);
        upstream.publish(REPOSITORY, "v1", &image);
        let cache = Cache::start(&configuration(&upstream, more)).await?;
        Ok(Self {
            upstream,
            cache,
            image,
        })
    }

    /// One that has the image already.
    async fn filled() -> anyhow::Result<Self> {
        let scene = Self::new().await?;
        pull(scene.cache.address(), REPOSITORY, "v1").await?;
        let stored = async || scene.cache.stored().contains_key(&scene.layer().digest);
        eventually("all is stored", stored).await;
        scene.upstream.reset_counters();
        Ok(scene)
    }

    fn layer(&self) -> &Blob {
        &self.image.layers()[0]
    }

    async fn ask(&self, method: Method, path: &str, more: &[(&str, &str)]) -> Got {
        let headers = [&[ONLY], more].concat();
        let address = self.cache.address();
        let path = format!("/v2/{path}");
        if method == Method::HEAD {
            without_body(address, method, &path, &headers)
                .await
                .unwrap()
        } else {
            get(address, &path, &headers).await.unwrap()
        }
    }

    /// The status of GET and HEAD, which must agree.
    async fn status(&self, path: &str) -> u16 {
        let got = self.ask(Method::GET, path, &[]).await;
        let head = self.ask(Method::HEAD, path, &[]).await;
        assert_eq!(got.status, head.status, "{path}");
        if got.status == 200 {
            assert_eq!(got.header("content-length"), head.header("content-length"));
        } else {
            assert_eq!((got.status, &*code(&got)), (504, "UNAVAILABLE"), "{path}");
            assert!(json(&got).to_string().contains("only-if-cached"));
        }
        got.status
    }

    /// Of everything that makes up the image.
    async fn statuses(&self) -> [u16; 4] {
        [
            self.status(&manifest(REPOSITORY, "v1")).await,
            self.status(&manifest(REPOSITORY, &self.image.digest()))
                .await,
            self.status(&blob(REPOSITORY, &self.image.blobs[0].digest))
                .await,
            self.status(&blob(REPOSITORY, &self.layer().digest)).await,
        ]
    }

    fn assert_not_asked(&self) {
        let seen = self.upstream.seen(&When::any());
        assert!(seen.is_empty(), "{seen:#?}");
    }
}

fn manifest(repository: &str, reference: &(impl ToString + ?Sized)) -> String {
    format!("{repository}/manifests/{}", reference.to_string())
}

fn blob(repository: &str, digest: &Digest) -> String {
    format!("{repository}/blobs/{digest}")
}

#[tokio::test(flavor = "multi_thread")]
async fn l07_what_is_held_is_answered_whatever_its_freshness() -> anyhow::Result<()> {
    let mut scene = Scene::filled().await?;
    let new = Image::new(2, &[1000]);
    scene.upstream.publish(REPOSITORY, "v1", &new);
    assert_eq!(scene.statuses().await, [200; 4]);
    let got = scene
        .ask(Method::GET, &manifest(REPOSITORY, "v1"), &[])
        .await;
    let digest = scene.image.digest().to_string();
    assert_eq!(got.header("docker-content-digest"), digest, "the old one");
    let etag = got.header("etag").to_owned();
    let path = manifest(REPOSITORY, "v1");
    let same = scene
        .ask(Method::GET, &path, &[("if-none-match", &etag)])
        .await;
    assert_eq!(same.status, 304);
    let layer = blob(REPOSITORY, &scene.layer().digest);
    let whole = scene.ask(Method::GET, &layer, &[]).await;
    assert_eq!(whole.body, scene.layer().content.read_all());
    let part = scene
        .ask(Method::GET, &layer, &[("range", "bytes=5-9")])
        .await;
    assert_eq!((part.status, part.body), (206, whole.body.slice(5..10)));
    let beyond = [("range", "bytes=99999999-")];
    assert_eq!(scene.ask(Method::GET, &layer, &beyond).await.status, 416);
    scene.assert_not_asked();

    scene.upstream.refuse().await;
    assert_eq!(
        scene.statuses().await,
        [200; 4],
        "nobody is there to be asked"
    );
    scene.upstream.accept().await?;
    let plain = get(scene.cache.address(), &format!("/v2/{path}"), &[]).await?;
    assert_eq!(
        plain.header("docker-content-digest"),
        new.digest().to_string(),
        "who does not say so gets the new one"
    );
    Ok(())
}

/// It starts nothing, and nothing of it is remembered.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_absent_is_504_and_leaves_no_trace() -> anyhow::Result<()> {
    let mut scene = Scene::new().await?;
    assert_eq!(scene.statuses().await, [504; 4]);
    assert_eq!(scene.status(&manifest("team/none", "v1")).await, 504);
    scene.assert_not_asked();
    // Its descriptor is known now, but that is not the blob.
    let path = format!("/v2/{}", manifest(REPOSITORY, "v1"));
    assert_eq!(get(scene.cache.address(), &path, &[]).await?.status, 200);
    scene.upstream.reset_counters();
    assert_eq!(scene.statuses().await, [200, 200, 504, 504]);
    let wrong = format!("/v2/unknown.example/{REPOSITORY}/manifests/v1");
    let unknown = get(scene.cache.address(), &wrong, &[ONLY]).await?;
    assert_eq!(unknown.status, 404, "no upstream of that name");
    scene.assert_not_asked();
    let seen = status(scene.cache.admin()).await?;
    assert_eq!(seen["transfers"], json!([]));

    scene.upstream.refuse().await;
    let layer = blob(REPOSITORY, &scene.layer().digest);
    assert_eq!(scene.status(&layer).await, 504, "the upstream is down");
    scene.upstream.accept().await?;
    pull(scene.cache.address(), REPOSITORY, "v1").await?;
    let results = |result| {
        format!("requests_total{{kind=\"blob\",upstream=\"upstream.example\",result=\"{result}\"}}")
    };
    assert!(scene.cache.metric(&results("negative")).await?.is_some());
    let errors = scene.cache.metric(&results("error")).await?;
    assert_eq!(errors, None, "a 504 that was asked for");
    Ok(())
}

/// L7: a node may pull as soon as the download runs, since it shares it.
#[tokio::test(flavor = "multi_thread")]
async fn l07_a_blob_that_arrives_is_there_for_head() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let layer = blob(REPOSITORY, &scene.layer().digest);
    let path = format!("/v2/{layer}");
    let gate = Gate::new();
    let half_way = Fault::new().hold(&gate, 1 << 20);
    scene
        .upstream
        .always(When::blob(&scene.layer().digest), half_way);
    let tag = format!("/v2/{}", manifest(REPOSITORY, "v1"));
    assert_eq!(get(scene.cache.address(), &tag, &[]).await?.status, 200);
    let mut client = Connection::open(scene.cache.address()).await?;
    let mut reply = client.get(&path, &[]).await?;
    gate.reached(1).await;
    scene.upstream.reset_counters();
    let head = scene.ask(Method::HEAD, &layer, &[]).await;
    let size = scene.layer().size().to_string();
    assert_eq!((head.status, head.header("content-length")), (200, &*size));
    let got = scene.ask(Method::GET, &layer, &[]).await;
    assert_eq!(got.status, 504, "not held yet");
    let stranger = blob("team/other", &scene.layer().digest);
    assert_eq!(scene.status(&stranger).await, 504, "no member");
    scene.assert_not_asked();

    gate.open();
    client.discard(&mut reply).await?;
    let stored = async || scene.ask(Method::GET, &layer, &[]).await.status == 200;
    eventually("it is held", stored).await;
    assert_eq!(scene.status(&stranger).await, 504, "still no member");
    scene.assert_not_asked();
    Ok(())
}

/// A download that has no answer yet is a hope only.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_only_asked_for_is_504() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let tag = format!("/v2/{}", manifest(REPOSITORY, "v1"));
    assert_eq!(get(scene.cache.address(), &tag, &[]).await?.status, 200);
    let when = When::blob(&scene.layer().digest);
    scene.upstream.always(when.clone(), Fault::silence());
    let layer = blob(REPOSITORY, &scene.layer().digest);
    let mut client = Connection::open(scene.cache.address()).await?;
    let path = format!("/v2/{layer}");
    let waiting = client.get(&path, &[]);
    let looking = async {
        eventually("it is asked for", async || {
            scene.upstream.requests(&when) == 1
        })
        .await;
        assert_eq!(scene.status(&layer).await, 504);
        assert_eq!(scene.upstream.requests(&when), 1);
    };
    tokio::select! {
        reply = waiting => panic!("{:?}", reply.map(|reply| reply.status)),
        () = looking => {}
    }
    Ok(())
}

/// H-20: what is private looks like what is not here, to callers and to the upstream.
#[tokio::test(flavor = "multi_thread")]
async fn h20_what_only_we_may_read_is_504() -> anyhow::Result<()> {
    let secrets = tempfile::tempdir()?;
    let file = secrets.path().join("password");
    std::fs::write(&file, "swordfish")?;
    let login = format!(
        "    credentials:\n      - {{ username: coral, passwordFile: {} }}\n",
        file.display()
    );
    let scene = Scene::with(&login).await?;
    let bearer = Bearer {
        logins: vec![Login::new("coral", "swordfish")],
        private: vec![REPOSITORY.to_owned()],
        ..Bearer::default()
    };
    scene
        .upstream
        .configure(|settings| settings.auth = Auth::Bearer(bearer));
    let public = Image::new(2, &[1000]);
    scene.upstream.publish("open/app", "v1", &public);
    let path = manifest("open/app", "v1");
    assert_eq!(scene.statuses().await, [504; 4]);
    assert_eq!(
        scene.status(&path).await,
        504,
        "nobody knows who may read it"
    );
    scene.assert_not_asked();

    let private = format!("/v2/{}", manifest(REPOSITORY, "v1"));
    assert_eq!(get(scene.cache.address(), &private, &[]).await?.status, 404);
    pull(scene.cache.address(), "open/app", "v1").await?;
    scene.upstream.reset_counters();
    assert_eq!(scene.statuses().await, [504; 4], "known to be private");
    assert_eq!(scene.status(&path).await, 200, "known to be public");
    scene.assert_not_asked();
    Ok(())
}

/// Bytes that another repository brought are not for one that is not known to have them, and finding out is not tried.
#[tokio::test(flavor = "multi_thread")]
async fn h20_a_stored_blob_is_504_without_membership() -> anyhow::Result<()> {
    let scene = Scene::filled().await?;
    scene.upstream.add_blob("team/other", scene.layer());
    let other = blob("team/other", &scene.layer().digest);
    assert_eq!(scene.status(&other).await, 504);
    scene.assert_not_asked();
    let plain = get(scene.cache.address(), &format!("/v2/{other}"), &[]).await?;
    assert_eq!(plain.status, 200, "its upstream has it");
    scene.upstream.reset_counters();
    assert_eq!(scene.status(&other).await, 200, "and that is remembered");
    assert_eq!(scene.upstream.requests(&When::kind(Kind::Blob)), 0);
    Ok(())
}
