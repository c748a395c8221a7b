//! The promises of the line, seen on real nodes: what a user writes, what the nodes hold, what the status says.

use std::time::Duration;

use coral_schema::crd::{ImageCache, Reason};
use rustix::process::Signal;

use crate::cluster::namespaces::ADDRESS;
use crate::cluster::node::NodeSpec;
use crate::containerd::Kind;
use crate::harness::eventually;
use crate::line::{Line, pod};

mod edits;
mod nodes;
mod reasons;

const APP: &str = "registry.example.test/team/app";
const NGINX: &str = "docker.io/library/nginx";

fn gpu(kind: Kind) -> NodeSpec {
    NodeSpec::new(kind).label("pool", "gpu")
}

/// Both spellings of images in one set for the nodes with label `pool=gpu`.
const GPU: &str = "  rollout: { maxConcurrentNodes: 1 }\n  retention: { deletionPolicy: PurgeUnused }\n  sets:\n  \
     - name: servers\n    images: [\"registry.example.test/team/app:1\", \"nginx:1\"]\n    \
     nodes: { selector: { matchLabels: { pool: gpu } } }\n";

#[tokio::test]
async fn l16a_images_are_on_exactly_the_selected_nodes_and_pods_start_without_any_registry() {
    let mut line = Line::start([
        gpu(Kind::Current),
        gpu(Kind::Old),
        NodeSpec::new(Kind::Current),
    ])
    .await;
    let app = line.cluster.push("team/app", 1, 2_000_000).await;
    let nginx = line.cluster.push("library/nginx", 1, 300_000).await;
    line.image_cache("demo", GPU).await;
    let warm = line.until_ready("demo", "Warm").await;

    let status = warm.status.as_ref().unwrap();
    assert_eq!(status.nodes.desired, 2);
    assert_eq!(status.nodes.ready, 2);
    assert_eq!(status.images, 2);
    assert!(
        status
            .entries
            .iter()
            .all(|entry| entry.cached && entry.ready_nodes == 2)
    );
    for node in [1, 2] {
        assert!(line.holds(node, APP).await && line.holds(node, NGINX).await);
    }
    assert!(!line.holds(3, APP).await && !line.holds(3, NGINX).await);
    for image in [&app, &nginx] {
        let (digest, size) = image.largest();
        assert_eq!(line.cluster.upstream().fetches(digest), [(200, *size)]);
    }
    let columns = line
        .kubectl(&["get", "ic", "demo", "-o", "wide"])
        .await
        .unwrap();
    for word in [
        "IMAGES", "NODES", "READY", "FAILED", "STATUS", "REASON", "AGE", "Warm",
    ] {
        assert!(columns.contains(word), "{columns}");
    }
    let told = line.explain("demo").await.unwrap();
    assert!(told.contains("node1") && told.contains("nginx:1"), "{told}");

    line.tells("demo", "Normal", Reason::Warm).await;

    pods_start_without_any_registry(&mut line).await;

    // What a container uses stays; what nothing uses goes.
    line.kubectl(&["delete", "imagecache", "demo", "--timeout=120s"])
        .await
        .unwrap();
    assert!(line.holds(1, NGINX).await && !line.holds(1, APP).await);
    assert!(line.holds(2, APP).await && !line.holds(2, NGINX).await);
}

/// With every registry away, what is warm starts, under the spelling that it was warmed by.
async fn pods_start_without_any_registry(line: &mut Line) {
    for node in [1, 2] {
        // Every pod needs it, and it is not the line's.
        let sandbox = ["pull", "registry.k8s.io/pause:1"];
        line.cluster.node(node).crictl(&sandbox).await.unwrap();
    }
    line.stop_registry();
    line.cluster.upstream().freeze();
    for (name, node, image) in [
        ("short", "node1", "nginx:1"),
        ("long", "node2", "registry.example.test/team/app:1"),
    ] {
        line.apply(&pod(name, image, &format!("nodeName: {node}"), "Never"))
            .await;
    }
    line.cluster.becomes("pod/short", "condition=Ready").await;
    line.cluster.becomes("pod/long", "condition=Ready").await;
    line.cluster.upstream().thaw();
    line.start_registry().await;
}

#[tokio::test]
async fn l14_nodes_and_wishes_that_come_and_go_are_followed() {
    let mut line = Line::start([NodeSpec::new(Kind::Current), NodeSpec::new(Kind::Current)]).await;
    line.cluster.push("team/app", 1, 1_000_000).await;
    line.cluster.push("library/nginx", 1, 100_000).await;
    line.cluster.push("team/other", 1, 100_000).await;
    line.image_cache("demo", GPU).await;
    line.until_ready("demo", "NoMatchingNodes").await;
    let event = line.tells("demo", "Warning", Reason::NoMatchingNodes).await;
    assert!(event.contains("set servers"), "{event}");

    // A node that matches is warmed at once, and left when it matches no more.
    line.kubectl(&["label", "node", "node1", "pool=gpu"])
        .await
        .unwrap();
    line.until_ready("demo", "Warm").await;
    assert!(line.holds(1, APP).await && !line.holds(2, APP).await);
    line.kubectl(&["label", "node", "node1", "pool-"])
        .await
        .unwrap();
    line.until_held(1, APP, false).await;
    line.until_held(1, NGINX, false).await;
    line.kubectl(&["label", "node", "--all", "pool=gpu"])
        .await
        .unwrap();
    line.until_ready("demo", "Warm").await;

    // Another object wants one of them, too: it stays when the first goes.
    let other = "  sets:\n  - name: all\n    images: [\"registry.example.test/team/app:1\", \
                 \"registry.example.test/team/other:1\"]\n    nodes: {}\n";
    line.image_cache("other", other).await;
    line.until_ready("other", "Warm").await;
    line.kubectl(&["delete", "imagecache", "demo", "--timeout=120s"])
        .await
        .unwrap();
    for node in [1, 2] {
        line.until_held(node, NGINX, false).await;
        assert!(line.holds(node, APP).await);
    }

    // A power cut: the node is skipped, and warm again when it returns.
    line.cluster.node_mut(2).power_off();
    line.until("other", "skipping a node", |object| {
        object
            .status
            .as_ref()
            .is_some_and(|status| status.nodes.skipped == 1)
    })
    .await;
    line.cluster.node_mut(2).power_on().await;
    line.start_warmer(2);
    line.until("other", "warm on both nodes", |object| {
        object
            .status
            .as_ref()
            .is_some_and(|status| status.nodes.ready == 2)
    })
    .await;

    the_warmer_keeps_what_it_was_told_without_an_operator(&mut line).await;
}

async fn the_warmer_keeps_what_it_was_told_without_an_operator(line: &mut Line) {
    line.operators.clear();
    let often = [
        "patch",
        "nodecache",
        "node1",
        "--type=merge",
        "-p",
        r#"{"spec":{"lookInterval":"2s"}}"#,
    ];
    line.kubectl(&often).await.unwrap();
    let remove = ["rmi", "registry.example.test/team/other:1"];
    line.cluster.node(1).crictl(&remove).await.unwrap();
    line.until_held(1, "registry.example.test/team/other", true)
        .await;
}

#[tokio::test]
async fn what_cannot_be_had_is_told_with_a_remedy() {
    let theirs = "server = \"https://registry-1.docker.io\"\n";
    let mut line = Line::start([gpu(Kind::Current).hosts("docker.io", theirs)]).await;
    line.cluster.push("team/app", 1, 100_000).await;
    let spec = "  sets:\n  - name: all\n    images: [\"registry.example.test/team/none:1\", \
                \"registry.example.test/team/app:1\"]\n    nodes: {}\n";
    line.image_cache("missing", spec).await;
    let missing = line
        .until("missing", "NotFound", |object| {
            has_failure(object, Reason::NotFound)
        })
        .await;
    let status = missing.status.unwrap();
    let failure = status
        .failures
        .iter()
        .find(|failure| failure.reason == Reason::NotFound);
    let failure = failure.unwrap();
    assert_eq!(
        failure.reference.as_deref(),
        Some("registry.example.test/team/none:1")
    );
    assert!(
        failure.message.contains("correct the reference"),
        "{}",
        failure.message
    );
    let event = line.tells("missing", "Warning", Reason::NotFound).await;
    for word in ["team/none:1", "correct the reference"] {
        assert!(event.contains(word), "{event}");
    }
    line.until_held(1, APP, true).await;

    a_mirror_only_image_waits_for_the_cache(&mut line).await;

    // The administrator's file stands, and the node says so.
    let settings = line.cluster.node(1).certs_d().join("docker.io/hosts.toml");
    assert_eq!(std::fs::read_to_string(settings).unwrap(), theirs);
    eventually("the node tells of it", Duration::from_mins(1), async || {
        let node = line.node_cache("node1").await?;
        let conditions = node.status?.conditions;
        conditions.into_iter().find(|condition| {
            condition.type_ == "MirrorConfigured" && condition.reason == "NotOurs"
        })
    })
    .await;
}

async fn a_mirror_only_image_waits_for_the_cache(line: &mut Line) {
    line.cluster.push("team/late", 1, 100_000).await;
    line.stop_registry();
    let spec = "  registryPolicy: MirrorOnly\n  sets:\n  - name: all\n    \
                images: [\"registry.example.test/team/late:1\"]\n    nodes: {}\n";
    line.image_cache("late", spec).await;
    line.until("late", "waiting for the cache", |object| {
        let conditions = object.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| {
            condition.type_ == "CacheReady"
                && condition.status != "True"
                && !condition.message.is_empty()
        })
    })
    .await;
    assert!(!line.holds(1, "registry.example.test/team/late").await);
    line.start_registry().await;
    line.until_ready("late", "Warm").await;
}

#[tokio::test]
async fn another_operator_takes_over_in_mid_wave() {
    let mut line = Line::start([gpu(Kind::Current), gpu(Kind::Current)]).await;
    line.cluster.push("team/app", 1, 100_000).await;
    line.cluster.push("library/nginx", 1, 8_000_000).await;
    line.start_operator().await;
    line.image_cache("demo", GPU).await;
    line.until("demo", "begun", |object| {
        object
            .status
            .as_ref()
            .is_some_and(|status| status.nodes.desired == 2)
    })
    .await;
    line.operators[0].signal(Signal::KILL);
    line.until_ready("demo", "Warm").await;
    let (again, nodes) = ("registry.example.test/team/again:1", [1, 2]);
    line.cluster.push("team/again", 1, 100_000).await;
    let spec = format!("  sets:\n  - name: all\n    images: [\"{again}\"]\n    nodes: {{}}\n");
    line.image_cache("again", &spec).await;
    line.until_ready("again", "Warm").await;
    for node in nodes {
        assert!(line.holds(node, "registry.example.test/team/again").await);
    }
}

#[tokio::test]
async fn sets_have_their_own_nodes_and_replicas_move_on() {
    let zone = |name| NodeSpec::new(Kind::Current).label("topology.kubernetes.io/zone", name);
    let mut line = Line::start([zone("a"), zone("a"), zone("b")]).await;
    line.cluster.push("team/app", 1, 100_000).await;
    line.cluster.push("team/other", 1, 100_000).await;
    let spec = "  rollout: { priority: 5 }\n  sets:\n  - name: one\n    images: [\"registry.example.test/team/app:1\"]\n    \
                nodes: { names: [node1] }\n  - name: two\n    \
                images: [\"registry.example.test/team/other:1\"]\n    nodes: { replicas: 2 }\n";
    line.image_cache("pair", spec).await;
    line.until_ready("pair", "Warm").await;
    let other = "registry.example.test/team/other";
    let app = [
        line.holds(1, APP).await,
        line.holds(2, APP).await,
        line.holds(3, APP).await,
    ];
    assert_eq!(app, [true, false, false]);
    // One in each zone.
    assert!(line.holds(3, other).await);
    assert_ne!(line.holds(1, other).await, line.holds(2, other).await);

    // Who wants the same in another way, and matters less, is told who decides.
    let spec = "  registryPolicy: Default\n  sets:\n  - name: all\n    \
                images: [\"registry.example.test/team/app:1\"]\n    nodes: { names: [node1] }\n";
    line.image_cache("loser", spec).await;
    let loser = line.until("loser", "told of the conflict", |object| {
        has_failure(object, Reason::Conflict)
    });
    let failures = loser.await.status.unwrap().failures;
    assert!(
        failures
            .iter()
            .any(|failure| failure.message.contains("default/pair")),
        "{failures:?}"
    );

    // A node that is gone for good is replaced.
    line.cluster.node_mut(3).power_off();
    line.kubectl(&["delete", "node", "node3"]).await.unwrap();
    line.until_held(1, other, true).await;
    line.until_held(2, other, true).await;
    assert!(
        line.node_cache("node3")
            .await
            .is_none_or(|node| node.metadata.deletion_timestamp.is_some())
    );
}

#[tokio::test]
async fn a_node_that_has_no_room_or_no_cache_says_so_and_goes_on() {
    let small = NodeSpec::new(Kind::Current).image_disk(64 << 20);
    let mut line = Line::start([small]).await;
    line.cluster.push("team/huge", 1, 60 << 20).await;
    line.cluster.push("team/app", 1, 100_000).await;
    line.cluster.push("team/own", 1, 100_000).await;
    let one = |image: &str, policy: &str| {
        format!(
            "  registryPolicy: {policy}\n  sets:\n  - name: all\n    images: [\"{image}\"]\n    nodes: {{}}\n"
        )
    };
    line.image_cache("huge", &one("registry.example.test/team/huge:1", "Auto"))
        .await;
    line.until("huge", "short of disk", |object| {
        has_failure(object, Reason::InsufficientStorage)
    })
    .await;
    line.image_cache("unknown", &one("registry.unknown.test/team/app:1", "Auto"))
        .await;
    line.until("unknown", "failed", |object| {
        let mut failures = object.status.iter().flat_map(|status| &status.failures);
        failures
            .any(|failure| failure.reference.as_deref() == Some("registry.unknown.test/team/app:1"))
    })
    .await;

    // The kubelet's own pull goes the way that the warmer prepared.
    line.apply(&pod(
        "own",
        "registry.example.test/team/own:1",
        "nodeName: node1",
        "IfNotPresent",
    ))
    .await;
    line.cluster.becomes("pod/own", "condition=Ready").await;
    let admin = format!("http://{ADDRESS}:5001/api/v1/images?q=team/own");
    let images = line.cluster.get(&admin).await.unwrap();
    assert!(
        images.contains("registry.example.test/team/own"),
        "{images}"
    );

    // A runtime that was restarted is found again; without the cache, Default falls back to the upstream.
    line.cluster.node_mut(1).restart_containerd().await;
    line.stop_registry();
    line.image_cache(
        "direct",
        &one("registry.example.test/team/app:1", "Default"),
    )
    .await;
    line.until_held(1, APP, true).await;
}

fn has_failure(object: &ImageCache, reason: Reason) -> bool {
    let failures = object.status.iter().flat_map(|status| &status.failures);
    failures.into_iter().any(|failure| failure.reason == reason)
}
