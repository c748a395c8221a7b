//! `ImageCache`: which images the cluster's cache holds, and which nodes hold them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::node_target::NodeTarget;
use super::{Reason, bounded, is_zero};
use crate::duration::HumanDuration;

/// What a reference looks like; a scheme is not part of it. Uniqueness and lengths are checked beside it.
pub(super) const REFERENCE: &str = r"^(([a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?/)?[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}))?$";

/// What a digest looks like.
pub(super) const DIGEST: &str = "^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$";

/// What the cluster's cache and its nodes shall hold.
#[derive(Debug, Clone, PartialEq, CustomResource, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "coral.dev",
    version = "v1alpha1",
    kind = "ImageCache",
    plural = "imagecaches",
    shortname = "ic",
    category = "coral",
    namespaced,
    status = "ImageCacheStatus",
    derive = "PartialEq",
    doc = "Which images the cluster's cache holds, and which nodes hold them.",
    printcolumn(name = "Images", type_ = "integer", json_path = ".status.images"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.desired"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.nodes.ready"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.nodes.failed"),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "self.sets.map(s, s.images.size()).sum() <= 256",
        "all sets together list more than 256 images; make several ImageCaches"
    )
)]
pub struct ImageCacheSpec {
    /// Grants nothing new; running pulls finish.
    #[serde(default)]
    pub suspend: bool,
    /// Lists of images, each with its own nodes.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub sets: Vec<ImageSet>,
    /// Pull secrets of this namespace, lent to the cluster's cache for the repositories of the images; nodes never get
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Option<Vec<SecretName>>,
    /// Where nodes may pull from.
    #[serde(default)]
    pub registry_policy: RegistryPolicy,
    /// When to look again.
    #[serde(default)]
    pub refresh: Refresh,
    /// How fast, and in which order.
    #[serde(default)]
    pub rollout: Rollout,
    /// What happens after a failed pull.
    #[serde(default)]
    pub retry: Retry,
    /// What happens to images that are wanted no more.
    #[serde(default)]
    pub retention: Retention,
    /// What pods may learn from nodes' labels and taints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduling: Option<Scheduling>,
}

/// Some images and the nodes that hold them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.discover) || self.images.size() > 0", "list images, or discover them"))]
pub struct ImageSet {
    /// Names the set within this object.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    )]
    pub name: String,
    /// References, spelled exactly as pods spell them.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(min = 1, max = 512), regex(pattern = REFERENCE)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub images: Vec<String>,
    /// Which children of an index the cache holds, like `linux/arm64`. By default those of the set's nodes; in a set
    /// without nodes those of all Linux nodes. Any variant matches a platform without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 16),
        inner(
            length(max = 64),
            regex(pattern = r"^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub platforms: Option<Vec<String>>,
    /// Images of running pods join the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discover: Option<Discover>,
    /// Which nodes hold the images; `{}` means all Linux nodes. Without it only the cluster's cache holds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeTarget>,
}

/// Which running pods' images join a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Discover {
    /// Pods of this namespace with these labels.
    #[schemars(transform = bounded)]
    pub pod_selector: LabelSelector,
    /// Patterns of images that may join; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(max = 512)))]
    pub include: Option<Vec<String>>,
    /// No more than so many.
    #[serde(default = "Discover::default_max")]
    #[schemars(range(min = 1, max = 256))]
    pub max: u32,
    /// For so long after the last pod that uses it is gone.
    #[serde(default = "Discover::default_keep_for")]
    pub keep_for: HumanDuration,
}

impl Discover {
    fn default_max() -> u32 {
        32
    }

    fn default_keep_for() -> HumanDuration {
        HumanDuration::from_secs(24 * 3600)
    }
}

/// A secret of the object's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct SecretName {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Where nodes may pull from.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[schemars(inline)]
pub enum RegistryPolicy {
    /// From the cache when it serves the registry, else as the runtime would; decided once per image and revision.
    #[default]
    Auto,
    /// As the runtime would.
    Default,
    /// Never unless the cache holds the image and the node's runtime asks the cache first.
    MirrorOnly,
    /// A word of another version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// When to look again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "!has(self.interval) || duration(self.interval) == duration('0s') || duration(self.interval) >= duration('1m')",
        "interval is at least 1m, or 0s to switch it off"
    ),
)]
pub struct Refresh {
    /// Everything is verified so often; `0s` is never. By default what the operator was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<HumanDuration>,
    /// What happens to an image that the node removed.
    #[serde(default)]
    pub on_eviction: OnEviction,
    /// What happens when a tag means something else upstream.
    #[serde(default)]
    pub tag_policy: TagPolicy,
}

/// What happens to an image that the node removed.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[schemars(inline)]
pub enum OnEviction {
    /// It is pulled again; less and less often when that happens again and again.
    #[default]
    Repull,
    /// It stays away until it is asked for anew.
    Ignore,
    /// A word of another version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What happens when a tag means something else upstream.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[schemars(inline)]
pub enum TagPolicy {
    /// Nodes keep what they have; the difference is reported.
    #[default]
    Keep,
    /// The new content is rolled out, wave by wave.
    Follow,
    /// The cache goes on answering with the content that it found first, as long as the object is there.
    Freeze,
    /// A word of another version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// How fast, and in which order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "!has(self.maxConcurrentNodes) || (type(self.maxConcurrentNodes) == int ? self.maxConcurrentNodes >= 1 : self.maxConcurrentNodes.matches('^([1-9][0-9]?|100)%$'))",
        "maxConcurrentNodes is a number from 1, or a share like 10%"
    )
)]
pub struct Rollout {
    /// So many nodes pull at once, as a number or as a share of the object's nodes, rounded up; `10%` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "int_or_percent")]
    pub max_concurrent_nodes: Option<IntOrString>,
    /// Whether a set waits for the one before it.
    #[serde(default)]
    pub order: RolloutOrder,
    /// Who decides, and goes first, where objects wish for the same.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
    /// Nodes are told of something new only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

fn int_or_percent(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "x-kubernetes-int-or-string": true, "maxLength": 4, "maximum": 5000 })
}

/// Whether a set waits for the one before it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[schemars(inline)]
pub enum RolloutOrder {
    /// All sets at once.
    #[default]
    Parallel,
    /// The next set starts when the previous one is done.
    Sequential,
    /// A word of another version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// When nodes may be told of something new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("duration(self.duration) >= duration('1m')", "duration is at least 1m"))]
pub struct Window {
    /// When it opens, as a cron expression of five fields.
    #[schemars(length(min = 9, max = 100))]
    pub schedule: String,
    /// IANA name; UTC by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub time_zone: Option<String>,
    /// How long it stays open.
    pub duration: HumanDuration,
}

/// What happens after a failed pull.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("duration(self.initialBackoff) >= duration('1s')", "initialBackoff is at least 1s"),
    validation = ("duration(self.maxBackoff) >= duration(self.initialBackoff)", "maxBackoff is at least initialBackoff"),
    validation = ("!has(self.timeout) || duration(self.timeout) >= duration('10s')", "timeout is at least 10s")
)]
pub struct Retry {
    /// Tries, after which the image stays failed until it is asked for anew; for ever by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<u32>,
    /// Wait after the first failure.
    #[serde(default = "Retry::default_initial_backoff")]
    pub initial_backoff: HumanDuration,
    /// Longest wait.
    #[serde(default = "Retry::default_max_backoff")]
    pub max_backoff: HumanDuration,
    /// One pull may take so long; as long as it likes by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
}

impl Retry {
    fn default_initial_backoff() -> HumanDuration {
        HumanDuration::from_secs(5)
    }

    fn default_max_backoff() -> HumanDuration {
        HumanDuration::from_secs(300)
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            limit: None,
            initial_backoff: Self::default_initial_backoff(),
            max_backoff: Self::default_max_backoff(),
            timeout: None,
        }
    }
}

/// What happens to images that are wanted no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("duration(self.purgeTimeout) >= duration('10s')", "purgeTimeout is at least 10s")
)]
pub struct Retention {
    /// When an image or a node leaves the spec, or the object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// A deleted object waits so long for its nodes.
    #[serde(default = "Retention::default_purge_timeout")]
    pub purge_timeout: HumanDuration,
    /// Whether nodes protect the images from their own garbage collection.
    #[serde(default)]
    pub gc_protection: GcProtection,
}

impl Retention {
    fn default_purge_timeout() -> HumanDuration {
        HumanDuration::from_secs(600)
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            deletion_policy: DeletionPolicy::default(),
            purge_timeout: Self::default_purge_timeout(),
            gc_protection: GcProtection::default(),
        }
    }
}

/// When an image or a node leaves the spec, or the object is deleted.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[schemars(inline)]
pub enum DeletionPolicy {
    /// Nodes keep the images until their kubelets collect them.
    #[default]
    Retain,
    /// Nodes remove what their warmer pulled and nothing uses.
    PurgeUnused,
    /// A word of another version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Whether nodes protect the images from their own garbage collection.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[schemars(inline)]
pub enum GcProtection {
    /// They do not.
    #[default]
    None,
    /// They do where the runtime can, and the chart allows it.
    Pin,
    /// A word of another version.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What pods may learn from nodes' labels and taints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scheduling {
    /// Warm nodes carry the label `warm.coral.dev/<namespace>.<name>`.
    #[serde(default)]
    pub node_label: bool,
    /// Nodes that boot with taint `coral.dev/warming` lose it when this object is warm there.
    #[serde(default)]
    pub startup_taint: bool,
    /// They lose it after this time in any case.
    #[serde(default = "Scheduling::default_startup_deadline")]
    pub startup_deadline: HumanDuration,
}

impl Scheduling {
    fn default_startup_deadline() -> HumanDuration {
        HumanDuration::from_secs(600)
    }
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageCacheStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled`, `CacheReady`, `NodesReady`, `Drifted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), transform = bounded)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// Images in all sets.
    #[serde(default)]
    pub images: u32,
    /// Nodes by state.
    #[serde(default)]
    pub nodes: NodeCounts,
    /// One per image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub entries: Vec<Entry>,
    /// The most frequent ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub failures: Vec<Failure>,
    /// When everything was verified last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refresh: Option<Time>,
    /// The last value of annotation `coral.dev/refresh` that was acted upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_refresh: Option<String>,
}

/// Nodes of an `ImageCache` by state. Pulling, waiting and failed ones are desired ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Target nodes that are Ready in Kubernetes' sense.
    #[serde(default)]
    pub desired: u32,
    /// They hold every image of their sets.
    #[serde(default)]
    pub ready: u32,
    /// At least one pull runs.
    #[serde(default)]
    pub pulling: u32,
    /// Their turn, or the cache's content, has yet to come.
    #[serde(default)]
    pub waiting: u32,
    /// At least one image failed, or the warmer is silent.
    #[serde(default)]
    pub failed: u32,
    /// Target nodes that are not Ready.
    #[serde(default)]
    pub skipped: u32,
}

/// One image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// As in the spec.
    #[serde(rename = "ref")]
    #[schemars(length(max = 512))]
    pub reference: String,
    /// What the cache holds under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 140), regex(pattern = DIGEST))]
    pub digest: Option<String>,
    /// Compressed length of what one node pulls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The cache holds all of it.
    #[serde(default)]
    pub cached: bool,
    /// Nodes that hold it.
    #[serde(default)]
    pub ready_nodes: u32,
    /// Nodes on which it failed.
    #[serde(default)]
    pub failed_nodes: u32,
    /// Nodes that hold other content under the name than the upstream, the cache, or most nodes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub drifted_nodes: u32,
    /// Different contents that nodes hold under the name, where there are several; 16 stands for more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub contents: u32,
    /// What the tag means upstream, where that is something else than in the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 140), regex(pattern = DIGEST))]
    pub upstream_digest: Option<String>,
    /// When the cache last asked the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_resolved: Option<Time>,
}

/// Something that failed, on how many nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The image, unless it is about a node.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub reference: Option<String>,
    /// In one word.
    #[schemars(with = "String", length(max = 64))]
    pub reason: Reason,
    /// In a sentence, with the remedy.
    #[schemars(length(max = 256))]
    pub message: String,
    /// On how many nodes; 0 is in the cache.
    #[serde(default)]
    pub nodes: u32,
    /// Some of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3), inner(length(max = 253)))]
    pub sample_nodes: Vec<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}
