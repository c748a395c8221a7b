//! The pull secret of a team: lent to the registry over TLS, replaced while it is in use, and kept nowhere.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coral_schema::crd::Reason;
use serde_json::{Value, json};

use super::{CERTIFICATE, Installation, values};
use crate::chart::NAMESPACE;
use crate::cluster::namespaces::ADDRESS;
use crate::harness::{self, eventually};
use crate::line::{self, WARM};

pub(super) const USER: &str = "team-account";

/// Where the team's login is good.
const HOSTS: &str = "*.example.test";

/// Seconds at the pace of the slow upstream, and more than a connection holds back: the upstream is not done before.
const LARGE: usize = 24 << 20;

/// A password, and its line of `htpasswd`.
pub(super) struct Login {
    pub(super) password: &'static str,
    hash: &'static str,
}

pub(super) const FIRST: Login = Login {
    password: "first-password-of-the-team",
    hash: "$2b$05$abcdefghijklmnopqrstuucIHyf5QgXKjNnCBtIoPZzcwShNhADbi",
};
pub(super) const SECOND: Login = Login {
    password: "second-password-of-the-team",
    hash: "$2b$05$abcdefghijklmnopqrstuux7cJFLBEJAeX9aHFQXKyGG53fhvDm/G",
};

impl Login {
    /// From now on the upstream takes this one and no other.
    pub(super) fn counts(&self, folder: &Path) -> PathBuf {
        harness::write(folder, "accounts", &format!("{USER}:{}\n", self.hash))
    }

    /// As `docker login` writes it.
    fn auth(&self) -> String {
        BASE64_STANDARD.encode(format!("{USER}:{}", self.password))
    }

    /// The team's Secret with it, for these registries.
    pub(super) fn secret_for(&self, registries: &str) -> String {
        let config = json!({ "auths": { registries: { "auth": self.auth() } } });
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
            "metadata": { "name": "login", "namespace": "default" },
            "stringData": { ".dockerconfigjson": config.to_string() },
        })
        .to_string()
    }

    /// Would the upstream answer it?
    async fn opens(&self, installation: &Installation) -> bool {
        let url = format!("https://{USER}:{}@{ADDRESS}:8443/v2/", self.password);
        installation.cluster.get(&url).await.is_ok()
    }
}

/// Three names for the registry that asks for a login; one of them is not shared, one is slow.
fn values_with_private_upstreams() -> Value {
    let mut values = values();
    values["registry"]["tls"] = json!({ "secret": CERTIFICATE });
    values["pullSecretNamespaces"] = json!(["default"]);
    let closed = json!({
        "endpoints": [format!("https://{ADDRESS}:8443")], "tls": { "ca": "/config-maps/authority/ca.pem" },
    });
    let mut private = closed.clone();
    private["visibility"] = "shared".into();
    let mut slow = private.clone();
    slow["limits"] = json!({ "bandwidth": "2Mi" });
    let upstreams = &mut values["registry"]["upstreams"];
    upstreams["closed.example.test"] = closed;
    upstreams["private.example.test"] = private;
    upstreams["slow-private.example.test"] = slow;
    values
}

/// An `ImageCache` with the team's Secret: everything comes from the cache.
fn wish(name: &str, image: &str) -> String {
    json!({
        "apiVersion": "coral.dev/v1alpha1", "kind": "ImageCache",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "registryPolicy": "MirrorOnly", "imagePullSecrets": [{ "name": "login" }],
            "sets": [{ "name": "all", "images": [image], "nodes": {} }],
        },
    })
    .to_string()
}

#[tokio::test]
async fn l29_l31_l32_a_teams_secret_opens_what_is_shared_is_rotated_in_mid_pull_and_stays_nowhere()
{
    let installation = Installation::start(&values_with_private_upstreams()).await;
    let cluster = &installation.cluster;
    let accounts = FIRST.counts(cluster.plane().folder());
    let upstream = cluster.guarded(&accounts).await;
    let anonymous = cluster.get(&format!("{}/v2/", upstream.url())).await;
    assert!(anonymous.unwrap_err().contains("401"));
    installation.apply(&FIRST.secret_for(HOSTS)).await;

    let private = cluster.push("team/private", 1, 100_000).await;
    let image = "private.example.test/team/private:1";
    installation.apply(&wish("private", image)).await;
    is_ready(&installation, "private").await;
    let pod = line::pod("private", image, "nodeName: node2", "IfNotPresent");
    installation.apply(&pod).await;
    cluster.becomes("pod/private", "condition=Ready").await;
    let (digest, size) = private.largest();
    assert_eq!(upstream.fetches(digest), [(200, *size)]);

    what_is_not_shared_reaches_no_node(&installation).await;

    let slow = cluster.push_layers("team/slow", &[LARGE]).await;
    let image = "slow-private.example.test/team/slow:1";
    installation.apply(&wish("slow", image)).await;
    a_blob_is_on_its_way(cluster.plane().folder()).await;
    SECOND.counts(cluster.plane().folder());
    assert!(!FIRST.opens(&installation).await && SECOND.opens(&installation).await);
    let (digest, size) = slow.largest();
    assert_eq!(upstream.fetches(digest), [], "rotated too late");
    installation.apply(&SECOND.secret_for(HOSTS)).await;
    is_ready(&installation, "slow").await;
    assert_eq!(upstream.fetches(digest), [(200, *size)]);

    cluster.push("team/next", 1, 100_000).await;
    let image = "private.example.test/team/next:1";
    installation.apply(&wish("next", image)).await;
    is_ready(&installation, "next").await;

    no_login_is_anywhere(&installation).await;
}

/// Waits until an `ImageCache` is warm, and fails with what it says.
pub(super) async fn is_ready(installation: &Installation, name: &str) {
    let object = format!("imagecache/{name}");
    installation
        .cluster
        .becomes(&object, "condition=Ready")
        .await;
}

async fn what_is_not_shared_reaches_no_node(installation: &Installation) {
    let image = "closed.example.test/team/private:1";
    installation.apply(&wish("closed", image)).await;
    let reason = Reason::Unauthorized;
    let failed = format!(
        "jsonpath={{.status.failures[0].reason}}={}",
        reason.as_str()
    );
    installation
        .cluster
        .becomes("imagecache/closed", &failed)
        .await;
    let get = ["get", "imagecache", "closed", "-o", "json"];
    let object = installation.kubectl(&get).await.unwrap();
    let object: Value = serde_json::from_str(&object).unwrap();
    let message = object["status"]["failures"][0]["message"].as_str().unwrap();
    assert!(message.contains("visibility: shared"), "{message}");
    for number in 1..=installation.cluster.nodes() {
        let node = installation.cluster.node(number);
        let images = node.crictl(&["images"]).await.unwrap();
        assert!(!images.contains("closed.example.test"), "{images}");
    }
}

/// Waits until the registry has got some of a blob.
async fn a_blob_is_on_its_way(folder: &Path) {
    let data = folder.join("node1/lib/coral-registry");
    eventually("a part of a blob", WARM, async || {
        let begun = |path: &PathBuf| {
            let part = path.extension().is_some_and(|end| end == "part");
            part && path.metadata().is_ok_and(|part| part.len() > 1 << 16)
        };
        harness::files(&data).iter().any(begun).then_some(())
    })
    .await;
}

/// In no file of ours on any node.
pub(super) fn no_login_is_on_a_node(installation: &Installation) {
    let folder = installation.cluster.plane().folder();
    for number in 1..=installation.cluster.nodes() {
        let node = folder.join(format!("node{number}"));
        let state = harness::files(&node.join("lib/coral-warmer"));
        assert!(!state.is_empty(), "node{number} has no state");
        let settings = harness::files(&node.join("etc/containerd/certs.d"));
        assert!(!settings.is_empty(), "node{number} has no mirror settings");
        let stored = harness::files(&node.join("lib/coral-registry"));
        for file in [state, settings, stored].concat() {
            // The registry renames and removes files of its own.
            let content = std::fs::read(&file).unwrap_or_default();
            assert_has_no_login(&file.to_string_lossy(), &content);
        }
    }
}

/// On no node, in no object that nodes can read, and in no log.
async fn no_login_is_anywhere(installation: &Installation) {
    no_login_is_on_a_node(installation);
    for kinds in ["nodecaches,imagecaches", "events", "configmaps", "pods"] {
        let get = ["get", kinds, "--all-namespaces", "-o", "yaml"];
        let objects = installation.kubectl(&get).await.unwrap();
        assert!(objects.contains("name: "), "no {kinds}: {objects}");
        assert_has_no_login(kinds, objects.as_bytes());
    }
    for part in ["registry", "operator", "warmer"] {
        let label = format!("app.kubernetes.io/component={part}");
        let logs = ["logs", "-n", NAMESPACE, "-l", &label, "--tail=-1"];
        let logs = installation.kubectl(&logs).await.unwrap();
        assert!(!logs.is_empty(), "{part} logs nothing");
        assert_has_no_login(part, logs.as_bytes());
    }
}

fn assert_has_no_login(place: &str, content: &[u8]) {
    for login in [FIRST, SECOND] {
        let encoded = BASE64_STANDARD.encode(login.password);
        for secret in [login.password, &encoded, &login.auth()] {
            let mut windows = content.windows(secret.len());
            let found = windows.any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} stands in {place}");
        }
    }
}
