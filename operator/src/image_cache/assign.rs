//! Pure: which node holds which image, and in which wave it is told so.
//!
//! What was granted, and what became of it, is read back from the `NodeCache`s (and from the last wishes, which may not
//! have got there yet); nothing else is remembered. A grant stays. A node takes one of the object's slots from a grant
//! until the image is Ready there, or failed once, or the node is not Ready, or says nothing for ten minutes. What a node
//! repairs or tries again takes none. Newer content of a tag that is followed is granted anew, as a raised revision.
//!
//! | Part | Decides |
//! |---|---|
//! | [`replicas`] | which of a set's nodes, where it wants only some |
//! | [`progress`] | where a granted image stands on a node, and whether it takes a slot |
//! | [`way`] | from where nodes pull an image, and whether they may start |
//! | [`slots`] | how many nodes may pull at once, over all objects |

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use coral_schema::admin::PrefetchState;
use coral_schema::crd::image_cache::TagPolicy;
use coral_schema::crd::node_cache::{NodeImage, NodeRegistryPolicy};
use coral_schema::oci::Platform;

use super::dereference::{NodeFacts, Surroundings};
use super::validate::{ValidatedImage, ValidatedImageCache};
use crate::node_cache::stored::ImageReport;
use crate::node_cache::wishes::{NodeWish, ObjectWishes, Verdict};

pub mod progress;
pub mod replicas;
pub mod slots;
mod waves;
pub mod way;

pub use self::progress::{Claim, Progress};
pub use self::slots::Slots;
pub use self::way::Way;

/// Which node holds what, and who waits for what.
#[derive(Debug, Default)]
pub struct Assignment {
    /// Nodes that any set means, by name.
    pub nodes: Vec<NodePlan>,
    /// How each image is pulled; as [`ValidatedImageCache::images`].
    pub ways: Vec<Way>,
    /// Names in the spec that no node has, sorted.
    pub missing: Vec<String>,
    /// Sets with nodes that match none, by name.
    pub unmatched: Vec<String>,
    /// Replicas for which there is no node.
    pub short_of_replicas: usize,
    /// What it takes of the slots of all objects: for [`Slots::record`].
    pub slots: slots::Use,
}

/// One node, and the images that it shall hold.
#[derive(Debug)]
pub struct NodePlan {
    /// The node.
    pub node: Arc<NodeFacts>,
    /// Its warmer does not answer.
    pub silent: bool,
    /// One per image, in the order of their spellings.
    pub pairs: Vec<Pair>,
}

impl NodePlan {
    /// Target nodes that are Ready are those that count.
    pub fn is_desired(&self) -> bool {
        self.node.ready
    }
}

/// One image on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Index in [`ValidatedImageCache::images`].
    pub image: usize,
    /// For which sets: one bit per index.
    pub sets: u16,
    /// What the node is told, if it is told.
    pub grant: Option<Grant>,
    /// Where it stands.
    pub progress: Progress,
}

/// What a node is told of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Where it may be pulled from.
    pub policy: NodeRegistryPolicy,
    /// See [`NodeWish::revision`].
    pub revision: u64,
}

/// Why an image was not granted to a node yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// The node is not Ready.
    NodeNotReady,
    /// The node's warmer does not answer.
    WarmerSilent,
    /// The node is paused by annotation.
    Paused,
    /// The object is suspended.
    Suspended,
    /// The object's maintenance window is closed.
    Window,
    /// An earlier set is not done.
    EarlierSet,
    /// The cache does not have its manifests yet, or does not answer.
    Cache,
    /// One node pulls it from its registry first.
    NodeAhead,
    /// As many of the object's nodes pull as may at once.
    Slot,
    /// As many nodes pull for all objects as may at once.
    SharedSlot,
}

/// Decides. An object that is being deleted gets no nodes.
pub fn assign(
    object: &ValidatedImageCache,
    around: &Surroundings<'_>,
    slots: &Slots,
) -> Assignment {
    let mut assignment = Assignment::default();
    if object.deleted.is_some() {
        return assignment;
    }
    let masks = targets(object, around, &mut assignment);
    assignment.nodes = plans(object, around, &masks);
    assignment.ways = way::ways(object, around, &mut assignment.nodes);
    let is_open = object
        .window
        .as_ref()
        .is_none_or(|it| it.is_open(around.now));
    waves::grant(object, slots, is_open, &mut assignment);
    assignment
}

/// The nodes of each set, as one bit mask per node.
fn targets(
    object: &ValidatedImageCache,
    around: &Surroundings<'_>,
    assignment: &mut Assignment,
) -> BTreeMap<Arc<str>, (Arc<NodeFacts>, u16)> {
    let mut masks: BTreeMap<Arc<str>, (Arc<NodeFacts>, u16)> = BTreeMap::new();
    for (index, set) in object.sets.iter().enumerate() {
        let Some(filter) = &set.nodes else { continue };
        let mut nodes: Vec<&Arc<NodeFacts>> = around
            .nodes
            .values()
            .filter(|node| filter.matches(node))
            .collect();
        if nodes.is_empty() {
            assignment.unmatched.push(set.name.clone());
        }
        if let Some(replicas) = filter.replicas {
            nodes = replicas::choose(object, index, nodes, around);
            assignment.short_of_replicas += replicas.saturating_sub(nodes.len());
        }
        for node in nodes {
            let entry = masks
                .entry(Arc::clone(&node.name))
                .or_insert_with(|| (Arc::clone(node), 0));
            entry.1 |= 1 << index;
        }
        let names = filter.names.iter().flatten();
        let missing = names.filter(|name| !around.nodes.contains_key(name.as_str()));
        assignment.missing.extend(missing.cloned());
    }
    assignment.missing.sort_unstable();
    assignment.missing.dedup();
    masks
}

/// What each node shall hold, with what it was told before.
fn plans(
    object: &ValidatedImageCache,
    around: &Surroundings<'_>,
    masks: &BTreeMap<Arc<str>, (Arc<NodeFacts>, u16)>,
) -> Vec<NodePlan> {
    let previous = Previous::new(object, around.previous);
    let partial = partial(object, around);
    let followed = followed(object, around);
    let mut by_mask: HashMap<u16, Vec<(usize, u16)>> = HashMap::new();
    let plans = masks.values().map(|(node, mask)| {
        let images = by_mask
            .entry(*mask)
            .or_insert_with(|| images_of(object, *mask));
        let before = previous.at(&node.name);
        let (left_out, overruled) = said(around, &node.name);
        let lacks = |image: usize| {
            let mut missing = partial.iter().filter(|(index, _)| *index == image);
            missing.any(|(_, missing)| node.platform().is_some_and(|own| missing.contains(&own)))
        };
        let mut walk = node.walk();
        let pairs = images.iter().map(|&(image, sets)| {
            let spelling = &*object.images[image].spelling;
            let found = walk.find(spelling);
            // What another object decides is not followed.
            let follows = object.tag_policy == TagPolicy::Follow && !overruled.contains(&spelling);
            let wish = before.as_ref().and_then(|before| before[image]);
            let wish = wish.filter(|wish| !wish.follows || follows);
            let (grant, progress) = progress::look(node, found, wish, around);
            let newest = followed[image].as_deref().filter(|_| follows);
            Pair {
                image,
                sets,
                grant,
                progress: match progress {
                    _ if left_out.contains(&spelling) => Progress::LeftOut,
                    Progress::Ready if is_outdated(found, newest) => Progress::Outdated(Wait::Slot),
                    Progress::Ready => Progress::Ready,
                    _ if lacks(image) => Progress::NoPlatform,
                    progress => progress,
                },
            }
        });
        NodePlan {
            silent: node.is_silent(around.uptime),
            pairs: pairs.collect(),
            node: Arc::clone(node),
        }
    });
    plans.collect()
}

/// The images of some sets, each once, with those of the sets that list it; in the order of their spellings.
fn images_of(object: &ValidatedImageCache, mask: u16) -> Vec<(usize, u16)> {
    let mut images: BTreeMap<usize, u16> = BTreeMap::new();
    for (index, set) in object.sets.iter().enumerate() {
        let bit = 1 << index;
        if mask & bit != 0 {
            for image in &set.images {
                *images.entry(*image).or_default() |= bit;
            }
        }
    }
    let mut images: Vec<(usize, u16)> = images.into_iter().collect();
    images.sort_unstable_by_key(|(image, _)| &object.images[*image].spelling);
    images
}

/// Images, by index, that the upstream has for some of the wanted platforms only, with the others.
fn partial<'a>(
    object: &ValidatedImageCache,
    around: &Surroundings<'a>,
) -> Vec<(usize, &'a [Platform])> {
    let missing = |image: &ValidatedImage| -> &'a [Platform] {
        let progress = around.cache.images.get(&*image.spelling);
        progress.map_or(&[], |progress| &progress.missing_platforms)
    };
    let images = object.images.iter().map(missing).enumerate();
    images.filter(|(_, missing)| !missing.is_empty()).collect()
}

/// Images that the node's list left out, and those that another object decides there.
fn said<'a>(around: &Surroundings<'a>, node: &str) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut left_out, mut overruled) = (Vec::new(), Vec::new());
    let said = around.verdicts.and_then(|nodes| nodes.get(node));
    for verdict in said.into_iter().flatten() {
        match verdict {
            Verdict::LeftOut { reference } => left_out.push(&**reference),
            Verdict::Conflict { reference, .. } => overruled.push(&**reference),
        }
    }
    (left_out, overruled)
}

/// What each tag means that is followed, once the cache has its manifests: nodes are not sent for less.
fn followed(object: &ValidatedImageCache, around: &Surroundings<'_>) -> Vec<Option<String>> {
    let images = object.images.iter().map(|image| {
        let is_tag = object.tag_policy == TagPolicy::Follow && image.reference.digest.is_none();
        let progress = around.cache.images.get(&*image.spelling).filter(|_| is_tag);
        let there = |state| matches!(state, PrefetchState::Running | PrefetchState::Done);
        let digest = progress.filter(|progress| there(progress.state))?.digest?;
        Some(digest.to_string())
    });
    images.collect()
}

/// Does the node hold other content, without having been sent for this one? A node that was, and came back with something
/// else, is not sent again for the same: it would go on for ever.
fn is_outdated(
    (stored, report): (Option<&NodeImage>, Option<&ImageReport>),
    newest: Option<&str>,
) -> bool {
    let held = report.and_then(|report| report.digest.as_deref());
    let Some((newest, held)) = newest.zip(held) else {
        return false;
    };
    let was_sent =
        stored.is_some_and(|image| image.revision > 0 && image.digest.as_deref() == Some(newest));
    held != newest && !was_sent
}

/// The last wishes, whose images may be other ones than those of the spec now.
struct Previous<'a> {
    wishes: Option<&'a ObjectWishes>,
    /// Index in the spec by index in the wishes.
    images: Vec<Option<usize>>,
    len: usize,
}

impl<'a> Previous<'a> {
    fn new(object: &ValidatedImageCache, wishes: Option<&'a ObjectWishes>) -> Self {
        let now: HashMap<&str, usize> = object
            .images
            .iter()
            .enumerate()
            .map(|(index, image)| (&*image.spelling, index))
            .collect();
        let before = wishes.into_iter().flat_map(|wishes| &wishes.images);
        Self {
            wishes,
            images: before
                .map(|image| now.get(&*image.reference).copied())
                .collect(),
            len: object.images.len(),
        }
    }

    /// What this node was granted last, by index in the spec.
    fn at(&self, node: &str) -> Option<Vec<Option<NodeWish>>> {
        let wishes = self.wishes?.nodes.get(node)?;
        let mut all = vec![None; self.len];
        for wish in wishes.iter() {
            if let Some(index) = self.images[wish.image] {
                all[index] = Some(*wish);
            }
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests;
