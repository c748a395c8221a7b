//! Who wants what where: the wishes of all `ImageCache`s, found by object and by node.
//!
//! An object that was looked at and could not be evaluated is *kept*: what `NodeCache`s already hold in its name stays
//! there, and nothing of it is purged. An object that was never heard of is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::image_cache::{OnEviction, Retry, TagPolicy};
use coral_schema::crd::node_cache::NodeRegistryPolicy;
use jiff::Timestamp;

/// An `ImageCache`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A set of an `ImageCache`, as it stands in `owners[]`: `namespace/name/set`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The object.
    pub object: ObjectKey,
    /// The set's name.
    pub set: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.object, self.set)
    }
}

/// The text is not `namespace/name/set`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an owner is written as namespace/name/set")]
pub struct OwnerError;

impl FromStr for Owner {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(name), Some(set), None) => Ok(Self {
                object: ObjectKey {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                },
                set: set.to_owned(),
            }),
            _ => Err(OwnerError),
        }
    }
}

/// Everything that one `ImageCache` wants from nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectWishes {
    /// Whose.
    pub object: ObjectKey,
    /// When the object was made: among equal priorities the older one decides.
    pub created: Timestamp,
    /// `spec.rollout.priority`.
    pub priority: i32,
    /// What leaves is removed from nodes, within this time (`PurgeUnused`); else it stays (`Retain`).
    pub purge: Option<Duration>,
    /// What to do when the node removed an image.
    pub on_eviction: OnEviction,
    /// What to do when a tag means something else.
    pub tag_policy: TagPolicy,
    /// Keep nodes from collecting the images (`gcProtection: Pin`).
    pub protect: bool,
    /// What to do after a failed pull.
    pub retry: Retry,
    /// The sets, in the order of the spec.
    pub sets: Vec<SetName>,
    /// The distinct images of all sets.
    pub images: Vec<ImageWish>,
    /// What each node was granted, by node; no node without a wish. Nodes that were granted the same share it.
    pub nodes: BTreeMap<Arc<str>, Arc<[NodeWish]>>,
}

/// A set, as far as nodes are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetName {
    /// Its name.
    pub name: String,
    /// Its nodes are read back from `owners[]`, so it has to stand there.
    pub replicas: bool,
}

/// What is known of a wanted image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageWish {
    /// As the user spelled it.
    pub reference: Arc<str>,
    /// What the cache holds under it.
    pub digest: Option<String>,
    /// Compressed length of what one node pulls, bytes.
    pub size_bytes: Option<u64>,
}

/// One image that one node was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeWish {
    /// Index in [`ObjectWishes::images`].
    pub image: usize,
    /// For which sets: one bit per index in [`ObjectWishes::sets`].
    pub sets: u16,
    /// Where it may be pulled from.
    pub policy: NodeRegistryPolicy,
    /// Raised: pull again although present.
    pub revision: u64,
    /// It may have been raised for newer content of its tag.
    pub follows: bool,
}

/// What a node's list says to one of its owners.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Another object decides how this image is pulled.
    Conflict {
        /// The image.
        reference: Arc<str>,
        /// Who decides.
        winner: ObjectKey,
    },
    /// The list is full: this image was left out.
    LeftOut {
        /// The image.
        reference: Arc<str>,
    },
}

/// What stands in the table for an object that exists.
#[derive(Debug)]
enum State {
    Evaluated(Box<ObjectWishes>),
    Kept,
}

/// The wishes of all objects.
#[derive(Debug, Default)]
pub struct Wishes {
    objects: HashMap<ObjectKey, State>,
    by_node: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
    verdicts: HashMap<ObjectKey, NodeVerdicts>,
    judged: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
}

/// What nodes' lists say to one object, by node.
pub type NodeVerdicts = BTreeMap<Arc<str>, Vec<Verdict>>;

impl Wishes {
    /// Takes the place of what the object wished before. Answers which nodes' specs may be different now.
    pub fn set(&mut self, wishes: ObjectWishes) -> Vec<Arc<str>> {
        let key = wishes.object.clone();
        let before = match self.objects.remove(&key) {
            Some(State::Evaluated(before)) => Some(before),
            Some(State::Kept) | None => None,
        };
        let changed = changed_nodes(before.as_deref(), &wishes);
        for node in before.iter().flat_map(|before| before.nodes.keys()) {
            self.unlink(node, &key);
        }
        for node in wishes.nodes.keys() {
            let objects = self.by_node.entry(Arc::clone(node)).or_default();
            objects.insert(key.clone());
        }
        self.objects.insert(key, State::Evaluated(Box::new(wishes)));
        changed
    }

    /// The object exists, and cannot be evaluated now.
    pub fn keep(&mut self, key: &ObjectKey) {
        self.forget(key);
        self.objects.insert(key.clone(), State::Kept);
    }

    /// The object is gone. Answers which nodes' specs may be different now.
    pub fn remove(&mut self, key: &ObjectKey) -> Vec<Arc<str>> {
        self.verdicts.remove(key);
        self.forget(key)
    }

    fn forget(&mut self, key: &ObjectKey) -> Vec<Arc<str>> {
        let Some(State::Evaluated(before)) = self.objects.remove(key) else {
            return Vec::new();
        };
        let nodes: Vec<Arc<str>> = before.nodes.into_keys().collect();
        for node in &nodes {
            self.unlink(node, key);
        }
        nodes
    }

    fn unlink(&mut self, node: &Arc<str>, key: &ObjectKey) {
        if let Some(objects) = self.by_node.get_mut(node) {
            objects.remove(key);
            if objects.is_empty() {
                self.by_node.remove(node);
            }
        }
    }

    /// What the object wished last; nothing for one that is kept.
    pub fn of(&self, key: &ObjectKey) -> Option<&ObjectWishes> {
        match self.objects.get(key) {
            Some(State::Evaluated(wishes)) => Some(wishes),
            Some(State::Kept) | None => None,
        }
    }

    /// Does the object exist without having been evaluated?
    pub fn is_kept(&self, key: &ObjectKey) -> bool {
        matches!(self.objects.get(key), Some(State::Kept))
    }

    /// Is there any such object?
    pub fn any_kept(&self) -> bool {
        self.objects
            .values()
            .any(|state| matches!(state, State::Kept))
    }

    /// Who wants what on this node.
    pub fn at<'a>(
        &'a self,
        node: &str,
    ) -> impl Iterator<Item = (&'a ObjectWishes, &'a [NodeWish])> + use<'a> {
        let entry = self.by_node.get_key_value(node);
        entry
            .into_iter()
            .flat_map(|(node, objects)| objects.iter().map(move |key| (node, key)))
            .filter_map(|(node, key)| {
                let wishes = self.of(key)?;
                Some((wishes, &**wishes.nodes.get(node)?))
            })
    }

    /// What a merge said to its owners, in place of what it said before. Answers whose status may be different now.
    pub fn record(&mut self, node: &Arc<str>, said: Vec<(ObjectKey, Verdict)>) -> Vec<ObjectKey> {
        let mut now: BTreeMap<ObjectKey, Vec<Verdict>> = BTreeMap::new();
        for (key, verdict) in said {
            now.entry(key).or_default().push(verdict);
        }
        let judged: BTreeSet<ObjectKey> = now.keys().cloned().collect();
        let before = if judged.is_empty() {
            self.judged.remove(node)
        } else {
            self.judged.insert(Arc::clone(node), judged)
        };
        let mut changed: Vec<ObjectKey> = before.into_iter().flatten().collect();
        changed.retain(|key| !now.contains_key(key));
        for key in &changed {
            if let Some(nodes) = self.verdicts.get_mut(key) {
                nodes.remove(node);
            }
        }
        for (key, verdicts) in now {
            let nodes = self.verdicts.entry(key.clone()).or_default();
            if nodes.get(node) != Some(&verdicts) {
                nodes.insert(Arc::clone(node), verdicts);
                changed.push(key);
            }
        }
        changed
    }

    /// What nodes' lists say to this object.
    pub fn verdicts(&self, key: &ObjectKey) -> Option<&NodeVerdicts> {
        self.verdicts.get(key)
    }
}

/// Nodes whose specs may change when `after` takes the place of `before`.
fn changed_nodes(before: Option<&ObjectWishes>, after: &ObjectWishes) -> Vec<Arc<str>> {
    let Some(before) = before else {
        return after.nodes.keys().cloned().collect();
    };
    let ObjectWishes {
        object: _,
        created,
        priority,
        purge,
        on_eviction,
        tag_policy,
        protect,
        retry,
        sets,
        images,
        nodes,
    } = after;
    let same = before.created == *created
        && before.priority == *priority
        && before.purge == *purge
        && before.on_eviction == *on_eviction
        && before.tag_policy == *tag_policy
        && before.protect == *protect
        && before.retry == *retry
        && before.sets == *sets
        && before.images == *images;
    let gone = before
        .nodes
        .keys()
        .filter(|node| !nodes.contains_key(*node));
    let other = nodes
        .iter()
        .filter(|(node, wishes)| !same || before.nodes.get(*node) != Some(wishes))
        .map(|(node, _)| node);
    gone.chain(other).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{EVERYWHERE, World, object};

    #[test]
    fn owners_read_back() {
        let owner: Owner = "ml/inference/servers".parse().unwrap();
        assert_eq!(
            (owner.object.name.as_str(), owner.set.as_str()),
            ("inference", "servers")
        );
        assert_eq!(owner.to_string(), "ml/inference/servers");
        for bad in ["", "a/b", "a/b/c/d"] {
            assert_eq!(bad.parse::<Owner>(), Err(OwnerError));
        }
    }

    /// Only nodes whose specs may be different are merged again (L20).
    #[test]
    fn l20_changes_touch_their_nodes_only() {
        let mut world = World::with_nodes(3);
        let all = object(
            "a",
            &format!("{EVERYWHERE}\nregistryPolicy: Default\nrollout: {{maxConcurrentNodes: 2}}"),
        );
        let wishes = |world: &mut World| world.build(&all).wishes;
        let first = wishes(&mut world);
        let names =
            |nodes: Vec<Arc<str>>| nodes.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(world.wishes.set(first.clone())), ["n000", "n001"]);
        assert!(world.wishes.set(first.clone()).is_empty());
        assert_eq!(world.wishes.at("n000").count(), 1);
        assert_eq!(world.wishes.at("n002").count(), 0);

        let mut less = first.clone();
        less.nodes.remove("n000");
        assert_eq!(names(world.wishes.set(less)), ["n000"]);
        let mut other = first;
        other.images[0].size_bytes = Some(1);
        assert_eq!(world.wishes.set(other.clone()).len(), 2);
        assert_eq!(world.wishes.remove(&other.object).len(), 2);
        assert_eq!(world.wishes.at("n001").count(), 0);
    }

    #[test]
    fn verdicts_are_told_once() {
        let mut wishes = Wishes::default();
        let key = |name: &str| ObjectKey {
            namespace: "ml".to_owned(),
            name: name.to_owned(),
        };
        let verdict = || Verdict::LeftOut {
            reference: "nginx".into(),
        };
        let node: Arc<str> = "n".into();
        let said = |names: &[&str]| {
            names
                .iter()
                .map(|name| (key(name), verdict()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            wishes.record(&node, said(&["a", "b"])),
            [key("a"), key("b")]
        );
        assert!(wishes.record(&node, said(&["a", "b"])).is_empty());
        assert_eq!(wishes.record(&node, said(&["b"])), [key("a")]);
        assert!(wishes.verdicts(&key("a")).is_none_or(BTreeMap::is_empty));
        assert_eq!(wishes.record(&node, Vec::new()), [key("b")]);
    }
}
