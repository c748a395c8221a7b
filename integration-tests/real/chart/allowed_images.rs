//! The policy of what `ImageCache`s of a namespace may list, as a real API server reads it.

use std::time::Duration;

use coral_schema::crd::ImageCache;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use serde_json::{Value, json};

use super::{NAMESPACE, installed_with};
use crate::cluster::control_plane::ControlPlane;
use crate::harness::eventually;
use crate::operator::client;

const VALUES: &str = "
allowedImages:
  namespaces:
    ml: [ghcr.io/ml/, docker.io/library/, 'registry.example.com:5000/']
    sandbox: []
  others: [docker.io/]
";

fn object(name: &str, images: &[String]) -> Value {
    let sets = images.chunks(200).enumerate();
    let sets =
        sets.map(|(number, images)| json!({ "name": format!("s{number}"), "images": images }));
    json!({
        "apiVersion": "coral.dev/v1alpha1", "kind": "ImageCache",
        "metadata": { "name": name }, "spec": { "sets": sets.collect::<Vec<_>>() },
    })
}

fn caches(client: &kube::Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(
        client.clone(),
        namespace,
        &ApiResource::erase::<ImageCache>(&()),
    )
}

/// Tries an object without storing it.
async fn judge(client: &kube::Client, namespace: &str, images: &[String]) -> Result<(), String> {
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let object = serde_json::from_value(object("tried", images)).unwrap();
    let answer = caches(client, namespace).create(&dry_run, &object).await;
    answer.map(drop).map_err(|error| error.to_string())
}

/// An API server with the chart's objects and these namespaces; the policy counts.
async fn plane() -> (ControlPlane, kube::Client) {
    let plane = installed_with(VALUES).await;
    for namespace in ["ml", "sandbox", "web"] {
        plane
            .kubectl(&["create", "namespace", namespace])
            .await
            .unwrap();
    }
    let client = client(plane.kubeconfig()).await;
    // A policy counts a moment after it was written.
    eventually("the policy", Duration::from_mins(1), async || {
        judge(&client, "sandbox", &["nginx".to_owned()]).await.err()
    })
    .await;
    (plane, client)
}

#[tokio::test]
async fn a_namespace_lists_only_what_it_may() {
    let (_plane, client) = plane().await;
    let mut wrong = Vec::new();
    for (namespace, image, allowed) in [
        ("ml", "ghcr.io/ml/server:2.4", true),
        ("ml", "GHCR.io/ml/server", true),
        ("ml", "ghcr.io/other/server", false),
        ("ml", "ghcr.io/mlx/server", false),
        ("ml", "nginx", true),
        ("ml", "nginx:1.27", true),
        ("ml", "docker.io/nginx:1.27", true),
        ("ml", "index.docker.io/library/nginx", true),
        ("ml", "team/nginx", false),
        ("ml", "docker.io/team/nginx", false),
        // Not the host that its end looks like.
        ("ml", "team/ghcr.io/ml/server", false),
        ("ml", "localhost/ml/server", false),
        ("ml", "registry.example.com:5000/any/app", true),
        ("ml", "registry.example.com/any/app", false),
        ("sandbox", "nginx", false),
        ("web", "nginx", true),
        ("web", "team/nginx", true),
        ("web", "quay.io/team/nginx", false),
    ] {
        let judged = judge(&client, namespace, &[image.to_owned()]).await;
        if judged.is_ok() != allowed {
            wrong.push(format!("{namespace}: {image}: {judged:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let told = judge(&client, "ml", &["nginx".to_owned(), "team/a".to_owned()]).await;
    let told = told.unwrap_err();
    assert!(told.contains("may not list docker.io/team/a"), "{told}");
    assert!(told.contains("ghcr.io/ml/, docker.io/library/"), "{told}");
    let told = judge(&client, "sandbox", &["nginx".to_owned()]).await;
    assert!(told.unwrap_err().contains("starts with nothing"));
}

/// Less is allowed by now: the object can still lose its finalizer, and list less.
#[tokio::test]
async fn what_is_there_stays_until_its_sets_change() {
    let (plane, client) = plane().await;
    let caches = caches(&client, "web");
    let images = ["nginx".to_owned(), "team/a".to_owned()];
    let mut held = object("held", &images);
    held["metadata"]["finalizers"] = json!(["coral.dev/purge"]);
    let held = serde_json::from_value(held).unwrap();
    caches.create(&PostParams::default(), &held).await.unwrap();
    let less = json!({ "data": { "_others": "docker.io/library/" } }).to_string();
    let patch = [
        "patch",
        "configmap",
        "coral-allowed-images",
        "-n",
        NAMESPACE,
    ];
    let patch = [&patch[..], &["--type=merge", "-p", &less]].concat();
    plane.kubectl(&patch).await.unwrap();
    eventually("the change", Duration::from_mins(1), async || {
        judge(&client, "web", &images).await.err()
    })
    .await;

    let change = async |patch: Value| {
        let params = PatchParams::default();
        caches.patch("held", &params, &Patch::Merge(patch)).await
    };
    change(json!({ "spec": { "suspend": true } }))
        .await
        .unwrap();
    change(json!({ "metadata": { "finalizers": null } }))
        .await
        .unwrap();
    let sets =
        |images: &[String]| json!({ "spec": { "sets": object("", images)["spec"]["sets"] } });
    let more = [&images[..], &["alpine".to_owned()]].concat();
    change(sets(&more)).await.unwrap_err();
    change(sets(&images[..1])).await.unwrap();
}

/// As many images as an object takes, as long as they get, against as many prefixes as there may be: the API server gives
/// up on rules that cost too much.
#[tokio::test]
async fn the_largest_object_is_not_too_expensive() {
    let prefix = |number: usize| format!("registry.example.com/{}{number:02}/", "team".repeat(50));
    let prefixes: Vec<String> = (0..16).map(prefix).collect();
    let values = json!({ "allowedImages": { "namespaces": { "default": prefixes } } });
    let plane = installed_with(&values.to_string()).await;
    let client = client(plane.kubeconfig()).await;
    eventually("the policy", Duration::from_mins(1), async || {
        judge(&client, "default", &["nginx".to_owned()]).await.err()
    })
    .await;
    let long = |number: usize| {
        let start = format!("{}app{number:03}/", prefix(15));
        format!("{start}{}", "x".repeat(500 - start.len()))
    };
    let images: Vec<String> = (0..256).map(long).collect();
    judge(&client, "default", &images).await.unwrap();
}
