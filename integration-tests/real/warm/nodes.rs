//! Which node pulls when, and nodes that were not there at first.

use coral_schema::crd::node_cache::ImageState;
use jiff::Timestamp;

use super::{APP, NGINX, gpu};
use crate::cluster::namespaces::ADDRESS;
use crate::cluster::pulls::What;
use crate::containerd::Kind;
use crate::harness::eventually;
use crate::line::{Line, WARM};

const OTHER: &str = "registry.example.test/team/other";

/// Two sets for the same nodes, one after the other. Nothing is done by the clock.
const WAVES: &str = "  rollout: { maxConcurrentNodes: 1, order: Sequential }\n  refresh: { interval: 0s }\n  sets:\n  \
     - name: first\n    images: [\"registry.example.test/team/app:1\", \"nginx:1\"]\n    \
     nodes: { selector: { matchLabels: { pool: gpu } } }\n  \
     - name: second\n    images: [\"registry.example.test/team/other:1\"]\n    \
     nodes: { selector: { matchLabels: { pool: gpu } } }\n";

#[tokio::test]
async fn l14_waves_are_the_order_of_pulls_and_nodes_that_join_or_are_replaced_get_warm() {
    let mut line = Line::start([gpu(Kind::Current), gpu(Kind::Old)]).await;
    let app = line.cluster.push("team/app", 1, 2_000_000).await;
    let nginx = line.cluster.push("library/nginx", 1, 300_000).await;
    let other = line.cluster.push("team/other", 1, 300_000).await;
    line.image_cache("demo", WAVES).await;
    line.until_ready("demo", "Warm").await;
    let waves = ["node1 first", "node2 first", "node1 second", "node2 second"];
    assert_eq!(order_of_pulls(&line), waves);

    let joined = line.add_node(gpu(Kind::Current)).await;
    holds_all(&line, joined).await;
    let admin = format!("http://{ADDRESS}:9091/metrics");
    eventually("three nodes are counted as warmed", WARM, async || {
        let metrics = line.cluster.get(&admin).await.unwrap();
        let count = "coral_operator_time_to_warm_seconds_count 3";
        metrics.lines().any(|line| line == count).then_some(())
    })
    .await;

    let before = uid(&line, 2).await;
    line.cluster.replace_node(2).await;
    assert!(!line.holds(2, APP).await, "its disks are empty");
    line.start_warmer(2);
    assert_ne!(uid(&line, 2).await, before);
    holds_all(&line, 2).await;

    for image in [&app, &nginx, &other] {
        let (digest, size) = image.largest();
        assert_eq!(line.cluster.upstream().fetches(digest), [(200, *size)]);
    }
}

/// Of which node and set each beginning and end of a pull was, as the runtimes recorded them; each change once.
fn order_of_pulls(line: &Line) -> Vec<String> {
    let mut events: Vec<(Timestamp, String)> = Vec::new();
    for number in 1..=line.cluster.nodes() {
        let node = line.cluster.node(number);
        for event in node.pulls() {
            let set = match event.image.as_str() {
                "registry.example.test/team/app:1" | "nginx:1" => "first",
                "registry.example.test/team/other:1" => "second",
                _ => continue,
            };
            assert!(matches!(event.what, What::Began | What::Held), "{event:?}");
            events.push((event.time, format!("{} {set}", node.name())));
        }
    }
    events.sort();
    let mut order: Vec<String> = events.into_iter().map(|(_, whose)| whose).collect();
    order.dedup();
    order
}

/// Waits until a node holds everything, and the object says the same of as many nodes as there are.
async fn holds_all(line: &Line, node: usize) {
    let name = line.cluster.node(node).name().to_owned();
    let uid = uid(line, node).await;
    eventually(&format!("{name} says that it is warm"), WARM, async || {
        let status = line.node_cache(&name).await?.status?;
        let ready = |image: &_| matches!(image, ImageState::Ready);
        let all = status.images.iter().map(|image| image.state);
        let all: Vec<ImageState> = all.collect();
        (status.node_uid.as_ref() == Some(&uid) && all.len() == 3 && all.iter().all(ready))
            .then_some(())
    })
    .await;
    for image in [APP, NGINX, OTHER] {
        assert!(line.holds(node, image).await, "{image}");
    }
    let nodes = u32::try_from(line.cluster.nodes()).unwrap();
    line.until("demo", "warm on all nodes", |object| {
        let nodes_of = object.status.as_ref().map(|status| &status.nodes);
        nodes_of.is_some_and(|of| of.desired == nodes && of.ready == nodes)
    })
    .await;
}

/// A node's identity, as Kubernetes gives it.
async fn uid(line: &Line, node: usize) -> String {
    let name = line.cluster.node(node).name();
    let get = ["get", "node", name, "-o", "jsonpath={.metadata.uid}"];
    line.kubectl(&get).await.unwrap()
}
