//! The roles: what the operator and the hooks do, done with their own tokens.

use std::time::Duration;

use coral_operator::image_cache::apply as objects;
use coral_operator::labels::FIELD_MANAGER;
use coral_operator::lease::{Candidate, Times};
use coral_operator::node_cache::apply as nodes;
use coral_operator::node_cache::wishes::ObjectKey;
use coral_operator::{crds, events, uninstall};
use coral_schema::crd::{ImageCache, ImageCacheStatus, NodeCacheSpec, Reason};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::config::{AuthInfo, Config};
use kube::{Api, Client};
use serde_json::json;

use super::{NAMESPACE, find, installed, installed_with, list, plane};
use crate::cluster::control_plane::ControlPlane;
use crate::harness::eventually;
use crate::operator::client;

/// A client with this token and nothing else.
pub(super) fn client_of(plane: &ControlPlane, token: &str) -> Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut config = Config::new(plane.server().parse().unwrap());
    let authority = std::fs::read(plane.ca()).unwrap();
    let authority = rustls::pki_types::pem::PemObject::from_pem_slice(&authority).unwrap();
    let authority: rustls::pki_types::CertificateDer<'_> = authority;
    config.root_cert = Some(vec![authority.to_vec()]);
    config.auth_info = AuthInfo {
        token: Some(token.trim().to_owned().into()),
        ..AuthInfo::default()
    };
    Client::try_from(config).unwrap()
}

async fn account(plane: &ControlPlane, name: &str) -> Client {
    let create = ["create", "token", name, "-n", NAMESPACE];
    client_of(plane, &plane.kubectl(&create).await.unwrap())
}

#[tokio::test]
async fn the_operators_role_is_enough_for_what_it_does() {
    let plane = installed().await;
    let operator = account(&plane, "coral-operator").await;
    // Roles count a moment after they were written.
    eventually("the roles", Duration::from_mins(1), async || {
        crds::check(&operator).await.ok()
    })
    .await;
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } });
    plane.apply(&node.to_string()).await.unwrap();
    let object = json!({
        "apiVersion": "coral.dev/v1alpha1", "kind": "ImageCache",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "sets": [{ "name": "all", "images": ["nginx"] }] },
    });
    plane.apply(&object.to_string()).await.unwrap();

    let caches: Api<ImageCache> = Api::namespaced(operator.clone(), "default");
    let object = caches.get("web").await.unwrap();
    let object = objects::finalizer(&operator, &object, true).await.unwrap();
    let key = ObjectKey {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
    };
    let status = ImageCacheStatus::default();
    objects::status(&operator, &key, &status).await.unwrap();
    let happening = events::Happening {
        reason: Reason::Warm,
        note: "It is warm".to_owned(),
    };
    events::publish(&operator, &object, &happening, "test")
        .await
        .unwrap();
    let spec: NodeCacheSpec = serde_json::from_value(json!({ "nodeUID": "u" })).unwrap();
    nodes::apply(&operator, "n1", spec.clone()).await.unwrap();
    nodes::apply(&operator, "n1", spec).await.unwrap();
    nodes::images_of_pods(&operator, "n1").await.unwrap();
    nodes::delete(&operator, "n1", None).await.unwrap();

    let leases = Api::namespaced(operator.clone(), NAMESPACE);
    let candidate = Candidate::new(leases, "test".to_owned(), Times::default());
    let told = uninstall::uninstall(&operator, &candidate).await.unwrap();
    assert!(told[0].contains("1 ImageCaches freed"), "{told:?}");
    assert_may(&plane, "coral-operator").await;
}

#[tokio::test]
async fn l29_the_operator_fills_one_secret_for_nodes_and_reads_none() {
    let plane = installed_with("warmer: { pullSecrets: true }").await;
    let operator = account(&plane, "coral-operator").await;
    let secrets: Api<Secret> = Api::namespaced(operator.clone(), NAMESPACE);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let fill = async |name: &str| {
        let patch = Patch::Apply(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "data": { "ml.a": "W10=" },
        }));
        secrets.patch(name, &params, &patch).await
    };
    eventually("the roles", Duration::from_mins(1), async || {
        fill("coral-node-pull-secrets").await.ok()
    })
    .await;
    assert!(fill("another").await.is_err());
    let warmer = account(&plane, "coral-warmer").await;
    for client in [operator.clone(), warmer] {
        let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
        assert!(secrets.get("coral-node-pull-secrets").await.is_err());
    }
    assert_may(&plane, "coral-operator").await;
}

/// What its watches ask, and what nobody needs.
async fn assert_may(plane: &ControlPlane, account: &str) {
    let who = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
    for (may, verb, what) in [
        (true, "watch", "nodes"),
        (true, "watch", "imagecaches.coral.dev"),
        (true, "watch", "nodecaches.coral.dev"),
        (true, "watch", "services/coral-registry"),
        (false, "watch", "services"),
        (false, "get", "secrets"),
        (false, "list", "secrets"),
        (false, "patch", "nodes"),
        (false, "delete", "pods"),
        (false, "create", "pods"),
        (false, "delete", "imagecaches.coral.dev"),
        (false, "patch", "nodecaches.coral.dev --subresource=status"),
        (false, "patch", "customresourcedefinitions"),
        (false, "update", "leases"),
        (true, "update", "leases/coral-operator"),
    ] {
        let mut ask = vec!["auth", "can-i", verb, "-n", NAMESPACE, &who];
        ask.extend(what.split(' '));
        let answer = plane.kubectl(&ask).await;
        assert_eq!(answer.is_ok(), may, "{verb} {what}: {answer:?}");
    }
}

#[tokio::test]
async fn the_upgrade_hook_may_write_definitions_and_nothing_else() {
    let plane = plane().await;
    let rendered = super::objects("").await;
    let name = "coral-apply-crds";
    let hook = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding"];
    let hook: Vec<_> = hook.map(|kind| find(&rendered, kind, name).clone()).into();
    for object in &hook {
        let annotations = &object["metadata"]["annotations"];
        assert_eq!(annotations["helm.sh/hook"], "pre-install,pre-upgrade");
        let gone = annotations["helm.sh/hook-delete-policy"].as_str().unwrap();
        assert!(gone.contains("hook-succeeded"));
    }
    plane.apply(&list(&hook)).await.unwrap();
    let writer = account(&plane, name).await;
    eventually("the roles", Duration::from_mins(1), async || {
        crds::check(&writer).await.ok()
    })
    .await;
    // Both: what is there is changed, what is not there is made.
    crds::apply(&writer).await.unwrap();
    let delete = ["delete", "crd", "imagecaches.coral.dev"];
    plane.kubectl(&delete).await.unwrap();
    crds::apply(&writer).await.unwrap();
    let everything = client(plane.kubeconfig()).await;
    assert_eq!(crds::check(&everything).await.unwrap(), [""; 0]);

    let who = format!("--as=system:serviceaccount:{NAMESPACE}:{name}");
    for (verb, what) in [
        ("patch", "customresourcedefinitions/others.example.com"),
        ("create", "customresourcedefinitions"),
        ("delete", "customresourcedefinitions/imagecaches.coral.dev"),
        ("get", "secrets"),
    ] {
        let ask = ["auth", "can-i", verb, what, &who];
        let answer = plane.kubectl(&ask).await;
        assert!(answer.is_err(), "{verb} {what}: {answer:?}");
    }
}
