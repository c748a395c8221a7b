//! What an `ImageCache` refers to, as facts: nodes with what they hold, and what the cache holds.
//!
//! A node's facts are made once per change of its Node or its `NodeCache`, and shared by all objects: looking at 5000
//! nodes again means following pointers, not reading objects. Fetching is the driver's part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use coral_schema::admin::PrefetchImage;
use coral_schema::crd::node_cache::NodeImage;
use coral_schema::crd::{ImageCacheStatus, PAUSED_ANNOTATION};
use coral_schema::oci::Platform;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};

use super::secrets::PullSecrets;
use super::served::Registries;
use crate::node_cache::stored::{ImageReport, Stored, StoredStatus};
use crate::node_cache::wishes::{NodeVerdicts, ObjectWishes};

/// A Ready node whose warmer answers no spec for so long is silent.
pub const SILENT_AFTER: Duration = Duration::from_mins(5);
/// The same for a warmer that never reported: its first answer takes no pull.
pub const NEVER_REPORTED_AFTER: Duration = Duration::from_mins(2);

/// Everything outside of an object that its steps look at.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// All nodes.
    pub nodes: &'a Nodes,
    /// The cache.
    pub cache: &'a CacheFacts,
    /// What the object wished last: it may not have reached the `NodeCache`s yet.
    pub previous: Option<&'a ObjectWishes>,
    /// What nodes' lists said to it.
    pub verdicts: Option<&'a NodeVerdicts>,
    /// What its pull secrets hold, once they were read.
    pub secrets: Option<&'a PullSecrets>,
    /// What was last said of it.
    pub status: Option<&'a ImageCacheStatus>,
    /// Wall clock.
    pub now: Timestamp,
    /// How long this process runs; the scale of [`NodeFacts::unanswered_since`]. Never steps.
    pub uptime: Duration,
}

/// All nodes by name, Linux or not.
pub type Nodes = BTreeMap<Arc<str>, Arc<NodeFacts>>;

/// One node, and what its `NodeCache` says.
#[derive(Debug)]
pub struct NodeFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Its UID: a `NodeCache` of another one is another node's (L14).
    pub uid: String,
    /// Which state of it these facts are of, for writes that must not undo another's.
    pub version: Option<String>,
    /// When it joined.
    pub created: Option<Timestamp>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints; being unschedulable is one of them.
    pub taints: Vec<Taint>,
    /// Its taints as they stand in its spec.
    pub own_taints: Vec<Taint>,
    /// Ready in Kubernetes' sense.
    pub ready: bool,
    /// Since when it is Ready, or not.
    pub ready_changed: Option<Timestamp>,
    /// Annotation `coral.dev/paused`: its warmer pulls nothing.
    pub paused: bool,
    /// [`Surroundings::uptime`] when its current spec was first seen without an answer.
    pub unanswered_since: Option<Duration>,
    /// Sets that it holds something for, as they stand in `owners[]` (L20: whose status its report may change).
    pub owners: BTreeSet<String>,
    cache: Option<Arc<Stored>>,
}

impl NodeFacts {
    /// `before` are the facts that these replace: how long an answer is due is not in the objects.
    pub fn new(
        node: &Node,
        cache: Option<Arc<Stored>>,
        before: Option<&Self>,
        uptime: Duration,
    ) -> Self {
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let cache = cache.filter(|cache| cache.spec.node_uid == uid);
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let ready = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
        let mut facts = Self {
            name: node.metadata.name.as_deref().unwrap_or_default().into(),
            uid,
            version: node.metadata.resource_version.clone(),
            created: node.metadata.creation_timestamp.as_ref().map(|time| time.0),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: taints(spec),
            own_taints: spec.and_then(|it| it.taints.clone()).unwrap_or_default(),
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ready_changed: ready
                .and_then(|condition| condition.last_transition_time.as_ref())
                .map(|time| time.0),
            paused: is_paused(node),
            unanswered_since: None,
            owners: owners(cache.as_deref()),
            cache,
        };
        facts.unanswered_since = facts.unanswered(before, uptime);
        facts
    }

    /// The node's `NodeCache`, if it is this node's.
    pub fn cache(&self) -> Option<&Stored> {
        self.cache.as_deref()
    }

    /// What the node's warmer reported, if it was of this node.
    pub fn status(&self) -> Option<&StoredStatus> {
        let status = self.cache.as_ref()?.status.as_ref()?;
        (status.node_uid.as_ref() == Some(&self.uid)).then_some(status)
    }

    /// What its stored spec says of an image, by exact spelling.
    pub fn wished(&self, reference: &str) -> Option<&NodeImage> {
        let images = &self.cache.as_ref()?.spec.images;
        let found = images.binary_search_by(|image| image.reference.as_str().cmp(reference));
        found.ok().map(|index| &*images[index])
    }

    /// What it reported of an image, by exact spelling.
    pub fn reported(&self, reference: &str) -> Option<&ImageReport> {
        let images = &self.status()?.images;
        let found = images.binary_search_by(|image| (*image.reference).cmp(reference));
        found.ok().map(|index| &images[index])
    }

    /// For images in the order of their spellings: finds what the two methods above find, many times faster.
    pub fn walk(&self) -> Walk<'_> {
        let cache = self.cache.as_ref();
        Walk {
            wished: Cursor {
                rest: cache.map_or(&[][..], |cache| &cache.spec.images),
                name: |image| &image.reference,
            },
            reported: Cursor {
                rest: self.status().map_or(&[][..], |status| &status.images),
                name: |image| &image.reference,
            },
        }
    }

    /// Its warmer does not answer, though the node is Ready.
    pub fn is_silent(&self, uptime: Duration) -> bool {
        let patience = match self.status() {
            Some(_) => SILENT_AFTER,
            None => NEVER_REPORTED_AFTER,
        };
        self.ready && self.unanswered_for(uptime) >= patience
    }

    /// For how long its spec has had no answer, as this process saw it.
    pub fn unanswered_for(&self, uptime: Duration) -> Duration {
        self.unanswered_since
            .map_or(Duration::ZERO, |since| uptime.saturating_sub(since))
    }

    /// Does it run Linux? Kubelets say so in a label.
    pub fn is_linux(&self) -> bool {
        self.labels
            .get("kubernetes.io/os")
            .is_some_and(|os| os == "linux")
    }

    /// What it runs: kubelets say their architecture in a label, by Go's name. Any variant matches.
    pub fn platform(&self) -> Option<Platform> {
        let architecture = self.labels.get("kubernetes.io/arch")?;
        Some(Platform {
            os: "linux".to_owned(),
            architecture: architecture.clone(),
            variant: None,
        })
    }

    fn answered_generation(&self) -> Option<i64> {
        self.status().and_then(|status| status.observed_generation)
    }

    fn unanswered(&self, before: Option<&Self>, uptime: Duration) -> Option<Duration> {
        let wanted = self.cache.as_ref()?.metadata.generation;
        let answered = self.answered_generation();
        if answered.is_some() && answered >= wanted {
            return None;
        }
        // A newer spec does not start the patience anew, an answer to an older one and a return of the node do.
        let since = before
            .filter(|before| before.uid == self.uid && before.ready == self.ready)
            .filter(|before| before.answered_generation() == answered)
            .and_then(|before| before.unanswered_since);
        Some(since.unwrap_or(uptime))
    }
}

/// See [`NodeFacts::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    wished: Cursor<'a, Arc<NodeImage>>,
    reported: Cursor<'a, ImageReport>,
}

impl<'a> Walk<'a> {
    /// What the stored spec and the report say of an image. Each spelling comes after the one asked for before.
    pub fn find(&mut self, reference: &str) -> (Option<&'a NodeImage>, Option<&'a ImageReport>) {
        let wished = self.wished.find(reference);
        (wished.map(Arc::as_ref), self.reported.find(reference))
    }
}

/// A place in a list that is read in the order of its names.
#[derive(Debug)]
struct Cursor<'a, T> {
    rest: &'a [T],
    name: fn(&T) -> &str,
}

impl<'a, T> Cursor<'a, T> {
    /// Where most of a list is wanted, the next one is nearly always the right one; else it is near by.
    fn find(&mut self, wanted: &str) -> Option<&'a T> {
        self.next(wanted).or_else(|| {
            self.skip_to(wanted);
            self.next(wanted)
        })
    }

    fn next(&mut self, wanted: &str) -> Option<&'a T> {
        let (next, rest) = self.rest.split_first()?;
        if (self.name)(next) != wanted {
            return None;
        }
        self.rest = rest;
        Some(next)
    }

    fn skip_to(&mut self, wanted: &str) {
        let is_before = |entry: &T| (self.name)(entry) < wanted;
        let mut step = 1;
        while step < self.rest.len() && is_before(&self.rest[step - 1]) {
            step *= 2;
        }
        let near = &self.rest[..step.min(self.rest.len())];
        self.rest = &self.rest[near.partition_point(is_before)..];
    }
}

fn owners(cache: Option<&Stored>) -> BTreeSet<String> {
    let mut owners = BTreeSet::new();
    let images = cache.into_iter().flat_map(|cache| &cache.spec.images);
    for owner in images.flat_map(|image| &image.owners) {
        if !owners.contains(owner) {
            owners.insert(owner.clone());
        }
    }
    owners
}

/// Does annotation `coral.dev/paused` of a Node say so?
pub fn is_paused(node: &Node) -> bool {
    let annotations = node.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(PAUSED_ANNOTATION))
        .is_some_and(|value| value == "true")
}

fn taints(spec: Option<&k8s_openapi::api::core::v1::NodeSpec>) -> Vec<Taint> {
    let mut taints = spec
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let unschedulable = spec.and_then(|spec| spec.unschedulable) == Some(true);
    if unschedulable && !taints.iter().any(|taint| taint.key == UNSCHEDULABLE_TAINT) {
        taints.push(Taint {
            key: UNSCHEDULABLE_TAINT.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
    }
    taints
}

/// What Kubernetes adds to a cordoned node, a moment after `spec.unschedulable`.
const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// What the cache says.
#[derive(Debug, Default)]
pub struct CacheFacts {
    /// Which registries it serves; nothing when it never said so to this process.
    pub registries: Option<Registries>,
    /// For how long it has not answered; nothing when it answers.
    pub away: Option<Duration>,
    /// Why it does not take the object's logins, if that is so.
    pub lending: Option<String>,
    /// Progress of this object's images, by the spelling of the spec. Kept while the cache is away.
    pub images: HashMap<String, PrefetchImage>,
}
