//! Pure: what became of an `ImageCache`, in counts, sentences and conditions. No list grows with the number of nodes (L17).
//!
//! | Part | Says |
//! |---|---|
//! | [`count`] | nodes by state, images by what holds them |
//! | [`failures`] | what failed or waits for a person, the most frequent first, with remedies |
//! | [`conditions`] | Ready, Reconciling, Stalled, CacheReady, NodesReady, Drifted |

use std::time::Duration;

use coral_schema::crd::image_cache::{Failure, ImageCacheStatus};
use coral_schema::crd::{Reason, condition::ConditionType};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::assign::Assignment;
use super::dereference::Surroundings;
use super::refresh::Due;
use super::resources::{Applied, Resources};
use super::validate::{Invalid, ValidatedImageCache};

pub mod conditions;
pub mod count;
pub mod failures;

/// What a status is made of.
#[derive(Debug, Clone, Copy)]
pub struct Outcome<'a> {
    /// The object.
    pub object: &'a ValidatedImageCache,
    /// Which node holds what.
    pub assignment: &'a Assignment,
    /// Nodes and cache.
    pub around: &'a Surroundings<'a>,
    /// What was asked for.
    pub resources: &'a Resources<Applied>,
    /// The status that this one replaces.
    pub previous: Option<&'a ImageCacheStatus>,
}

/// A starting operator shows the last status for so long, until its nodes have reported (L22).
pub const SETTLING: Duration = Duration::from_mins(2);

/// The status. The same facts give the same bytes.
pub fn status(outcome: &Outcome<'_>) -> ImageCacheStatus {
    let Outcome {
        object,
        assignment: _,
        around,
        resources,
        previous,
    } = *outcome;
    let Resources {
        wishes: _,
        cache: _,
        due,
        state: _,
    } = resources;
    let mut last_refresh = previous.and_then(|status| status.last_refresh.clone());
    let mut last_handled = previous.and_then(|status| status.last_handled_refresh.clone());
    if *due != Due::No {
        last_refresh = Some(whole_seconds(around.now));
    }
    if let Due::Asked(request) = due {
        last_handled = Some(request.clone());
    }
    if let Some(previous) = previous
        && is_settling(outcome, previous)
    {
        return ImageCacheStatus {
            last_refresh,
            last_handled_refresh: last_handled,
            ..previous.clone()
        };
    }
    let tally = count::tally(outcome, last_refresh.as_ref());
    let failures = failures::failures(outcome, &tally);
    let conditions = conditions::conditions(outcome, &tally, &failures);
    ImageCacheStatus {
        observed_generation: Some(object.generation),
        conditions,
        images: u32::try_from(object.images.len()).unwrap_or(u32::MAX),
        nodes: tally.nodes,
        entries: tally.entries,
        failures: failures::shown(failures, previous, around.now),
        last_refresh,
        last_handled_refresh: last_handled,
    }
}

/// The status of an object that cannot be evaluated: what nodes hold is as it was.
pub fn invalid(
    generation: i64,
    mistakes: &Invalid,
    previous: Option<&ImageCacheStatus>,
    now: Timestamp,
) -> ImageCacheStatus {
    let message = mistakes.to_string();
    let say = |kind, is| conditions::Said {
        kind,
        is,
        reason: Reason::InvalidSpec,
        message: message.clone(),
    };
    let said = vec![
        say(ConditionType::Ready, Some(false)),
        say(ConditionType::Reconciling, Some(false)),
        say(ConditionType::Stalled, Some(true)),
    ];
    ImageCacheStatus {
        observed_generation: Some(generation),
        conditions: conditions::stamp(said, generation, previous, now),
        ..previous.cloned().unwrap_or_default()
    }
}

/// Has this process just started, and have most nodes not reported since their objects were read?
fn is_settling(outcome: &Outcome<'_>, previous: &ImageCacheStatus) -> bool {
    let desired = outcome
        .assignment
        .nodes
        .iter()
        .filter(|plan| plan.is_desired());
    let (desired, reported) = desired.fold((0_usize, 0_usize), |(desired, reported), plan| {
        let has_reported = plan.node.status().is_some();
        (desired + 1, reported + usize::from(has_reported))
    });
    outcome.around.uptime < SETTLING
        && previous.observed_generation == Some(outcome.object.generation)
        && previous.nodes.ready > 0
        && reported * 10 < desired * 9
}

/// Kubernetes keeps seconds.
fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// What deserves a warning event, beside what the failures say.
pub fn warnings(assignment: &Assignment, status: &ImageCacheStatus) -> Vec<(Reason, String)> {
    let unmatched = assignment.unmatched.iter().map(|set| {
        (
            Reason::NoMatchingNodes,
            format!(
                "no node matches set {set}; {}",
                Reason::NoMatchingNodes.remedy()
            ),
        )
    });
    let failures = status.failures.iter().map(|failure: &Failure| {
        let about = failure.reference.as_deref().unwrap_or("nodes");
        (failure.reason, format!("{about}: {}", failure.message))
    });
    unmatched.chain(failures).collect()
}

#[cfg(test)]
mod tests;
