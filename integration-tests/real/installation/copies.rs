//! A registry that the cache does not serve: where the administrator allows it, nodes have the logins for its images.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coral_schema::crd::pull_secret_key;
use serde_json::{Value, json};

use super::secrets::{FIRST, SECOND, USER, is_ready, no_login_is_on_a_node};
use super::{Installation, everywhere, values};
use crate::chart::NAMESPACE;
use crate::harness::eventually;
use crate::line::WARM;

/// No upstream of the cache: only nodes know it.
const REGISTRY: &str = "registry.example.test:8443";

#[tokio::test]
async fn l29_l31_nodes_have_the_logins_for_what_the_cache_does_not_serve_as_long_as_they_are_needed()
 {
    let mut values = values();
    values["pullSecretNamespaces"] = json!(["default"]);
    values["warmer"]["pullSecrets"] = true.into();
    let installation = Installation::start(&values).await;
    let cluster = &installation.cluster;
    let accounts = FIRST.counts(cluster.plane().folder());
    let upstream = cluster.guarded(&accounts).await;
    installation.apply(&FIRST.secret_for(REGISTRY)).await;

    let own = cluster.push_layers("team/own", &[100_000]).await;
    wish(&installation, "own", "team/own").await;
    is_ready(&installation, "own").await;
    let (digest, size) = own.largest();
    let fetches = upstream.fetches(digest);
    assert_eq!(
        fetches,
        vec![(200, *size); cluster.nodes()],
        "each node for itself"
    );
    let logins = copied(&installation, "own").await.unwrap();
    let repository = format!("{REGISTRY}/team/own");
    let login = json!({ "repository": repository, "username": USER, "password": FIRST.password });
    assert_eq!(logins, json!([login]));
    no_login_is_on_a_node(&installation);

    SECOND.counts(cluster.plane().folder());
    installation.apply(&SECOND.secret_for(REGISTRY)).await;
    cluster.push_layers("team/next", &[100_000]).await;
    wish(&installation, "next", "team/next").await;
    is_ready(&installation, "next").await;

    for object in ["own", "next"] {
        let delete = ["delete", "imagecache", object];
        installation.kubectl(&delete).await.unwrap();
        eventually("no login that nobody needs", WARM, async || {
            copied(&installation, object).await.is_none().then_some(())
        })
        .await;
    }
}

/// Wants an image everywhere, and names the team's Secret.
async fn wish(installation: &Installation, name: &str, repository: &str) {
    let mut object: Value =
        serde_json::from_str(&everywhere(name, &format!("{REGISTRY}/{repository}:1"))).unwrap();
    object["spec"]["imagePullSecrets"] = json!([{ "name": "login" }]);
    installation.apply(&object.to_string()).await;
}

/// What the operator copied for an object.
async fn copied(installation: &Installation, object: &str) -> Option<Value> {
    let get = [
        "get",
        "secret",
        "coral-node-pull-secrets",
        "-n",
        NAMESPACE,
        "-o",
        "json",
    ];
    let secret = installation.kubectl(&get).await.unwrap();
    let secret: Value = serde_json::from_str(&secret).unwrap();
    let logins = secret["data"][pull_secret_key("default", object)].as_str()?;
    let logins = BASE64_STANDARD.decode(logins).unwrap();
    Some(serde_json::from_slice(&logins).unwrap())
}
