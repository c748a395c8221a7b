//! etcd and the API server, alone on loopback or with the managers in the network of a cluster.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::namespaces::{ADDRESS, Fabric, Namespaces, take_environment};
use super::pki::{Pki, Subject};
use crate::harness::{self, Process};

/// What pods and services get; only inside a cluster's network.
pub(super) const POD_ADDRESSES: &str = "10.244.0.0/16";
const SERVICE_ADDRESSES: &str = "10.96.0.0/16";

/// A Kubernetes API of this test's own.
pub(crate) struct ControlPlane {
    // Dropped in this order: the API server before etcd, the network after both.
    managers: Vec<Process>,
    api: Option<Process>,
    _etcd: Process,
    place: Place,
    pki: Pki,
    kubeconfig: PathBuf,
    manifests: AtomicU16,
    folder: TempDir,
}

/// Where it runs.
struct Place {
    fabric: Option<Fabric>,
    address: &'static str,
    port: u16,
    etcd: u16,
    peers: u16,
}

impl ControlPlane {
    /// etcd and the API server on free ports of loopback: no namespaces, no nodes, and no controllers (nothing follows
    /// owner references or makes service accounts). Ready in about three seconds.
    pub(crate) async fn start() -> Self {
        let place = Place {
            fabric: None,
            address: "127.0.0.1",
            port: harness::free_port(),
            etcd: harness::free_port(),
            peers: harness::free_port(),
        };
        Self::start_at(place, harness::scratch()).await
    }

    /// The same in a network of its own, at 10.77.0.1:6443, with controller manager and scheduler.
    pub(super) async fn of_cluster(folder: TempDir, hosts: &Path) -> Self {
        let place = Place {
            fabric: Some(Fabric::start(folder.path(), hosts).await),
            address: ADDRESS,
            port: 6443,
            etcd: 2379,
            peers: 2380,
        };
        let mut started = Self::start_at(place, folder).await;
        started.start_managers();
        // Without it no pod may be made.
        let account = ["get", "serviceaccount", "default"];
        harness::eventually("a service account", Duration::from_mins(1), async || {
            started.kubectl(&account).await.ok()
        })
        .await;
        started
    }

    fn start_managers(&mut self) {
        for manager in ["kube-controller-manager", "kube-scheduler"] {
            let process = self.spawn(manager, &self.manager(manager));
            self.managers.push(process);
        }
    }

    /// Ends the API server and the managers at once, as a control plane that loses its power.
    pub(crate) fn stop(&mut self) {
        self.managers.clear();
        self.api = None;
    }

    /// Starts them again on what etcd holds.
    pub(crate) async fn start_again(&mut self) {
        self.start_api().await;
        self.start_managers();
    }

    async fn start_at(place: Place, folder: TempDir) -> Self {
        let pki = Pki::create(&folder.path().join("pki"));
        let administrator = Subject {
            user: "admin",
            group: "system:masters",
        };
        let kubeconfig = pki.kubeconfig("admin", administrator, &place.server());
        let etcd = place.enter(&place.etcd(folder.path()));
        let etcd = spawn(&folder, "etcd", etcd);
        let mut started = Self {
            managers: Vec::new(),
            api: None,
            _etcd: etcd,
            place,
            pki,
            kubeconfig,
            manifests: AtomicU16::new(0),
            folder,
        };
        started.start_api().await;
        started
    }

    async fn start_api(&mut self) {
        let api = self.spawn("kube-apiserver", &self.place.api_server(&self.pki));
        let api = api.ready(async || self.kubectl(&["get", "--raw=/readyz"]).await.is_ok());
        self.api = Some(api.await);
    }

    /// The kubeconfig of a user who may do everything.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs kubectl as that user; what it printed, or why it failed.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let command = self.kubectl_command(arguments);
        harness::run(self.enter(&command)).await.result()
    }

    /// Watches what is at a path of the API: the log has a line of JSON for each of its states, from the present one on.
    pub(crate) async fn watch(&self, name: &str, path: &str) -> Process {
        let path = format!("{path}&watch=true");
        let watch = self.spawn(name, &self.kubectl_command(&["get", "--raw", &path]));
        let log = self.folder().join(format!("{name}.log"));
        watch
            .ready(async || std::fs::metadata(&log).is_ok_and(|log| log.len() > 0))
            .await
    }

    fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(kubernetes("kubectl"));
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.folder.path().join("kubectl"))
            .args(arguments);
        command
    }

    /// Applies objects in YAML, server-side; the error says what the API server refused.
    pub(crate) async fn apply(&self, objects: &str) -> Result<String, String> {
        let number = self.manifests.fetch_add(1, Ordering::Relaxed);
        let name = format!("applied-{number}.yaml");
        let file = harness::write(self.folder.path(), &name, objects);
        self.kubectl(&["apply", "--server-side", "-f", &file.to_string_lossy()])
            .await
    }

    /// The command, to be run where the API server is at the kubeconfig's address, and killed with the test. Its own
    /// working folder does not count.
    pub(crate) fn enter(&self, command: &Command) -> Command {
        self.place.enter(command)
    }

    /// Starts a program there; its log is `<name>.log` in the folder of this control plane.
    pub(crate) fn spawn(&self, name: &str, command: &Command) -> Process {
        spawn(&self.folder, name, self.enter(command))
    }

    /// The authority whose certificates the API server, the kubelets and the upstream of a cluster have.
    pub(crate) fn ca(&self) -> PathBuf {
        self.pki.file("ca.pem")
    }

    pub(super) fn namespaces(&self) -> Namespaces {
        let fabric = self.place.fabric.as_ref();
        fabric.expect("part of a cluster").namespaces()
    }

    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }

    pub(crate) fn server(&self) -> String {
        self.place.server()
    }

    /// Where it keeps its files and logs; also seen by every node.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl ControlPlane {
    /// The controller manager or the scheduler: both take these, and find by themselves who they are.
    fn manager(&self, name: &str) -> Command {
        let subject = Subject {
            user: &format!("system:{name}"),
            group: "",
        };
        let config = self.pki.kubeconfig(name, subject, &self.server());
        let mut command = Command::new(kubernetes(name));
        for flag in [
            "kubeconfig",
            "authentication-kubeconfig",
            "authorization-kubeconfig",
        ] {
            command.arg(format!("--{flag}={}", config.display()));
        }
        command
            .args(["--bind-address=127.0.0.1", "--leader-elect=false"])
            .arg(format!("--cert-dir={}", self.folder().join(name).display()));
        if name == "kube-controller-manager" {
            let file = |name| self.pki.file(name).display().to_string();
            command.args([
                "--use-service-account-credentials=true".to_owned(),
                format!("--service-account-private-key-file={}", file("tokens.key")),
                format!("--root-ca-file={}", file("ca.pem")),
                format!("--cluster-cidr={POD_ADDRESSES}"),
                format!("--service-cluster-ip-range={SERVICE_ADDRESSES}"),
                // It makes this folder.
                format!(
                    "--flex-volume-plugin-dir={}",
                    self.folder().join("volume-plugins").display()
                ),
                // A node is found dead in seconds: kubelets renew their leases every two.
                "--node-monitor-grace-period=16s".to_owned(),
                "--node-monitor-period=2s".to_owned(),
            ]);
        }
        command
    }
}

impl Place {
    fn enter(&self, command: &Command) -> Command {
        if let Some(fabric) = &self.fabric {
            return fabric.namespaces().enter(command);
        }
        let mut alone = harness::command(command.get_program());
        alone.args(command.get_args());
        take_environment(&mut alone, command);
        alone
    }

    fn server(&self) -> String {
        format!("https://{}:{}", self.address, self.port)
    }

    fn etcd(&self, folder: &Path) -> Command {
        let clients = format!("http://127.0.0.1:{}", self.etcd);
        let peers = format!("http://127.0.0.1:{}", self.peers);
        let mut command = Command::new(harness::tool("CORAL_REAL_ETCD"));
        command
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .args(["--unsafe-no-fsync", "--log-level=warn"]);
        command
    }

    fn api_server(&self, pki: &Pki) -> Command {
        let subject = |user, group| Subject { user, group };
        let hosts = [
            self.address,
            "127.0.0.1",
            "10.96.0.1",
            "kubernetes.default.svc",
        ];
        let server = pki.issue("kube-apiserver", subject("kube-apiserver", ""), &hosts);
        let to_kubelets = subject("kube-apiserver-kubelet-client", "system:masters");
        let to_kubelets = pki.issue("kubelet-client", to_kubelets, &[]);
        let mut command = Command::new(kubernetes("kube-apiserver"));
        let mut flag = |name: &str, value: &str| {
            command.arg(format!("--{name}={value}"));
        };
        for (name, path) in [
            ("tls-cert-file", &server.0),
            ("tls-private-key-file", &server.1),
            ("client-ca-file", &pki.file("ca.pem")),
            ("kubelet-client-certificate", &to_kubelets.0),
            ("kubelet-client-key", &to_kubelets.1),
            ("kubelet-certificate-authority", &pki.file("ca.pem")),
            ("service-account-key-file", &pki.file("tokens.pub")),
            ("service-account-signing-key-file", &pki.file("tokens.key")),
        ] {
            flag(name, &path.to_string_lossy());
        }
        flag("etcd-servers", &format!("http://127.0.0.1:{}", self.etcd));
        flag("bind-address", self.address);
        flag("advertise-address", self.address);
        flag("secure-port", &self.port.to_string());
        flag("service-cluster-ip-range", SERVICE_ADDRESSES);
        flag("service-account-issuer", "https://kubernetes.default.svc");
        let keys = format!("{}/openid/v1/jwks", self.server());
        flag("service-account-jwks-uri", &keys);
        flag("authorization-mode", "Node,RBAC");
        flag("enable-admission-plugins", "NodeRestriction");
        flag("kubelet-preferred-address-types", "InternalIP");
        flag("allow-privileged", "true");
        flag("profiling", "false");
        if self.fabric.is_none() {
            // Nobody looks for the `kubernetes` service here, and loopback addresses are refused for it.
            flag("endpoint-reconciler-type", "none");
        }
        command
    }
}

fn spawn(folder: &TempDir, name: &str, command: Command) -> Process {
    Process::spawn(name, command, &folder.path().join(format!("{name}.log")))
}

/// A program of Kubernetes.
pub(super) fn kubernetes(name: &str) -> PathBuf {
    let variable = name.replace('-', "_").to_uppercase();
    harness::tool(&format!("CORAL_REAL_{variable}"))
}
