//! The configuration files of a node.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::REGISTRIES;
use super::control_plane::POD_ADDRESSES;
use super::namespaces::{ADDRESS, NODES};
use super::pki::{Pki, Subject};
use crate::containerd::Kind;
use crate::harness;

/// The image of every pod's sandbox; it comes from the cluster's upstream like any other.
const PAUSE: &str = "registry.k8s.io/pause:1";

/// The address of node `number`.
pub(crate) fn address(number: usize) -> String {
    format!("10.77.0.1{number}")
}

/// `/etc/hosts` of control plane and nodes: there is no DNS, and every registry is the upstream of the cluster.
pub(crate) fn hosts() -> String {
    let mut text = format!("127.0.0.1 localhost\n{ADDRESS} {}\n", REGISTRIES.join(" "));
    for number in 1..=NODES {
        let _ = writeln!(text, "{} node{number}", address(number));
    }
    text
}

/// The folder with the files of node `number`. Only parts of it are mounted to where their programs look by default.
pub(super) struct Etc<'a> {
    pub(super) number: usize,
    pub(super) folder: PathBuf,
    pub(super) pki: &'a Pki,
}

impl Etc<'_> {
    /// containerd's configuration, and that of its pods' network. Some machines do not let even root lower an OOM score,
    /// and none of these nodes runs systemd.
    pub(super) fn write_containerd(&self, kind: Kind, images: &Path) {
        let cri = match kind {
            Kind::Old => format!(
                "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\n\
                 sandbox_image = '{PAUSE}'\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n\
                 [plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d'\n\
                 [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n\
                 runtime_type = 'io.containerd.runc.v2'\n\
                 [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\nSystemdCgroup = false\n\
                 [plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/usr/lib/cni'\n\
                 conf_dir = '/etc/containerd/cni'\n"
            ),
            Kind::Current | Kind::Parallel => format!(
                "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{PAUSE}'\n\
                 [plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d'\n\
                 [plugins.'io.containerd.cri.v1.runtime']\n\
                 disable_apparmor = true\nrestrict_oom_score_adj = true\n\
                 [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n\
                 runtime_type = 'io.containerd.runc.v2'\nruntime_path = '{}'\n\
                 [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = false\n\
                 [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/usr/lib/cni']\n\
                 conf_dir = '/etc/containerd/cni'\n",
                kind.program()
                    .with_file_name("containerd-shim-runc-v2")
                    .display()
            ),
        };
        // The plugin would make a folder in /opt.
        let common = format!(
            "root = '{}'\ndisabled_plugins = ['io.containerd.internal.v1.opt']\n",
            images.display()
        );
        self.write("containerd/config.toml", &(common + &cri));
        let pods = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": "/run/cni", "routes": [{ "dst": "0.0.0.0/0" }],
                "ranges": [[{ "subnet": format!("10.244.{}.0/24", self.number) }]],
            },
        }] });
        self.write("containerd/cni/pods.conflist", &pods.to_string());
        self.write("hosts", &hosts());
    }

    /// The kubelet's. By itself it collects no image and evicts no pod before a disk is full; `more` is what a test wants
    /// otherwise.
    pub(super) fn write_kubelet(&self, name: &str, cgroups: &str, more: &Map<String, Value>) {
        let address = address(self.number);
        let server = Subject {
            user: name,
            group: "",
        };
        let server = self
            .pki
            .issue(&format!("{name}-server"), server, &[name, &address]);
        let mut config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": address, "readOnlyPort": 0, "tlsCertFile": server.0, "tlsPrivateKeyFile": server.1,
            "authentication": {
                "anonymous": { "enabled": false }, "webhook": { "enabled": true },
                "x509": { "clientCAFile": self.pki.file("ca.pem") },
            },
            "authorization": { "mode": "Webhook" },
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{cgroups}"),
            "failCgroupV1": false, "failSwapOn": false,
            "volumePluginDir": "/var/lib/kubelet/volume-plugins", "resolvConf": "",
            "makeIPTablesUtilChains": false,
            // Below the hard limit of a sandbox, which root may not raise there.
            "maxOpenFiles": 20_000,
            "nodeStatusUpdateFrequency": "2s", "nodeLeaseDurationSeconds": 8,
            "serializeImagePulls": false, "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
                "imagefs.available": "1%",
            },
        });
        for (key, value) in more {
            config[key] = value.clone();
        }
        self.write("kubelet.json", &config.to_string());
    }

    /// kube-proxy's. It leaves the machine's connection tracking as it is.
    pub(super) fn write_kube_proxy(&self, server: &str) {
        let subject = Subject {
            user: "system:kube-proxy",
            group: "",
        };
        let name = format!("kube-proxy-{}", self.number);
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "clusterCIDR": POD_ADDRESSES, "bindAddress": "127.0.0.1",
            "clientConnection": { "kubeconfig": self.pki.kubeconfig(&name, subject, server) },
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            },
        });
        self.write("kube-proxy.json", &config.to_string());
    }

    fn write(&self, name: &str, content: &str) {
        harness::write(&self.folder, name, content);
    }
}
