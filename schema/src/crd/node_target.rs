//! Which nodes a set means.

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::bounded;

/// Which nodes hold the images of a set. Without `selector` and `names`: all Linux nodes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "[has(self.selector), has(self.names), has(self.podSelector)].filter(it, it).size() <= 1",
        "give only one of selector, names and podSelector"
    ),
    validation = ("!has(self.topologyKey) || has(self.replicas)", "topologyKey spreads replicas; give replicas, too"),
    validation = (
        "!has(self.tolerations) || !has(self.taintPolicy) || self.taintPolicy == 'Honor'",
        "tolerations mean nothing when taints are ignored"
    )
)]
pub struct NodeTarget {
    /// Nodes with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = bounded)]
    pub selector: Option<LabelSelector>,
    /// Nodes with these names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 500),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub names: Option<Vec<String>>,
    /// Nodes on which such pods of this namespace run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = bounded)]
    pub pod_selector: Option<LabelSelector>,
    /// So many of those nodes, and no more. Who was chosen stays chosen, until its node is gone or not ready for five
    /// minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5000))]
    pub replicas: Option<u32>,
    /// Replicas are spread over the values of this label; `topology.kubernetes.io/zone` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: Option<String>,
    /// What taints mean.
    #[serde(default)]
    pub taint_policy: TaintPolicy,
    /// Taints that do not count, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), transform = bounded)]
    pub tolerations: Option<Vec<Toleration>>,
}

impl NodeTarget {
    /// Label over whose values replicas are spread, unless the set says another.
    pub const ZONE: &str = "topology.kubernetes.io/zone";

    /// Label over whose values replicas are spread.
    pub fn topology_key(&self) -> &str {
        self.topology_key.as_deref().unwrap_or(Self::ZONE)
    }
}

/// What taints of a node mean for a set.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[schemars(inline)]
pub enum TaintPolicy {
    /// A node with a taint that is not tolerated is left out; being unschedulable counts as a taint.
    #[default]
    Honor,
    /// Taints mean nothing.
    Ignore,
    /// A word of another version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}
