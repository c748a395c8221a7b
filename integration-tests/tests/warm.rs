//! The warmer against a scripted API server, a scripted container runtime and a scripted cache.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse as _;
use coral_integration_tests::cache::Cache as Coral;
use coral_integration_tests::cri::Cri;
use coral_integration_tests::images::Image;
use coral_integration_tests::kube::Kube;
use coral_integration_tests::pull::{eventually, pull};
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::{Upstream, When};
use coral_schema::crd::node_cache::Mirror;
use coral_schema::oci::{Digest, ImageReference, media_type};
use coral_schema::process::shutdown::Shutdown;
use coral_schema::process::tasks::Tasks;
use coral_warmer::app::{App, Config, Ended};
use coral_warmer::disk::Space;
use coral_warmer::execute::Held;
use coral_warmer::registry::Cache as Client;
use http::{StatusCode, header};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const NODE: &str = "n1";
const KIND: &str = "nodecaches";

/// A node with a warmer.
struct Node {
    kube: Kube,
    cri: Cri,
    folder: TempDir,
    running: Option<(Shutdown, Tasks, JoinHandle<Ended>, SocketAddr)>,
}

impl Node {
    async fn start() -> anyhow::Result<Self> {
        let mut node = Self {
            kube: Kube::start().await?,
            cri: Cri::start(),
            folder: tempfile::tempdir()?,
            running: None,
        };
        std::fs::create_dir(node.mirrors())?;
        node.restart().await?;
        Ok(node)
    }

    fn mirrors(&self) -> PathBuf {
        self.folder.path().join("certs.d")
    }

    /// Starts the warmer (again) on the same state.
    async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await;
        let state = self.folder.path().join("state");
        let config = Config {
            node: NODE.to_owned(),
            cri_socket: self.cri.socket(),
            containerd_api: true,
            pull_secrets: None,
            imagefs: state.clone(),
            measure: |_| {
                Ok(Space {
                    capacity: 1000,
                    used: 100,
                })
            },
            pressure: self.folder.path().join("pressure"),
            state,
            mirror_config: Some(self.mirrors()),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            start_spread: Duration::ZERO,
            probe_period: Duration::from_millis(10),
        };
        let app = App::build(
            config,
            self.kube.client()?,
            Registry::default(),
            Tasks::new(),
        )
        .await?;
        let (shutdown, owner, admin) = (Shutdown::default(), Tasks::new(), app.admin());
        let ended = owner.spawn("warmer", app.run(shutdown.clone()));
        self.running = Some((shutdown, owner, ended, admin));
        Ok(())
    }

    async fn stop(&mut self) {
        if let Some((shutdown, _owner, ended, _)) = self.running.take() {
            shutdown.stop.cancel();
            let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
            assert!(matches!(ended.unwrap().unwrap(), Ended::Stopped));
        }
    }

    fn wish(&self, spec: &Value) {
        let mut spec = spec.clone();
        let all = spec.as_object_mut().unwrap();
        all.entry("nodeUID").or_insert(json!("u1"));
        all.entry("reportInterval").or_insert(json!("10ms"));
        let object = json!({
            "apiVersion": "coral.dev/v1alpha1",
            "kind": "NodeCache",
            "metadata": { "name": NODE },
            "spec": spec,
        });
        self.kube.put(KIND, "", &object);
    }

    async fn status(&self, check: impl Fn(&Value) -> bool) -> Value {
        let object = self
            .kube
            .until(KIND, NODE, |object| check(&object["status"]));
        object.await.unwrap()["status"].clone()
    }

    /// Waits until the condition has this reason; returns it.
    async fn condition(&self, kind: &str, reason: &str) -> Value {
        let status = self.status(|status| condition(status, kind)["reason"] == reason);
        condition(&status.await, kind)
    }
}

fn condition(status: &Value, kind: &str) -> Value {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|one| one["type"] == kind);
    found.unwrap_or_default()
}

/// Type and bytes by path.
type Stored = BTreeMap<String, (String, Vec<u8>)>;

/// A cache that holds what it is told.
struct Cache {
    address: SocketAddr,
    alive: Arc<AtomicBool>,
    held: Arc<Mutex<Stored>>,
    /// Paths, in order.
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: Tasks,
}

impl Cache {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let alive = Arc::new(AtomicBool::new(true));
        let held = Arc::<Mutex<Stored>>::default();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (live, store, log) = (Arc::clone(&alive), Arc::clone(&held), Arc::clone(&asked));
        let answer = move |request: Request| {
            let (live, store, log) = (Arc::clone(&live), Arc::clone(&store), Arc::clone(&log));
            async move {
                let path = request.uri().path_and_query().unwrap().as_str();
                if !live.load(Ordering::Relaxed) {
                    return StatusCode::SERVICE_UNAVAILABLE.into_response();
                }
                log.lock().unwrap().push(path.to_owned());
                if path == "/v2/" {
                    return StatusCode::OK.into_response();
                }
                assert_eq!(request.headers()[header::CACHE_CONTROL], "only-if-cached");
                match store.lock().unwrap().get(path) {
                    Some((kind, bytes)) => {
                        ([(header::CONTENT_TYPE, kind.clone())], bytes.clone()).into_response()
                    }
                    None => StatusCode::GATEWAY_TIMEOUT.into_response(),
                }
            }
        };
        let tasks = Tasks::new();
        let router = Router::new().fallback(answer);
        tasks.spawn("cache", async move { axum::serve(listener, router).await });
        Ok(Self {
            address,
            alive,
            held,
            asked,
            _tasks: tasks,
        })
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn hold(&self, path: &str, kind: &str, bytes: Vec<u8>) {
        let mut held = self.held.lock().unwrap();
        held.insert(path.to_owned(), (kind.to_owned(), bytes));
    }

    /// All of `r.test/a:<tag>`.
    fn hold_image(&self, tag: &str, image: &Image) {
        let path = |rest: String| format!("/v2/a/{rest}?ns=r.test");
        for blob in &image.blobs {
            self.hold(&path(format!("blobs/{}", blob.digest)), "", Vec::new());
        }
        let manifest = image.manifest.content.read_all().to_vec();
        self.hold(
            &path(format!("manifests/{tag}")),
            media_type::OCI_MANIFEST,
            manifest,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l16a_a_wish_becomes_a_pull_of_that_spelling_and_a_status() -> anyhow::Result<()> {
    let node = Node::start().await?;
    node.wish(&json!({ "images": [{ "ref": "nginx:1.27" }, { "ref": "r.test/a/b:1" }] }));
    let status = node.status(|status| status["ready"] == 2).await;
    assert_eq!(
        (
            node.cri.count("pull nginx:1.27"),
            node.cri.count("pull r.test/a/b:1")
        ),
        (1, 1)
    );
    assert_eq!(
        (&status["desired"], &status["failed"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(status["nodeUID"], "u1");
    assert_eq!(status["images"][0]["ref"], "nginx:1.27");
    assert_eq!(status["images"][0]["pulledByUs"], true);
    assert_eq!(status["runtime"]["name"], "containerd");
    node.status(|status| status["runtime"]["capabilities"] == json!(["ImageEvents", "Pin"]))
        .await;
    let status = node
        .status(|status| status["firstReadyTime"].is_string())
        .await;
    assert_eq!(condition(&status, "Ready")["status"], "True");
    assert_eq!(condition(&status, "RuntimeReachable")["status"], "True");
    assert_eq!(condition(&status, "MirrorConfigured")["reason"], "Removed");

    node.wish(&json!({ "images": [{ "ref": "nginx:1.27" }] }));
    let status = node
        .status(|status| status["observedGeneration"] == 2)
        .await;
    assert_eq!(status["desired"], 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l11_l19_l29_nothing_but_its_own_object_is_asked_for() -> anyhow::Result<()> {
    let node = Node::start().await?;
    node.wish(&json!({ "images": [{ "ref": "nginx:1.27" }] }));
    node.status(|status| status["ready"] == 1).await;
    let requests = node.kube.requests();
    // No secret, no pod, no node, and no word of what nodes say about images.
    for asked in &requests {
        assert!(
            asked.contains("/apis/coral.dev/v1alpha1/nodecaches"),
            "{asked}"
        );
    }
    let lists: Vec<_> = requests
        .iter()
        .filter(|asked| asked.contains("/nodecaches?"))
        .collect();
    assert!(!lists.is_empty());
    for asked in lists {
        assert!(
            asked.contains("fieldSelector=metadata.name%3Dn1"),
            "{asked}"
        );
    }
    Ok(())
}

/// However many images become Ready: two writes at once, the rest when the interval has passed.
#[tokio::test(flavor = "multi_thread")]
async fn l18_the_status_is_written_twice_then_coalesced() -> anyhow::Result<()> {
    let node = Node::start().await?;
    let images: Vec<_> = (0..20)
        .map(|n| json!({ "ref": format!("r.test/a:{n}") }))
        .collect();
    node.wish(&json!({ "images": images, "reportInterval": "1h" }));
    node.cri.called("pull r.test/a:19", 1).await;
    let writes = node.kube.requests();
    let writes = writes.iter().filter(|asked| asked.starts_with("PATCH"));
    assert!(writes.count() <= 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l22_without_the_api_server_a_restarted_warmer_repairs() -> anyhow::Result<()> {
    let mut node = Node::start().await?;
    node.wish(&json!({ "images": [{ "ref": "nginx:1.27" }] }));
    let before = node
        .status(|status| status["firstReadyTime"].is_string())
        .await;
    node.stop().await;
    node.kube.close().await;
    node.cri.evict("nginx:1.27");
    node.restart().await?;
    node.cri.called("pull nginx:1.27", 2).await;

    node.kube.listen().await?;
    let status = node
        .status(|status| status["images"][0]["evictions"] == 1)
        .await;
    assert_eq!(status["firstReadyTime"], before["firstReadyTime"]);
    node.wish(&json!({ "images": [{ "ref": "alpine:3" }] }));
    node.cri.called("pull alpine:3", 1).await;
    Ok(())
}

/// Time passes for timers, not for peers.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// For an hour and longer nobody answers, neither on the open watch nor anything else: longer than every deadline. Ten
/// images go meanwhile and come back, and on return there is little to write.
#[tokio::test]
async fn l18_l22_while_the_api_server_is_silent_the_node_is_repaired() -> anyhow::Result<()> {
    let node = Node::start().await?;
    let names: Vec<String> = (0..10).map(|n| format!("r.test/a:{n}")).collect();
    let mut images: Vec<Value> = names.iter().map(|name| json!({ "ref": name })).collect();
    let spec = |images: &[Value]| json!({ "images": images, "reportInterval": "1m" });
    node.wish(&spec(&images));
    node.cri.called("pull r.test/a:9", 1).await;
    pass(Duration::from_mins(2)).await;
    node.status(|status| status["ready"] == 10).await;

    node.kube.silence(true);
    for name in &names {
        node.cri.evict(name);
        // The longest time to a look, and beyond the silence that ends a watch.
        pass(Duration::from_mins(4)).await;
        node.cri.called(&format!("pull {name}"), 2).await;
        pass(Duration::from_mins(2)).await;
    }
    images.push(json!({ "ref": "r.test/late:1" }));
    node.wish(&spec(&images));
    let asked = node.kube.requests().len();

    node.kube.silence(false);
    pass(Duration::from_mins(2)).await;
    node.cri.called("pull r.test/late:1", 1).await;
    // What was tried in vain has used up the first writes.
    pass(Duration::from_mins(2)).await;
    let status = node.status(|status| status["ready"] == 11).await;
    for n in 0..10 {
        assert_eq!(status["images"][n]["evictions"], 1);
    }
    let requests = node.kube.requests().split_off(asked);
    let writes = requests.iter().filter(|asked| asked.starts_with("PATCH"));
    assert!(writes.count() <= 3, "{requests:#?}");
    assert!(requests.len() <= 10, "{requests:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_object_means_stop_and_never_purge() -> anyhow::Result<()> {
    let mut node = Node::start().await?;
    node.wish(&json!({ "images": [{ "ref": "nginx:1.27" }] }));
    node.status(|status| status["ready"] == 1).await;
    let kept = node.folder.path().join("state/wishes.json");
    node.kube.delete(KIND, NODE);
    eventually("the wishes are forgotten", async || !kept.exists()).await;
    node.cri.evict("nginx:1.27");
    node.cri.hold("content", &["alpine:3"]);
    node.restart().await?;
    // It works again with the next wishes, and has done nothing before.
    node.wish(&json!({ "images": [{ "ref": "busybox:1" }] }));
    node.cri.called("pull busybox:1", 1).await;
    assert_eq!(node.cri.count("pull nginx:1.27"), 1);
    assert_eq!(
        node.cri.count("remove nginx:1.27") + node.cri.count("remove alpine:3"),
        0
    );
    Ok(())
}

/// A restarted warmer goes on with its own status; another node under the same name starts anew.
#[tokio::test(flavor = "multi_thread")]
async fn l14_l22_another_uid_resets_the_status_and_a_restart_does_not() -> anyhow::Result<()> {
    let mut node = Node::start().await?;
    let images = json!([{ "ref": "nginx:1.27" }]);
    node.wish(&json!({ "images": images }));
    let mut status = node
        .status(|status| status["firstReadyTime"].is_string())
        .await;
    node.stop().await;
    let long_ago = json!("2020-01-01T00:00:00Z");
    for condition in status["conditions"].as_array_mut().unwrap() {
        condition["lastTransitionTime"] = long_ago.clone();
    }
    status["images"][0]["lastTransition"] = long_ago.clone();
    node.kube.put_status(KIND, NODE, &status);
    node.restart().await?;
    node.wish(&json!({ "images": images, "paused": true }));
    let status = node.status(|status| status["observedGeneration"] == 2);
    let status = status.await;
    let changed = |status: &Value| condition(status, "Ready")["lastTransitionTime"].clone();
    assert_eq!(changed(&status), long_ago);
    assert_eq!(status["images"][0]["lastTransition"], long_ago);

    node.wish(&json!({ "images": images, "nodeUID": "u2" }));
    let status = node.status(|status| status["nodeUID"] == "u2").await;
    assert_ne!(changed(&status), long_ago);
    assert_ne!(status["images"][0]["lastTransition"], long_ago);
    assert_eq!(
        status["images"][0]["pulledByUs"], true,
        "what it pulled it still knows"
    );
    assert_eq!(node.cri.count("pull nginx:1.27"), 1);
    Ok(())
}

/// An index of this manifest for this machine, and of one for others.
fn index_of(digest: &Digest, size: usize) -> serde_json::Result<Vec<u8>> {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let descriptor = |digest: &Digest, architecture: &str| {
        json!({
            "mediaType": media_type::OCI_MANIFEST,
            "digest": digest,
            "size": size,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [descriptor(&Digest::sha256(b"of others"), "s390x"), descriptor(digest, own)],
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn l07_l13_mirror_only_waits_until_the_cache_holds_all_of_it() -> anyhow::Result<()> {
    let (node, cache) = (Node::start().await?, Cache::start().await?);
    let image = Image::new(1, &[10, 20]);
    let wanted = json!({ "ref": "r.test/a:1", "registryPolicy": "MirrorOnly" });
    let elsewhere = json!({ "ref": "other.test/a:1", "registryPolicy": "MirrorOnly" });
    node.wish(&json!({
        "images": [wanted, elsewhere],
        "mirror": { "url": cache.url(), "registries": ["r.test"] },
    }));
    let waits = |status: &Value| (0..2).all(|n| status["images"][n]["reason"] == "WaitingForCache");
    node.status(waits).await;

    // An index whose child for this machine lacks one layer.
    let child = image.manifest.content.read_all().to_vec();
    let path = |rest: String| format!("/v2/a/{rest}?ns=r.test");
    let (last, others) = image.blobs.split_last().unwrap();
    for blob in others {
        cache.hold(&path(format!("blobs/{}", blob.digest)), "", Vec::new());
    }
    let (digest, size) = (Digest::sha256(&child), child.len());
    cache.hold(
        &path(format!("manifests/{digest}")),
        media_type::OCI_MANIFEST,
        child,
    );
    let index = index_of(&digest, size)?;
    cache.hold(
        &path("manifests/1".to_owned()),
        media_type::OCI_INDEX,
        index,
    );
    let missing = path(format!("blobs/{}", last.digest));
    eventually("the cache is asked for the last layer", async || {
        cache.asked.lock().unwrap().contains(&missing)
    })
    .await;
    assert_eq!(node.cri.count("pull r.test/a:1"), 0);

    cache.hold(&missing, "", Vec::new());
    node.cri.called("pull r.test/a:1", 1).await;
    let status = node.status(|status| status["ready"] == 1).await;
    assert_eq!(
        status["images"][1]["state"], "Waiting",
        "its registry is not mirrored"
    );
    assert_eq!(node.cri.count("pull other.test/a:1"), 0);
    Ok(())
}

/// The question and the registry's answer belong together.
#[tokio::test(flavor = "multi_thread")]
async fn l07_the_registry_says_whether_a_pull_would_be_served_from_it() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let registry = Coral::start(&configuration(&upstream, "")).await?;
    let image = Image::new(1, &[10, 20]);
    upstream.publish("team/app", "v1", &image);
    let client = Client::new(&Mirror {
        url: format!("http://{}", registry.address()),
        ca_bundle: None,
        registries: vec![UPSTREAM_NAME.to_owned()],
    })?;
    let reference: ImageReference = format!("{UPSTREAM_NAME}/team/app:v1").parse()?;
    assert!(client.is_alive().await);
    assert_eq!(client.holds(&reference).await, Ok(Held::Absent));
    assert_eq!(upstream.requests(&When::any()), 0, "it was not asked");

    pull(
        registry.address(),
        &format!("{UPSTREAM_NAME}/team/app"),
        "v1",
    )
    .await?;
    assert_eq!(client.holds(&reference).await, Ok(Held::Complete));
    let unknown: ImageReference = "unknown.test/team/app:v1".parse()?;
    assert!(client.holds(&unknown).await.is_err());
    Ok(())
}

/// A runtime is never pointed at a cache that does not answer, neither at first nor later.
#[tokio::test(flavor = "multi_thread")]
async fn l15_mirror_settings_follow_the_cache() -> anyhow::Result<()> {
    let (node, cache) = (Node::start().await?, Cache::start().await?);
    let file = node.mirrors().join("r.test:5000/hosts.toml");
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    cache.alive.store(false, Ordering::Relaxed);
    node.wish(&json!({ "mirror": { "url": cache.url(), "registries": ["r.test:5000"] } }));
    let not_yet = node.condition("MirrorConfigured", "Removed").await;
    assert_eq!(not_yet["status"], "False");
    assert!(!file.exists());

    cache.alive.store(true, Ordering::Relaxed);
    let written = node.condition("MirrorConfigured", "Written").await;
    assert_eq!(written["status"], "True");
    assert!(text(&file).contains(&format!("[host.\"{}\"]", cache.url())));

    cache.alive.store(false, Ordering::Relaxed);
    let removed = node.condition("MirrorConfigured", "Removed").await;
    assert_eq!(removed["status"], "False");
    assert!(!file.parent().unwrap().exists());

    cache.alive.store(true, Ordering::Relaxed);
    node.condition("MirrorConfigured", "Written").await;
    assert!(file.exists());

    node.wish(&json!({}));
    node.condition("MirrorConfigured", "Removed").await;
    assert_eq!(std::fs::read_dir(node.mirrors())?.count(), 0);
    Ok(())
}

/// While the cache is away nothing is pulled past it, and nothing that is held is lost; then everything goes on.
#[tokio::test(flavor = "multi_thread")]
async fn l07_the_cache_goes_and_comes_back() -> anyhow::Result<()> {
    let (node, cache) = (Node::start().await?, Cache::start().await?);
    let image = Image::new(1, &[10]);
    for tag in ["1", "2"] {
        cache.hold_image(tag, &image);
    }
    let only =
        |tag: &str| json!({ "ref": format!("r.test/a:{tag}"), "registryPolicy": "MirrorOnly" });
    let wish = |tags: &[&str]| {
        let images: Vec<Value> = tags.iter().map(|tag| only(tag)).collect();
        node.wish(&json!({
            "images": images,
            "lookInterval": "1s",
            "mirror": { "url": cache.url(), "registries": ["r.test"] },
        }));
    };
    wish(&["1"]);
    node.status(|status| status["ready"] == 1).await;
    cache.alive.store(false, Ordering::Relaxed);
    node.condition("MirrorConfigured", "Removed").await;
    wish(&["1", "2"]);
    let waits = |status: &Value, n: usize| status["images"][n]["reason"] == "WaitingForCache";
    node.status(|status| status["ready"] == 1 && waits(status, 1))
        .await;
    node.cri.evict("r.test/a:1");
    node.status(|status| status["ready"] == 0 && waits(status, 0))
        .await;
    assert_eq!(node.cri.count("pull r.test/a:2"), 0);

    cache.alive.store(true, Ordering::Relaxed);
    node.status(|status| status["ready"] == 2).await;
    assert_eq!(node.cri.count("pull r.test/a:1"), 2);
    assert_eq!(node.cri.count("pull r.test/a:2"), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrators_mirror_file_is_untouched_and_reported() -> anyhow::Result<()> {
    let (node, cache) = (Node::start().await?, Cache::start().await?);
    let theirs = node.mirrors().join("r.test/hosts.toml");
    std::fs::create_dir(theirs.parent().unwrap())?;
    std::fs::write(&theirs, "server = \"https://mine.test\"\n")?;
    node.wish(&json!({ "mirror": { "url": cache.url(), "registries": ["r.test", "q.test"] } }));
    let condition = node.condition("MirrorConfigured", "NotOurs").await;
    assert_eq!(condition["status"], "False");
    let message = condition["message"].as_str().unwrap();
    assert!(
        message.contains(&format!("[host.\"{}\"]", cache.url())),
        "{message}"
    );
    assert!(node.mirrors().join("q.test/hosts.toml").exists());
    assert_eq!(
        std::fs::read_to_string(&theirs)?,
        "server = \"https://mine.test\"\n"
    );
    assert_eq!(std::fs::read_dir(theirs.parent().unwrap())?.count(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_while_the_runtime_answers() -> anyhow::Result<()> {
    let mut node = Node::start().await?;
    let admin = node.running.as_ref().unwrap().3;
    let ready = async || {
        let answer = reqwest::get(format!("http://{admin}/readyz")).await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    };
    eventually("it is ready", ready).await;
    node.cri.close().await;
    eventually("it is not ready", async || !ready().await).await;
    node.cri.listen();
    eventually("it is ready again", ready).await;
    let metrics = reqwest::get(format!("http://{admin}/metrics"))
        .await?
        .text()
        .await?;
    assert!(
        metrics.contains("coral_warmer_imagefs_used_ratio"),
        "{metrics}"
    );
    assert!(
        metrics.contains("coral_warmer_cri_errors_total{op=\"version\"}"),
        "{metrics}"
    );
    Ok(())
}
