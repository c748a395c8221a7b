//! Labels and the startup taint of Nodes.

use super::*;

const NODE: &str = "PATCH /api/v1/nodes/";
const LABEL: &str = "warm.coral.dev/ml.a";

impl Scene {
    /// A node that boots with the taint, and another one.
    fn booting_node(&self, name: &str) {
        self.node(name);
        let mut node = self.server.get("nodes", "", name).unwrap();
        let taints = [
            json!({ "key": "coral.dev/warming", "effect": "NoSchedule" }),
            json!({ "key": "dedicated", "effect": "PreferNoSchedule" }),
        ];
        node["spec"] = json!({ "taints": taints });
        node["metadata"]["creationTimestamp"] = json!(jiff::Timestamp::now());
        self.server.put("nodes", "", &node);
    }

    fn taints(&self, name: &str) -> Vec<String> {
        let node = self.server.get("nodes", "", name).unwrap();
        let taints = node["spec"]["taints"].as_array().cloned();
        let keys = taints.into_iter().flatten();
        keys.map(|taint| taint["key"].as_str().unwrap().to_owned())
            .collect()
    }

    fn labelled(&self, name: &str) -> bool {
        let node = self.server.get("nodes", "", name).unwrap();
        node["metadata"]["labels"][LABEL] == "true"
    }
}

#[tokio::test(start_paused = true)]
async fn l15_a_node_loses_the_taint_and_gets_the_label_when_it_is_warm() {
    let scene = Scene::new();
    scene.booting_node("node1");
    let scheduling = json!({ "scheduling": { "nodeLabel": true, "startupTaint": true } });
    scene.image_cache(&["nginx"], &scheduling);
    scene.lead(true);
    scene.until_told("node1", 1).await;
    sleep(Duration::from_mins(1)).await;
    assert!(scene.server.asked(NODE).is_empty(), "it is not warm");
    scene.warm("node1");
    scene.until("labelled", || scene.labelled("node1")).await;
    assert_eq!(scene.taints("node1"), ["dedicated"]);
    sleep(Duration::from_mins(10)).await;
    assert_eq!(scene.server.asked(NODE).len(), 1, "in one write, once");

    scene.image_cache(&["nginx"], &json!({ "scheduling": null }));
    scene.until("bare", || !scene.labelled("node1")).await;
}

/// An object is looked at once a second: what it did not see yet it did not judge.
#[tokio::test(start_paused = true)]
async fn l15_the_taint_stays_until_objects_have_seen_the_node() {
    let scene = Scene::new();
    scene.node("node1");
    let taint = json!({ "scheduling": { "startupTaint": true } });
    scene.image_cache(&["nginx"], &taint);
    scene.lead(true);
    scene.until_told("node1", 1).await;
    sleep(Duration::from_mins(1)).await;
    scene.image_cache(&["busybox"], &taint);
    sleep(Duration::from_millis(100)).await;
    scene.booting_node("node2");
    scene.until_told("node2", 1).await;
    sleep(Duration::from_mins(1)).await;
    assert!(scene.server.asked(NODE).is_empty(), "it is not warm");
    scene.warm("node2");
    let lifted = || scene.taints("node2") == ["dedicated"];
    scene.until("without the taint", lifted).await;
}

#[tokio::test(start_paused = true)]
async fn l15_without_the_right_people_are_told() {
    let scene = Scene::new();
    scene.booting_node("node1");
    scene.image_cache(
        &["nginx"],
        &json!({ "scheduling": { "startupTaint": true } }),
    );
    scene.server.refuse(NODE);
    scene.lead(true);
    scene.until_told("node1", 1).await;
    scene.warm("node1");
    let told = || scene.server.told("ml", "PolicyDenied");
    scene.until("told", || !told().is_empty()).await;
    assert!(
        told()[0].contains("operator.nodeScheduling"),
        "{:?}",
        told()
    );
    sleep(Duration::from_mins(30)).await;
    assert!(scene.server.asked(NODE).len() < 10, "it does not hammer");
    assert_eq!(
        scene.condition("NodesReady"),
        "True Warm",
        "nothing else waits"
    );
}
