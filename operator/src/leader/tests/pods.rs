//! Sets that depend on what pods run.

use super::*;

const PODS: &str = "GET /api/v1/pods?";

impl Scene {
    fn pod(&self, name: &str, node: &str, image: &str) {
        self.server.put(
            "pods",
            "ml",
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "namespace": "ml", "labels": { "app": "web" } },
                "spec": { "nodeName": node, "containers": [{ "name": "c", "image": image }] },
                "status": { "phase": "Running" },
            }),
        );
    }
}

fn selector() -> Value {
    json!({ "matchLabels": { "app": "web" } })
}

#[tokio::test(start_paused = true)]
async fn images_of_pods_are_warmed_and_pods_watched_only_for_it() {
    let scene = Scene::new();
    scene.node("node1");
    scene.node("node2");
    scene.pod("p", "node1", "nginx");
    scene.image_cache(&["busybox"], &json!({}));
    scene.lead(true);
    scene.until_told("node2", 1).await;
    sleep(Duration::from_secs(40)).await;
    assert!(scene.server.asked(PODS).is_empty(), "nobody asks for pods");

    let discover =
        json!([{ "name": "all", "discover": { "podSelector": selector() }, "nodes": {} }]);
    scene.image_cache(&[], &json!({ "sets": discover }));
    let told = |node: &str, images: &[&str]| scene.told(node).is_some_and(|told| told == images);
    scene.until("told", || told("node2", &["nginx"])).await;
    scene.pod("q", "node2", "alpine");
    let both = ["alpine", "nginx"];
    scene.until("told of both", || told("node1", &both)).await;
    // Its pod is gone, and so is the leader: the image stays for a day.
    scene.server.delete("pods", "ml", "q");
    sleep(Duration::from_hours(1)).await;
    assert!(told("node1", &both));
    let complaints = scene.server.told("ml", "InvalidSpec");
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[tokio::test(start_paused = true)]
async fn nodes_where_pods_run_are_warmed() {
    let scene = Scene::new();
    scene.node("node1");
    scene.node("node2");
    scene.pod("p", "node1", "x");
    let sets =
        json!([{ "name": "a", "images": ["nginx"], "nodes": { "podSelector": selector() } }]);
    scene.image_cache(&[], &json!({ "sets": sets }));
    scene.lead(true);
    scene.until_told("node1", 1).await;
    assert_eq!(scene.told("node2"), Some(Vec::new()));
    scene.pod("q", "node2", "x");
    scene.until_told("node2", 1).await;
}

/// What nodes hold in the object's name stays while pods are not known, and somebody is told why.
#[tokio::test(start_paused = true)]
async fn l22_nothing_is_withdrawn_while_pods_are_not_known() {
    let scene = Scene::new();
    scene.node("node1");
    scene.pod("p", "node1", "nginx");
    let discover =
        json!([{ "name": "all", "discover": { "podSelector": selector() }, "nodes": {} }]);
    scene.image_cache(&[], &json!({ "sets": discover }));
    let first = scene.lead(true);
    scene.until_told("node1", 1).await;
    first.abort();
    scene.server.refuse("/api/v1/pods");
    scene.lead(true);
    scene
        .until("told", || scene.condition("Ready") == "False InvalidSpec")
        .await;
    assert_eq!(scene.told("node1").unwrap(), ["nginx"]);
}
