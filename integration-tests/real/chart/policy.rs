//! The policy that keeps each warmer to its own node, with tokens as kubelets get them (L29).

use std::time::Duration;

use coral_schema::crd::NodeCache;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::rights::client_of;
use super::{NAMESPACE, installed};
use crate::cluster::control_plane::ControlPlane;
use crate::harness::eventually;

const ACCOUNT: &str = "coral-warmer";

/// A node without a kubelet, a warmer's pod on it, and its `NodeCache`. The token of that pod.
async fn node(plane: &ControlPlane, name: &str) -> String {
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
    plane.apply(&node.to_string()).await.unwrap();
    let uid = uid(plane, "node", name).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "nodeName": name, "serviceAccountName": ACCOUNT,
            "containers": [{ "name": "warmer", "image": "warmer" }],
        },
    });
    plane.apply(&pod.to_string()).await.unwrap();
    plane.apply(&node_cache(name, &uid)).await.unwrap();
    let pod = self::uid(plane, "pod", name).await;
    let bound = [
        "create",
        "token",
        ACCOUNT,
        "-n",
        NAMESPACE,
        "--bound-object-kind=Pod",
        "--bound-object-name",
        name,
        "--bound-object-uid",
        &pod,
    ];
    plane.kubectl(&bound).await.unwrap()
}

fn node_cache(name: &str, uid: &str) -> String {
    json!({
        "apiVersion": "coral.dev/v1alpha1", "kind": "NodeCache",
        "metadata": { "name": name }, "spec": { "nodeUID": uid },
    })
    .to_string()
}

async fn uid(plane: &ControlPlane, kind: &str, name: &str) -> String {
    let get = [
        "get",
        kind,
        name,
        "-n",
        NAMESPACE,
        "-o",
        "jsonpath={.metadata.uid}",
    ];
    plane.kubectl(&get).await.unwrap()
}

/// Writes a status as a warmer does.
async fn report(client: &Client, node: &str) -> Result<(), String> {
    let status = json!({
        "apiVersion": "coral.dev/v1alpha1", "kind": "NodeCache",
        "metadata": { "name": node }, "status": { "observedGeneration": 1 },
    });
    let caches: Api<NodeCache> = Api::all(client.clone());
    let params = PatchParams::apply(coral_warmer::report::FIELD_MANAGER).force();
    let written = caches
        .patch_status(node, &params, &Patch::Apply(&status))
        .await;
    written.map(drop).map_err(|error| error.to_string())
}

async fn write_spec(client: &Client, node: &str) -> Result<(), String> {
    let caches: Api<NodeCache> = Api::all(client.clone());
    let patch = Patch::Merge(json!({ "spec": { "paused": true } }));
    let written = caches.patch(node, &PatchParams::default(), &patch).await;
    written.map(drop).map_err(|error| error.to_string())
}

fn assert_refused(answer: Result<(), String>, why: &str) {
    let told = answer.expect_err(why);
    assert!(told.contains(why), "{why:?} is not in: {told}");
}

/// The mistake that the policy is for: every right of the cluster.
async fn give_it_everything(plane: &ControlPlane, warmer: &Client) {
    let account = format!("{NAMESPACE}:{ACCOUNT}");
    let everything = [
        "create",
        "clusterrolebinding",
        "mistake",
        "--clusterrole=cluster-admin",
        "--serviceaccount",
        &account,
    ];
    plane.kubectl(&everything).await.unwrap();
    eventually("the roles", Duration::from_mins(1), async || {
        let told = write_spec(warmer, "n1").await.err()?;
        (!told.contains("is forbidden: User")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn l29_a_warmer_writes_the_status_of_its_own_node_and_nothing_else() {
    let plane = installed().await;
    let first = client_of(&plane, &node(&plane, "n1").await);
    let second = client_of(&plane, &node(&plane, "n2").await);
    // A policy counts a moment after it was written.
    eventually("the policy", Duration::from_mins(1), async || {
        report(&first, "n2").await.err()
    })
    .await;

    report(&first, "n1").await.unwrap();
    report(&second, "n2").await.unwrap();
    assert_refused(report(&first, "n2").await, "of its own node only");
    assert_refused(report(&second, "n1").await, "of its own node only");
    // Its role does not even let it try.
    assert_refused(write_spec(&first, "n1").await, "is forbidden: User");

    give_it_everything(&plane, &first).await;
    assert_refused(write_spec(&first, "n1").await, "nothing but the status");
    assert_refused(report(&first, "n2").await, "of its own node only");
    let caches: Api<NodeCache> = Api::all(first.clone());
    let deleted = caches.delete("n1", &DeleteParams::default()).await;
    let deleted = deleted.map(drop).map_err(|error| error.to_string());
    assert_refused(deleted, "nothing but the status");

    // A token that no kubelet asked for names no node.
    let loose = ["create", "token", ACCOUNT, "-n", NAMESPACE];
    let loose = client_of(&plane, &plane.kubectl(&loose).await.unwrap());
    assert_refused(report(&loose, "n1").await, "of its own node only");

    // Another node had the name before.
    plane.apply(&node_cache("n1", "another")).await.unwrap();
    assert_refused(
        report(&first, "n1").await,
        "of another node with the same name",
    );
}
