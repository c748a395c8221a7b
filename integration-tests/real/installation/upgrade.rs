//! `helm upgrade` while nodes pull.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::{Installation, values};
use crate::chart::NAMESPACE;
use crate::cluster::node::Node;
use crate::harness::eventually;
use crate::line::WARM;

#[tokio::test]
async fn h40_an_upgrade_fails_no_pull_and_brings_the_definitions() {
    let mut values = values();
    let installation = Installation::start(&values).await;
    let cluster = &installation.cluster;
    cluster.push("team/app", 1, 1_500_000).await;
    let kept = cluster.push("team/kept", 1, 1_200_000).await;
    installation.mirrored().await;
    let pull_kept = ["pull", "registry.example.test/team/kept:1"];
    cluster.node(2).crictl(&pull_kept).await.unwrap();

    without_columns(&installation).await;
    values["log"] = json!({ "filter": "info,coral_registry=debug" });
    values["registry"]["persistence"]["whenDeleted"] = "Delete".into();
    let done = AtomicBool::new(false);
    let upgrade = async {
        let told = installation.helm_chart("upgrade", &values).await;
        let told = installation.succeeds(told).await;
        installation.rolled_out().await;
        done.store(true, Ordering::Relaxed);
        told
    };
    let (told, first, second) = tokio::join!(
        upgrade,
        pulls_until(&done, cluster.node(2)),
        pulls_until(&done, cluster.node(3)),
    );
    assert!(told.contains("REVISION: 2"), "{told}");
    for pulls in [first, second] {
        assert!(pulls.len() > 5, "{pulls:?}");
        for pull in pulls {
            pull.unwrap();
        }
    }

    has_columns(&installation).await;
    installation.mirrored().await;
    cluster.node(3).crictl(&pull_kept).await.unwrap();
    let (digest, size) = kept.largest();
    assert_eq!(
        cluster.upstream().fetches(digest),
        [(200, *size)],
        "the volume kept it"
    );

    uninstalled_with_its_volume(&installation).await;
}

/// The definitions are as if they were of a version that had no columns.
async fn without_columns(installation: &Installation) {
    let columns = "/spec/versions/0/additionalPrinterColumns";
    let older = format!("[{{ \"op\": \"remove\", \"path\": \"{columns}\" }}]");
    let patch = [
        "patch",
        "crd",
        "nodecaches.coral.dev",
        "--type=json",
        "-p",
        &older,
    ];
    installation.kubectl(&patch).await.unwrap();
}

async fn has_columns(installation: &Installation) {
    let get = [
        "get",
        "crd",
        "nodecaches.coral.dev",
        "-o",
        "jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}",
    ];
    let columns = installation.kubectl(&get).await.unwrap();
    assert!(columns.contains("Desired"), "{columns}");
}

/// Now it was asked for.
async fn uninstalled_with_its_volume(installation: &Installation) {
    let told = installation.helm("uninstall", &[]).await;
    installation.succeeds(told).await;
    eventually("the volume is given back", WARM, async || {
        let get = ["get", "pvc", "-n", NAMESPACE, "-o", "name"];
        let claims = installation.kubectl(&get).await.unwrap();
        claims.is_empty().then_some(())
    })
    .await;
}

/// Pulls an image again and again, from nothing each time.
async fn pulls_until(done: &AtomicBool, node: &Node) -> Vec<Result<(), String>> {
    let reference = "registry.example.test/team/app:1";
    let mut pulls = Vec::new();
    while !done.load(Ordering::Relaxed) {
        pulls.push(node.crictl(&["pull", reference]).await.map(drop));
        let _ = node.crictl(&["rmi", reference]).await;
    }
    pulls
}
