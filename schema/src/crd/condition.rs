//! Conditions and reasons: what stands in a status, in events and in metrics, as closed lists.

use serde::{Deserialize, Serialize};

/// Types of conditions, in the order in which they stand in a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionType {
    /// The object is what its spec says.
    Ready,
    /// Work towards it goes on.
    Reconciling,
    /// It does not get there without a change by a person.
    Stalled,
    /// `ImageCache`: the cluster's cache holds every image.
    CacheReady,
    /// `ImageCache`: every desired node holds every image of its sets.
    NodesReady,
    /// `ImageCache`: a node holds another digest under a tag than the upstream or another node.
    Drifted,
    /// `NodeCache`: the container runtime answers.
    RuntimeReachable,
    /// `NodeCache`: the disk budget leaves room.
    StorageAvailable,
    /// `NodeCache`: the runtime's mirror settings are ours.
    MirrorConfigured,
}

impl ConditionType {
    /// As it stands in `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::CacheReady => "CacheReady",
            Self::NodesReady => "NodesReady",
            Self::Drifted => "Drifted",
            Self::RuntimeReachable => "RuntimeReachable",
            Self::StorageAvailable => "StorageAvailable",
            Self::MirrorConfigured => "MirrorConfigured",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident: $remedy:literal;)+) => {
        /// Why something is as it is: one list for conditions, images, failures and events. Each has a sentence that
        /// says what to do about it.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
        )]
        #[schemars(inline)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
            /// A word of another version.
            #[serde(other)]
            #[schemars(skip)]
            Unknown,
        }

        impl Reason {
            /// All but [`Reason::Unknown`].
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// As it stands in `reason`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                    Self::Unknown => "Unknown",
                }
            }

            /// What to do about it.
            pub fn remedy(self) -> &'static str {
                match self {
                    $(Self::$name => $remedy,)+
                    Self::Unknown => "look at the message; this version does not know the reason",
                }
            }
        }
    };
}

reasons! {
    /// Everything is where it should be.
    Warm: "nothing to do";
    /// Pulls go on.
    Warming: "wait; `coral-operator explain` shows what for";
    /// `spec.suspend` is true.
    Suspended: "set spec.suspend to false to go on";
    /// The selectors match no node.
    NoMatchingNodes: "label a node, or change the set's nodes";
    /// A node that the spec names does not exist.
    NodeNotFound: "correct spec.sets[].nodes.names, or add the node";
    /// The upstream does not have the image.
    NotFound: "correct the reference, or push the image";
    /// The registry wants other credentials, or the cache does not serve it.
    Unauthorized: "add the registry to the cache's upstreams, with credentials and `visibility: shared` if it is private";
    /// The credentials do not suffice, or the cache's rules deny the repository.
    Forbidden: "let the credentials read the repository, or allow it in the cache's upstreams";
    /// An admission policy denies it.
    PolicyDenied: "ask the cluster's administrator to allow the registry for this namespace";
    /// The upstream failed or was silent.
    UpstreamUnavailable: "nothing to do while the upstream is down; it is tried again";
    /// The upstream limits requests.
    RateLimited: "wait, or give the cache credentials with a higher limit";
    /// The image has no variant for the node.
    PlatformMissing: "push the image for this platform, or narrow the set's nodes or platforms";
    /// The bytes are not what their name says.
    DigestMismatch: "look at the upstream: it sent other bytes than its digest promises";
    /// A pull made no progress and was given up.
    Stalled: "look at the node's network and at the cache; it is tried again";
    /// `retry.timeout` passed.
    Timeout: "raise spec.retry.timeout, or look at why pulls are slow";
    /// The disk budget of a node leaves no room.
    InsufficientStorage: "free or enlarge the node's image file system, or wish for less";
    /// The disks of a node are too busy for another pull.
    NodeUnderPressure: "nothing to do: pulls go on when the node's I/O pressure falls; if it never does, give images a disk of their own";
    /// The container runtime does not answer.
    RuntimeUnavailable: "look at the container runtime of the node";
    /// The cache does not hold the image yet, or does not answer.
    WaitingForCache: "look at the registry's status; the pull starts when the cache has the image";
    /// The node removed the image again and again.
    EvictedRepeatedly: "give the node more disk, or raise the kubelet's image garbage collection thresholds";
    /// The node removed the image, and `onEviction` is `Ignore`.
    Evicted: "nothing to do; the annotation coral.dev/refresh with a new value brings it back";
    /// A container uses the image.
    StillInUse: "nothing to do: the kubelet collects it when it is out of use";
    /// Somebody else put it there.
    NotOurs: "remove it by hand if it should go";
    /// More is wished for than a node's list takes.
    NodeListFull: "wish for at most 256 images per node; lower priorities were left out";
    /// The node's warmer does not report.
    WarmerSilent: "look at the warmer's pod on the node";
    /// A file is not what its checksum says.
    ChecksumMismatch: "correct the checksum, or look at the source";
    /// The node is not ready.
    NodeNotReady: "nothing to do: it is warmed when it returns";
    /// Another `ImageCache` decides.
    Conflict: "agree with the owner that the message names, or raise spec.rollout.priority";
    /// The cache's mirror settings stand.
    Written: "nothing to do";
    /// The mirror settings were withdrawn.
    Removed: "nothing to do; they return when the cache answers";
    /// A node holds another digest than the cache.
    Drifted: "nothing has to be done: nodes keep what they hold; name images by digest to avoid it";
    /// The object says something that this version cannot evaluate.
    InvalidSpec: "correct the fields that the message names; until then nodes keep what they hold";
    /// It did not work for a reason of ours.
    Internal: "look at the logs and report it";
}

impl Reason {
    /// Does it pass without a change by a person? Such a reason never sets [`ConditionType::Stalled`].
    pub fn is_temporary(self) -> bool {
        !matches!(
            self,
            Self::NodeNotFound
                | Self::NotFound
                | Self::Unauthorized
                | Self::Forbidden
                | Self::PolicyDenied
                | Self::PlatformMissing
                | Self::DigestMismatch
                | Self::NodeListFull
                | Self::ChecksumMismatch
                | Self::Conflict
                | Self::InvalidSpec
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_and_have_a_remedy() {
        for reason in Reason::ALL {
            let text = serde_json::to_string(reason).unwrap();
            assert_eq!(text, format!("{:?}", reason.as_str()));
            assert_eq!(serde_json::from_str::<Reason>(&text).unwrap(), *reason);
            assert!(!reason.remedy().is_empty());
        }
        let newer: Reason = serde_json::from_str(r#""Eclipsed""#).unwrap();
        assert_eq!(newer, Reason::Unknown);
    }
}
