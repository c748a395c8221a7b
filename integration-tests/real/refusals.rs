//! What people read when something is wrong: in their client, and at the start of our registry.

use std::net::TcpListener;
use std::process::Command;

use serde_json::Value;

use crate::clients::{Crane, Skopeo};
use crate::coral::{self, Config, Coral, UPSTREAM};
use crate::harness::{self, Outcome};
use crate::upstream::Upstream;

#[tokio::test]
async fn an_unknown_registry_is_named() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    assert_explained(
        &coral,
        "registry.unknown/team/small",
        "1",
        &["NAME_UNKNOWN", "registry.unknown"],
    )
    .await;
}

#[tokio::test]
async fn an_unknown_tag_is_named() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    assert_explained(
        &coral,
        &format!("{UPSTREAM}/team/small"),
        "no-such-tag",
        &["MANIFEST_UNKNOWN"],
    )
    .await;
}

#[tokio::test]
async fn a_missing_ca_is_explained() {
    let (upstream, _) = Upstream::with_tls().await;
    let coral = Coral::start(Config::new(UPSTREAM, &upstream.configured(""))).await;
    assert_explained(
        &coral,
        &format!("{UPSTREAM}/team/small"),
        "1",
        &["certificate"],
    )
    .await;
}

#[tokio::test]
async fn a_wrong_credential_is_explained_and_not_shown() {
    let upstream = Upstream::with_tokens().await;
    let folder = harness::scratch();
    let password = harness::write(folder.path(), "password", "not-the-password");
    let credentials = format!(
        "visibility: shared, credentials: [{{ prefix: \"\", username: coral, passwordFile: {} }}],",
        password.display()
    );
    let coral = Coral::start(Config::new(UPSTREAM, &upstream.configured(&credentials))).await;
    assert_explained(
        &coral,
        &format!("{UPSTREAM}/private/small"),
        "1",
        &["DENIED", "credential"],
    )
    .await;
    assert!(!coral.log().contains("not-the-password"));
}

#[tokio::test]
async fn malformed_names_are_refused_with_the_envelope_of_the_specification() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    let long = "x".repeat(300);
    for (path, code) in [
        (format!("{UPSTREAM}/Team/Small/manifests/1"), "NAME_INVALID"),
        (
            format!("{UPSTREAM}/team//small/manifests/1"),
            "NAME_INVALID",
        ),
        (
            format!("{UPSTREAM}/team/small/blobs/sha256:short"),
            "DIGEST_INVALID",
        ),
        (
            format!("{UPSTREAM}/team/{long}/manifests/1"),
            "NAME_INVALID",
        ),
    ] {
        let answer = coral.get(&path).await;
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert!(status == 400 || status == 404, "{path}: {status}");
        assert_eq!(body["errors"][0]["code"], code, "{path}: {body}");
        assert!(
            body["errors"][0]["message"]
                .as_str()
                .is_some_and(|message| message.len() > 10),
            "{path}: {body}"
        );
    }
    assert_eq!(
        upstream.requests(),
        0,
        "the upstream was asked for a malformed name"
    );
    assert_eq!(coral.stored_blobs(), []);
}

#[tokio::test]
async fn check_config_reports_every_mistake_with_its_place() {
    let folder = harness::scratch();
    let good = harness::write(
        folder.path(),
        "good.yaml",
        "listen: 127.0.0.1:5000\ndefaultUpstream: docker.io\n",
    );
    assert!(
        registry(&["check-config", good.to_str().unwrap()])
            .await
            .success
    );

    let wrong = "listne: 127.0.0.1:5000\nupstreams:\n  docker.io:\n    staleIfErorr: 1h\n    limits: { concurrentTransfers: many }\n";
    let wrong = harness::write(folder.path(), "wrong.yaml", wrong);
    let outcome = registry(&["check-config", wrong.to_str().unwrap()]).await;
    assert!(!outcome.success);
    let text = outcome.stdout + &outcome.stderr;
    for (key, place) in [
        ("listne", "1:1"),
        ("staleIfErorr", "4:5"),
        ("concurrentTransfers", "5:"),
    ] {
        assert!(
            text.contains(key) && text.contains(place),
            "{key} at {place} is not in:\n{text}"
        );
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = harness::scratch();
    let data = folder.path().join("data");
    let admin = format!("127.0.0.1:{}", harness::free_port());
    let outcome = registry(&[
        "--listen",
        &address,
        "--admin-listen",
        &admin,
        "--data",
        data.to_str().unwrap(),
    ])
    .await;
    assert!(!outcome.success);
    assert!((outcome.stdout + &outcome.stderr).contains(&address));
}

#[tokio::test]
async fn a_data_folder_that_is_a_file_is_named() {
    let folder = harness::scratch();
    let file = harness::write(folder.path(), "data", "not a folder");
    let file = file.to_str().unwrap();
    let ports =
        [harness::free_port(), harness::free_port()].map(|port| format!("127.0.0.1:{port}"));
    let outcome = registry(&[
        "--listen",
        &ports[0],
        "--admin-listen",
        &ports[1],
        "--data",
        file,
    ])
    .await;
    assert!(!outcome.success);
    assert!((outcome.stdout + &outcome.stderr).contains(file));
}

/// Asks for a manifest that cannot be had: our sentence says why, and clients show it.
async fn assert_explained(coral: &Coral, repository: &str, tag: &str, words: &[&str]) {
    let answer = coral.get(&format!("{repository}/manifests/{tag}")).await;
    let status = answer.status();
    assert!(!status.is_success());
    let body: Value = answer.json().await.unwrap();
    let error = &body["errors"][0];
    let sentence = error["message"].as_str().unwrap_or_default();
    for word in words {
        assert!(
            error
                .to_string()
                .to_lowercase()
                .contains(&word.to_lowercase()),
            "no {word} in {body}"
        );
    }
    assert!(sentence.contains(' '), "not a sentence: {body}");

    let reference = format!("{repository}:{tag}");
    // Of a status above 499 skopeo shows the number and never the body.
    if !status.is_server_error() {
        let (_target, skopeo) = Skopeo::of(coral).copy(&reference).await;
        assert_shown("skopeo", skopeo, sentence);
    }
    let (_target, crane) = Crane(coral).copy(&reference).await;
    assert_shown("crane", crane, sentence);
}

fn assert_shown(client: &str, outcome: Outcome, sentence: &str) {
    let printed = outcome.result().unwrap_err();
    // skopeo prints its error as a quoted string in a log line.
    let plain = printed.replace('\\', "");
    assert!(
        plain.contains(sentence),
        "{client} does not show {sentence:?} but:\n{printed}"
    );
}

/// Runs our program to its end.
async fn registry(arguments: &[&str]) -> Outcome {
    let mut command = Command::new(coral::program());
    command.args(arguments);
    harness::run(command).await
}
