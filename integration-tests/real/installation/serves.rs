//! From `helm install` to `helm uninstall`.

use std::process::Command;

use serde_json::{Value, json};

use super::{CERTIFICATE, Installation, everywhere, values};
use crate::chart::NAMESPACE;
use crate::harness;
use crate::line;
use crate::scratch;

#[tokio::test]
async fn l29_nodes_pull_through_what_the_chart_installed_and_are_left_as_they_were() {
    let mut values = values();
    values["registry"]["tls"] = json!({ "secret": CERTIFICATE });
    let installation = Installation::start(&values).await;
    let cluster = &installation.cluster;
    let told = installation.helm("test", &[]).await;
    installation.succeeds(told).await;

    let warm = cluster.push("team/warm", 1, 1_500_000).await;
    let cold = cluster.push("team/cold", 1, 1_200_000).await;
    let wish = everywhere("first", "registry.example.test/team/warm:1");
    installation.apply(&wish).await;
    cluster.becomes("imagecache/first", "condition=Ready").await;
    for number in 1..=cluster.nodes() {
        let place = format!("nodeName: {}", cluster.node(number).name());
        for name in ["warm", "cold"] {
            let image = format!("registry.example.test/team/{name}:1");
            let pod = format!("{name}-{number}");
            installation
                .apply(&line::pod(&pod, &image, &place, "IfNotPresent"))
                .await;
            cluster
                .becomes(&format!("pod/{pod}"), "condition=Ready")
                .await;
        }
    }
    for image in [&warm, &cold] {
        let (digest, size) = image.largest();
        assert_eq!(cluster.upstream().fetches(digest), [(200, *size)]);
    }

    a_warmer_writes_no_other_nodes_resource(&installation).await;
    nothing_but_the_program_is_in_its_container(&installation).await;

    installation
        .kubectl(&["delete", "pods", "--all", "--wait=true"])
        .await
        .unwrap();
    let told = installation.helm("uninstall", &["--wait"]).await;
    installation.succeeds(told).await;
    assert_eq!(installation.state().await, installation.before);
    let left = ["get", "nodecaches", "-o", "name"];
    assert_eq!(installation.kubectl(&left).await.unwrap(), "");
    let finalizers = [
        "get",
        "imagecache",
        "first",
        "-o",
        "jsonpath={.metadata.finalizers}",
    ];
    assert_eq!(installation.kubectl(&finalizers).await.unwrap(), "");
    // The data stays until it is asked for.
    let claims = [
        "get",
        "pvc",
        "-n",
        NAMESPACE,
        "-o",
        "jsonpath={.items[*].status.phase}",
    ];
    assert_eq!(installation.kubectl(&claims).await.unwrap(), "Bound");
    installation
        .kubectl(&["delete", "imagecache", "first"])
        .await
        .unwrap();
}

/// The name of the warmer's pod on a node.
async fn warmer_on(installation: &Installation, node: &str) -> String {
    let get = [
        "get",
        "pods",
        "-n",
        NAMESPACE,
        "-l",
        "app.kubernetes.io/component=warmer",
        "--field-selector",
        &format!("spec.nodeName={node}"),
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ];
    installation.kubectl(&get).await.unwrap()
}

/// With a token as the kubelet gives it to the warmer of node1 (L29).
async fn a_warmer_writes_no_other_nodes_resource(installation: &Installation) {
    let pod = warmer_on(installation, "node1").await;
    let create = [
        "create",
        "token",
        "coral-warmer",
        "-n",
        NAMESPACE,
        "--bound-object-kind=Pod",
        "--bound-object-name",
        &pod,
    ];
    let token = installation.kubectl(&create).await.unwrap();
    let plane = installation.cluster.plane();
    let scratch = harness::scratch();
    let write = async |node: &str, subresource: &[&str], part: &str, content: Value| {
        let object = json!({
            "apiVersion": "coral.dev/v1alpha1", "kind": "NodeCache",
            "metadata": { "name": node }, part: content,
        });
        let file = harness::write(scratch.path(), "object.json", &object.to_string());
        let mut kubectl = Command::new(harness::tool("CORAL_REAL_KUBECTL"));
        kubectl
            .args(["--kubeconfig=/dev/null", "--server", &plane.server()])
            .args(["--token", token.trim()])
            .arg("--certificate-authority")
            .arg(plane.ca())
            .args([
                "apply",
                "--server-side",
                "--force-conflicts",
                "--validate=false",
            ])
            .args(subresource)
            .arg("-f")
            .arg(file);
        harness::run(plane.enter(&kubectl)).await.result()
    };
    let status = ["--subresource=status"];
    let report = json!({ "observedGeneration": 1 });
    write("node1", &status, "status", report.clone())
        .await
        .unwrap();
    let refused = write("node2", &status, "status", report).await.unwrap_err();
    assert!(refused.contains("ValidatingAdmissionPolicy"), "{refused}");
    let wishes = json!({ "images": [] });
    let refused = write("node1", &[], "spec", wishes).await.unwrap_err();
    assert!(refused.contains("cannot patch"), "{refused}");
}

/// No shell, nothing to write to, no capability.
async fn nothing_but_the_program_is_in_its_container(installation: &Installation) {
    let warmer = warmer_on(installation, "node1").await;
    for pod in ["coral-registry-0", &warmer] {
        for program in ["/bin/sh", "sh"] {
            let exec = ["exec", "-n", NAMESPACE, pod, "--", program, "-c", "true"];
            let refused = installation.kubectl(&exec).await.unwrap_err();
            assert!(
                refused.contains("no such file") || refused.contains("not found"),
                "{refused}"
            );
        }
    }
    let node = installation.cluster.node(1);
    for (container, user) in [("registry", "65532"), ("warmer", "0")] {
        let process = scratch::process_of(node, container).await;
        scratch::assert_powerless(node, &process, user).await;
        let seccomp = scratch::status(node, &process, "Seccomp:").await;
        assert_eq!(seccomp, ["2"], "{container}");
    }
    let warmer = scratch::process_of(node, "warmer").await;
    scratch::assert_sees_only_its_mounts(node, &warmer).await;
}
