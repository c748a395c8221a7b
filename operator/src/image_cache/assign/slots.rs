//! How many nodes may pull at once, over all objects (`--max-concurrent-nodes`).
//!
//! An object that stands higher (priority, then age, then name) goes first: what it still wants is kept free for it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use crate::image_cache::validate::ValidatedImageCache;
use crate::node_cache::wishes::ObjectKey;

/// What one object takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Use {
    /// Nodes that pull for it.
    pub busy: BTreeSet<Arc<str>>,
    /// Nodes that would pull for it if there were slots.
    pub wanting: usize,
}

/// What all objects take.
#[derive(Debug)]
pub struct Slots {
    limit: usize,
    objects: HashMap<ObjectKey, (Rank, Use)>,
    busy: HashMap<Arc<str>, usize>,
}

/// What one object may still take of them.
#[derive(Debug)]
pub(super) struct Left<'a> {
    slots: &'a Slots,
    own: Option<&'a Use>,
    /// Further nodes that may start to pull.
    pub(super) free: usize,
}

impl Left<'_> {
    /// Does this node pull for another object? It then takes no further slot.
    pub(super) fn is_busy(&self, node: &str) -> bool {
        let own = self.own.is_some_and(|own| own.busy.contains(node));
        self.slots
            .busy
            .get(node)
            .is_some_and(|count| *count > usize::from(own))
    }
}

/// Higher priority, then older, then by name: smaller goes first.
type Rank = (std::cmp::Reverse<i32>, Timestamp, ObjectKey);

fn rank(object: &ValidatedImageCache) -> Rank {
    (
        std::cmp::Reverse(object.priority),
        object.created,
        object.key.clone(),
    )
}

impl Slots {
    /// `limit` nodes at once.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            objects: HashMap::new(),
            busy: HashMap::new(),
        }
    }

    /// So many nodes at once from now on. A starting operator looks at every object with a limit of 0 first: until all
    /// have recorded what they take, none may take more.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// What is left for this object, which pulls on the nodes `busy`.
    pub(super) fn left_for(
        &self,
        object: &ValidatedImageCache,
        busy: &BTreeSet<Arc<str>>,
    ) -> Left<'_> {
        let rank = rank(object);
        let own = self.objects.get(&object.key).map(|(_, own)| own);
        let before: usize = self
            .objects
            .values()
            .filter(|(other, _)| *other < rank)
            .map(|(_, other)| other.wanting)
            .sum();
        let mut left = Left {
            slots: self,
            own,
            free: 0,
        };
        let released = own.into_iter().flat_map(|own| &own.busy);
        let released = released.filter(|node| !left.is_busy(node)).count();
        let taken = busy.iter().filter(|node| !left.is_busy(node)).count();
        left.free = (self.limit + released)
            .saturating_sub(self.busy.len())
            .saturating_sub(taken)
            .saturating_sub(before);
        left
    }

    /// What an object takes now, as its assignment says. Answers whether others may have to look again.
    pub fn record(&mut self, object: &ValidatedImageCache, takes: Use) -> bool {
        let changed = self
            .objects
            .get(&object.key)
            .is_none_or(|(_, before)| *before != takes);
        self.remove(&object.key);
        for node in &takes.busy {
            *self.busy.entry(Arc::clone(node)).or_default() += 1;
        }
        self.objects
            .insert(object.key.clone(), (rank(object), takes));
        changed
    }

    /// The object is gone, or cannot be evaluated.
    pub fn remove(&mut self, key: &ObjectKey) {
        let Some((_, before)) = self.objects.remove(key) else {
            return;
        };
        for node in &before.busy {
            if let Some(count) = self.busy.get_mut(node) {
                *count -= 1;
                if *count == 0 {
                    self.busy.remove(node);
                }
            }
        }
    }

    /// Objects that wait for a slot, the first one first: to look at when one gets free.
    pub fn waiting(&self) -> Vec<ObjectKey> {
        let waiting = self.objects.values().filter(|(_, takes)| takes.wanting > 0);
        let mut ranks: Vec<&Rank> = waiting.map(|(rank, _)| rank).collect();
        ranks.sort_unstable();
        ranks.into_iter().map(|(_, _, key)| key.clone()).collect()
    }
}
