//! Pure: from what is known of the node to the status of its `NodeCache`, and whether that is news.

use coral_schema::crd::node_cache::{ImageFs, ImageState, NodeImageStatus, Runtime};
use coral_schema::crd::{ConditionType, MOST_IMAGES, NodeCacheStatus, Reason};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::cri::Version;
use crate::disk::Space;
use crate::execute::{NodeState, Wishes};
use crate::mirror::MirrorState;

/// Lengths that the resource's definition allows, characters.
const MESSAGE: usize = 317;
const RUNTIME: usize = 64;

/// What is known of the node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) wishes: &'a Wishes,
    pub(super) node: &'a NodeState,
    pub(super) mirror: &'a MirrorState,
    /// `None` while the runtime does not answer.
    pub(super) runtime: Option<&'a Version>,
}

/// The status now, after `previous`, which speaks of the same node. Whatever has not changed is as in `previous`, times
/// included.
pub(super) fn status(
    facts: Facts<'_>,
    previous: &NodeCacheStatus,
    now: Timestamp,
) -> NodeCacheStatus {
    let Facts {
        wishes,
        node,
        runtime,
        ..
    } = facts;
    let mut images: Vec<_> = node.images.iter().take(MOST_IMAGES).cloned().collect();
    for image in &mut images {
        keep_transition(image, previous);
    }
    let count = |states: &[ImageState]| {
        let count = images.iter().filter(|image| states.contains(&image.state));
        u32::try_from(count.count()).unwrap_or(u32::MAX)
    };
    let known = runtime.map(|version| Runtime {
        name: cut(&version.name, RUNTIME),
        version: cut(&version.version, RUNTIME),
        capabilities: capabilities(&node.capabilities, version),
    });
    NodeCacheStatus {
        observed_generation: node.generation,
        node_uid: Some(wishes.spec.node_uid.clone()),
        conditions: conditions(facts, previous, now),
        runtime: known.or_else(|| previous.runtime.clone()),
        image_fs: node.space.map(|space| image_fs(space, previous.image_fs)),
        desired: u32::try_from(images.len()).unwrap_or(u32::MAX),
        ready: count(&[ImageState::Ready]),
        pulling: count(&[ImageState::Pulling]),
        failed: count(&[ImageState::Failed, ImageState::Evicted]),
        images,
        purge: node.purge.iter().take(MOST_IMAGES).cloned().collect(),
        first_ready_time: node.first_ready.map(Time),
    }
}

/// A runtime that does not know pins takes ours, and means nothing by them.
fn capabilities(known: &[&str], runtime: &Version) -> Vec<String> {
    let known = known
        .iter()
        .filter(|it| **it != "Pin" || honours_pins(runtime));
    known.map(ToString::to_string).collect()
}

/// containerd does from 1.7 on (in 1.6 only its last releases do).
fn honours_pins(runtime: &Version) -> bool {
    let mut numbers = runtime.version.trim_start_matches('v').split('.');
    let mut number = || numbers.next()?.parse::<u32>().ok();
    runtime.name != "containerd" || number().zip(number()).is_none_or(|it| it >= (1, 7))
}

/// Would writing `after` change anything? As it is written: times have whole seconds there.
pub(super) fn is_same(before: &NodeCacheStatus, after: &NodeCacheStatus) -> bool {
    match (serde_json::to_value(before), serde_json::to_value(after)) {
        (Ok(before), Ok(after)) => before == after,
        _ => false,
    }
}

/// Did an image become Ready or Failed? That is written at once.
pub(super) fn is_news(before: &NodeCacheStatus, after: &NodeCacheStatus) -> bool {
    let settled = |state| matches!(state, ImageState::Ready | ImageState::Failed);
    after.images.iter().any(|image| {
        let known = find(before, &image.reference).map(|known| known.state);
        settled(image.state) && known != Some(image.state)
    })
}

fn find<'a>(status: &'a NodeCacheStatus, reference: &str) -> Option<&'a NodeImageStatus> {
    let mut images = status.images.iter();
    images.find(|image| image.reference == reference)
}

/// After a restart a state that stayed is no transition.
fn keep_transition(image: &mut NodeImageStatus, previous: &NodeCacheStatus) {
    if let Some(known) = find(previous, &image.reference)
        && known.state == image.state
        && known.last_transition.is_some()
    {
        image.last_transition.clone_from(&known.last_transition);
    }
}

/// The bytes move all the time; they are told when the percentage moves.
fn image_fs(space: Space, previous: Option<ImageFs>) -> ImageFs {
    let now = ImageFs {
        capacity_bytes: space.capacity,
        used_bytes: space.used,
        used_percent: space.used_percent(),
    };
    previous
        .filter(|known| {
            known.used_percent == now.used_percent && known.capacity_bytes == now.capacity_bytes
        })
        .unwrap_or(now)
}

fn conditions(facts: Facts<'_>, previous: &NodeCacheStatus, now: Timestamp) -> Vec<Condition> {
    let said = [
        (ConditionType::Ready, ready(facts)),
        (ConditionType::RuntimeReachable, runtime_reachable(facts)),
        (ConditionType::StorageAvailable, storage_available(facts)),
        (ConditionType::MirrorConfigured, mirror_configured(facts)),
    ];
    let condition = |(kind, (status, reason, message)): (ConditionType, Said)| {
        let known = previous
            .conditions
            .iter()
            .find(|known| known.type_ == kind.as_str() && known.status == status);
        Condition {
            type_: kind.as_str().to_owned(),
            status: status.to_owned(),
            reason: reason.as_str().to_owned(),
            message: cut(&message, MESSAGE),
            observed_generation: facts.node.generation,
            last_transition_time: known
                .map_or_else(|| Time(now), |known| known.last_transition_time.clone()),
        }
    };
    said.into_iter().map(condition).collect()
}

type Said = (&'static str, Reason, String);

fn ready(facts: Facts<'_>) -> Said {
    let images = &facts.node.images;
    let held = images
        .iter()
        .filter(|image| image.state == ImageState::Ready)
        .count();
    let of = format!("{held} of {} images are held", images.len());
    if held == images.len() {
        return ("True", Reason::Warm, of);
    }
    if let Some(error) = &facts.node.runtime_error {
        let message = format!("{of}; the runtime does not answer: {}", error.message);
        return ("False", Reason::RuntimeUnavailable, message);
    }
    if facts.wishes.spec.paused {
        let message = format!("{of}; the node is paused");
        return ("False", Reason::Suspended, message);
    }
    let settled =
        |image: &&NodeImageStatus| matches!(image.state, ImageState::Failed | ImageState::Evicted);
    let waits = |image: &&NodeImageStatus| image.reason.is_some();
    let culprit = images.iter().find(settled).or(images.iter().find(waits));
    match culprit {
        Some(image) => {
            let reason = image.reason.unwrap_or(Reason::Internal);
            let why = image.message.as_deref().unwrap_or(reason.remedy());
            ("False", reason, format!("{of}; {}: {why}", image.reference))
        }
        None => ("False", Reason::Warming, of),
    }
}

fn runtime_reachable(facts: Facts<'_>) -> Said {
    match (facts.runtime, &facts.node.runtime_error) {
        (_, Some(error)) => ("False", Reason::RuntimeUnavailable, error.message.clone()),
        (None, None) => (
            "False",
            Reason::RuntimeUnavailable,
            "the runtime does not answer".to_owned(),
        ),
        (Some(version), None) => (
            "True",
            Reason::Warm,
            format!("{} {} answers", version.name, version.version),
        ),
    }
}

fn storage_available(facts: Facts<'_>) -> Said {
    let waits = facts
        .node
        .images
        .iter()
        .find(|image| image.reason == Some(Reason::InsufficientStorage));
    let ceiling = facts.wishes.spec.budget.max_used_percent;
    match (facts.node.space.map(Space::used_percent), waits) {
        (None, _) => (
            "Unknown",
            Reason::InsufficientStorage,
            "the image file system cannot be measured".to_owned(),
        ),
        (Some(used), None) if used < ceiling => (
            "True",
            Reason::Warm,
            format!("{used} % in use, the budget ends at {ceiling} %"),
        ),
        (Some(used), waits) => {
            let told = waits.and_then(|image| image.message.clone());
            let message =
                told.unwrap_or_else(|| format!("{used} % in use, the budget ends at {ceiling} %"));
            ("False", Reason::InsufficientStorage, message)
        }
    }
}

fn mirror_configured(facts: Facts<'_>) -> Said {
    let message = facts.mirror.message.clone();
    match facts.mirror.reason {
        Some(Reason::Written) => ("True", Reason::Written, message),
        Some(reason) => ("False", reason, message),
        None => (
            "Unknown",
            Reason::WaitingForCache,
            "it is not known yet whether the cache answers".to_owned(),
        ),
    }
}

fn cut(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

#[cfg(test)]
mod tests;
