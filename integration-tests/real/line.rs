//! The whole line in a real cluster: our registry behind a Service, our operator, and our warmer on every node.

use std::process::Command;
use std::time::Duration;

use coral_schema::crd::{ImageCache, NodeCache, Reason};

use crate::cluster::Cluster;
use crate::cluster::namespaces::ADDRESS;
use crate::cluster::node::NodeSpec;
use crate::coral;
use crate::harness::{self, Process, eventually};
use crate::upstream::Certificates;

/// Far above what is seen: pulls of small images on a busy machine take seconds.
pub(crate) const WARM: Duration = Duration::from_mins(2);

/// In memory, and only as far as it is used.
const DISK: u64 = 512 << 20;

/// What our registry reads of `slow.example.test` in a second: minutes for a small image, and never too slow for a client.
pub(crate) const SLOW: &str = "128Ki";

/// What the cluster gives to our registry as a service.
pub(crate) const SERVICE: &str = "10.96.0.50";

/// A cluster with all three programs of ours.
pub(crate) struct Line {
    // Dropped in this order.
    warmers: Vec<Process>,
    pub(crate) operators: Vec<Process>,
    registry: Option<Process>,
    /// If our registry serves TLS.
    tls: Option<Certificates>,
    pub(crate) cluster: Cluster,
}

impl Line {
    /// Starts it, with one operator.
    pub(crate) async fn start(specs: impl IntoIterator<Item = NodeSpec>) -> Self {
        let mut line = Self::without_warmers(specs, false).await;
        for node in 1..=line.cluster.nodes() {
            line.start_warmer(node);
        }
        line
    }

    /// The same but for the warmers; with `tls`, our registry has a certificate of an authority that no node knows.
    pub(crate) async fn without_warmers(
        specs: impl IntoIterator<Item = NodeSpec>,
        tls: bool,
    ) -> Self {
        // A disk of its own for each node: how full this machine is must not keep a warmer from pulling.
        let specs = specs.into_iter().map(|spec| spec.or_image_disk(DISK));
        let cluster = Cluster::start(specs).await;
        let tls = tls.then(|| Certificates::create(cluster.plane().folder(), &[SERVICE]));
        let registry = registry(&cluster, tls.as_ref()).await;
        cluster.plane().apply(&service()).await.unwrap();
        let mut line = Self {
            warmers: Vec::new(),
            operators: Vec::new(),
            registry: Some(registry),
            tls,
            cluster,
        };
        let definitions = line.operator_command(&["apply-crds"]);
        let definitions = line.cluster.plane().enter(&definitions);
        harness::run(definitions).await.result().unwrap();
        line.start_operator().await;
        line
    }

    /// One more operator; the first one leads.
    pub(crate) async fn start_operator(&mut self) {
        let number = self.operators.len();
        let admin = format!("{ADDRESS}:{}", 9091 + number);
        let command = self.operator_command(&["--admin-listen", &admin]);
        let operator = self
            .cluster
            .plane()
            .spawn(&format!("coral-operator-{number}"), &command);
        let live = format!("http://{admin}/livez");
        let operator = operator
            .ready(async || self.cluster.get(&live).await.is_ok())
            .await;
        self.operators.push(operator);
    }

    fn operator_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(harness::tool("CORAL_OPERATOR_BIN"));
        command
            .env("KUBECONFIG", self.cluster.plane().kubeconfig())
            .args(["--namespace", "default"])
            .args(["--registry-admin", &format!("http://{ADDRESS}:5001")])
            .args(arguments);
        match &self.tls {
            None => command.args(["--registry-address", "service/cache:5000"]),
            Some(tls) => command
                .args(["--registry-address", "https://service/cache:5000"])
                .arg("--registry-ca")
                .arg(&tls.authority),
        };
        command
    }

    /// One more node, with a warmer; its number.
    pub(crate) async fn add_node(&mut self, spec: NodeSpec) -> usize {
        let node = self.cluster.add_node(spec.or_image_disk(DISK)).await;
        self.start_warmer(node);
        node
    }

    /// The warmer of a node, by number. After a power cut it has to be started again, as a `DaemonSet` does.
    pub(crate) fn start_warmer(&mut self, node: usize) {
        self.start_warmer_with(node, &[]);
    }

    /// The same with more flags.
    pub(crate) fn start_warmer_with(&mut self, node: usize, flags: &[&str]) {
        let mut command = Command::new(harness::tool("CORAL_WARMER_BIN"));
        let node = self.cluster.node(node);
        command
            .env("KUBECONFIG", self.cluster.plane().kubeconfig())
            .args(["--node-name", node.name()])
            .args(["--mirror-config", "/etc/containerd/certs.d"])
            .arg("--imagefs-path")
            .arg(node.images())
            .args(flags);
        self.warmers.push(node.spawn("coral-warmer", &command));
    }

    /// Ends our registry, as a crash does.
    pub(crate) fn stop_registry(&mut self) {
        self.registry = None;
    }

    /// Starts it again on its data.
    pub(crate) async fn start_registry(&mut self) {
        self.registry = Some(registry(&self.cluster, self.tls.as_ref()).await);
    }

    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.plane().kubectl(arguments).await
    }

    pub(crate) async fn apply(&self, yaml: &str) {
        self.cluster.plane().apply(yaml).await.unwrap();
    }

    /// Applies an `ImageCache`, see `wish`.
    pub(crate) async fn image_cache(&self, name: &str, spec: &str) {
        self.apply(&wish(name, spec)).await;
    }

    /// Waits until an `ImageCache` looks like this, and fails with what it looks like.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        mut looks: impl FnMut(&ImageCache) -> bool,
    ) -> ImageCache {
        let get = ["get", "imagecache", name, "-o", "json"];
        let mut last: Option<ImageCache> = None;
        let found = harness::polled(WARM, async || {
            let json = self.kubectl(&get).await.unwrap();
            let object = last.insert(serde_json::from_str(&json).unwrap());
            looks(object).then(|| object.clone())
        });
        if let Some(object) = found.await {
            return object;
        }
        let told = self.explain(name).await;
        panic!("{name} is not {what}: {last:#?}\n{told:?}");
    }

    /// Waits until it is Ready for this reason, in its present generation.
    pub(crate) async fn until_ready(&self, name: &str, reason: &str) -> ImageCache {
        self.until(name, reason, |object| {
            let status = object.status.as_ref();
            let current = status
                .is_some_and(|status| status.observed_generation == object.metadata.generation);
            let mut conditions = status.iter().flat_map(|status| &status.conditions);
            current
                && conditions.any(|condition| {
                    condition.type_ == "Ready"
                        && condition.status == "True"
                        && condition.reason == reason
                })
        })
        .await
    }

    /// Waits until a node's runtime holds an image, or does not.
    pub(crate) async fn until_held(&self, node: usize, name: &str, held: bool) {
        let what = format!("node{node} holds {name}: {held}");
        eventually(&what, WARM, async || {
            (self.holds(node, name).await == held).then_some(())
        })
        .await;
    }

    /// Does a node's runtime hold the image, by the name that it records?
    pub(crate) async fn holds(&self, node: usize, name: &str) -> bool {
        let images = self.cluster.node(node).crictl(&["images"]).await.unwrap();
        images
            .lines()
            .any(|line| line.split_whitespace().next() == Some(name))
    }

    /// Waits until `kubectl get events` shows an event about an `ImageCache`: its line, with this type and reason.
    pub(crate) async fn tells(&self, name: &str, kind: &str, reason: Reason) -> String {
        let reason = reason.as_str();
        let about = format!(
            "involvedObject.kind=ImageCache,involvedObject.name={name},reason={reason},type={kind}"
        );
        let get = ["get", "events", "--no-headers", "--field-selector", &about];
        eventually(&format!("{kind} {reason} about {name}"), WARM, async || {
            let events = self.kubectl(&get).await.unwrap();
            events.lines().next().map(str::to_owned)
        })
        .await
    }

    /// What `coral-operator explain` prints.
    pub(crate) async fn explain(&self, name: &str) -> Result<String, String> {
        let command = self.operator_command(&["explain", &format!("ic/{name}")]);
        harness::run(self.cluster.plane().enter(&command))
            .await
            .result()
    }

    /// A node's resource.
    pub(crate) async fn node_cache(&self, name: &str) -> Option<NodeCache> {
        let json = self
            .kubectl(&["get", "nodecache", name, "-o", "json"])
            .await;
        serde_json::from_str(&json.ok()?).ok()
    }
}

/// Our registry beside the control plane, for the cluster's upstream, with the certificates of that; over TLS if it gets some
/// for itself.
pub(crate) async fn registry(cluster: &Cluster, tls: Option<&Certificates>) -> Process {
    let folder = cluster.plane().folder();
    let ca = cluster.plane().ca();
    let config = format!(
        "listen: {ADDRESS}:5000\nadmin: {{ listen: \"{ADDRESS}:5001\" }}\ndata: {}\nshutdownGrace: 2s\nupstreams:\n  \
         registry.example.test: {{ tls: {{ ca: {ca} }} }}\n  docker.io: {{ tls: {{ ca: {ca} }} }}\n  \
         slow.example.test: {{ tls: {{ ca: {ca} }}, limits: {{ bandwidth: {SLOW} }} }}\n",
        folder.join("coral").display(),
        ca = ca.display(),
    );
    let config = config + &tls.map_or(String::new(), tls_section);
    let mut command = Command::new(coral::program());
    command.arg("--config");
    command.arg(harness::write(folder, "coral.yaml", &config));
    let registry = cluster.plane().spawn("coral-registry", &command);
    let ready = format!("http://{ADDRESS}:5001/readyz");
    registry
        .ready(async || cluster.get(&ready).await.is_ok())
        .await
}

fn tls_section(tls: &Certificates) -> String {
    let (certificate, key) = (tls.certificate.display(), tls.key.display());
    format!("tls: {{ certificate: {certificate}, key: {key} }}\n")
}

/// An `ImageCache` of namespace `default`, its spec as lines of YAML.
pub(crate) fn wish(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: coral.dev/v1alpha1\nkind: ImageCache\nmetadata: {{ name: {name}, namespace: default }}\nspec:\n{spec}"
    )
}

/// A service whose only endpoint is no pod.
pub(crate) fn service() -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: cache, namespace: default }}\n\
         spec: {{ clusterIP: {SERVICE}, ports: [{{ port: 5000 }}] }}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{ name: cache, namespace: default, labels: {{ kubernetes.io/service-name: cache }} }}\n\
         ports: [{{ port: 5000 }}]\nendpoints: [{{ addresses: [{ADDRESS}] }}]\n"
    )
}

/// A pod without a service account's token; `place` is a line of its spec, `policy` an image pull policy.
pub(crate) fn pod(name: &str, image: &str, place: &str, policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: default }}\nspec:\n  {place}\n  \
         automountServiceAccountToken: false\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{{ name: app, image: \"{image}\", imagePullPolicy: {policy} }}]\n"
    )
}
