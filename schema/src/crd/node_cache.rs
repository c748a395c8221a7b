//! `NodeCache`: what one node should hold, and what it holds. Named after its node.
//!
//! All lists are atomic: as maps, the managed fields would double the object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::image_cache::{DIGEST, OnEviction, REFERENCE, Retry};
use super::{Reason, bounded, is_zero};
use crate::duration::HumanDuration;

/// What one node should hold. Written by the operator.
#[derive(Debug, Clone, PartialEq, CustomResource, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "coral.dev",
    version = "v1alpha1",
    kind = "NodeCache",
    plural = "nodecaches",
    shortname = "nc",
    category = "coral",
    status = "NodeCacheStatus",
    derive = "PartialEq",
    doc = "What one node should hold (written by the operator) and what it holds (written by its warmer).",
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desired"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.ready"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failed"),
    printcolumn(
        name = "Used%",
        type_ = "integer",
        json_path = ".status.imageFS.usedPercent"
    ),
    printcolumn(
        name = "Runtime",
        type_ = "string",
        json_path = ".status.runtime.version"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct NodeCacheSpec {
    /// UID of the Node: another one under the same name is another node.
    #[serde(rename = "nodeUID")]
    #[schemars(length(min = 1, max = 64))]
    pub node_uid: String,
    /// Time between two writes of the status; an image that becomes Ready or Failed is reported at once.
    #[serde(default = "NodeCacheSpec::default_report_interval")]
    pub report_interval: HumanDuration,
    /// Time between two looks at what the runtime holds.
    #[serde(default = "NodeCacheSpec::default_look_interval")]
    pub look_interval: HumanDuration,
    /// What to hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub images: Vec<NodeImage>,
    /// What to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub purge: Vec<PurgeWish>,
    /// How much of the node may be used.
    #[serde(default)]
    pub budget: Budget,
    /// The cache, as nodes reach it. Without it no mirror settings are written, and those of ours are removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// Nothing is pulled or removed (Node annotation `coral.dev/paused`).
    #[serde(default)]
    pub paused: bool,
}

impl NodeCacheSpec {
    fn default_report_interval() -> HumanDuration {
        HumanDuration::from_secs(5)
    }

    fn default_look_interval() -> HumanDuration {
        HumanDuration::from_secs(180)
    }
}

/// One image that the node shall hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeImage {
    /// Exactly as pods spell it.
    #[serde(rename = "ref")]
    #[schemars(length(min = 1, max = 512), regex(pattern = REFERENCE))]
    pub reference: String,
    /// What the revision is to bring, as far as the cache knows; another digest on the node is reported, not replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 140), regex(pattern = DIGEST))]
    pub digest: Option<String>,
    /// Compressed length of what the node pulls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Raised: pull again although it is present.
    #[serde(default)]
    pub revision: u64,
    /// Higher ones first.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
    /// Where it may be pulled from.
    #[serde(default)]
    pub registry_policy: NodeRegistryPolicy,
    /// What to do when the node removed it.
    #[serde(default)]
    pub on_eviction: OnEviction,
    /// Protect it from the kubelet's garbage collection, where the runtime can and the warmer may.
    #[serde(default)]
    pub protect: bool,
    /// What to do after a failed pull.
    #[serde(default)]
    pub retry: Retry,
    /// Who wants it, as namespace/name/set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 400)))]
    pub owners: Vec<String>,
    /// So many more want it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_owners: u32,
}

/// Where a node may pull an image from.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[schemars(inline)]
pub enum NodeRegistryPolicy {
    /// As the runtime would.
    #[default]
    Default,
    /// Only when the cache has it, and the runtime asks the cache first.
    MirrorOnly,
    /// A word of another version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// One image that the node shall remove if it may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PurgeWish {
    /// Exactly as it was pulled.
    #[serde(rename = "ref")]
    #[schemars(length(min = 1, max = 512), regex(pattern = REFERENCE))]
    pub reference: String,
    /// The wish is void afterwards.
    pub not_after: Time,
}

/// How much of the node may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// No pull starts that would fill the image file system further, in percent.
    #[serde(default = "Budget::default_max_used_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub max_used_percent: u8,
    /// Pulls of large images at once.
    #[serde(default = "Budget::default_concurrent_pulls")]
    #[schemars(range(min = 1, max = 16))]
    pub concurrent_pulls: u32,
}

impl Budget {
    // The kubelet collects images down to 80 %; a higher ceiling would refill what it frees.
    fn default_max_used_percent() -> u8 {
        80
    }

    fn default_concurrent_pulls() -> u32 {
        1
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            max_used_percent: Self::default_max_used_percent(),
            concurrent_pulls: Self::default_concurrent_pulls(),
        }
    }
}

/// The cache, as nodes reach it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Scheme, host and port.
    #[schemars(length(min = 8, max = 300), regex(pattern = r"^https?://[^/?#@ ]+$"))]
    pub url: String,
    /// PEM certificates that its certificate is checked against; the node's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 131_072))]
    pub ca_bundle: Option<String>,
    /// Registries that it serves, as they stand in references.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        inner(length(min = 1, max = 259), regex(pattern = r"^[a-zA-Z0-9.\[\]:_-]+$"))
    )]
    pub registries: Vec<String>,
}

/// What one node holds. Written by its warmer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCacheStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The node that it speaks of: a status of another UID is another node's.
    #[serde(rename = "nodeUID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub node_uid: Option<String>,
    /// `Ready`, `RuntimeReachable`, `StorageAvailable`, `MirrorConfigured`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), transform = bounded)]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub conditions: Vec<Condition>,
    /// The container runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// The file system of its images.
    #[serde(rename = "imageFS", default, skip_serializing_if = "Option::is_none")]
    pub image_fs: Option<ImageFs>,
    /// Images in the spec.
    #[serde(default)]
    pub desired: u32,
    /// Of these, held.
    #[serde(default)]
    pub ready: u32,
    /// Of these, being pulled.
    #[serde(default)]
    pub pulling: u32,
    /// Of these, failed or evicted.
    #[serde(default)]
    pub failed: u32,
    /// Images of the spec, by reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub images: Vec<NodeImageStatus>,
    /// What became of the wishes to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub purge: Vec<PurgeOutcome>,
    /// When the node held everything for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_ready_time: Option<Time>,
}

/// The container runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Like `containerd`.
    #[schemars(length(max = 64))]
    pub name: String,
    /// Its own version.
    #[schemars(length(max = 64))]
    pub version: String,
    /// What it can do beyond the CRI.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 64)))]
    pub capabilities: Vec<String>,
}

/// The file system of the images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageFs {
    /// Bytes that it has.
    pub capacity_bytes: u64,
    /// Bytes in use, by anything.
    pub used_bytes: u64,
    /// The same in percent.
    pub used_percent: u8,
}

/// One image on a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeImageStatus {
    /// As in the spec.
    #[serde(rename = "ref")]
    #[schemars(length(max = 512))]
    pub reference: String,
    /// Where it stands.
    pub state: ImageState,
    /// What the node holds under the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 140))]
    pub digest: Option<String>,
    /// Bytes on the node, unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// It was absent before this node's warmer pulled it.
    #[serde(default)]
    pub pulled_by_us: bool,
    /// The revision that was pulled, or found present.
    #[serde(default)]
    pub revision: u64,
    /// Why it waits or failed, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 64))]
    pub reason: Option<Reason>,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub message: Option<String>,
    /// Pulls that failed since it was last held.
    #[serde(default)]
    pub attempts: u32,
    /// How often the node removed it.
    #[serde(default)]
    pub evictions: u32,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<Time>,
    /// When the state last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition: Option<Time>,
}

/// Where an image stands on a node.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[schemars(inline)]
pub enum ImageState {
    /// Its turn, room or the cache's content has yet to come.
    Waiting,
    /// The runtime pulls it.
    Pulling,
    /// Held.
    Ready,
    /// The last pull failed; it is tried again unless the limit is reached.
    Failed,
    /// The node removed it again and again.
    Evicted,
    /// The runtime could not be asked, or a word of another version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What became of a wish to remove an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PurgeOutcome {
    /// As in the spec.
    #[serde(rename = "ref")]
    #[schemars(length(max = 512))]
    pub reference: String,
    /// Final.
    pub result: PurgeResult,
    /// When.
    pub time: Time,
}

/// What became of a wish to remove an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(inline)]
pub enum PurgeResult {
    /// It is gone.
    Purged,
    /// A container uses it.
    InUse,
    /// The warmer did not pull it, or it has names that are none of ours.
    NotOurs,
    /// A word of another version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}
