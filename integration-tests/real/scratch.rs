//! Our programs as users run them: static, in a root with nothing else but `/proc`. The warmer runs in a pod, whose mounts
//! are all that it sees of its node.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coral_schema::process::EXIT_SOCKET_DEAD;
use tempfile::TempDir;

use crate::cluster::control_plane::ControlPlane;
use crate::cluster::node::{Node, NodeSpec};
use crate::containerd::Kind;
use crate::coral::UPSTREAM;
use crate::harness::{self, Process, eventually};
use crate::images::TAG;
use crate::line::Line;
use crate::upstream::{Upstream, seed};

const ONE: &str = "registry.example.test/team/one";
const TWO: &str = "registry.example.test/team/two";

/// The image comes from the cache, or not at all.
fn mirror_only(image: &str) -> String {
    format!(
        "  registryPolicy: MirrorOnly\n  sets:\n  - name: all\n    images: [\"{image}:1\"]\n    nodes: {{}}\n"
    )
}

#[tokio::test]
async fn a_warmer_in_an_empty_image_sees_only_its_mounts_and_outlives_its_runtime() {
    let specs = [NodeSpec::new(Kind::Current)];
    let mut line = Line::without_warmers(specs, true).await;
    let program = harness::tool("CORAL_WARMER_BIN");
    line.cluster.push_program("coral/warmer", &program).await;
    line.cluster.push("team/one", 1, 100_000).await;
    line.cluster.push("team/two", 1, 100_000).await;
    line.apply(&warmer(line.cluster.node(1))).await;
    line.cluster.becomes("pod/warmer", "condition=Ready").await;

    line.image_cache("one", &mirror_only(ONE)).await;
    line.until_ready("one", "Warm").await;
    assert!(line.holds(1, ONE).await);
    let hosts = line.cluster.node(1).certs_d();
    let hosts = std::fs::read_to_string(hosts.join("registry.example.test/hosts.toml")).unwrap();
    assert!(hosts.contains("ca = \"coral-ca.pem\""), "{hosts}");
    let node = line.cluster.node(1);
    let process = process_of(node, "warmer").await;
    assert_sees_only_its_mounts(node, &process).await;
    assert_has_only_its_program(node, &process).await;
    assert_powerless(node, &process, "0").await;
    // No other process is in its PID namespace.
    let ids = status(node, &process, "NSpid:").await;
    assert_eq!(ids.last().map(String::as_str), Some("1"));
    assert_eq!(past(&line).await, "0 ", "{:?}", logs(&line).await);

    // The socket that the pod has is refused from now on; the kubelet mounts the new one for the next container.
    line.cluster.node_mut(1).restart_containerd().await;
    let restarted = format!("1 {EXIT_SOCKET_DEAD}");
    eventually("another container", Duration::from_mins(2), async || {
        (past(&line).await == restarted).then_some(())
    })
    .await;
    line.image_cache("two", &mirror_only(TWO)).await;
    line.until_ready("two", "Warm").await;
    assert!(line.holds(1, TWO).await);
    assert_eq!(past(&line).await, restarted);
}

/// A pod with what the warmer needs and no more. Its state lies on the disk of the images, which it measures.
fn warmer(node: &Node) -> String {
    let state = node.images().join("coral-warmer");
    include_str!("scratch/warmer.yaml").replace("STATE", &state.to_string_lossy())
}

/// How often its container was started again, and how the last one ended.
async fn past(line: &Line) -> String {
    let status = "jsonpath={.status.containerStatuses[0].restartCount} \
                  {.status.containerStatuses[0].lastState.terminated.exitCode}";
    let get = ["get", "pod", "warmer", "-o", status];
    line.kubectl(&get).await.unwrap()
}

async fn logs(line: &Line) -> Result<String, String> {
    line.kubectl(&["logs", "warmer", "--previous"]).await
}

/// What a pod of this kind gets from its runtime, whatever it is, and what it was given.
const MOUNTS: [&str; 8] = [
    "/",
    "/etc/containerd/certs.d",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/run/containerd/containerd.sock",
    "/var/lib/coral-warmer",
    "/var/run/secrets/kubernetes.io/serviceaccount",
];

/// `/proc/<id>` of what runs in a container of this name.
pub(crate) async fn process_of(node: &Node, container: &str) -> String {
    let ids = node.crictl(&["ps", "--name", container, "--quiet"]).await;
    let id = ids.unwrap().trim().to_owned();
    let process = [
        "inspect",
        "--output",
        "go-template",
        "--template",
        "{{.info.pid}}",
    ];
    let process = node.crictl(&[&process[..], &[&id]].concat()).await.unwrap();
    format!("/proc/{}", process.trim())
}

pub(crate) async fn assert_sees_only_its_mounts(node: &Node, process: &str) {
    let mounts = on(node, "cat", &[&format!("{process}/mountinfo")]).await;
    let mounts: Vec<Vec<&str>> = mounts
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    let seen: BTreeSet<_> = mounts
        .iter()
        .map(|mount| mount[4])
        .filter(|place| {
            !["/proc", "/dev", "/sys"]
                .iter()
                .any(|own| place.starts_with(own))
        })
        .collect();
    assert_eq!(seen, MOUNTS.into());
    let root = mounts.iter().find(|mount| mount[4] == "/").unwrap();
    assert!(
        root[5].starts_with("ro,"),
        "the root can be written: {root:?}"
    );
}

/// Of the image there is the program, and an empty file that makes its content unique.
async fn assert_has_only_its_program(node: &Node, process: &str) {
    let root = format!("{process}/root");
    let files = on(
        node,
        "find",
        &[&format!("{root}/"), "-xdev", "!", "-type", "d"],
    )
    .await;
    let files: BTreeSet<_> = files
        .lines()
        .map(|path| path.strip_prefix(&root).unwrap())
        .filter(|path| !MOUNTS.contains(path))
        .collect();
    assert_eq!(files, ["/program", "/coral-warmer-r1-0.bin"].into());
}

/// No capability, and no way to get one.
pub(crate) async fn assert_powerless(node: &Node, process: &str, user: &str) {
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let found = status(node, process, capabilities).await;
        assert_eq!(found, ["0000000000000000"], "{capabilities}");
    }
    assert_eq!(status(node, process, "Uid:").await, [user; 4]);
    assert_eq!(status(node, process, "NoNewPrivs:").await, ["1"]);
}

/// The words of a line of a process's `status`.
pub(crate) async fn status(node: &Node, process: &str, name: &str) -> Vec<String> {
    let status = on(node, "cat", &[&format!("{process}/status")]).await;
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let words = line.split_whitespace().skip(1);
    words.map(str::to_owned).collect()
}

async fn on(node: &Node, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    harness::run(node.enter(&command)).await.result().unwrap()
}

#[tokio::test]
async fn both_runtimes_pull_from_a_cache_with_a_certificate_of_its_own_authority() {
    let specs = [NodeSpec::new(Kind::Current), NodeSpec::new(Kind::Old)];
    let mut line = Line::without_warmers(specs, true).await;
    for node in [1, 2] {
        line.start_warmer(node);
    }
    let image = line.cluster.push("team/one", 1, 2_000_000).await;
    line.image_cache("one", &mirror_only(ONE)).await;
    line.until_ready("one", "Warm").await;
    let (digest, size) = image.largest();
    // A runtime that does not trust the cache goes past it, and asks for this once more.
    assert_eq!(line.cluster.upstream().fetches(digest), [(200, *size)]);

    line.cluster.upstream().freeze();
    let reference = format!("{ONE}:1");
    for node in [1, 2] {
        let node = line.cluster.node(node);
        node.crictl(&["rmi", &reference]).await.unwrap();
        node.crictl(&["pull", &reference]).await.unwrap();
    }
    line.cluster.upstream().thaw();
}

#[tokio::test]
async fn our_programs_need_no_file_but_their_own() {
    for (variable, name) in [
        ("CORAL_REGISTRY_BIN", "coral-registry"),
        ("CORAL_OPERATOR_BIN", "coral-operator"),
        ("CORAL_WARMER_BIN", "coral-warmer"),
    ] {
        let root = Root::of(variable);
        let mut command = root.command();
        command.arg("--version");
        let told = harness::run(command).await.result().unwrap();
        assert!(told.starts_with(name), "{told}");
    }
}

#[tokio::test]
async fn the_operator_reaches_its_api_server_without_the_certificates_of_a_machine() {
    let plane = ControlPlane::start().await;
    let root = Root::of("CORAL_OPERATOR_BIN");
    let kubeconfig = std::fs::read_to_string(plane.kubeconfig()).unwrap();
    harness::write(root.path(), "kubeconfig", &kubeconfig);
    let mut command = root.command();
    command.env("KUBECONFIG", "/kubeconfig").arg("apply-crds");
    let told = harness::run(command).await.result().unwrap();
    assert!(told.contains("nodecaches.coral.dev is in use"), "{told}");
}

#[tokio::test]
async fn the_registry_pulls_over_tls_without_the_certificates_of_a_machine() {
    let (upstream, authority) = Upstream::with_tls().await;
    let root = Root::of("CORAL_REGISTRY_BIN");
    let authority = std::fs::read_to_string(authority).unwrap();
    harness::write(root.path(), "authority.pem", &authority);
    let (port, admin) = (harness::free_port(), harness::free_port());
    let config = format!(
        "listen: 127.0.0.1:{port}\nadmin: {{ listen: \"127.0.0.1:{admin}\" }}\ndata: /data\nupstreams:\n  \
         {UPSTREAM}: {}\n  unknown.test: {}\n",
        upstream.configured("tls: { ca: /authority.pem },"),
        upstream.configured(""),
    );
    harness::write(root.path(), "config.yaml", &config);
    let mut command = root.command();
    command.args(["--config", "/config.yaml"]);
    let registry = Process::spawn("coral-registry", command, &root.path().join("log"));
    let ready = format!("http://127.0.0.1:{admin}/readyz");
    let registry = registry
        .ready(async || {
            let answer = reqwest::get(&ready).await;
            answer.is_ok_and(|answer| answer.status().is_success())
        })
        .await;

    let small = &seed().await.small;
    let manifest = |upstream: &str| {
        let path = format!("{upstream}/{}/manifests/{TAG}", small.repository);
        format!("http://127.0.0.1:{port}/v2/{path}")
    };
    let pulled = reqwest::get(manifest(UPSTREAM)).await.unwrap();
    assert_eq!(pulled.status(), 200, "{}", registry.log());
    let digest = &pulled.headers()["docker-content-digest"];
    assert_eq!(digest, &small.digest().to_string());
    // The authorities that came with it are those of the public Internet.
    let refused = reqwest::get(manifest("unknown.test")).await.unwrap();
    assert!(refused.status().is_server_error(), "{}", refused.status());
    assert!(registry.log().contains("certificate"), "{}", registry.log());
}

/// Every container has a `/proc`, however empty its image. The mount goes with its namespace.
const IN_EMPTY_ROOT: &str = r#"
root=$1; shift
mkdir "$root/proc"
mount -t proc proc "$root/proc"
exec chroot "$root" /program "$@"
"#;

/// A root folder with one program and nothing else.
struct Root(TempDir);

impl Root {
    fn of(program: &str) -> Self {
        let root = harness::scratch();
        std::fs::copy(harness::tool(program), root.path().join("program")).unwrap();
        Self(root)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self) -> Command {
        let mut command = harness::command("unshare");
        command
            .args(["--mount", "--propagation", "private"])
            .args(["sh", "-euc", IN_EMPTY_ROOT, "sh"])
            .arg(self.path());
        command
    }
}
