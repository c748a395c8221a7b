//! The listeners over real sockets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::Version;
use axum::routing::get;
use coral_registry::server::{Addresses, Config, Server, tls};
use coral_schema::process::tasks::Tasks;
use tokio_util::sync::CancellationToken;

fn config() -> Config {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Config {
        listen: any,
        admin_listen: any,
        tls: None,
        admin_tls: None,
        connections: 16,
        shutdown_grace: Duration::from_hours(1),
    }
}

#[tokio::test]
async fn h40_the_admin_listener_answers_until_clients_are_done() {
    let server = Server::bind(&config()).await.unwrap();
    let Addresses { oci, admin } = server.addresses();
    let (stop, finish) = (CancellationToken::new(), CancellationToken::new());
    let tasks = Tasks::new();
    let finished = finish.clone();
    let oci_router = Router::new().route("/", get(async move || finished.cancelled().await));
    let admin_router = Router::new().route("/", get(async || "alive"));
    let serving = tasks.spawn("server", {
        let (tasks, stop) = (tasks.clone(), stop.clone());
        async move { server.serve(oci_router, admin_router, &tasks, stop).await }
    });
    let client = reqwest::Client::new();
    let running = tasks.spawn("client", client.get(format!("http://{oci}/")).send());
    stop.cancel();
    let ask_admin = || client.get(format!("http://{admin}/")).send();
    let answer = ask_admin().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "alive");
    assert!(!serving.is_finished());

    finish.cancel();
    running.await.unwrap().unwrap();
    tokio::time::pause();
    assert!(serving.await.unwrap());
    assert!(ask_admin().await.is_err());
}

#[tokio::test]
async fn https_speaks_http_2_and_http_1_1() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let files = tls::Files {
        certificate: folder.path().join("tls.crt"),
        key: folder.path().join("tls.key"),
    };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let config = Config {
        tls: Some(files),
        ..config()
    };
    let server = Server::bind(&config).await.unwrap();
    assert!(server.is_tls());
    let port = server.addresses().oci.port();
    let tasks = Tasks::new();
    let owner = tasks.clone();
    tasks.spawn("server", async move {
        let router = Router::new().route("/", get(async || "hello"));
        let stop = CancellationToken::new();
        server.serve(router, Router::new(), &owner, stop).await
    });

    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let client = || reqwest::Client::builder().tls_certs_only([root.clone()]);
    let url = format!("https://localhost:{port}/");
    let two = client().build().unwrap().get(&url).send().await.unwrap();
    assert_eq!(two.version(), Version::HTTP_2);
    let one = client().http1_only().build().unwrap();
    let one = one.get(&url).send().await.unwrap();
    assert_eq!(one.version(), Version::HTTP_11);
    assert_eq!(one.text().await.unwrap(), "hello");
}
