//! Conditions: in the order of their importance, each with a sentence of counts and names.

use coral_schema::crd::Reason;
use coral_schema::crd::condition::ConditionType;
use coral_schema::crd::image_cache::ImageCacheStatus;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::count::{Drift, Tally};
use super::failures::{Failures, shortened};
use super::{Outcome, whole_seconds};
use crate::image_cache::assign::{Pair, Progress, Wait};
use crate::image_cache::window::Window;

/// Characters of a message: enough for a sentence per part of the object.
const LONGEST: usize = 1024;

/// One condition, before it is stamped.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) kind: ConditionType,
    pub(super) is: Option<bool>,
    pub(super) reason: Reason,
    pub(super) message: String,
}

/// All six of them.
pub(super) fn conditions(
    outcome: &Outcome<'_>,
    tally: &Tally,
    failures: &Failures<'_>,
) -> Vec<Condition> {
    let cache = cache_ready(tally, failures);
    let nodes = nodes_ready(outcome, tally, failures);
    let ready = ready(outcome, &cache, &nodes);
    let stalled = stalled(&ready, failures);
    let reconciling = reconciling(outcome, tally, &ready, &stalled);
    let drifted = drifted(tally);
    stamp(
        vec![ready, reconciling, stalled, cache, nodes, drifted],
        outcome.object.generation,
        outcome.previous,
        outcome.around.now,
    )
}

fn cache_ready(tally: &Tally, failures: &Failures<'_>) -> Said {
    let missing: Vec<&str> = tally
        .of_cache()
        .filter(|entry| !entry.cached)
        .map(|entry| entry.reference.as_str())
        .collect();
    let images = tally.of_cache().count();
    let (cached, by_nodes) = (images - missing.len(), tally.entries.len() - images);
    let is = missing.is_empty();
    let cause = failures
        .iter()
        .filter(|((reference, _), _)| reference.is_some_and(|name| missing.contains(&name)))
        .map(|((_, reason), _)| *reason)
        .min_by_key(|reason| reason.is_temporary());
    let mut parts = vec![format!("{cached} of {images} images in the cache")];
    if !is {
        parts.push(format!("waiting for {}", listed(&missing, missing.len())));
    }
    if by_nodes > 0 {
        parts.push(format!("{by_nodes} of registries that it does not serve"));
    }
    Said {
        kind: ConditionType::CacheReady,
        is: Some(is),
        reason: if is {
            Reason::Warm
        } else {
            cause.unwrap_or(Reason::WaitingForCache)
        },
        message: parts.join("; "),
    }
}

fn nodes_ready(outcome: &Outcome<'_>, tally: &Tally, failures: &Failures<'_>) -> Said {
    let nodes = &tally.nodes;
    let missing = &outcome.assignment.missing;
    let short = outcome.assignment.short_of_replicas;
    // Nodes that are not ready are not waited for, but where all of them are away nothing is known to be warm.
    let all_away = nodes.desired == 0 && nodes.skipped > 0;
    let is = nodes.ready == nodes.desired && missing.is_empty() && short == 0 && !all_away;
    let reason = if !is {
        node_cause(outcome, tally, failures)
    } else if nodes.desired == 0 && has_node_sets(outcome) {
        Reason::NoMatchingNodes
    } else {
        Reason::Warm
    };
    Said {
        kind: ConditionType::NodesReady,
        is: Some(is),
        reason,
        message: nodes_message(outcome, tally, reason),
    }
}

/// `3 of 12 nodes warm; waiting for n4, n5, n6 and 6 more`
fn nodes_message(outcome: &Outcome<'_>, tally: &Tally, reason: Reason) -> String {
    let nodes = &tally.nodes;
    let missing = &outcome.assignment.missing;
    let short = outcome.assignment.short_of_replicas;
    let mut parts = vec![match reason {
        Reason::NoMatchingNodes => "no node matches".to_owned(),
        _ if !has_node_sets(outcome) => "no set has nodes".to_owned(),
        _ => format!("{} of {} nodes warm", nodes.ready, nodes.desired),
    }];
    if nodes.ready < nodes.desired {
        let left = usize::try_from(nodes.desired - nodes.ready).unwrap_or(usize::MAX);
        parts.push(format!("waiting for {}", listed(&tally.waiting, left)));
    }
    if let Some(window) = closed_window(outcome) {
        parts.push(match window.next(outcome.around.now) {
            Some(next) => format!("the maintenance window opens at {next}"),
            None => "the maintenance window never opens".to_owned(),
        });
    }
    if nodes.skipped > 0 {
        parts.push(format!("{} not ready, skipped", nodes.skipped));
    }
    if !missing.is_empty() {
        let names = listed(missing, missing.len());
        parts.push(format!("no node is named {names}"));
    }
    if short > 0 {
        parts.push(format!("{short} replicas have no node"));
    }
    parts.join("; ")
}

/// The window, if something waits for it.
fn closed_window<'a>(outcome: &Outcome<'a>) -> Option<&'a Window> {
    let waits = |pair: &Pair| {
        matches!(
            pair.progress,
            Progress::NotGranted(Wait::Window) | Progress::Outdated(Wait::Window)
        )
    };
    let mut pairs = outcome.assignment.nodes.iter().flat_map(|it| &it.pairs);
    let window = outcome.object.window.as_ref()?;
    pairs.any(waits).then_some(window)
}

fn has_node_sets(outcome: &Outcome<'_>) -> bool {
    outcome.object.sets.iter().any(|set| set.nodes.is_some())
}

/// Why nodes are not warm: what does not pass by itself first, then what is most frequent.
fn node_cause(outcome: &Outcome<'_>, tally: &Tally, failures: &Failures<'_>) -> Reason {
    let permanent = failures
        .iter()
        .filter(|((_, reason), _)| !reason.is_temporary() && *reason != Reason::Conflict)
        .max_by_key(|(_, found)| found.nodes());
    if let Some(((_, reason), _)) = permanent {
        return *reason;
    }
    if outcome.object.suspend {
        return Reason::Suspended;
    }
    let temporary = failures
        .iter()
        .filter(|((_, reason), found)| *reason != Reason::Conflict && found.nodes() > 0)
        .max_by_key(|(_, found)| found.nodes());
    match temporary {
        Some(((_, reason), _)) => *reason,
        None if outcome.assignment.short_of_replicas > 0 && outcome.assignment.nodes.is_empty() => {
            Reason::NoMatchingNodes
        }
        None if tally.nodes.desired == 0 && tally.nodes.skipped > 0 => Reason::NodeNotReady,
        None => Reason::Warming,
    }
}

fn ready(outcome: &Outcome<'_>, cache: &Said, nodes: &Said) -> Said {
    let is = cache.is == Some(true) && nodes.is == Some(true);
    let reason = match (cache.is, nodes.is) {
        (Some(true), _) => nodes.reason,
        // The cache's own trouble explains the nodes'.
        (_, Some(true)) => cache.reason,
        _ if nodes.reason == Reason::Warming => cache.reason,
        _ => nodes.reason,
    };
    let reason = match reason {
        Reason::WaitingForCache if !is && outcome.around.cache.away.is_none() => Reason::Warming,
        reason => reason,
    };
    Said {
        kind: ConditionType::Ready,
        is: Some(is),
        reason,
        message: format!("{}; {}", nodes.message, cache.message),
    }
}

/// Reasons that pass never set it.
fn stalled(ready: &Said, failures: &Failures<'_>) -> Said {
    let first = failures
        .keys()
        .find(|(_, reason)| !reason.is_temporary() && *reason != Reason::Conflict)
        .filter(|_| ready.is != Some(true));
    let (reason, message) = match first {
        Some((reference, reason)) => {
            let about = reference.unwrap_or("nodes");
            (*reason, format!("{about}: {}", reason.remedy()))
        }
        None => (ready.reason, String::new()),
    };
    Said {
        kind: ConditionType::Stalled,
        is: Some(first.is_some()),
        reason,
        message,
    }
}

/// Goes on while anything passes by itself, also beside what does not.
fn reconciling(outcome: &Outcome<'_>, tally: &Tally, ready: &Said, stalled: &Said) -> Said {
    let is_stalled = stalled.is == Some(true) && tally.nodes.pulling == 0;
    let (is, reason) = if ready.is == Some(true) {
        (false, ready.reason)
    } else if outcome.object.suspend {
        (false, Reason::Suspended)
    } else if is_stalled {
        (false, stalled.reason)
    } else {
        (true, Reason::Warming)
    };
    Said {
        kind: ConditionType::Reconciling,
        is: Some(is),
        reason,
        message: if is {
            ready.message.clone()
        } else {
            String::new()
        },
    }
}

fn drifted(tally: &Tally) -> Said {
    let drift = tally.drift.iter();
    let texts: Vec<String> = drift
        .map(|drift| {
            let Drift {
                reference,
                nodes,
                first,
                contents,
            } = drift;
            let several = if *contents > 1 {
                format!(" ({contents} different contents on nodes)")
            } else {
                String::new()
            };
            format!("{reference} on {nodes} nodes like {first}{several}")
        })
        .collect();
    let is = !texts.is_empty();
    Said {
        kind: ConditionType::Drifted,
        is: Some(is),
        reason: if is { Reason::Drifted } else { Reason::Warm },
        message: if is {
            format!(
                "other content than upstream or in the cache: {}",
                listed(&texts, texts.len())
            )
        } else {
            String::new()
        },
    }
}

/// `a, b, c and 4 more`
fn listed<T: AsRef<str>>(names: &[T], of: usize) -> String {
    let shown: Vec<&str> = names.iter().take(3).map(AsRef::as_ref).collect();
    let more = of.saturating_sub(shown.len());
    let shown = shown.join(", ");
    if more > 0 {
        format!("{shown} and {more} more")
    } else {
        shown
    }
}

/// Makes conditions of them. The time of one that says the same as before stays.
pub(super) fn stamp(
    said: Vec<Said>,
    generation: i64,
    previous: Option<&ImageCacheStatus>,
    now: Timestamp,
) -> Vec<Condition> {
    let before = previous.map_or(&[][..], |status| &status.conditions);
    let stamped = said.into_iter().map(|said| {
        let type_ = said.kind.as_str();
        let status = match said.is {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let same = before
            .iter()
            .find(|condition| condition.type_ == type_ && condition.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            observed_generation: Some(generation),
            reason: said.reason.as_str().to_owned(),
            message: shortened(&said.message, LONGEST),
            last_transition_time: same.map_or_else(
                || whole_seconds(now),
                |condition| condition.last_transition_time.clone(),
            ),
        }
    });
    stamped.collect()
}
