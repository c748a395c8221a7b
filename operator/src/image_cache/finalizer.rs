//! Pure: the finalizer `coral.dev/purge`. Only objects that purge carry it, and never for longer than `purgeTimeout`: an
//! object must not wedge its namespace (L23).

use std::time::Duration;

use coral_schema::crd::PURGE_FINALIZER;
use jiff::Timestamp;
use kube::Resource as _;

use super::dereference::{NodeFacts, Nodes};
use super::validate::ValidatedImageCache;
use crate::node_cache::wishes::{ObjectKey, Owner};

/// What to do with the finalizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Leave it as it is.
    Keep,
    /// It is missing.
    Add,
    /// It may go.
    Remove {
        /// So many nodes never answered in time.
        unanswered: usize,
    },
    /// Nodes have yet to answer.
    Wait {
        /// So many.
        nodes: usize,
        /// The object goes at the latest then.
        until: Timestamp,
    },
}

/// Decides. A node answered when its list has nothing in the object's name any more, and no open wish to purge one of the
/// object's images.
pub fn decide(
    object: &ValidatedImageCache,
    has_finalizer: bool,
    nodes: &Nodes,
    now: Timestamp,
) -> Decision {
    let Some(deleted) = object.deleted else {
        return match (object.purge.is_some(), has_finalizer) {
            (true, false) => Decision::Add,
            (false, true) => Decision::Remove { unanswered: 0 },
            (true, true) | (false, false) => Decision::Keep,
        };
    };
    if !has_finalizer {
        return Decision::Keep;
    }
    let Some(timeout) = object.purge else {
        return Decision::Remove { unanswered: 0 };
    };
    waiting(object, nodes, end(deleted, timeout), now)
}

fn waiting(
    object: &ValidatedImageCache,
    nodes: &Nodes,
    until: Timestamp,
    now: Timestamp,
) -> Decision {
    let open = nodes.values().filter(|node| is_open(object, node)).count();
    if open == 0 || until <= now {
        Decision::Remove { unanswered: open }
    } else {
        Decision::Wait { nodes: open, until }
    }
}

fn is_open(object: &ValidatedImageCache, node: &NodeFacts) -> bool {
    let Some(cache) = node.cache() else {
        return false;
    };
    let owns = node.owners.iter().any(|owner| is_of(owner, &object.key));
    let answered = |reference: &str| {
        let status = node.status();
        let current = status
            .and_then(|status| status.observed_generation)
            .is_some_and(|seen| Some(seen) >= cache.metadata.generation);
        current
            && status.is_some_and(|status| {
                let mut outcomes = status.purge.iter();
                outcomes.any(|outcome| outcome.reference == reference)
            })
    };
    owns || cache.spec.purge.iter().any(|wish| {
        let mut images = object.images.iter();
        images.any(|image| *image.spelling == *wish.reference) && !answered(&wish.reference)
    })
}

fn is_of(owner: &str, key: &ObjectKey) -> bool {
    owner
        .parse::<Owner>()
        .is_ok_and(|owner| owner.object == *key)
}

fn end(deleted: Timestamp, timeout: Duration) -> Timestamp {
    deleted.saturating_add(timeout).unwrap_or(Timestamp::MAX)
}

/// Does the object carry it?
pub fn is_on(object: &coral_schema::crd::ImageCache) -> bool {
    let finalizers = object.meta().finalizers.as_ref();
    finalizers.is_some_and(|all| all.iter().any(|name| name == PURGE_FINALIZER))
}
