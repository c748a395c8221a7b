//! Kubelets collect what nothing uses, and a warmed image that never ran is the first to go. Both of these take it whenever
//! they look.

use coral_schema::crd::Reason;
use coral_schema::crd::node_cache::{ImageState, NodeImageStatus};
use serde_json::json;

use super::{AT_ONCE, counts, everywhere, told};
use crate::cluster::node::NodeSpec;
use crate::cluster::pulls::What;
use crate::containerd::Kind;
use crate::disk;
use crate::harness::eventually;
use crate::line::{Line, WARM};

const IMAGE: &str = "registry.example.test/team/app:1";
const PINNED: &str = "registry.example.test/team/pinned:1";

const DISK: u64 = 128 << 20;

/// Above the mark from which this node's kubelet frees its disk, below the ceiling of the warmer: only what the node does
/// itself ends the war.
const USED: u64 = DISK / 100 * 78;

/// The kubelet looks at its disks every ten seconds, and takes all that nothing uses, however young.
fn collects_by_disk() -> NodeSpec {
    let limits = json!({
        "memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "24%",
    });
    NodeSpec::new(Kind::Current)
        .image_disk(DISK)
        .kubelet("imageMinimumGCAge", "1ns".into())
        .kubelet("evictionHard", limits)
}

/// The kubelet takes what was not in use lately when it starts, and every five minutes from then on.
fn collects_by_age() -> NodeSpec {
    NodeSpec::new(Kind::Old)
        .kubelet("imageMinimumGCAge", "1ns".into())
        .kubelet("imageMaximumGCAge", "2ns".into())
}

#[tokio::test]
async fn l01_l02_l09_what_kubelets_collect_comes_back_twice_and_what_is_pinned_stays() {
    let specs = [collects_by_disk(), collects_by_age()];
    let mut line = Line::without_warmers(specs, false).await;
    for node in [1, 2] {
        line.start_warmer_with(node, &AT_ONCE);
    }
    let app = line.cluster.push("team/app", 1, 8 << 20).await;
    line.image_cache("app", &everywhere(IMAGE, "")).await;
    line.until_ready("app", "Warm").await;
    one_image_is_pinned_where_the_runtime_can(&line).await;

    let images = line.cluster.node(1).images();
    let ballast = disk::fill_up_to(images, DISK - USED);
    for collection in 1..=3 {
        line.cluster.node_mut(2).restart_kubelet().await;
        let state = if collection < 3 {
            ImageState::Ready
        } else {
            ImageState::Evicted
        };
        told(&line, "node2", IMAGE, "collected", |image| {
            image.evictions == collection && image.state == state
        })
        .await;
    }
    let disk = given_up(&line, "node1", "DiskGC").await;
    let age = given_up(&line, "node2", "AgeGC").await;
    the_object_says_why(&line, [disk, age]).await;

    for node in [1, 2] {
        assert_eq!(pulls(&line, node, IMAGE), 3, "node{node}");
        assert!(!line.holds(node, "registry.example.test/team/app").await);
    }
    assert_eq!(
        pulls(&line, 1, PINNED),
        1,
        "collected although it is pinned"
    );
    assert!(line.holds(1, "registry.example.test/team/pinned").await);
    let (digest, size) = app.largest();
    assert_eq!(line.cluster.upstream().fetches(digest), [(200, *size)]);

    // With room, and when somebody asks, they try again (L24).
    std::fs::remove_file(ballast).unwrap();
    let ask = ["annotate", "imagecache", "app", "coral.dev/refresh=again"];
    line.kubectl(&ask).await.unwrap();
    line.until_ready("app", "Warm").await;
    for node in [1, 2] {
        assert_eq!(pulls(&line, node, IMAGE), 4, "node{node}");
    }
}

/// The older runtime does not know pins, and its node says so.
async fn one_image_is_pinned_where_the_runtime_can(line: &Line) {
    line.cluster.push("team/pinned", 1, 100_000).await;
    let pinned = format!(
        "  retention: {{ gcProtection: Pin }}\n  sets:\n  - name: one\n    images: [\"{PINNED}\"]\n    nodes: {{ names: [node1] }}\n"
    );
    line.image_cache("pinned", &pinned).await;
    let pinned = "{{.status.pinned}}";
    let inspect = ["inspecti", "--output", "go-template", "--template", pinned];
    let inspect = [&inspect[..], &[PINNED]].concat();
    eventually("a pin", WARM, async || {
        let pinned = line.cluster.node(1).crictl(&inspect).await.ok()?;
        (pinned.trim() == "true").then_some(())
    })
    .await;
    for (node, can) in [
        ("node1", &["ImageEvents", "Pin"][..]),
        ("node2", &["ImageEvents"]),
    ] {
        eventually("what the node's runtime can", WARM, async || {
            let runtime = line.node_cache(node).await?.status?.runtime?;
            (runtime.capabilities == can).then_some(())
        })
        .await;
    }
}

/// How often a node's runtime began to pull an image.
fn pulls(line: &Line, node: usize, image: &str) -> usize {
    let pulls = line.cluster.node(node).pulls().into_iter();
    pulls
        .filter(|pull| pull.image == image && pull.what == What::Began)
        .count()
}

/// Waits until a node leaves it at that, and says why.
async fn given_up(line: &Line, node: &str, cause: &str) -> NodeImageStatus {
    let image = told(line, node, IMAGE, "given up", |image| {
        image.state == ImageState::Evicted
    })
    .await;
    assert_eq!(image.reason, Some(Reason::EvictedRepeatedly));
    assert_eq!(image.evictions, 3);
    let message = image.message.as_deref().unwrap();
    assert!(message.contains(cause), "{message}");
    let next = image.next_attempt.as_ref().unwrap().0;
    let since = image.last_transition.as_ref().unwrap().0;
    assert!(next > since, "{next} is not after {since}");
    let metrics = format!("http://{node}:9092/metrics");
    let evicted = "coral_warmer_images{state=\"Evicted\"}";
    counts(line, &metrics, evicted, 1).await;
    image
}

async fn the_object_says_why(line: &Line, images: [NodeImageStatus; 2]) {
    let object = line
        .until("app", "failed on both nodes", |object| {
            let mut failures = object.status.iter().flat_map(|status| &status.failures);
            failures
                .any(|failure| failure.reason == Reason::EvictedRepeatedly && failure.nodes == 2)
        })
        .await;
    let status = object.status.unwrap();
    assert_eq!((status.nodes.ready, status.nodes.failed), (0, 2));
    let failure = &status.failures[0];
    let remedy = Reason::EvictedRepeatedly.remedy();
    assert!(failure.message.ends_with(remedy), "{}", failure.message);
    let said = images.map(|image| image.message.unwrap());
    assert!(
        said.iter().any(|said| failure.message.starts_with(said)),
        "{} is none of {said:?}",
        failure.message
    );
}
