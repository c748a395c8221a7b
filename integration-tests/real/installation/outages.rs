//! What fails, and what Coral makes of it without anybody's help.

use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;

use super::{Installation, everywhere, values};
use crate::chart::NAMESPACE;
use crate::harness::{self, eventually};
use crate::line::{self, WARM};

/// Small enough to be many seconds on the slow way, and nothing on the fast one.
const LAYERS: [usize; 20] = [64 << 10; 20];

#[tokio::test]
async fn h41_outages_of_every_part_end_by_themselves() {
    let mut installation = Installation::start(&values()).await;
    every_node_is_warmed(&installation, "team/before").await;
    installation.mirrored().await;

    a_killed_registry_costs_a_running_pull_little(&installation).await;

    // The socket that the warmer has mounted is dead from now on.
    installation.cluster.node_mut(2).restart_containerd().await;
    every_node_is_warmed(&installation, "after/restart").await;

    let node = installation.cluster.node_mut(3);
    node.power_off();
    node.power_on().await;
    installation
        .cluster
        .becomes("node/node3", "condition=Ready")
        .await;
    every_node_is_warmed(&installation, "after/power-cut").await;

    everything_of_ours_is_lost(&installation).await;
    installation.rolled_out().await;
    installation.mirrored().await;
    every_node_is_warmed(&installation, "after/loss").await;
    let cold = installation.cluster.push("team/cold", 1, 1_500_000).await;
    for node in ["node2", "node3"] {
        let image = "registry.example.test/team/cold:1";
        let place = format!("nodeName: {node}");
        installation
            .apply(&line::pod(node, image, &place, "IfNotPresent"))
            .await;
        installation
            .cluster
            .becomes(&format!("pod/{node}"), "condition=Ready")
            .await;
    }
    let (digest, size) = cold.largest();
    assert_eq!(
        installation.cluster.upstream().fetches(digest),
        [(200, *size)]
    );
}

/// The runtime goes on at the upstream.
async fn a_killed_registry_costs_a_running_pull_little(installation: &Installation) {
    let cluster = &installation.cluster;
    let node = cluster.node(3);
    cluster.push_layers("team/direct", &LAYERS).await;
    let slow = cluster.push_layers("team/slow", &LAYERS).await;
    let begun = Instant::now();
    node.crictl(&["pull", "registry.example.test/team/direct:1"])
        .await
        .unwrap();
    let whole = begun.elapsed();

    let kill = async {
        eventually("a part of the image", WARM, async || {
            let fetched = |(digest, _): &&_| !cluster.upstream().fetches(digest).is_empty();
            (slow.blobs.iter().filter(fetched).count() >= 4).then_some(())
        })
        .await;
        let mut kill = Command::new("pkill");
        kill.args(["--signal", "KILL", "--exact", "coral-registry"]);
        harness::run(cluster.node(1).enter(&kill))
            .await
            .result()
            .unwrap();
        Instant::now()
    };
    let pull = ["pull", "slow.example.test/team/slow:1"];
    let (pulled, killed) = tokio::join!(async { (node.crictl(&pull).await, Instant::now()) }, kill);
    let (told, ended) = pulled;
    told.unwrap();
    assert!(killed < ended, "the registry was killed too late");
    let added = (ended - killed).saturating_sub(whole);
    assert!(
        added < Duration::from_secs(5),
        "{added:?} more than the {whole:?} of a whole image"
    );
}

/// Every node gets another image, so every warmer is at work.
async fn every_node_is_warmed(installation: &Installation, name: &'static str) {
    let cluster = &installation.cluster;
    cluster.push(name, 1, 1000).await;
    let object = name.replace('/', "-");
    let wish = everywhere(&object, &format!("registry.example.test/{name}:1"));
    installation.apply(&wish).await;
    let object = format!("imagecache/{object}");
    cluster.becomes(&object, "condition=Ready").await;
}

async fn everything_of_ours_is_lost(installation: &Installation) {
    for number in 1..=installation.cluster.nodes() {
        let node = installation.cluster.node(number);
        let all = node.crictl(&["images"]).await.unwrap();
        let ours: Vec<_> = all
            .lines()
            .filter(|line| line.contains("/coral/coral-"))
            .filter_map(|line| line.split_whitespace().nth(2))
            .collect();
        assert!(!ours.is_empty(), "{all}");
        node.crictl(&[&["rmi"], &ours[..]].concat()).await.unwrap();
    }
    let delete = ["delete", "pods", "-n", NAMESPACE, "--all", "--wait=false"];
    installation.kubectl(&delete).await.unwrap();
}
