//! A real Kubernetes cluster on one machine: unmodified programs, in namespaces that each test makes for itself.
//!
//! ```text
//! 10.77.0.1       etcd, kube-apiserver :6443, controller manager, scheduler; the upstream (distribution, TLS) :443;
//!                 what a test starts by `plane().spawn`: our operator, our registry
//! 10.77.0.11…14   node1 … node4, each with containerd (2.4 or Debian's 1.6), kubelet, kube-proxy; by `node(n).spawn`
//!                 the warmer. Pods have 10.244.<n>.0/24, services 10.96.0.0/16
//! ```
//!
//! The control plane has a network namespace, a node network, mount, PID and UTS namespaces: node folders lie over
//! `/run`, `/var/lib`, `/var/log`, `/etc/containerd` and `/etc/hosts`, and over the sysctls that a kubelet sets. The
//! names in `REGISTRIES` lead everywhere to the upstream; there is no DNS and no way out. A test sees all files of all
//! nodes under `plane().folder()`, and reaches addresses inside by `get`, `kubectl`, or a program that it starts there.
//!
//! Namespaces have no names. They end with their first process, which ends with the thread that started it, so neither
//! a failed nor a killed test leaves any, and any number of clusters use the same addresses side by side. Control groups
//! do have names; `integration-tests/run` removes those of a killed run.
//!
//! The API server alone is there in 3 s (`ControlPlane::start`, on loopback, for tests without nodes), two Ready nodes in
//! 10 s, with 1 GiB of memory; a node that lost its power is missed after 16 s. Needs cgroup v1, as the kubelets here
//! have it, and an `overlay` filesystem that can be mounted on the temporary folder.

mod cgroups;
pub(crate) mod control_plane;
mod etc;
pub(crate) mod namespaces;
pub(crate) mod node;
pub(crate) mod pki;
pub(crate) mod pulls;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use self::control_plane::ControlPlane;
use self::namespaces::{ADDRESS, NODES};
use self::node::{Node, NodeSpec};
use self::pki::Subject;
use crate::harness;
use crate::images::{Draft, Image};
use crate::upstream::Upstream;

/// The names under which the upstream of a cluster is known, and its certificate good. It is as fast by the slow one: who
/// reads by that name may be told to take its time.
pub(crate) const REGISTRIES: [&str; 4] = [
    "registry.example.test",
    "slow.example.test",
    "registry.k8s.io",
    "registry-1.docker.io",
];

/// The folder with all that the upstream has, and the name of its certificate.
const STORAGE: &str = "upstream";
const CERTIFICATE: &str = "upstream";

/// How long anything may take in Kubernetes on a busy machine; what takes longest in itself is to miss a dead node: 16 s.
const WAIT: &str = "--timeout=120s";

/// A control plane and its nodes.
pub(crate) struct Cluster {
    // Dropped in this order.
    nodes: Vec<Node>,
    upstream: Upstream,
    pushes: Upstream,
    program: Vec<u8>,
    plane: ControlPlane,
}

impl Cluster {
    /// Starts everything from nothing, and waits until every node is Ready. They are called `node1` to `node4`.
    pub(crate) async fn start(specs: impl IntoIterator<Item = NodeSpec>) -> Self {
        let folder = harness::scratch();
        let hosts = harness::write(folder.path(), "hosts", &etc::hosts());
        let storage = folder.path().join(STORAGE);
        let program = compile(folder.path()).await;
        let plane = ControlPlane::of_cluster(folder, &hosts).await;
        let pushes = Upstream::of(&storage).await;
        let names = [&REGISTRIES[..], &[ADDRESS]].concat();
        let subject = Subject {
            user: "upstream",
            group: "",
        };
        let certificate = plane.pki().issue(CERTIFICATE, subject, &names);
        let upstream = Upstream::within(plane.namespaces(), ADDRESS, &storage, &certificate).await;
        let mut cluster = Self {
            nodes: Vec::new(),
            upstream,
            pushes,
            program,
            plane,
        };
        cluster.push("pause", 1, 0).await;
        for spec in specs {
            cluster.boot(spec).await;
        }
        for number in 1..=cluster.nodes() {
            cluster.joins(number).await;
        }
        cluster
    }

    async fn boot(&mut self, spec: NodeSpec) -> usize {
        let number = self.nodes.len() + 1;
        assert!(number <= NODES, "more nodes than routes");
        let node = Node::start(&self.plane, number, spec).await;
        self.nodes.push(node);
        number
    }

    /// Waits until a node is registered, and Ready.
    async fn joins(&self, number: usize) {
        let object = format!("node/{}", self.node(number).name());
        // Waiting needs an object.
        harness::eventually("a node", Duration::from_mins(1), async || {
            self.plane.kubectl(&["get", &object]).await.ok()
        })
        .await;
        self.becomes(&object, "condition=Ready").await;
    }
}

impl Cluster {
    /// The Kubernetes API and what runs beside it.
    pub(crate) fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// The same, to stop it and to start it again.
    pub(crate) fn plane_mut(&mut self) -> &mut ControlPlane {
        &mut self.plane
    }

    /// How many nodes there are.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// A node by its number, from one on.
    pub(crate) fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// The same, to switch it off and on.
    pub(crate) fn node_mut(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number - 1]
    }

    /// Puts an image that was built as an OCI layout into it.
    pub(crate) async fn push_layout(&self, layout: &Path, name: &str) {
        let mut copy = harness::command("skopeo");
        copy.args(["copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}", layout.display()))
            .arg(self.pushes.url().replace("http", "docker") + "/" + name);
        harness::run(copy).await.result().unwrap();
    }

    /// Puts an image that never runs into it, of layers of so many bytes.
    pub(crate) async fn push_layers(&self, repository: &'static str, sizes: &[usize]) -> Image {
        self.pushes.push(Draft::oci(repository, sizes)).await
    }

    /// One more node; its number, once it is Ready.
    pub(crate) async fn add_node(&mut self, spec: NodeSpec) -> usize {
        let number = self.boot(spec).await;
        self.joins(number).await;
        number
    }

    /// Another machine takes a node's place and name, with empty disks; Kubernetes forgot the old one before.
    pub(crate) async fn replace_node(&mut self, number: usize) {
        let node = self.node_mut(number);
        node.power_off();
        let name = node.name().to_owned();
        self.plane
            .kubectl(&["delete", "node", &name])
            .await
            .unwrap();
        let node = self.node_mut(number);
        node.replace_disks();
        node.power_on().await;
        self.joins(number).await;
    }

    /// The registry at 10.77.0.1:443 that every name in `REGISTRIES` leads to.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// One more registry with the same content, at 10.77.0.1:8443, for nobody but the accounts in this `htpasswd` file.
    pub(crate) async fn guarded(&self, accounts: &Path) -> Upstream {
        let pki = self.plane.pki();
        let file = |end| pki.file(&format!("{CERTIFICATE}.{end}"));
        let certificate = (file("pem"), file("key"));
        let storage = self.plane.folder().join(STORAGE);
        Upstream::guarded(
            self.plane.namespaces(),
            ADDRESS,
            &storage,
            &certificate,
            accounts,
        )
        .await
    }

    /// Puts an image of this static program, and nothing else, into it.
    pub(crate) async fn push_program(&self, repository: &'static str, program: &Path) -> Image {
        let program = std::fs::read(program).unwrap();
        let draft = Draft::program(repository, &program, 1, 0);
        self.pushes.push(draft).await
    }

    /// Puts an image into the upstream that runs until it is asked to end. Another revision is other content under the
    /// same tag; the size in bytes is that of a layer which no other image has.
    pub(crate) async fn push(&self, repository: &'static str, revision: u32, size: usize) -> Image {
        let draft = Draft::program(repository, &self.program, revision, size);
        self.pushes.push(draft).await
    }

    /// An image that has a manifest for one platform only.
    pub(crate) async fn push_for(&self, architecture: &str, repository: &'static str) -> Image {
        let draft = Draft::platforms(repository, &[architecture]);
        self.pushes.push(draft).await
    }

    /// Waits for a condition of an object, as in `kubectl wait`: `node/node1` `condition=Ready`.
    pub(crate) async fn becomes(&self, object: &str, condition: &str) {
        let condition = format!("--for={condition}");
        let wait = ["wait", object, &condition, WAIT];
        if let Err(error) = self.plane.kubectl(&wait).await {
            let shown = self.plane.kubectl(&["get", object, "-o", "yaml"]).await;
            panic!("{object} does not get {condition}: {error}\n{shown:?}");
        }
    }

    /// The body of a successful answer to a GET inside the control plane's network.
    pub(crate) async fn get(&self, url: &str) -> Result<String, String> {
        let mut command = Command::new("curl");
        command
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "30",
                "--cacert",
            ])
            .arg(self.plane.pki().file("ca.pem"))
            .arg(url);
        harness::run(self.plane.enter(&command)).await.result()
    }
}

/// The program of every image: static, as nothing else is in them.
async fn compile(folder: &Path) -> Vec<u8> {
    let source = harness::write(folder, "pause.c", include_str!("cluster/pause.c"));
    let program = folder.join("pause");
    let mut command = harness::command("cc");
    command
        .args(["-static", "-Os", "-o"])
        .arg(&program)
        .arg(source);
    harness::run(command).await.result().unwrap();
    std::fs::read(program).unwrap()
}
