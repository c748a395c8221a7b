//! The operator in this process, with a real API server, our registry and nodes that are only objects: what the tests
//! write into a `NodeCache`'s status is what its warmer would say.

use std::path::PathBuf;
use std::time::Duration;

use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::Image;
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::Upstream;
use coral_operator::app::App;
use coral_operator::leader::Settings;
use coral_operator::lease::{Candidate, Times};
use coral_operator::node_cache::wishes::ObjectKey;
use coral_operator::registry::{self, Registry};
use coral_operator::{crds, explain, uninstall};
use coral_schema::crd::{ImageCache, NodeCache};
use coral_schema::process::shutdown::Shutdown;
use coral_schema::process::tasks::Tasks;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use prometheus_client::registry::Registry as Metrics;
use serde_json::{Value, json};

use crate::cluster::control_plane::ControlPlane;
use crate::harness::eventually;

const SOON: Duration = Duration::from_secs(20);

/// An API server with our definitions, a registry with an upstream, and operators.
struct Scene {
    plane: ControlPlane,
    client: Client,
    upstream: Upstream,
    cache: Cache,
}

/// An operator; it stops with this value.
struct Operator {
    shutdown: Shutdown,
    _owner: Tasks,
    ended: tokio::task::JoinHandle<()>,
    admin: std::net::SocketAddr,
}

impl Scene {
    async fn new() -> Self {
        let plane = ControlPlane::start().await;
        let client = client(plane.kubeconfig()).await;
        crds::apply(&client).await.unwrap();
        let upstream = Upstream::start().await.unwrap();
        let cache = Cache::start(&configuration(&upstream, "")).await.unwrap();
        Self {
            plane,
            client,
            upstream,
            cache,
        }
    }

    async fn operator(&self, identity: &str) -> Operator {
        let admin = format!("http://{}", self.cache.admin());
        let registry = registry::Config {
            admin: admin.parse().unwrap(),
            token: None,
            ca: None,
        };
        let settings = Settings {
            candidate: self.candidate(identity),
            namespace: "default".to_owned(),
            registry: Registry::new(registry).unwrap(),
            address: Some(self.cache.address().to_string().parse().unwrap()),
            ca: None,
            refresh_interval: Duration::from_hours(1),
            max_concurrent_nodes: 100,
            node_pull_secrets: None,
        };
        let owner = Tasks::new();
        let app = App::build(
            self.client.clone(),
            "127.0.0.1:0".parse().unwrap(),
            settings,
            Metrics::default(),
            owner.clone(),
        );
        let app = app.await.unwrap();
        let (shutdown, admin) = (Shutdown::default(), app.address());
        let ended = Tasks::new().spawn("operator", app.run(shutdown.clone()));
        Operator {
            shutdown,
            _owner: owner,
            ended,
            admin,
        }
    }

    fn candidate(&self, identity: &str) -> Candidate {
        let api = Api::namespaced(self.client.clone(), "default");
        let times = Times {
            duration: Duration::from_secs(3),
            renew_within: Duration::from_secs(2),
            retry: Duration::from_millis(200),
        };
        Candidate::new(api, identity.to_owned(), times)
    }

    /// A Ready Linux node.
    async fn node(&self, name: &str, pool: &str) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": {
                "pool": pool, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            }},
        });
        self.apply::<Node>("", &node).await.unwrap();
        let status = json!({ "status": { "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
        }]}});
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = Patch::Strategic(&status);
        api.patch_status(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    async fn apply<K>(&self, namespace: &str, object: &Value) -> Result<(), kube::Error>
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let name = object["metadata"]["name"].as_str().unwrap();
        let kind = kube::discovery::ApiResource::erase::<K>(&());
        let api: Api<kube::api::DynamicObject> = if namespace.is_empty() {
            Api::all_with(self.client.clone(), &kind)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, &kind)
        };
        let params = PatchParams::apply("test").force();
        api.patch(name, &params, &Patch::Apply(object))
            .await
            .map(drop)
    }

    async fn image_cache(&self, name: &str, spec: &Value) -> Result<(), kube::Error> {
        self.apply::<ImageCache>("default", &image_cache(name, spec))
            .await
    }

    fn objects(&self) -> Api<ImageCache> {
        Api::namespaced(self.client.clone(), "default")
    }

    fn caches(&self) -> Api<NodeCache> {
        Api::all(self.client.clone())
    }

    /// Waits until a node's list has these images; answers the object.
    async fn told(&self, node: &str, images: &[&str]) -> NodeCache {
        let what = format!("{node} is told {images:?}");
        eventually(&what, SOON, async || {
            let cache = self.caches().get_opt(node).await.unwrap()?;
            let refs = cache.spec.images.iter().map(|image| &image.reference);
            (refs.collect::<Vec<_>>() == images).then_some(cache)
        })
        .await
    }

    /// What the warmer of a node would say: it answered its spec, and holds everything.
    async fn warm(&self, node: &str) {
        let cache = self.caches().get(node).await.unwrap();
        let images = cache.spec.images.iter().map(|image| {
            json!({ "ref": image.reference, "state": "Ready", "digest": image.digest,
                "pulledByUs": true, "revision": image.revision })
        });
        let images: Vec<Value> = images.collect();
        self.report(node, &json!({ "images": images, "ready": images.len() }))
            .await;
    }

    async fn report(&self, node: &str, more: &Value) {
        let cache = self.caches().get(node).await.unwrap();
        let mut status = json!({
            "observedGeneration": cache.metadata.generation, "nodeUID": cache.spec.node_uid,
            "desired": cache.spec.images.len(),
        });
        let (Value::Object(all), Value::Object(more)) = (&mut status, more) else {
            unreachable!("both are objects");
        };
        all.extend(more.clone());
        let patch = json!({ "status": status });
        self.caches()
            .patch_status(node, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .unwrap();
    }

    /// Waits until an object's Ready condition says this.
    async fn says(&self, name: &str, status: &str, reason: &str) -> ImageCache {
        let mut last = String::new();
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let object = self.objects().get(name).await.unwrap();
            let conditions = object.status.iter().flat_map(|status| &status.conditions);
            if let Some(ready) = conditions.into_iter().find(|it| it.type_ == "Ready") {
                if ready.status == status && ready.reason == reason {
                    return object;
                }
                last = format!("{} {}: {}", ready.status, ready.reason, ready.message);
            }
            assert!(tokio::time::Instant::now() < deadline, "{name} says {last}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Operator {
    async fn stop(self) {
        self.shutdown.stop.cancel();
        self.ended.await.unwrap();
    }

    /// Ends without a word, as by a power cut.
    fn kill(self) {
        self.ended.abort();
    }
}

pub(crate) async fn client(kubeconfig: &std::path::Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(PathBuf::from(kubeconfig)).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::try_from(config.await.unwrap()).unwrap()
}

fn image_cache(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "coral.dev/v1alpha1", "kind": "ImageCache",
        "metadata": { "name": name, "namespace": "default" }, "spec": spec,
    })
}

fn reference(tag: &str) -> String {
    format!("{UPSTREAM_NAME}/team/app:{tag}")
}

#[tokio::test]
async fn from_an_image_cache_to_node_caches_and_back_to_its_status() {
    let scene = Scene::new().await;
    scene
        .upstream
        .publish("team/app", "1", &Image::new(1, &[10_000]));
    scene
        .upstream
        .publish("team/app", "2", &Image::new(2, &[10_000]));
    for (name, pool) in [("node1", "gpu"), ("node2", "gpu"), ("node3", "cpu")] {
        scene.node(name, pool).await;
    }
    let operator = scene.operator("first").await;
    let gpu = json!({ "selector": { "matchLabels": { "pool": "gpu" } } });
    let spec = json!({
        "sets": [
            { "name": "servers", "images": [reference("1")], "nodes": gpu },
            { "name": "held", "images": [reference("2")] },
        ],
        "rollout": { "maxConcurrentNodes": 1 },
    });
    scene.image_cache("inference", &spec).await.unwrap();

    // One node at a time, and only those of the selector.
    let first = scene.told("node1", &[&reference("1")]).await;
    assert_eq!(first.spec.images[0].owners, ["default/inference/servers"]);
    let mirror = first.spec.mirror.as_ref().unwrap();
    assert_eq!(mirror.url, format!("http://{}", scene.cache.address()));
    assert!(mirror.registries.contains(&UPSTREAM_NAME.to_owned()));
    scene.told("node2", &[]).await;
    scene.told("node3", &[]).await;
    scene.warm("node1").await;
    scene.says("inference", "False", "Warming").await;
    let second = scene.told("node2", &[&reference("1")]).await;
    assert_eq!(second.metadata.owner_references.as_ref().unwrap().len(), 1);
    scene.warm("node2").await;

    let warm = scene.says("inference", "True", "Warm").await;
    let status = warm.status.unwrap();
    assert_eq!(
        (status.images, status.nodes.desired, status.nodes.ready),
        (2, 2, 2)
    );
    assert!(
        status
            .entries
            .iter()
            .all(|entry| entry.cached && entry.digest.is_some())
    );
    assert_eq!(status.entries[0].ready_nodes, 2);
    operator.stop().await;
}

#[tokio::test]
async fn what_people_see_and_nodes_that_join_and_leave() {
    let scene = Scene::new().await;
    let image = Image::new(1, &[1000]);
    scene.upstream.publish("team/app", "1", &image);
    scene.node("node1", "gpu").await;
    let operator = scene.operator("first").await;
    let spec = json!({ "sets": [{ "name": "all", "images": [reference("1")], "nodes": {} }] });
    scene.image_cache("inference", &spec).await.unwrap();
    scene.told("node1", &[&reference("1")]).await;
    scene.warm("node1").await;
    scene.says("inference", "True", "Warm").await;
    let table = scene
        .plane
        .kubectl(&["get", "ic", "-o", "wide"])
        .await
        .unwrap();
    assert!(table.contains("Warm"), "{table}");

    // A node that joins is told at once, one that leaves takes its object along.
    scene.node("node4", "gpu").await;
    scene.told("node4", &[&reference("1")]).await;
    let nodes: Api<Node> = Api::all(scene.client.clone());
    nodes
        .delete("node4", &DeleteParams::default())
        .await
        .unwrap();
    eventually("node4 is gone", SOON, async || {
        let found = scene.caches().get_opt("node4").await.unwrap();
        found.is_none().then_some(())
    })
    .await;
    scene.says("inference", "True", "Warm").await;

    let key = ObjectKey {
        namespace: "default".to_owned(),
        name: "inference".to_owned(),
    };
    let text = explain::explain(&scene.client, None, &key, 100)
        .await
        .unwrap();
    assert!(
        text.contains("Ready=True Warm") && text.contains("node1"),
        "{text}"
    );
    let events = scene
        .plane
        .kubectl(&["get", "events", "-o", "wide"])
        .await
        .unwrap();
    assert!(events.contains("Warm"), "{events}");
    operator.stop().await;
}

#[tokio::test]
async fn l08_what_left_is_purged_unless_a_pod_names_it_and_the_finalizer_goes() {
    let scene = Scene::new().await;
    for tag in ["1", "2"] {
        scene
            .upstream
            .publish("team/app", tag, &Image::new(7, &[1000]));
    }
    scene.node("node1", "gpu").await;
    let operator = scene.operator("first").await;
    let both = json!({
        "sets": [{ "name": "all", "images": [reference("1"), reference("2")], "nodes": {} }],
        "retention": { "deletionPolicy": "PurgeUnused" },
    });
    scene.image_cache("purged", &both).await.unwrap();
    scene
        .told("node1", &[&reference("1"), &reference("2")])
        .await;
    scene.warm("node1").await;
    let warm = scene.says("purged", "True", "Warm").await;
    assert_eq!(warm.metadata.finalizers.unwrap(), ["coral.dev/purge"]);

    // Not started yet: no container of it exists.
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "bound", "namespace": "default" },
        "spec": { "nodeName": "node1", "automountServiceAccountToken": false,
            "containers": [{ "name": "main", "image": reference("1") }] },
    });
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": "default", "namespace": "default" } });
    scene.plane.apply(&account.to_string()).await.unwrap();
    scene.apply::<Pod>("default", &pod).await.unwrap();
    scene
        .objects()
        .delete("purged", &DeleteParams::default())
        .await
        .unwrap();
    let told = scene.told("node1", &[]).await;
    let purge: Vec<&String> = told.spec.purge.iter().map(|wish| &wish.reference).collect();
    assert_eq!(purge, [&reference("2")], "a pod names the other");
    assert!(scene.objects().get_opt("purged").await.unwrap().is_some());

    let outcome =
        json!([{ "ref": reference("2"), "result": "Purged", "time": "2026-01-01T00:00:00Z" }]);
    scene.report("node1", &json!({ "purge": outcome })).await;
    eventually("the object is gone", SOON, async || {
        let found = scene.objects().get_opt("purged").await.unwrap();
        found.is_none().then_some(())
    })
    .await;
    eventually("the wish is withdrawn", SOON, async || {
        let cache = scene.caches().get("node1").await.unwrap();
        cache.spec.purge.is_empty().then_some(())
    })
    .await;
    operator.stop().await;
}

#[tokio::test]
async fn l22_the_next_leader_goes_on_and_writes_nothing_anew() {
    let scene = Scene::new().await;
    scene
        .upstream
        .publish("team/app", "1", &Image::new(1, &[1000]));
    scene.node("node1", "gpu").await;
    let first = scene.operator("first").await;
    let spec = json!({ "sets": [{ "name": "all", "images": [reference("1")], "nodes": {} }] });
    scene.image_cache("inference", &spec).await.unwrap();
    scene.told("node1", &[&reference("1")]).await;
    scene.warm("node1").await;
    let before = scene.says("inference", "True", "Warm").await;
    let told = scene.caches().get("node1").await.unwrap();

    let second = scene.operator("second").await;
    first.kill();
    // It leads when it does something new.
    scene
        .upstream
        .publish("team/app", "2", &Image::new(2, &[1000]));
    let more = json!({ "sets": [{ "name": "all", "images": [reference("2")] }] });
    scene.image_cache("another", &more).await.unwrap();
    scene.says("another", "True", "Warm").await;
    let after = scene.objects().get("inference").await.unwrap();
    assert_eq!(
        after.metadata.resource_version,
        before.metadata.resource_version
    );
    let still = scene.caches().get("node1").await.unwrap();
    assert_eq!(
        still.metadata.resource_version,
        told.metadata.resource_version
    );
    second.stop().await;
}

#[tokio::test]
async fn l24_a_refresh_by_annotation_is_handled_once() {
    let scene = Scene::new().await;
    scene
        .upstream
        .publish("team/app", "1", &Image::new(1, &[1000]));
    let operator = scene.operator("first").await;
    let spec = json!({ "sets": [{ "name": "all", "images": [reference("1")] }] });
    scene.image_cache("held", &spec).await.unwrap();
    scene.says("held", "True", "Warm").await;
    let annotate = ["annotate", "ic", "held", "coral.dev/refresh=now"];
    scene.plane.kubectl(&annotate).await.unwrap();
    let handled = eventually("the refresh is handled", SOON, async || {
        let object = scene.objects().get("held").await.unwrap();
        let status = object.status.clone()?;
        (status.last_handled_refresh.as_deref() == Some("now")).then_some(object)
    });
    let status = handled.await.status.unwrap();
    assert!(status.last_refresh.is_some());
    operator.stop().await;
}

#[tokio::test]
async fn uninstall_leaves_no_trace_but_image_caches() {
    let scene = Scene::new().await;
    scene
        .upstream
        .publish("team/app", "1", &Image::new(1, &[1000]));
    scene.node("node1", "gpu").await;
    let operator = scene.operator("first").await;
    let spec = json!({
        "sets": [{ "name": "all", "images": [reference("1")], "nodes": {} }],
        "retention": { "deletionPolicy": "PurgeUnused" },
    });
    scene.image_cache("inference", &spec).await.unwrap();
    scene.told("node1", &[&reference("1")]).await;
    scene.warm("node1").await;
    scene.says("inference", "True", "Warm").await;

    // The operator runs on, and does not lead any more.
    let candidate = scene.candidate("uninstall");
    let uninstalling = uninstall::uninstall(&scene.client, &candidate);
    let warmer = async {
        scene.told("node1", &[]).await;
        let gone = json!({ "type": "MirrorConfigured", "status": "False", "reason": "Removed",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        scene
            .report("node1", &json!({ "conditions": [gone] }))
            .await;
    };
    let (lines, ()) = tokio::join!(uninstalling, warmer);
    assert_eq!(lines.unwrap().len(), 1);
    assert!(scene.caches().get_opt("node1").await.unwrap().is_none());
    operator.stop().await;
    assert!(scene.caches().get_opt("node1").await.unwrap().is_none());
    let left = scene.objects().get("inference").await.unwrap();
    assert_eq!(left.metadata.finalizers, None);
}

#[tokio::test]
async fn an_operator_is_ready_once_the_definitions_are_its_own() {
    let scene = Scene::new().await;
    let definition = [
        "annotate",
        "crd",
        "nodecaches.coral.dev",
        "coral.dev/schema-hash=other",
    ];
    scene
        .plane
        .kubectl(&[&definition[..], &["--overwrite"]].concat())
        .await
        .unwrap();
    let operator = scene.operator("first").await;
    let readyz = || async {
        let answer = reqwest::get(format!("http://{}/readyz", operator.admin))
            .await
            .unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, text) = readyz().await;
    assert_eq!(status, 503);
    assert!(text.contains("coral-operator apply-crds"), "{text}");
    crds::apply(&scene.client).await.unwrap();
    eventually("it is ready", SOON, async || {
        (readyz().await.0 == 200).then_some(())
    })
    .await;
    let metrics = reqwest::get(format!("http://{}/metrics", operator.admin));
    let metrics = metrics.await.unwrap().text().await.unwrap();
    for name in [
        "leading",
        "registry_reachable",
        "time_to_warm_seconds_count",
    ] {
        let line = format!("\ncoral_operator_{name} ");
        assert!(metrics.contains(&line), "{name} is not in {metrics}");
    }
    operator.stop().await;
}
