//! A tag means something else upstream: what becomes of it under each policy, on nodes and in what is said.

use coral_schema::crd::ImageCache;
use coral_schema::crd::image_cache::Entry;

use super::{AT_ONCE, counts, digest_on, everywhere, holds_digest};
use crate::cluster::namespaces::ADDRESS;
use crate::cluster::node::NodeSpec;
use crate::containerd::Kind;
use crate::line::Line;

const KEPT: &str = "registry.example.test/team/keep:1";
const FOLLOWED: &str = "registry.example.test/team/follow:1";
const FROZEN: &str = "registry.example.test/team/freeze:1";

/// Only `Follow` looks by itself.
const POLICIES: [(&str, &str, &str); 3] = [
    ("keep", "team/keep", "interval: 0s, tagPolicy: Keep"),
    ("follow", "team/follow", "interval: 1m, tagPolicy: Follow"),
    ("freeze", "team/freeze", "interval: 0s, tagPolicy: Freeze"),
];

#[tokio::test]
async fn l12_l24_a_tag_that_moved_upstream_is_kept_followed_or_frozen() {
    let specs = [NodeSpec::new(Kind::Current), NodeSpec::new(Kind::Old)];
    let mut line = Line::without_warmers(specs, false).await;
    for node in [1, 2] {
        line.start_warmer_with(node, &AT_ONCE);
    }
    let first = push_all(&line, 1).await;
    for (name, repository, refresh) in POLICIES {
        let image = format!("registry.example.test/{repository}:1");
        let refresh = format!("  refresh: {{ {refresh} }}\n");
        line.image_cache(name, &everywhere(&image, &refresh)).await;
    }
    for (name, ..) in POLICIES {
        line.until_ready(name, "Warm").await;
    }
    let then = push_all(&line, 2).await;

    kept(&line, &first[0], &then[0]).await;
    frozen(&line, &first[2], &then[2]).await;
    let followed = line
        .until("follow", "followed", |object| {
            entry(object).digest.as_ref() == Some(&then[1]) && entry(object).ready_nodes == 2
        })
        .await;
    assert!(!drifts(&followed), "{followed:?}");
    for node in [1, 2] {
        let node = line.cluster.node(node);
        assert_eq!(digest_on(node, FOLLOWED).await, then[1]);
    }
}

/// Every image in a revision; their digests.
async fn push_all(line: &Line, revision: u32) -> Vec<String> {
    let mut digests = Vec::new();
    for (_, repository, _) in POLICIES {
        let image = line.cluster.push(repository, revision, 100_000).await;
        digests.push(image.digest().to_string());
    }
    digests
}

/// Nodes keep what they have and the status says so; who lost it gets what the tag means now, and that is said as well.
async fn kept(line: &Line, first: &str, then: &str) {
    refresh(line, "keep").await;
    let object = line
        .until("keep", "drifted on both nodes", |object| {
            drifts(object) && entry(object).drifted_nodes == 2
        })
        .await;
    assert_eq!(entry(&object).digest.as_deref(), Some(then));
    assert_eq!(entry(&object).ready_nodes, 2, "drift is no failure");
    for node in [1, 2] {
        assert_eq!(digest_on(line.cluster.node(node), KEPT).await, first);
    }
    let metrics = format!("http://{ADDRESS}:9091/metrics");
    let drifted = "coral_operator_images{state=\"Drifted\"}";
    // Until it is followed the other one drifts as well.
    line.until_ready("follow", "Warm").await;
    counts(line, &metrics, drifted, 2).await;

    let node = line.cluster.node(1);
    node.crictl(&["rmi", KEPT]).await.unwrap();
    holds_digest(node, KEPT, then).await;
    let object = line
        .until("keep", "different on its nodes", |object| {
            entry(object).contents == 2
        })
        .await;
    assert_eq!(entry(&object).drifted_nodes, 1);
    assert_eq!(digest_on(line.cluster.node(2), KEPT).await, first);
}

/// The cache goes on answering with what it found first.
async fn frozen(line: &Line, first: &str, then: &str) {
    refresh(line, "freeze").await;
    let object = line
        .until("freeze", "told what is upstream", |object| {
            entry(object).upstream_digest.as_deref() == Some(then)
        })
        .await;
    assert_eq!(entry(&object).digest.as_deref(), Some(first));
    assert!(!drifts(&object), "{object:?}");
    for node in [1, 2] {
        let node = line.cluster.node(node);
        node.crictl(&["rmi", FROZEN]).await.unwrap();
        holds_digest(node, FROZEN, first).await;
    }
    line.until_ready("freeze", "Warm").await;
}

/// By annotation, and waits until it is handled.
async fn refresh(line: &Line, name: &str) {
    let ask = ["annotate", "imagecache", name, "coral.dev/refresh=one"];
    line.kubectl(&ask).await.unwrap();
    line.until(name, "asked to refresh", |object| {
        let handled = object.status.as_ref();
        handled.is_some_and(|status| status.last_handled_refresh.as_deref() == Some("one"))
    })
    .await;
}

fn entry(object: &ImageCache) -> &Entry {
    &object.status.as_ref().unwrap().entries[0]
}

fn drifts(object: &ImageCache) -> bool {
    let mut conditions = object.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.type_ == "Drifted" && condition.status == "True")
}
