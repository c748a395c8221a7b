//! The admin listener with TLS and the tokens of a real API server.

use std::path::{Path, PathBuf};

use coral_operator::registry::{Config, Registry, RegistryError};

use crate::cluster::control_plane::ControlPlane;
use crate::cluster::pki::Subject;
use crate::harness::{self, Process};

const LISTED: &str = "coral-operator";
const AUDIENCE: &str = "coral-registry";

#[tokio::test]
async fn the_admin_api_asks_for_a_token_of_the_cluster() {
    let plane = ControlPlane::start().await;
    for account in [LISTED, "coral-registry", "somebody"] {
        let made = plane.kubectl(&["create", "serviceaccount", account]).await;
        made.unwrap();
    }
    let folder = harness::scratch();
    let admin = harness::free_port();
    let registry = start(&plane, folder.path(), admin).await;

    let good = token(&plane, folder.path(), LISTED, AUDIENCE).await;
    let served = api(&plane, admin, Some(&good)).registries().await.unwrap();
    assert_eq!(served[0].name, "upstream.test");

    let stranger = token(&plane, folder.path(), "somebody", AUDIENCE).await;
    assert_eq!(refusal(&api(&plane, admin, Some(&stranger))).await, 403);
    let elsewhere = token(&plane, folder.path(), LISTED, "another-service").await;
    assert_eq!(refusal(&api(&plane, admin, Some(&elsewhere))).await, 401);
    assert_eq!(refusal(&api(&plane, admin, None)).await, 401);

    let told = prefetch(&plane, admin, None).await;
    assert!(told.contains("kubectl create token"), "{told}");
    let told = prefetch(&plane, admin, Some(&good)).await;
    assert!(told.contains("upstream.test/team/app:1:"), "{told}");

    // The issuer is away: what is known of it counts on.
    let ca = harness::write(
        folder.path(),
        "ca.pem",
        &std::fs::read_to_string(plane.ca()).unwrap(),
    );
    drop(plane);
    let late = connect(&ca, admin, Some(&good)).registries().await;
    assert_eq!(late.unwrap().len(), 1);

    let token = std::fs::read_to_string(&good).unwrap();
    assert!(!registry.log().contains(token.trim()));
}

/// Our registry, whose admin listener has a certificate of the cluster's authority. Probes need no token.
async fn start(plane: &ControlPlane, folder: &Path, admin: u16) -> Process {
    let subject = Subject {
        user: "coral-registry",
        group: "",
    };
    let (certificate, key) = plane.pki().issue("admin", subject, &["127.0.0.1"]);
    let own = token(plane, folder, "coral-registry", "").await;
    let config = format!(
        "listen: 127.0.0.1:0\ndata: {folder}/data\nshutdownGrace: 1s\n\
         upstreams: {{ upstream.test: {{ plainHttp: true, endpoints: [\"http://127.0.0.1:1\"] }} }}\n\
         admin:\n  listen: 127.0.0.1:{admin}\n  tls: {{ certificate: {certificate}, key: {key} }}\n  auth:\n    \
         audience: {AUDIENCE}\n    subjects: [\"system:serviceaccount:default:{LISTED}\"]\n    \
         jwks: {server}/openid/v1/jwks\n    jwksCA: {ca}\n    jwksToken: {own}\n",
        folder = folder.display(),
        certificate = certificate.display(),
        key = key.display(),
        server = plane.server(),
        ca = plane.ca().display(),
        own = own.display(),
    );
    let config = harness::write(folder, "config.yaml", &config);
    let mut command = harness::command(crate::coral::program());
    command.arg("--config").arg(config).current_dir(folder);
    let process = Process::spawn("coral-registry", command, &folder.join("log"));
    let authority = reqwest::Certificate::from_pem(&std::fs::read(plane.ca()).unwrap());
    let client = reqwest::Client::builder().tls_certs_only([authority.unwrap()]);
    let client = client.build().unwrap();
    process
        .ready(async || {
            let probe = client.get(format!("https://127.0.0.1:{admin}/readyz"));
            let answer = probe.send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        })
        .await
}

/// A file with a token that the API server made for an account; for itself without an audience.
async fn token(plane: &ControlPlane, folder: &Path, account: &str, audience: &str) -> PathBuf {
    let audience_flag = format!("--audience={audience}");
    let mut arguments = vec!["create", "token", account];
    if !audience.is_empty() {
        arguments.push(&audience_flag);
    }
    let token = plane.kubectl(&arguments).await.unwrap();
    harness::write(folder, &format!("{account}-{audience}.token"), &token)
}

/// What the operator uses.
fn api(plane: &ControlPlane, admin: u16, token: Option<&Path>) -> Registry {
    connect(&plane.ca(), admin, token)
}

fn connect(ca: &Path, admin: u16, token: Option<&Path>) -> Registry {
    Registry::new(Config {
        admin: format!("https://127.0.0.1:{admin}").parse().unwrap(),
        token: token.map(Path::to_owned),
        ca: Some(std::fs::read(ca).unwrap()),
    })
    .unwrap()
}

async fn refusal(registry: &Registry) -> u16 {
    match registry.registries().await {
        Err(RegistryError::Denied { status, .. }) => status,
        other => panic!("not refused: {other:?}"),
    }
}

/// What the subcommand says; nothing can be fetched here.
async fn prefetch(plane: &ControlPlane, admin: u16, token: Option<&Path>) -> String {
    let mut command = harness::command(crate::coral::program());
    command
        .args(["prefetch", "upstream.test/team/app:1", "--admin"])
        .arg(format!("https://127.0.0.1:{admin}"))
        .arg("--admin-ca")
        .arg(plane.ca());
    if let Some(token) = token {
        command.arg("--admin-token-file").arg(token);
    }
    harness::run(command).await.result().unwrap_err()
}
