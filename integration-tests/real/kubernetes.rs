//! The cluster itself, before anything of ours is in it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::cluster::Cluster;
use crate::cluster::control_plane::ControlPlane;
use crate::cluster::node::{Node, NodeSpec};
use crate::containerd::Kind;
use crate::disk;
use crate::harness;
use crate::line::{self, SERVICE};

#[tokio::test]
async fn an_api_server_alone_takes_and_refuses_objects() {
    let plane = ControlPlane::start().await;
    let object = "{ apiVersion: v1, kind: ConfigMap, metadata: { name: one, namespace: default }, data: { a: b } }";
    plane.apply(object).await.unwrap();
    let read = ["get", "configmap", "one", "-o", "jsonpath={.data.a}"];
    assert_eq!(plane.kubectl(&read).await.unwrap(), "b");
    let refused = plane.apply(&object.replace("b }", "[] }")).await;
    let refused = refused.unwrap_err();
    assert!(refused.contains("data"), "{refused}");
}

#[tokio::test]
async fn nodes_of_both_runtimes_run_pods_survive_a_power_cut_and_leave_nothing() {
    let before = sysctls();
    let zone = "topology.kubernetes.io/zone";
    let mut cluster = Cluster::start([
        NodeSpec::new(Kind::Current).label(zone, "a"),
        NodeSpec::new(Kind::Old),
    ])
    .await;
    let image = cluster.push("team/app", 1, 100_000).await;
    for (name, place) in [
        ("new", format!("nodeSelector: {{ {zone}: a }}")),
        ("old", "nodeName: node2".to_owned()),
    ] {
        let pod = line::pod(
            name,
            "registry.example.test/team/app:1",
            &place,
            "IfNotPresent",
        );
        cluster.plane().apply(&pod).await.unwrap();
    }
    cluster.becomes("pod/new", "condition=Ready").await;
    cluster.becomes("pod/old", "condition=Ready").await;
    // The API server finds and trusts the kubelet.
    cluster.plane().kubectl(&["logs", "new"]).await.unwrap();
    let (digest, size) = image.largest();
    assert_eq!(cluster.upstream().fetches(digest), [(200, *size); 2]);

    let node = cluster.node_mut(2);
    let namespaces = namespaces(node).await;
    let mut sleep = Command::new("sleep");
    let mut bystander = node.spawn("bystander", sleep.arg("infinity"));
    node.power_off();
    bystander.ended(Duration::from_secs(10)).await;
    node.crictl(&["images"]).await.unwrap_err();
    cluster
        .becomes("node/node2", "condition=Ready=Unknown")
        .await;
    let node = cluster.node_mut(2);
    node.power_on().await;
    let held = node.crictl(&["images"]).await.unwrap();
    assert!(held.contains("registry.example.test/team/app"), "{held}");
    cluster.becomes("node/node2", "condition=Ready").await;
    cluster.becomes("pod/old", "condition=Ready").await;

    let folder = cluster.plane().folder().to_owned();
    drop(cluster);
    assert!(!folder.exists(), "files stay");
    assert_nothing_is_left(&folder, &namespaces);
    assert_eq!(sysctls(), before);
}

#[tokio::test]
async fn a_node_pulls_through_our_registry_behind_a_service_and_past_it() {
    let cluster = Cluster::start([NodeSpec::new(Kind::Current)]).await;
    let image = cluster.push("team/app", 1, 100_000).await;
    let registry = line::registry(&cluster, None).await;
    cluster.plane().apply(&line::service()).await.unwrap();
    let node = cluster.node(1);
    let mirror = node.certs_d().join("registry.example.test");
    std::fs::create_dir(&mirror).unwrap();
    let hosts =
        format!("[host.\"http://{SERVICE}:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
    harness::write(&mirror, "hosts.toml", &hosts);

    let api = format!("http://{SERVICE}:5000/v2/");
    harness::eventually("the service", Duration::from_mins(1), async || {
        let mut probe = Command::new("curl");
        probe.args(["--silent", "--fail", "--max-time", "2", &api]);
        harness::run(node.enter(&probe)).await.success.then_some(())
    })
    .await;
    let reference = "registry.example.test/team/app:1";
    let (digest, size) = *image.largest();
    for _ in 0..2 {
        node.crictl(&["pull", reference]).await.unwrap();
        node.crictl(&["rmi", reference]).await.unwrap();
        // The second time ours has it.
        assert_eq!(cluster.upstream().fetches(&digest), [(200, size)]);
    }
    drop(registry);
    node.crictl(&["pull", reference]).await.unwrap();
    assert_eq!(cluster.upstream().fetches(&digest), [(200, size); 2]);
}

#[tokio::test]
async fn a_node_keeps_its_taint_and_its_small_disk_over_a_restart_of_its_runtime() {
    let taint = json!([{ "key": "small", "value": "true", "effect": "NoSchedule" }]);
    let spec = NodeSpec::new(Kind::Current)
        .kubelet("registerWithTaints", taint)
        .image_disk(64 << 20);
    let mut cluster = Cluster::start([spec]).await;
    let taints = ["get", "node", "node1", "-o", "jsonpath={.spec.taints}"];
    let taints = cluster.plane().kubectl(&taints).await.unwrap();
    assert!(taints.contains("small"), "{taints}");

    cluster.push("team/app", 1, 10 << 20).await;
    cluster.push("team/huge", 1, 100 << 20).await;
    let pull = ["pull", "registry.example.test/team/app:1"];
    cluster.node(1).crictl(&pull).await.unwrap();
    let node = cluster.node_mut(1);
    node.restart_containerd().await;
    let held = node.crictl(&["images"]).await.unwrap();
    assert!(held.contains("registry.example.test/team/app"), "{held}");
    let huge = ["pull", "registry.example.test/team/huge:1"];
    let full = node.crictl(&huge).await.unwrap_err();
    assert!(full.contains("no space left on device"), "{full}");
    let used = disk::free_bytes(node.images());
    assert!(used < 64 << 20, "{used} bytes are free on a disk of 64 MiB");
}

/// What a kubelet sets for a whole machine.
fn sysctls() -> [String; 3] {
    [
        "kernel/panic",
        "kernel/panic_on_oops",
        "vm/overcommit_memory",
    ]
    .map(|name| std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap())
}

const KINDS: [&str; 4] = ["net", "mnt", "pid", "uts"];

/// The namespaces of a node as the kernel names them.
async fn namespaces(node: &Node) -> Vec<String> {
    let mut command = Command::new("readlink");
    command.args(KINDS.map(|kind| format!("/proc/self/ns/{kind}")));
    let links = harness::run(node.enter(&command)).await.result().unwrap();
    links.lines().map(str::to_owned).collect()
}

fn assert_nothing_is_left(folder: &Path, namespaces: &[String]) {
    let folder_name = folder.to_string_lossy();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&*folder_name), "{mounts}");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let process = entry.path();
        // Processes of others end while this reads.
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        assert!(!command.contains(&*folder_name), "{command} is left");
        for kind in KINDS {
            let Ok(namespace) = process.join("ns").join(kind).read_link() else {
                continue;
            };
            let namespace = namespace.to_string_lossy();
            assert!(
                !namespaces.iter().any(|gone| **gone == *namespace),
                "{command} is left"
            );
        }
    }
    let cluster = folder.file_name().unwrap().to_string_lossy();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        for group in std::fs::read_dir(hierarchy.path()).into_iter().flatten() {
            let name = group.unwrap().file_name();
            assert!(
                !name.to_string_lossy().contains(&*cluster),
                "{} is left",
                name.display()
            );
        }
    }
}
