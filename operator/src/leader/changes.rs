//! Pure: what a change of an object means, before and after.

use std::time::Duration;

use coral_schema::crd::node_cache::PurgeOutcome;
use coral_schema::crd::{ImageCache, REFRESH_ANNOTATION};
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource as _, ResourceExt as _};

use super::world::Mark;
use crate::image_cache::dereference::NodeFacts;
use crate::labels::WARM_LABELS;
use crate::node_cache::stored::{Stored, StoredSpec, StoredStatus};
use crate::node_cache::wishes::ObjectKey;
use crate::pods;
use crate::watch::Change;

pub(super) fn is_deleted(object: &ImageCache) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// Does it depend on what pods run?
pub(super) fn asks_for_pods(object: &ImageCache) -> bool {
    object.spec.sets.iter().any(|set| {
        let nodes = set.nodes.as_ref();
        set.discover.is_some() || nodes.is_some_and(|nodes| nodes.pod_selector.is_some())
    })
}

/// Would an object look at it differently?
pub(super) fn pod_matters(change: &Change<Pod>) -> bool {
    let (Some(before), Some(after)) = (&change.before, &change.after) else {
        return change.before.is_some() != change.after.is_some();
    };
    before.labels() != after.labels()
        || before.spec != after.spec
        || pods::is_running(before) != pods::is_running(after)
}

/// A status is our own word.
pub(super) fn object_changed(change: &Change<ImageCache>) -> Option<Mark> {
    let Change { key, before, after } = change;
    let asked = |object: &ImageCache| {
        (
            object.uid(),
            object.metadata.generation,
            is_deleted(object),
            object.annotations().get(REFRESH_ANNOTATION).cloned(),
            object.finalizers().to_vec(),
        )
    };
    if before.as_deref().map(asked) == after.as_deref().map(asked) {
        return None;
    }
    Some(Mark::Object(ObjectKey {
        namespace: key.0.clone(),
        name: key.1.clone(),
    }))
}

/// May the node's spec have to be another one? Who changed it, or answered what it asks to purge.
pub(super) fn is_spec_affected(before: Option<&Stored>, after: Option<&Stored>) -> bool {
    fn asked(cache: &Stored) -> (Option<&String>, Option<i64>, Option<&[PurgeOutcome]>) {
        let purge = cache.status.as_ref().map(|status| &*status.purge);
        let metadata = &cache.metadata;
        (metadata.uid.as_ref(), metadata.generation, purge)
    }
    before.map(asked) != after.map(asked)
}

/// Do objects have to look at the node again?
pub(super) fn says_another_thing(before: Option<&Stored>, after: Option<&Stored>) -> bool {
    fn said(cache: &Stored) -> (&StoredSpec, Option<&StoredStatus>) {
        (&cache.spec, cache.status.as_ref())
    }
    before.map(said) != after.map(said)
}

/// What its warmer answered just now. What an operator finds when it starts was told before.
pub(super) fn new_outcomes<'a>(
    before: Option<&'a Stored>,
    after: Option<&'a Stored>,
) -> impl Iterator<Item = &'a PurgeOutcome> {
    let outcomes = |cache: Option<&'a Stored>| {
        let status = cache.and_then(|cache| cache.status.as_ref());
        status.into_iter().flat_map(|status| &status.purge)
    };
    let known: Vec<&PurgeOutcome> = outcomes(before).collect();
    let after = after.filter(|_| before.is_some());
    outcomes(after).filter(move |outcome| !known.contains(outcome))
}

/// How long after its node became Ready it held everything, when it says so for the first time.
pub(super) fn warm_after(
    before: Option<&Stored>,
    after: &Stored,
    facts: &NodeFacts,
) -> Option<Duration> {
    let first = |cache: &Stored| {
        let status = cache.status.as_ref()?;
        status.first_ready
    };
    // What an operator finds when it starts happened before.
    if first(before?).is_some() {
        return None;
    }
    let took = first(after)?.duration_since(facts.ready_changed?);
    Duration::try_from(took).ok()
}

/// Would any object look at it differently?
pub(super) fn matters(before: Option<&NodeFacts>, after: Option<&NodeFacts>) -> bool {
    let (Some(before), Some(after)) = (before, after) else {
        return before.is_some() != after.is_some();
    };
    // What we write there ourselves is no news.
    let is_theirs = |(name, _): &(&String, &String)| !name.starts_with(WARM_LABELS);
    let labels_before = before.labels.iter().filter(is_theirs);
    before.uid != after.uid
        || labels_before.ne(after.labels.iter().filter(is_theirs))
        || before.taints != after.taints
        || before.ready != after.ready
        || before.ready_changed != after.ready_changed
        || before.paused != after.paused
}
