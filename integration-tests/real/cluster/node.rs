//! One node: containerd, kubelet and kube-proxy on a machine of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Map, Value};
use tokio::net::UnixStream;

use super::cgroups::{self, Cgroups};
use super::control_plane::{ControlPlane, kubernetes};
use super::etc::{self, Etc};
use super::namespaces::{Machine, Namespaces};
use super::pki::Subject;
use super::pulls::{self, PullEvent};
use crate::containerd::Kind;
use crate::disk::Volume;
use crate::harness::{self, Process};

/// What a node is to be, and how it is registered.
pub(crate) struct NodeSpec {
    runtime: Kind,
    labels: Vec<String>,
    kubelet: Map<String, Value>,
    hosts: Vec<(String, String)>,
    image_disk: Option<u64>,
    disk: Option<u64>,
}

impl NodeSpec {
    /// A node with this containerd; `Parallel` is no other than `Current` here.
    pub(crate) fn new(runtime: Kind) -> Self {
        Self {
            runtime,
            labels: Vec::new(),
            kubelet: Map::new(),
            hosts: Vec::new(),
            image_disk: None,
            disk: None,
        }
    }

    /// One more label, from the first moment on.
    pub(crate) fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.push(format!("{name}={value}"));
        self
    }

    /// A key of the kubelet's configuration: `registerWithTaints`, `imageGCHighThresholdPercent`, …
    pub(crate) fn kubelet(mut self, key: &str, value: Value) -> Self {
        self.kubelet.insert(key.to_owned(), value);
        self
    }

    /// The administrator's own `hosts.toml` for a registry, there before anything of ours.
    pub(crate) fn hosts(mut self, registry: &str, content: &str) -> Self {
        self.hosts.push((registry.to_owned(), content.to_owned()));
        self
    }

    /// A volume of so many bytes for all that containerd stores.
    pub(crate) fn image_disk(mut self, bytes: u64) -> Self {
        self.image_disk = Some(bytes);
        self
    }

    /// A volume of so many bytes for all of `/var/lib`.
    pub(crate) fn disk(mut self, bytes: u64) -> Self {
        self.disk = Some(bytes);
        self
    }

    /// The same for what containerd stores, unless it has one already.
    pub(crate) fn or_image_disk(mut self, bytes: u64) -> Self {
        self.image_disk.get_or_insert(bytes);
        self
    }
}

/// A node of a cluster; it keeps its disks when its power is cut.
pub(crate) struct Node {
    running: Option<Running>,
    runtime: Kind,
    number: usize,
    name: String,
    labels: String,
    kubeconfig: PathBuf,
    ca: PathBuf,
    fabric: Namespaces,
    cgroups: String,
    folder: PathBuf,
    images: PathBuf,
    _disks: Vec<Volume>,
}

/// What ends with a power cut. Dropped in this order: the machine takes every process with it, and only groups without
/// processes can be removed.
struct Running {
    machine: Machine,
    containerd: Process,
    kubelet: Process,
    _proxy: Process,
    _cgroups: Cgroups,
}

impl Node {
    /// Boots a new node; `Cluster` waits until Kubernetes takes it for one.
    pub(super) async fn start(plane: &ControlPlane, number: usize, spec: NodeSpec) -> Self {
        let name = format!("node{number}");
        let folder = plane.folder().join(&name);
        for inside in ["lib", "log", "etc/containerd/certs.d", "etc/containerd/cni"] {
            std::fs::create_dir_all(folder.join(inside)).unwrap();
        }
        for (registry, content) in &spec.hosts {
            let settings = folder.join("etc/containerd/certs.d").join(registry);
            std::fs::create_dir(&settings).unwrap();
            harness::write(&settings, "hosts.toml", content);
        }
        let mut images = folder.join("lib/containerd");
        let mut disks = Vec::new();
        if let Some(bytes) = spec.disk {
            disks.push(Volume::mount_on(folder.join("lib"), bytes).await);
        }
        if let Some(bytes) = spec.image_disk {
            let volume = Volume::mount(bytes).await;
            volume.path().clone_into(&mut images);
            disks.push(volume);
        }
        let cgroups = cgroups::name(plane.folder(), &name);
        let etc = Etc {
            number,
            folder: folder.join("etc"),
            pki: plane.pki(),
        };
        etc.write_containerd(spec.runtime, &images);
        etc.write_kubelet(&name, &cgroups, &spec.kubelet);
        etc.write_kube_proxy(&plane.server());
        let identity = format!("system:node:{name}");
        let identity = Subject {
            user: &identity,
            group: "system:nodes",
        };
        let mut node = Self {
            running: None,
            runtime: spec.runtime,
            labels: spec.labels.join(","),
            kubeconfig: plane.pki().kubeconfig(&name, identity, &plane.server()),
            ca: plane.pki().file("ca.pem"),
            number,
            name,
            fabric: plane.namespaces(),
            cgroups,
            folder,
            images,
            _disks: disks,
        };
        node.power_on().await;
        node
    }

    /// Its name in Kubernetes.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// containerd's socket; in the node it is also `/run/containerd/containerd.sock`.
    pub(crate) fn cri_socket(&self) -> PathBuf {
        self.folder.join("run/containerd/containerd.sock")
    }

    /// The folder with the runtime's mirror settings, empty at first; in the node also `/etc/containerd/certs.d`.
    pub(crate) fn certs_d(&self) -> PathBuf {
        self.folder.join("etc/containerd/certs.d")
    }

    /// The folder with all that containerd stores.
    pub(crate) fn images(&self) -> &Path {
        &self.images
    }

    /// The command, to be run on this node: with its address, its `/run`, `/var/lib` and `/etc/hosts`, killed with the
    /// node or the test. It runs behind `nsenter`: ask it to end by `Process::signal_child`.
    pub(crate) fn enter(&self, command: &Command) -> Command {
        self.powered().machine.namespaces().enter(command)
    }

    /// Starts a program on it; its log is `<name>.log` in the node's folder.
    pub(crate) fn spawn(&self, name: &str, command: &Command) -> Process {
        self.spawn_on(&self.powered().machine, name, command)
    }

    /// Asks its containerd as the kubelet does.
    pub(crate) async fn crictl(&self, arguments: &[&str]) -> Result<String, String> {
        let socket = format!("unix://{}", self.cri_socket().display());
        let mut command = harness::command(harness::tool("CORAL_REAL_CRICTL"));
        command
            .args(["--runtime-endpoint", &socket, "--image-endpoint", &socket])
            .args(["--timeout", "120s"])
            .args(arguments);
        harness::run(command).await.result()
    }

    /// What its containerd recorded of pulls, in order.
    pub(crate) fn pulls(&self) -> Vec<PullEvent> {
        pulls::events(&self.log("containerd"))
    }

    /// All that a program on it has printed.
    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap()
    }

    /// Cuts its power: every process on it dies at once, and its address falls silent.
    pub(crate) fn power_off(&mut self) {
        self.running = None;
    }

    /// Gives it empty disks while its power is off: with what a machine of its name is set up with, and nothing that the
    /// old one stored.
    pub(crate) fn replace_disks(&self) {
        assert!(self.running.is_none(), "a node without power");
        for disk in [&self.folder.join("lib"), &self.certs_d(), &self.images] {
            for entry in std::fs::read_dir(disk).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    std::fs::remove_dir_all(path).unwrap();
                } else {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
    }

    /// Boots it, with the disks it had. What stood in `/run` is gone.
    pub(crate) async fn power_on(&mut self) {
        let run = self.folder.join("run");
        let _ = std::fs::remove_dir_all(&run);
        std::fs::create_dir(&run).unwrap();
        let cgroups = Cgroups::create(&self.cgroups);
        let machine = Machine::start(self.fabric, self.number, &self.folder).await;
        let containerd = self.start_containerd(&machine).await;
        self.running = Some(Running {
            kubelet: self.spawn_on(&machine, "kubelet", &self.kubelet()),
            _proxy: self.spawn_on(&machine, "kube-proxy", &self.kube_proxy()),
            containerd,
            machine,
            _cgroups: cgroups,
        });
    }

    /// Restarts its containerd as a service manager does; containers go on.
    pub(crate) async fn restart_containerd(&mut self) {
        let mut running = self.running.take().expect("a node with power");
        running.containerd.signal_child(Signal::TERM);
        running.containerd.ended(Duration::from_mins(1)).await;
        running.containerd = self.start_containerd(&running.machine).await;
        self.running = Some(running);
    }

    /// Restarts its kubelet as a service manager does; containers go on.
    pub(crate) async fn restart_kubelet(&mut self) {
        let mut running = self.running.take().expect("a node with power");
        running.kubelet.signal_child(Signal::TERM);
        running.kubelet.ended(Duration::from_mins(1)).await;
        running.kubelet = self.spawn_on(&running.machine, "kubelet", &self.kubelet());
        self.running = Some(running);
    }

    async fn start_containerd(&self, machine: &Machine) -> Process {
        let mut command = Command::new(self.runtime.program());
        command
            .arg("--config")
            .arg(self.folder.join("etc/containerd/config.toml"))
            .env("SSL_CERT_FILE", &self.ca);
        let containerd = self.spawn_on(machine, "containerd", &command);
        let socket = self.cri_socket();
        // 1.6 listens before it answers for images.
        containerd
            .ready(async || {
                UnixStream::connect(&socket).await.is_ok() && self.crictl(&["images"]).await.is_ok()
            })
            .await
    }

    fn kubelet(&self) -> Command {
        let mut command = Command::new(kubernetes("kubelet"));
        command
            .arg("--config")
            .arg(self.folder.join("etc/kubelet.json"))
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["--hostname-override", &self.name])
            .args(["--node-ip", &etc::address(self.number)])
            .args(["--node-labels", &self.labels]);
        command
    }

    fn kube_proxy(&self) -> Command {
        let mut command = Command::new(kubernetes("kube-proxy"));
        command
            .arg("--config")
            .arg(self.folder.join("etc/kube-proxy.json"))
            .args(["--hostname-override", &self.name]);
        command
    }

    fn spawn_on(&self, machine: &Machine, name: &str, command: &Command) -> Process {
        let log = self.folder.join(format!("{name}.log"));
        let shown = format!("{name} on {}", self.name);
        Process::spawn(&shown, machine.namespaces().enter(command), &log)
    }

    fn powered(&self) -> &Running {
        self.running.as_ref().expect("a node with power")
    }
}
