//! A leader with an API server in memory and a paused clock. The registry is away, or answers once: images are pulled as
//! runtimes do.

use coral_schema::crd::PURGE_FINALIZER;
use serde_json::{Value, json};
use tokio::time::sleep;

use self::server::Server;
use super::*;
use crate::lease::Times;
use crate::registry::Config;
use crate::registry::follow::{Answer, Question};

mod away;
mod pods;
mod says;
mod secrets;
mod server;

const STATUS: &str = "PATCH /apis/coral.dev/v1alpha1/namespaces/ml/imagecaches/a/status";
const NODE_CACHE: &str = "PATCH /apis/coral.dev/v1alpha1/nodecaches/";

struct Scene {
    server: Server,
    stop: CancellationToken,
    tasks: coral_schema::process::tasks::Tasks,
    node_pull_secrets: Option<String>,
}

impl Scene {
    fn new() -> Self {
        Self {
            server: Server::new(),
            stop: CancellationToken::new(),
            tasks: coral_schema::process::tasks::Tasks::new(),
            node_pull_secrets: None,
        }
    }

    /// Starts a leader. One that heard of the registry need not wait for it.
    fn lead(&self, heard: bool) -> tokio::task::JoinHandle<()> {
        let mut leader = self.leader();
        if heard {
            let now = Instant::now();
            let questions = leader.cache.ask(1, now);
            assert_eq!(questions, [Question::Registries]);
            let answer = Ok(Answer::Registries(Vec::new()));
            leader.cache.answer(&questions[0], answer, now);
        }
        self.tasks.spawn("leader", leader.run(self.stop.clone()))
    }

    fn leader(&self) -> Leader {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = self.server.client();
        let registry = Config {
            // Nobody listens there.
            admin: "http://127.0.0.1:1".parse().unwrap(),
            token: None,
            ca: None,
        };
        let api = kube::Api::namespaced(client.clone(), "coral");
        let settings = Settings {
            candidate: Candidate::new(api, "me".to_owned(), Times::default()),
            namespace: "coral".to_owned(),
            registry: Registry::new(registry).unwrap(),
            address: Some("10.0.0.1:5000".parse().unwrap()),
            ca: None,
            refresh_interval: Duration::ZERO,
            max_concurrent_nodes: 100,
            node_pull_secrets: self.node_pull_secrets.clone(),
        };
        let mut metrics = prometheus_client::registry::Registry::default();
        Leader::new(client, Arc::new(settings), Metrics::register(&mut metrics))
    }

    fn node(&self, name: &str) {
        self.server.put("nodes", "", &json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": { "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64" } },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        }));
    }

    fn image_cache(&self, images: &[&str], more: &Value) {
        let mut spec = json!({
            "sets": [{ "name": "all", "images": images, "nodes": {} }],
            "registryPolicy": "Default", "rollout": { "maxConcurrentNodes": "100%" },
        });
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.server.put(
            "imagecaches",
            "ml",
            &json!({
                "apiVersion": "coral.dev/v1alpha1", "kind": "ImageCache",
                "metadata": { "name": "a", "namespace": "ml" }, "spec": spec,
            }),
        );
    }

    /// What a node is told to hold.
    fn told(&self, node: &str) -> Option<Vec<String>> {
        let cache = self.server.get("nodecaches", "", node)?;
        Some(references(&cache["spec"]["images"]))
    }

    /// The node's warmer answers its spec, and holds everything.
    fn warm(&self, node: &str) {
        let cache = self.server.get("nodecaches", "", node).unwrap();
        let images = references(&cache["spec"]["images"]);
        let images: Vec<Value> = images
            .iter()
            .map(|image| json!({ "ref": image, "state": "Ready", "pulledByUs": true }))
            .collect();
        self.report(node, &json!({ "images": images }));
    }

    fn report(&self, node: &str, more: &Value) {
        let cache = self.server.get("nodecaches", "", node).unwrap();
        let mut status = json!({
            "observedGeneration": cache["metadata"]["generation"], "nodeUID": cache["spec"]["nodeUID"],
        });
        status
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let object = json!({ "metadata": { "name": node }, "status": status });
        self.server.put("nodecaches", "", &object);
    }

    fn reason(&self) -> String {
        self.condition("Ready")
    }

    /// Status and reason of a condition.
    fn condition(&self, kind: &str) -> String {
        let object = self
            .server
            .get("imagecaches", "ml", "a")
            .unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array().cloned();
        let conditions = conditions.unwrap_or_default();
        let found = conditions.iter().find(|it| it["type"] == kind);
        found.map_or_else(String::new, |it| {
            format!(
                "{} {}",
                it["status"].as_str().unwrap(),
                it["reason"].as_str().unwrap()
            )
        })
    }

    async fn until(&self, what: &str, check: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_mins(2);
        while !check() {
            assert!(
                Instant::now() < deadline,
                "not {what}; it says {}",
                self.reason()
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Until a node is told to hold so many images.
    async fn until_told(&self, node: &str, images: usize) {
        let is_told = || self.told(node).is_some_and(|told| told.len() == images);
        self.until(&format!("{images} on {node}"), is_told).await;
    }
}

fn references(images: &Value) -> Vec<String> {
    let images = images.as_array().into_iter().flatten();
    images
        .map(|image| image["ref"].as_str().unwrap().to_owned())
        .collect()
}

/// What a Node says of its images is cut off at fifty and late: only the warmer's word counts.
#[tokio::test(start_paused = true)]
async fn l11_the_nodes_own_list_of_images_means_nothing() {
    let scene = Scene::new();
    scene.node("node1");
    let mut node = scene.server.get("nodes", "", "node1").unwrap();
    node["status"]["images"] =
        json!([{ "names": ["docker.io/library/nginx:latest", "nginx"], "sizeBytes": 1 }]);
    scene.server.put("nodes", "", &node);
    scene.image_cache(&["nginx"], &json!({}));
    scene.lead(true);
    scene
        .until("told", || {
            scene.told("node1") == Some(vec!["nginx".to_owned()])
        })
        .await;
    assert_eq!(scene.condition("NodesReady"), "False Warming");
    scene.warm("node1");
    scene
        .until("warm", || scene.condition("NodesReady") == "True Warm")
        .await;
}

/// Nothing runs on a node for an image: no pod, no job, nothing that a quota, an admission policy or a scheduler sees.
#[tokio::test(start_paused = true)]
async fn l16_no_helper_is_made_for_an_image() {
    let scene = Scene::new();
    scene.node("node1");
    let purge = json!({ "retention": { "deletionPolicy": "PurgeUnused" } });
    scene.image_cache(&["nginx", "alpine"], &purge);
    scene.lead(true);
    scene.until_told("node1", 2).await;
    scene.warm("node1");
    scene
        .until("warm", || scene.condition("NodesReady") == "True Warm")
        .await;
    scene.image_cache(&["nginx"], &purge);
    scene.until_told("node1", 1).await;
    let ours = ["/coral.dev/", "/leases", "/events"];
    for write in scene.server.writes() {
        let is_ours = ours.iter().any(|part| write.contains(part));
        assert!(is_ours, "{write} is of something that is not ours");
    }
    assert!(!scene.server.asked("PATCH").is_empty());
}

#[tokio::test(start_paused = true)]
async fn l20_one_status_write_per_two_seconds_however_much_nodes_report() {
    let scene = Scene::new();
    for number in 0..20 {
        scene.node(&format!("node{number:02}"));
    }
    scene.image_cache(&["nginx"], &json!({}));
    scene.lead(true);
    scene.until_told("node19", 1).await;
    for number in 0..20 {
        scene.warm(&format!("node{number:02}"));
        sleep(Duration::from_millis(500)).await;
    }
    sleep(Duration::from_secs(30)).await;
    let object = scene.server.get("imagecaches", "ml", "a").unwrap();
    assert_eq!(object["status"]["nodes"]["ready"], 20);
    let writes = scene.server.asked(STATUS);
    let gaps = writes.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(gaps.min().unwrap() >= Duration::from_secs(2), "{writes:?}");
    // Nothing changes: nothing is written.
    let before = writes.len();
    sleep(Duration::from_mins(10)).await;
    assert_eq!(scene.server.asked(STATUS).len(), before);
    assert_eq!(scene.server.asked(NODE_CACHE).len(), 20, "each node's once");
}

#[tokio::test(start_paused = true)]
async fn l21_edits_count_while_it_warms_and_no_node_is_ready() {
    let scene = Scene::new();
    scene.image_cache(&["nginx"], &json!({}));
    scene.lead(true);
    scene
        .until("without nodes", || {
            scene.condition("NodesReady") == "True NoMatchingNodes"
        })
        .await;
    scene.node("node1");
    scene
        .until("told", || {
            scene.told("node1") == Some(vec!["nginx".to_owned()])
        })
        .await;
    // Nobody reported anything, and the user wants something else.
    scene.image_cache(&["alpine"], &json!({}));
    scene
        .until("told anew", || {
            scene.told("node1") == Some(vec!["alpine".to_owned()])
        })
        .await;
    assert_eq!(scene.condition("NodesReady"), "False Warming");
}

#[tokio::test(start_paused = true)]
async fn l22_a_leader_that_starts_writes_nothing_that_is_there() {
    let scene = Scene::new();
    scene.node("node1");
    scene.image_cache(&["nginx"], &json!({}));
    let first = scene.lead(true);
    scene.until_told("node1", 1).await;
    scene.warm("node1");
    sleep(Duration::from_secs(10)).await;
    let writes = || scene.server.asked("PATCH /apis/coral.dev").len();
    let before = writes();
    first.abort();
    // This one does not even hear of the registry.
    scene.lead(false);
    sleep(Duration::from_mins(1)).await;
    let told = scene.told("node1");
    assert_eq!(told, Some(vec!["nginx".to_owned()]));
    assert!(writes() <= before + 1, "at most that the cache is away");
}

#[tokio::test(start_paused = true)]
async fn no_node_is_told_anything_before_the_registry_answered_or_half_a_minute() {
    let scene = Scene::new();
    scene.node("node1");
    scene.image_cache(&["nginx"], &json!({}));
    let start = Instant::now();
    scene.lead(false);
    scene.until("told", || scene.told("node1").is_some()).await;
    let first = scene.server.asked(NODE_CACHE)[0];
    assert!(first - start >= OPEN_WITHIN, "{:?}", first - start);
}

#[tokio::test(start_paused = true)]
async fn l08_nothing_is_purged_while_pods_cannot_be_listed() {
    let scene = Scene::new();
    scene.node("node1");
    let purge = json!({ "retention": { "deletionPolicy": "PurgeUnused" } });
    scene.image_cache(&["nginx", "alpine", "busybox"], &purge);
    scene.lead(true);
    scene.until_told("node1", 3).await;
    scene.warm("node1");
    scene.server.break_down(Some("GET /api/v1/pods"));
    // Bound, not started, and in another spelling.
    scene.server.put("pods", "ml", &json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "ml" },
        "spec": { "nodeName": "node1", "containers": [{ "name": "c", "image": "docker.io/library/alpine:latest" }] },
    }));
    scene.image_cache(&["busybox"], &purge);
    sleep(Duration::from_secs(20)).await;
    assert!(
        scene.server.asked("GET /api/v1/pods").len() > 1,
        "it is tried again"
    );
    assert_eq!(scene.told("node1").unwrap().len(), 3, "nothing left");

    scene.server.break_down(None);
    scene
        .until("purged", || scene.told("node1").unwrap() == ["busybox"])
        .await;
    let cache = scene.server.get("nodecaches", "", "node1").unwrap();
    assert_eq!(references(&cache["spec"]["purge"]), ["nginx"]);
    let events = || scene.server.told("ml", "StillInUse");
    scene
        .until("told in an event", || events().len() == 1)
        .await;
    sleep(Duration::from_mins(1)).await;
    let outcome = json!({ "ref": "nginx", "result": "InUse", "time": "2026-01-01T00:00:00Z" });
    scene.report("node1", &json!({ "purge": [outcome] }));
    scene.until("told in another", || events().len() == 2).await;
    let nginx = |note: &String| note.contains("nginx stays on node1");
    assert!(events().iter().any(nginx));
}

#[tokio::test(start_paused = true)]
async fn l23_only_who_purges_has_the_finalizer() {
    let scene = Scene::new();
    scene.node("node1");
    let finalizers = || {
        let object = scene
            .server
            .get("imagecaches", "ml", "a")
            .unwrap_or_default();
        object["metadata"]["finalizers"].clone()
    };
    scene.image_cache(&["nginx"], &json!({}));
    scene.lead(true);
    scene.until_told("node1", 1).await;
    assert_eq!(finalizers(), Value::Null);
    scene.image_cache(
        &["nginx"],
        &json!({ "retention": { "deletionPolicy": "PurgeUnused" } }),
    );
    scene
        .until("held", || finalizers() == json!([PURGE_FINALIZER]))
        .await;
    scene.image_cache(
        &["nginx"],
        &json!({ "retention": { "deletionPolicy": "Retain" } }),
    );
    scene.until("free", || finalizers() == json!([])).await;
}

#[tokio::test(start_paused = true)]
async fn l23_a_node_that_never_answers_does_not_hold_an_object() {
    let scene = Scene::new();
    scene.node("node1");
    // Deadlines are wall clock, which a paused clock does not move.
    let purge = json!({ "retention": { "deletionPolicy": "PurgeUnused", "purgeTimeout": "0s" } });
    scene.image_cache(&["nginx"], &purge);
    scene.lead(true);
    scene.until_told("node1", 1).await;
    let object = || scene.server.get("imagecaches", "ml", "a");
    scene
        .until("held", || {
            object().unwrap()["metadata"]["finalizers"] != Value::Null
        })
        .await;
    scene.server.delete("imagecaches", "ml", "a");
    scene.until("gone", || object().is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn l23_an_object_that_cannot_be_evaluated_does_not_wedge_its_namespace() {
    let scene = Scene::new();
    scene.node("node1");
    scene.image_cache(
        &["nginx"],
        &json!({ "retention": { "deletionPolicy": "PurgeUnused" } }),
    );
    scene.lead(true);
    scene.until_told("node1", 1).await;
    scene.image_cache(
        &["NOT//an image"],
        &json!({ "retention": { "deletionPolicy": "PurgeUnused" } }),
    );
    scene
        .until("invalid", || scene.reason() == "False InvalidSpec")
        .await;
    assert_eq!(
        scene.told("node1").unwrap(),
        ["nginx"],
        "what nodes hold stays"
    );
    scene.server.delete("imagecaches", "ml", "a");
    scene
        .until("gone", || {
            scene.server.get("imagecaches", "ml", "a").is_none()
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn l14_a_node_replaced_under_its_name_is_told_anew() {
    let scene = Scene::new();
    scene.node("node1");
    scene.image_cache(&["nginx"], &json!({}));
    scene.lead(true);
    scene.until_told("node1", 1).await;
    scene.warm("node1");
    scene
        .until("warm", || {
            scene.server.get("imagecaches", "ml", "a").unwrap()["status"]["nodes"]["ready"] == 1
        })
        .await;
    let uid = |name: &str, plural: &str| scene.server.get(plural, "", name).unwrap();
    scene.server.delete("nodes", "", "node1");
    scene.until("gone", || scene.told("node1").is_none()).await;
    scene.node("node1");
    scene.until_told("node1", 1).await;
    let cache = uid("node1", "nodecaches");
    assert_eq!(
        cache["spec"]["nodeUID"],
        uid("node1", "nodes")["metadata"]["uid"]
    );
    assert_eq!(
        cache["metadata"]["ownerReferences"][0]["uid"],
        cache["spec"]["nodeUID"]
    );
}

#[tokio::test(start_paused = true)]
async fn l14_a_node_that_joins_is_told_without_a_look_by_the_clock() {
    let scene = Scene::new();
    scene.node("node1");
    scene.image_cache(&["nginx"], &json!({}));
    scene.lead(true);
    scene.until_told("node1", 1).await;
    scene.warm("node1");
    scene
        .until("warm", || scene.condition("NodesReady") == "True Warm")
        .await;
    // Far from the last look, and from the next one that nothing asks for.
    sleep(Duration::from_secs(10)).await;
    let joined = Instant::now();
    scene.node("node2");
    scene.until_told("node2", 1).await;
    assert!(joined.elapsed() <= OBJECT_PAUSE + NODE_PAUSE);
}

#[tokio::test(start_paused = true)]
async fn an_event_names_the_image_and_the_remedy() {
    let scene = Scene::new();
    scene.node("node1");
    scene.image_cache(&["nginx"], &json!({}));
    scene.lead(true);
    scene.until_told("node1", 1).await;
    let failed = json!([{ "ref": "nginx", "state": "Failed", "reason": "NotFound", "message": "no such tag" }]);
    scene.report("node1", &json!({ "images": failed }));
    let events = || scene.server.told("ml", "NotFound");
    scene
        .until("told in an event", || !events().is_empty())
        .await;
    let remedy = coral_schema::crd::Reason::NotFound.remedy();
    assert_eq!(events(), [format!("nginx: no such tag; {remedy}")]);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_tried_again_and_a_stop_waits_for_writes() {
    let scene = Scene::new();
    scene.node("node1");
    scene.image_cache(&["nginx"], &json!({}));
    scene.server.break_down(Some(NODE_CACHE));
    let leader = scene.lead(true);
    sleep(Duration::from_secs(20)).await;
    assert!(scene.server.asked(NODE_CACHE).len() > 1);
    scene.server.break_down(None);
    scene.until_told("node1", 1).await;
    scene.stop.cancel();
    leader.await.unwrap();
}
