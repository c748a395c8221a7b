//! A cluster that has nothing of ours but what the chart installs, with images as `helm/build-images` makes them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::chart::{self, NAMESPACE};
use crate::cluster::Cluster;
use crate::cluster::namespaces::ADDRESS;
use crate::cluster::node::NodeSpec;
use crate::containerd::Kind;
use crate::harness::{self, eventually};
use crate::line::{SERVICE, SLOW, WARM};
use crate::upstream::Certificates;

mod copies;
mod outages;
mod secrets;
mod serves;
mod upgrade;

/// Of each node, in memory, and only as far as it is used.
const DISK: u64 = 1 << 30;

/// The Secret with the registry's own certificate.
const CERTIFICATE: &str = "coral-certificate";

/// An `ImageCache` that wants one image on every node.
fn everywhere(name: &str, image: &str) -> String {
    json!({
        "apiVersion": "coral.dev/v1alpha1", "kind": "ImageCache",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "sets": [{ "name": "all", "images": [image], "nodes": {} }] },
    })
    .to_string()
}

/// What an uninstallation has to restore.
#[derive(Debug, PartialEq)]
struct NodeState {
    /// Paths below the runtime's folder of settings, with modes and contents.
    files: BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>,
    labels: Value,
    /// Without those that Kubernetes sets by itself.
    taints: Vec<Value>,
    finalizers: Value,
}

/// Three nodes, and a release called coral.
struct Installation {
    cluster: Cluster,
    before: Vec<NodeState>,
}

impl Installation {
    /// Installs it into a new cluster, as a user does, and waits until helm says that it is there.
    async fn start(values: &Value) -> Self {
        // What a pod has mounted follows its Secret so fast; by default within one to two minutes.
        let node = |kind| {
            NodeSpec::new(kind)
                .disk(DISK)
                .kubelet("syncFrequency", "5s".into())
        };
        let administrators = "server = \"https://quay.example.test\"\n";
        let cluster = Cluster::start([
            node(Kind::Current),
            node(Kind::Old).hosts("quay.example.test", administrators),
            node(Kind::Current),
        ])
        .await;
        let images = harness::tool("CORAL_REAL_IMAGES");
        let version = env!("CARGO_PKG_VERSION");
        for program in ["registry", "operator", "warmer"] {
            let name = format!("coral/coral-{program}:{version}");
            cluster.push_layout(&images.join(program), &name).await;
        }
        cluster.push("team/test", 1, 1000).await;
        let mut installation = Self {
            cluster,
            before: Vec::new(),
        };
        installation.prepare().await;
        installation.before = installation.state().await;
        let told = installation.helm_chart("install", values).await;
        installation.succeeds(told).await;
        installation
    }

    /// What an administrator has before: a namespace, a volume, the authority of the upstream, and a certificate for the
    /// registry of an authority that no node knows.
    async fn prepare(&self) {
        let volume = self
            .cluster
            .plane()
            .folder()
            .join("node1/lib/coral-registry");
        std::fs::create_dir(volume).unwrap();
        let read = |file: &Path| std::fs::read_to_string(file).unwrap();
        let authority = read(&self.cluster.plane().ca());
        let own = Certificates::create(self.cluster.plane().folder(), &[SERVICE]);
        let objects = [
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {
                    "name": NAMESPACE,
                    "labels": { "pod-security.kubernetes.io/enforce": "privileged" },
                },
            }),
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": "authority", "namespace": NAMESPACE },
                "data": { "ca.pem": authority },
            }),
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                "metadata": { "name": CERTIFICATE, "namespace": NAMESPACE },
                "stringData": {
                    "tls.crt": read(&own.certificate), "tls.key": read(&own.key), "ca.crt": read(&own.authority),
                },
            }),
            json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "disk" },
                "spec": {
                    "capacity": { "storage": "256Mi" }, "accessModes": ["ReadWriteOnce"],
                    "storageClassName": "local", "local": { "path": "/var/lib/coral-registry" },
                    "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                        { "key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"] },
                    ] }] } },
                },
            }),
        ];
        for object in objects {
            self.cluster
                .plane()
                .apply(&object.to_string())
                .await
                .unwrap();
        }
    }

    /// Runs `install` or `upgrade` with these values.
    async fn helm_chart(&self, subcommand: &str, values: &Value) -> Result<String, String> {
        let folder = harness::scratch();
        let values = harness::write(folder.path(), "values.yaml", &values.to_string());
        let (chart, values) = (chart::folder(), values.to_string_lossy());
        let flags = [&chart.to_string_lossy(), "--wait", "--values", &values];
        self.helm(subcommand, &flags).await
    }

    /// Runs a subcommand of helm for the release.
    async fn helm(&self, subcommand: &str, more: &[&str]) -> Result<String, String> {
        let folder = harness::scratch();
        let program = Command::new(harness::tool("CORAL_REAL_HELM"));
        let mut command = chart::with_files_in(program, folder.path());
        command
            .env("KUBECONFIG", self.cluster.plane().kubeconfig())
            .args([subcommand, "coral"])
            .args(more)
            .args(["--namespace", NAMESPACE, "--timeout", "170s"]);
        harness::run(self.cluster.plane().enter(&command))
            .await
            .result()
    }

    /// The result of helm; what became of the pods, if it is an error.
    async fn succeeds(&self, told: Result<String, String>) -> String {
        match told {
            Ok(told) => told,
            Err(why) => panic!("{why}\n{}", self.pods().await),
        }
    }

    /// Our pods, and what happened to them, for a test that fails.
    async fn pods(&self) -> String {
        let mut shown = String::new();
        for kind in ["pods", "events"] {
            let get = ["get", kind, "-n", NAMESPACE, "-o", "wide"];
            shown += &self.kubectl(&get).await.unwrap_or_else(|error| error);
        }
        shown
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.plane().kubectl(arguments).await
    }

    async fn apply(&self, objects: &str) {
        self.cluster.plane().apply(objects).await.unwrap();
    }

    /// Waits until all three workloads have all their pods, ready.
    async fn rolled_out(&self) {
        for workload in [
            "statefulset/coral-registry",
            "deployment/coral-operator",
            "daemonset/coral-warmer",
        ] {
            let status = [
                "rollout",
                "status",
                workload,
                "-n",
                NAMESPACE,
                "--timeout=120s",
            ];
            let told = self.kubectl(&status).await;
            self.succeeds(told).await;
        }
    }

    /// Waits until the nodes' runtimes are told to pull through the registry.
    async fn mirrored(&self) {
        for number in 1..=self.cluster.nodes() {
            let settings = self.cluster.node(number).certs_d();
            let settings = settings.join("registry.example.test/hosts.toml");
            eventually("mirror settings", WARM, async || {
                settings.exists().then_some(())
            })
            .await;
        }
    }

    async fn state(&self) -> Vec<NodeState> {
        let mut states = Vec::new();
        for number in 1..=self.cluster.nodes() {
            let node = self.cluster.node(number);
            let json = self
                .kubectl(&["get", "node", node.name(), "-o", "json"])
                .await;
            let mut object: Value = serde_json::from_str(&json.unwrap()).unwrap();
            let mut taints = object["spec"]["taints"].take();
            if let Some(taints) = taints.as_array_mut() {
                let kubernetes = "node.kubernetes.io/";
                taints.retain(|taint| !taint["key"].as_str().unwrap().starts_with(kubernetes));
            }
            let mut files = BTreeMap::new();
            add_files(&node.certs_d(), &mut files);
            states.push(NodeState {
                files,
                labels: object["metadata"]["labels"].take(),
                taints: taints.as_array().cloned().unwrap_or_default(),
                finalizers: object["metadata"]["finalizers"].take(),
            });
        }
        states
    }
}

/// The values of the tests, which `helm upgrade` may change. There is no DNS in the cluster.
fn values() -> Value {
    let upstream = json!({
        "endpoints": [format!("https://{ADDRESS}")],
        "tls": { "ca": "/config-maps/authority/ca.pem" },
    });
    let mut slow = upstream.clone();
    slow["limits"] = json!({ "bandwidth": SLOW });
    let mut upstreams = json!({
        "registry.example.test": upstream, "registry.k8s.io": upstream, "slow.example.test": slow,
    });
    for public in [
        "docker.io",
        "ghcr.io",
        "quay.io",
        "gcr.io",
        "public.ecr.aws",
        "mcr.microsoft.com",
    ] {
        upstreams[public] = Value::Null;
    }
    json!({
        "image": { "repository": "registry.example.test/coral" },
        "registry": {
            "upstreams": upstreams, "defaultUpstream": "registry.example.test", "configMaps": ["authority"],
            "service": { "clusterIP": SERVICE }, "admin": { "apiServer": "https://10.96.0.1" },
            "persistence": { "size": "256Mi", "storageClass": "local" },
        },
        "test": { "image": "registry.example.test/team/test:1" },
    })
}

fn add_files(folder: &Path, files: &mut BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>) {
    let mode = |path: &Path| path.symlink_metadata().unwrap().permissions().mode();
    files.insert(folder.to_owned(), (mode(folder), None));
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_files(&path, files);
        } else {
            files.insert(
                path.clone(),
                (mode(&path), Some(std::fs::read(&path).unwrap())),
            );
        }
    }
}
