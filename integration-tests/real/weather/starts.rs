//! Nodes that boot, and hours at which nothing may be done.

use coral_schema::crd::Reason;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::cluster::node::NodeSpec;
use crate::containerd::Kind;
use crate::line::{Line, pod};

const APP: &str = "registry.example.test/team/app:1";

/// Later than any node is warm that can be.
const DEADLINE: SignedDuration = SignedDuration::from_secs(20);

/// Boots with the taint that keeps pods away, as `--register-with-taints` does it.
fn booting(pool: &str) -> NodeSpec {
    let taint = json!([{ "key": "coral.dev/warming", "effect": "NoSchedule" }]);
    NodeSpec::new(Kind::Current)
        .label("pool", pool)
        .kubelet("registerWithTaints", taint)
}

fn for_pool(pool: &str, image: &str, more: &str) -> String {
    format!(
        "{more}  sets:\n  - name: all\n    images: [\"{image}\"]\n    nodes: {{ selector: {{ matchLabels: {{ pool: {pool} }} }} }}\n"
    )
}

#[tokio::test]
async fn l15_no_pod_lands_before_its_node_is_warm_or_the_deadline_passed() {
    let mut line = Line::start([]).await;
    line.cluster.push("team/app", 1, 8 << 20).await;
    line.cluster.push("team/own", 1, 100_000).await;
    let taint = format!(
        "  scheduling: {{ startupTaint: true, startupDeadline: {}s }}\n",
        DEADLINE.as_secs()
    );
    let never = "registry.example.test/team/none:1";
    line.image_cache("never", &for_pool("cold", never, &taint))
        .await;
    let taint = "  scheduling: { startupTaint: true }\n";
    line.image_cache("app", &for_pool("warm", APP, taint)).await;
    for (name, image) in [("warm", APP), ("cold", "registry.example.test/team/own:1")] {
        let place = format!("nodeSelector: {{ pool: {name} }}");
        line.apply(&pod(name, image, &place, "IfNotPresent")).await;
    }

    let warm = line.add_node(booting("warm")).await;
    line.cluster.becomes("pod/warm", "condition=Ready").await;
    let log = line.cluster.node(warm).log("containerd");
    let at = |words: &str| {
        log.find(words)
            .unwrap_or_else(|| panic!("no {words}:\n{log}"))
    };
    let held = at(&format!("msg=\"PullImage \\\"{APP}\\\" returns"));
    assert!(held < at("msg=\"RunPodSandbox for"), "{log}");

    let cold = line.add_node(booting("cold")).await;
    line.cluster.becomes("pod/cold", "condition=Ready").await;
    let node = object(&line, &format!("node/node{cold}")).await;
    let joined = time(&node["metadata"]["creationTimestamp"]);
    let landed = object(&line, "pod/cold").await;
    let conditions = landed["status"]["conditions"].as_array().unwrap().iter();
    let mut scheduled = conditions.filter(|condition| condition["type"] == "PodScheduled");
    let scheduled = time(&scheduled.next().unwrap()["lastTransitionTime"]);
    assert!(
        scheduled.duration_since(joined) >= DEADLINE,
        "a pod came at {scheduled} to a node that joined at {joined}"
    );
    line.until("never", "as cold as before", |object| {
        let mut failures = object.status.iter().flat_map(|status| &status.failures);
        failures.any(|failure| failure.reason == Reason::NotFound)
    })
    .await;

    outside_of_its_window_nothing_comes(&line).await;
}

async fn outside_of_its_window_nothing_comes(line: &Line) {
    let image = "registry.example.test/team/own";
    let spec = |schedule: &str| {
        let window = format!(
            "  rollout: {{ window: {{ schedule: \"{schedule}\", timeZone: Europe/Berlin, duration: 1h }} }}\n"
        );
        for_pool("warm", &format!("{image}:1"), &window)
    };
    // On the next leap day.
    line.image_cache("nightly", &spec("0 2 29 2 *")).await;
    line.until("nightly", "cached, and waiting for its window", |object| {
        let conditions = object.status.iter().flat_map(|status| &status.conditions);
        let is = |kind, word: &str| {
            let mut conditions = conditions.clone();
            let found = conditions.find(|it| it.type_ == kind);
            found.is_some_and(|it| it.message.contains(word))
        };
        is("CacheReady", "1 of 1 images") && is("NodesReady", "-02-29T01:00:00Z")
    })
    .await;
    let told = line.explain("nightly").await.unwrap();
    assert!(told.contains("for the maintenance window"), "{told}");
    assert!(!line.holds(1, image).await);
    line.image_cache("nightly", &spec("* * * * *")).await;
    line.until_ready("nightly", "Warm").await;
    assert!(line.holds(1, image).await);
}

async fn object(line: &Line, name: &str) -> Value {
    let json = line.kubectl(&["get", name, "-o", "json"]).await.unwrap();
    serde_json::from_str(&json).unwrap()
}

/// As Kubernetes writes it, in whole seconds.
fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}
