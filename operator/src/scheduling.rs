//! Pure: what Nodes say of warmth, for pods to be scheduled by: a label per object (`scheduling.nodeLabel`), and the taint
//! with which nodes boot, lifted when they are warm (`scheduling.startupTaint`).
//!
//! A label comes at once and goes when its node was cold for ten minutes: an image that is collected and pulled again moves
//! no pod. While nothing is heard of a node its label stays. The taint fails open: it goes when every object that asks for
//! it is warm on the node, or its deadline passed since the node joined, and at once where no object asks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coral_schema::oci::Digest;
use jiff::Timestamp;

use crate::image_cache::assign::{Assignment, NodePlan, Progress};
use crate::image_cache::dereference::NodeFacts;
use crate::image_cache::validate::ValidatedImageCache;
use crate::labels::{WARM_LABELS, WARMING_TAINT};
use crate::node_cache::wishes::ObjectKey;

pub mod node;
#[cfg(test)]
mod tests;

/// What all objects want Nodes to say.
#[derive(Debug, Default)]
pub struct Scheduling {
    objects: HashMap<ObjectKey, Wish>,
    /// Objects that exist and cannot be evaluated: their labels stay.
    kept: HashSet<ObjectKey>,
    /// Since when a labelled object is cold on a node, on the scale of the process.
    cold: HashMap<(Arc<str>, ObjectKey), Duration>,
}

/// What one object wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    label: bool,
    /// `startupDeadline`, if it asks for the taint.
    deadline: Option<Duration>,
    /// Its target nodes.
    nodes: BTreeMap<Arc<str>, Warmth>,
}

/// How an object stands on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warmth {
    /// The node holds every name.
    Warm,
    /// It does not.
    Cold,
    /// It says nothing, now.
    Unknown,
}

/// What to change about a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Labels: true adds, false removes.
    pub labels: BTreeMap<String, bool>,
    /// The taint goes.
    pub lift: bool,
    /// Time alone changes something, after this.
    pub again: Option<Duration>,
}

impl Change {
    /// Is there nothing to write?
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && !self.lift
    }
}

/// What an object wants, as its nodes stand now; nothing if it does not say so.
pub fn wish(object: &ValidatedImageCache, assignment: &Assignment) -> Option<Wish> {
    let scheduling = object.scheduling.as_ref()?;
    let nodes = assignment.nodes.iter();
    Some(Wish {
        label: scheduling.node_label,
        deadline: scheduling
            .startup_taint
            .then_some(scheduling.startup_deadline.0),
        nodes: nodes
            .map(|plan| (Arc::clone(&plan.node.name), warmth(object, plan)))
            .collect(),
    })
}

/// A pod starts from what stands under the name, whatever the tag means by now.
fn warmth(object: &ValidatedImageCache, plan: &NodePlan) -> Warmth {
    if plan.silent || !plan.node.ready || plan.node.status().is_none() {
        return Warmth::Unknown;
    }
    let mut walk = plan.node.walk();
    let held = plan.pairs.iter().all(|pair| {
        let (_, report) = walk.find(&object.images[pair.image].spelling);
        let older = report.is_some_and(|report| report.digest.is_some());
        pair.progress.is_held() || pair.progress == Progress::NoPlatform || older
    });
    if held { Warmth::Warm } else { Warmth::Cold }
}

/// The label of an object: `warm.coral.dev/<namespace>.<name>`, where that is too long for a label with a digest of it.
pub fn label(object: &ObjectKey) -> String {
    let name = format!("{}.{}", object.namespace, object.name);
    if name.len() <= LONGEST_LABEL {
        return format!("{WARM_LABELS}{name}");
    }
    let digest = Digest::sha256(name.as_bytes()).hex();
    let start = name.floor_char_boundary(LONGEST_LABEL - 17);
    format!("{WARM_LABELS}{}-{}", &name[..start], &digest[..16])
}

impl Scheduling {
    /// What an object wants now. Answers which Nodes may have to change.
    pub fn set(&mut self, key: &ObjectKey, wish: Option<Wish>, uptime: Duration) -> Vec<Arc<str>> {
        self.kept.remove(key);
        let Some(wish) = wish else {
            return self.remove(key);
        };
        for (node, warmth) in &wish.nodes {
            let cold = (Arc::clone(node), key.clone());
            match warmth {
                Warmth::Cold => _ = self.cold.entry(cold).or_insert(uptime),
                Warmth::Warm => drop(self.cold.remove(&cold)),
                Warmth::Unknown => {}
            }
        }
        self.cold
            .retain(|(node, object), _| object != key || wish.nodes.contains_key(node));
        let before = self.objects.get(key);
        let same = |node: &Arc<str>, warmth: &Warmth| {
            before.is_some_and(|before| {
                before.nodes.get(node) == Some(warmth)
                    && before.label == wish.label
                    && before.deadline == wish.deadline
            })
        };
        let changed = wish.nodes.iter().filter(|(node, it)| !same(node, it));
        let gone = before.into_iter().flat_map(|before| before.nodes.keys());
        let gone = gone.filter(|node| !wish.nodes.contains_key(*node));
        let affected = changed.map(|(node, _)| node).chain(gone).cloned().collect();
        self.objects.insert(key.clone(), wish);
        affected
    }

    /// The object cannot be evaluated: its labels stay as they are, and no taint waits for it.
    pub fn keep(&mut self, key: &ObjectKey) -> Vec<Arc<str>> {
        let affected = self.remove(key);
        self.kept.insert(key.clone());
        affected
    }

    /// The object is gone, or wants nothing any more.
    pub fn remove(&mut self, key: &ObjectKey) -> Vec<Arc<str>> {
        self.kept.remove(key);
        self.cold.retain(|(_, object), _| object != key);
        let before = self.objects.remove(key);
        before
            .into_iter()
            .flat_map(|wish| wish.nodes.into_keys())
            .collect()
    }

    /// What to change about a Node.
    pub fn change(&self, node: &NodeFacts, now: Timestamp, uptime: Duration) -> Change {
        let mut change = Change::default();
        let mut wanted: HashSet<String> = self.kept.iter().map(label).collect();
        let mut waits: Option<Duration> = None;
        for (key, wish) in &self.objects {
            let Some(warmth) = wish.nodes.get(&node.name) else {
                continue;
            };
            if wish.label {
                let label = label(key);
                let is_on = node.labels.contains_key(&label);
                match (warmth, is_on) {
                    (Warmth::Warm, false) => _ = change.labels.insert(label.clone(), true),
                    (Warmth::Cold, true) if self.is_cold(node, key, uptime, &mut change.again) => {
                        continue;
                    }
                    _ => {}
                }
                wanted.insert(label);
            }
            if let Some(deadline) = wish.deadline.filter(|_| *warmth != Warmth::Warm) {
                waits = waits.max(left(node, deadline, now));
            }
        }
        let stale = node
            .labels
            .keys()
            .filter(|label| label.starts_with(WARM_LABELS) && !wanted.contains(*label));
        change
            .labels
            .extend(stale.map(|label| (label.clone(), false)));
        let tainted = node.taints.iter().any(|taint| taint.key == WARMING_TAINT);
        change.lift = tainted && waits.is_none();
        let waits = waits.filter(|_| tainted);
        change.again = change.again.into_iter().chain(waits).min();
        change
    }

    /// Objects that want something there.
    pub fn objects_on(&self, node: &str) -> Vec<ObjectKey> {
        let wishes = self.objects.iter();
        let wishes = wishes.filter(|(_, wish)| wish.nodes.contains_key(node));
        wishes.map(|(key, _)| key.clone()).collect()
    }

    /// For long enough? Else it says when.
    fn is_cold(
        &self,
        node: &NodeFacts,
        key: &ObjectKey,
        uptime: Duration,
        again: &mut Option<Duration>,
    ) -> bool {
        let since = self.cold.get(&(Arc::clone(&node.name), key.clone()));
        let left = COLD_FOR.saturating_sub(uptime.saturating_sub(*since.unwrap_or(&uptime)));
        if !left.is_zero() {
            *again = Some(again.map_or(left, |again| again.min(left)));
        }
        left.is_zero()
    }
}

/// How long the taint may stay for this; nothing when the deadline passed. A node without a time of joining is not kept
/// waiting.
fn left(node: &NodeFacts, deadline: Duration, now: Timestamp) -> Option<Duration> {
    let age = now
        .duration_since(node.created?)
        .max(jiff::SignedDuration::ZERO);
    let left = deadline.checked_sub(age.unsigned_abs())?;
    (!left.is_zero()).then_some(left)
}

/// A label stays on a cold node for so long.
const COLD_FOR: Duration = Duration::from_mins(10);
/// Characters of a label's name after its prefix.
const LONGEST_LABEL: usize = 63;
