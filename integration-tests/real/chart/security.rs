//! Pod Security: everything at level restricted but the warmer, whose exceptions stand here.

use serde_json::{Value, json};

use super::{NAMESPACE, objects};
use crate::cluster::control_plane::ControlPlane;
use crate::harness;

/// Every pod that the chart makes, by its component.
fn pods(objects: &[Value]) -> Vec<(String, Value)> {
    let mut pods = Vec::new();
    for object in objects {
        let kind = object["kind"].as_str().unwrap();
        let (labels, spec) = match kind {
            "Pod" => (&object["metadata"]["labels"], &object["spec"]),
            "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => {
                let template = &object["spec"]["template"];
                (&template["metadata"]["labels"], &template["spec"])
            }
            _ => continue,
        };
        let component = labels["app.kubernetes.io/component"].as_str().unwrap();
        let mut spec = spec.clone();
        if kind == "StatefulSet" {
            // As its controller adds it.
            let volume =
                json!({ "name": "data", "persistentVolumeClaim": { "claimName": "data" } });
            spec["volumes"].as_array_mut().unwrap().push(volume);
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": { "name": component, "labels": labels },
        });
        pods.push((component.to_owned(), pod));
    }
    pods
}

/// A namespace of this level, with the accounts that the pods name.
async fn namespace(plane: &ControlPlane, level: &str) {
    plane
        .kubectl(&["create", "namespace", level])
        .await
        .unwrap();
    let label = format!("pod-security.kubernetes.io/enforce={level}");
    let label = ["label", "namespace", level, &label];
    plane.kubectl(&label).await.unwrap();
    for account in ["registry", "operator", "warmer", "apply-crds"] {
        let account = format!("coral-{account}");
        let create = ["create", "serviceaccount", &account, "-n", level];
        plane.kubectl(&create).await.unwrap();
    }
}

async fn admitted(plane: &ControlPlane, namespace: &str, pod: &Value) -> Result<String, String> {
    let scratch = harness::scratch();
    let file = harness::write(scratch.path(), "pod.json", &pod.to_string());
    let file = file.to_string_lossy();
    let create = ["create", "--dry-run=server", "-n", namespace, "-f", &file];
    plane.kubectl(&create).await
}

#[tokio::test]
async fn everything_but_the_warmer_runs_restricted() {
    let plane = ControlPlane::start().await;
    for level in ["restricted", "baseline", "privileged"] {
        namespace(&plane, level).await;
    }
    let pods = pods(&objects("").await);
    let names: Vec<&str> = pods.iter().map(|(name, _)| name.as_str()).collect();
    for expected in [
        "registry",
        "operator",
        "warmer",
        "apply-crds",
        "uninstall",
        "test",
    ] {
        assert!(names.contains(&expected), "{names:?}");
    }
    for (component, pod) in &pods {
        let tried = admitted(&plane, "restricted", pod).await;
        if component != "warmer" {
            tried.unwrap_or_else(|told| panic!("{component}: {told}"));
            continue;
        }
        // These, and no others.
        let told = tried.unwrap_err();
        let (_, violations) = told.split_once("violates PodSecurity").unwrap();
        let (_, violations) = violations.split_once(": ").unwrap();
        assert_eq!(
            violations.trim(),
            "restricted volume types (volumes \"cri-socket\", \"state\", \"mirror-config\" use restricted volume type \
             \"hostPath\"), runAsNonRoot != true (pod or container \"warmer\" must set \
             securityContext.runAsNonRoot=true), runAsUser=0 (pod must not set runAsUser=0)"
        );
        let told = admitted(&plane, "baseline", pod).await.unwrap_err();
        assert!(
            told.trim().ends_with(
                "hostPath volumes (volumes \"cri-socket\", \"state\", \"mirror-config\")"
            ),
            "{told}"
        );
        admitted(&plane, "privileged", pod).await.unwrap();
    }
}

#[tokio::test]
async fn every_container_has_a_read_only_root_and_no_capabilities() {
    for (component, pod) in pods(&objects("").await) {
        let spec = &pod["spec"];
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        assert_eq!(spec["enableServiceLinks"], false, "{component}");
        for host in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
            assert_eq!(spec[host], Value::Null, "{component}");
        }
        let containers = spec["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 1, "{component}");
        let locked = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        });
        assert_eq!(containers[0]["securityContext"], locked, "{component}");
    }
}

#[tokio::test]
async fn the_warmer_sees_three_things_of_its_node() {
    let objects = objects("").await;
    let warmer = super::find(&objects, "DaemonSet", "coral-warmer");
    let spec = &warmer["spec"]["template"]["spec"];
    let expected = json!([
        { "name": "cri-socket", "hostPath": { "path": "/run/containerd/containerd.sock", "type": "Socket" } },
        { "name": "state", "hostPath": { "path": "/var/lib/coral-warmer", "type": "DirectoryOrCreate" } },
        { "name": "mirror-config", "hostPath": { "path": "/etc/containerd/certs.d", "type": "DirectoryOrCreate" } },
    ]);
    assert_eq!(spec["volumes"], expected);
    let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
    assert_eq!(mounts.len(), 3);
    assert_eq!(spec["tolerations"], json!([{ "operator": "Exists" }]));
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    let quota = super::find(&objects, "ResourceQuota", "coral-warmer");
    assert_eq!(quota["metadata"]["namespace"], NAMESPACE);
}
