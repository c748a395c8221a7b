//! Counts: nodes by state, and for each image where it is.

use coral_schema::admin::{PrefetchImage, PrefetchReason, PrefetchState};
use coral_schema::crd::Reason;
use coral_schema::crd::condition::ConditionType;
use coral_schema::crd::image_cache::{Entry, NodeCounts, RegistryPolicy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::Outcome;
use crate::image_cache::assign::{NodePlan, Progress};
use crate::image_cache::validate::ValidatedImage;

/// Everything that is counted in one walk over nodes and images.
#[derive(Debug, Default)]
pub struct Tally {
    /// Nodes by state.
    pub nodes: NodeCounts,
    /// One per image.
    pub entries: Vec<Entry>,
    /// Which images the cache does not serve and nodes may pull all the same: it is not waited for.
    pub by_nodes: Vec<bool>,
    /// Some nodes that are desired and not ready, by name.
    pub waiting: Vec<String>,
    /// What nodes hold that is something else, by image.
    pub drift: Vec<Drift>,
}

/// Nodes with other content under a name than it means.
#[derive(Debug)]
pub struct Drift {
    /// The image.
    pub reference: String,
    /// How many nodes.
    pub nodes: u32,
    /// One of them.
    pub first: String,
    /// Different contents on all nodes.
    pub contents: u32,
}

impl Tally {
    /// The images that the cache shall hold.
    pub fn of_cache(&self) -> impl Iterator<Item = &Entry> {
        let all = self.entries.iter().zip(&self.by_nodes);
        all.filter_map(|(entry, by_nodes)| (!by_nodes).then_some(entry))
    }
}

/// Nodes that a message names.
const SAMPLES: usize = 3;

pub(super) fn tally(outcome: &Outcome<'_>, last_refresh: Option<&Time>) -> Tally {
    let mut tally = Tally {
        entries: entries(outcome, last_refresh),
        by_nodes: by_nodes(outcome),
        ..Tally::default()
    };
    let mut held: Vec<Contents<'_>> = tally.entries.iter().map(|_| Contents::default()).collect();
    for plan in &outcome.assignment.nodes {
        if !plan.is_desired() {
            tally.nodes.skipped += 1;
            continue;
        }
        tally.nodes.desired += 1;
        let mut walk = plan.node.walk();
        for pair in &plan.pairs {
            let entry = &mut tally.entries[pair.image];
            match pair.progress {
                Progress::Ready => entry.ready_nodes += 1,
                Progress::Failed | Progress::LeftOut | Progress::NoPlatform => {
                    entry.failed_nodes += 1;
                }
                Progress::Outdated(_)
                | Progress::NotGranted(_)
                | Progress::Waiting(_)
                | Progress::Pulling(_) => {}
            }
            let (_, report) = walk.find(&entry.reference);
            if let Some(digest) = report.and_then(|report| report.digest.as_deref()) {
                held[pair.image].add(digest, &plan.node.name);
            }
        }
        let state = state(plan);
        let counter = match state {
            State::Ready => &mut tally.nodes.ready,
            State::Pulling => &mut tally.nodes.pulling,
            State::Waiting => &mut tally.nodes.waiting,
            State::Failed => &mut tally.nodes.failed,
        };
        *counter += 1;
        if state != State::Ready && tally.waiting.len() < SAMPLES {
            tally.waiting.push(plan.node.name.to_string());
        }
    }
    let images = outcome.object.images.iter().zip(held);
    for (entry, (image, held)) in tally.entries.iter_mut().zip(images) {
        let frozen = image.is_frozen(outcome.object.tag_policy);
        if let Some(drift) = held.drift(entry, frozen) {
            (entry.drifted_nodes, entry.contents) = (drift.nodes, several(drift.contents));
            tally.drift.push(drift);
        }
    }
    tally
}

/// One content is nothing to tell.
fn several(contents: u32) -> u32 {
    if contents > 1 { contents } else { 0 }
}

/// What nodes hold under one name: digest, how many nodes, the first of them.
#[derive(Debug, Default)]
struct Contents<'a>(Vec<(&'a str, u32, &'a str)>);

impl<'a> Contents<'a> {
    fn add(&mut self, digest: &'a str, node: &'a str) {
        // Equal ones are nearly always the same text in memory.
        let is = |known: &str| std::ptr::eq(known, digest) || known == digest;
        let known = self.0.iter().position(|(known, ..)| is(known));
        match known {
            Some(index) => self.0[index].1 += 1,
            None if self.0.len() < MOST_CONTENTS => self.0.push((digest, 1, node)),
            // More kinds of content than anybody tells apart: it counts, under the last of them.
            None => self.0[MOST_CONTENTS - 1].1 += 1,
        }
    }

    /// Who holds something else than what the name means: frozen, upstream, or else in the cache; where nobody says, than
    /// what most nodes hold.
    fn drift(self, entry: &Entry, frozen: bool) -> Option<Drift> {
        let upstream = entry.upstream_digest.as_ref().filter(|_| !frozen);
        let known = upstream.or(entry.digest.as_ref()).map(String::as_str);
        let most = self.0.iter().rev().max_by_key(|(_, nodes, _)| *nodes);
        let right = known.or(most.map(|(digest, ..)| *digest))?;
        let others = self.0.iter().filter(|(digest, ..)| *digest != right);
        let nodes = others.clone().map(|(_, nodes, _)| *nodes).sum();
        let first = others.map(|(.., first)| *first).min()?;
        Some(Drift {
            reference: entry.reference.clone(),
            nodes,
            first: first.to_owned(),
            contents: u32::try_from(self.0.len()).unwrap_or(u32::MAX),
        })
    }
}

/// Different contents of one image that are told apart.
const MOST_CONTENTS: usize = 16;

/// A desired node, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It holds every image of its sets.
    Ready,
    /// A pull runs, and none failed.
    Pulling,
    /// Nothing runs, and none failed.
    Waiting,
    /// An image failed, was left out or has no variant for it, or the warmer is silent.
    Failed,
}

/// Where a desired node stands.
pub fn state(plan: &NodePlan) -> State {
    let any = |is: fn(Progress) -> bool| plan.pairs.iter().any(|pair| is(pair.progress));
    let failed = |it| {
        matches!(
            it,
            Progress::Failed | Progress::LeftOut | Progress::NoPlatform
        )
    };
    if plan.silent || any(failed) {
        State::Failed
    } else if any(|it| matches!(it, Progress::Pulling(_))) {
        State::Pulling
    } else if any(|it| it != Progress::Ready) {
        State::Waiting
    } else {
        State::Ready
    }
}

fn by_nodes(outcome: &Outcome<'_>) -> Vec<bool> {
    let object = outcome.object;
    let images = object.images.iter();
    let mut by_nodes: Vec<bool> = match &outcome.around.cache.registries {
        _ if object.policy == RegistryPolicy::MirrorOnly => images.map(|_| false).collect(),
        Some(registries) => images
            .map(|image| !registries.serve(&image.reference))
            .collect(),
        None => images.map(|image| was_by_nodes(outcome, image)).collect(),
    };
    let in_cache_only = object.sets.iter().filter(|set| set.nodes.is_none());
    for image in in_cache_only.flat_map(|set| &set.images) {
        by_nodes[*image] = false;
    }
    by_nodes
}

/// As long as the cache has not said to this process what it serves: an image that was not missed in it.
fn was_by_nodes(outcome: &Outcome<'_>, image: &ValidatedImage) -> bool {
    let Some(before) = outcome.previous else {
        return false;
    };
    let cache_ready = |condition: &Condition| {
        condition.type_ == ConditionType::CacheReady.as_str() && condition.status == "True"
    };
    let missed = |entry: &Entry| !entry.cached && entry.reference == *image.spelling;
    before.conditions.iter().any(cache_ready) && before.entries.iter().any(missed)
}

fn entries(outcome: &Outcome<'_>, last_refresh: Option<&Time>) -> Vec<Entry> {
    let before = outcome.previous.map_or(&[][..], |status| &status.entries);
    let images = outcome
        .object
        .images
        .iter()
        .zip(&outcome.resources.wishes.images);
    let entries = images.enumerate().map(|(index, (image, known))| {
        let spelling = &*image.spelling;
        // Lists are in the order of the spec, so it is nearly always found at its index.
        let before = before
            .get(index)
            .filter(|entry| entry.reference == spelling)
            .or_else(|| before.iter().find(|entry| entry.reference == spelling));
        let progress = outcome.around.cache.images.get(spelling);
        let resolved = progress.is_some_and(|progress| {
            progress.state == PrefetchState::Done && progress.reason != Some(PrefetchReason::Stale)
        });
        // A frozen tag that the registry did not hear of again yet may mean something else there.
        let same = progress
            .and_then(|progress| progress.digest)
            .is_none_or(|digest| known.digest == Some(digest.to_string()));
        Entry {
            reference: spelling.to_owned(),
            digest: known.digest.clone(),
            size_bytes: known.size_bytes,
            cached: same && is_cached(progress, before),
            upstream_digest: upstream_digest(progress, resolved, before)
                .filter(|digest| known.digest.as_ref() != Some(digest)),
            last_resolved: if resolved {
                last_refresh.cloned()
            } else {
                before.and_then(|entry| entry.last_resolved.clone())
            },
            ..Entry::default()
        }
    });
    entries.collect()
}

/// What the tag means upstream, where the cache could not follow it; by the last answer, as long as there is none.
fn upstream_digest(
    progress: Option<&PrefetchImage>,
    resolved: bool,
    before: Option<&Entry>,
) -> Option<String> {
    let now = progress.and_then(|progress| progress.upstream_digest);
    let before = before.filter(|_| !resolved);
    now.map(|digest| digest.to_string())
        .or_else(|| before.and_then(|entry| entry.upstream_digest.clone()))
}

/// What was held is held while it is verified again, and while the upstream or the cache is away: no refresh makes an
/// object unready.
fn is_cached(progress: Option<&PrefetchImage>, before: Option<&Entry>) -> bool {
    let was = before.is_some_and(|entry| entry.cached);
    let Some(progress) = progress else {
        return was;
    };
    let same = progress.digest.is_none_or(|digest| {
        let before = before.and_then(|entry| entry.digest.as_ref());
        before.is_some_and(|before| *before == digest.to_string())
    });
    match progress.state {
        PrefetchState::Done => progress.missing_platforms.is_empty(),
        PrefetchState::Queued | PrefetchState::Running => was && same,
        PrefetchState::Failed => was && same && reason(progress).is_some_and(Reason::is_temporary),
    }
}

/// Why the cache does not hold an image, or not for all platforms, in the words of statuses.
pub(super) fn reason(image: &PrefetchImage) -> Option<Reason> {
    if image.state != PrefetchState::Failed {
        return (!image.missing_platforms.is_empty()).then_some(Reason::PlatformMissing);
    }
    Some(match image.reason {
        Some(PrefetchReason::NotFound) => Reason::NotFound,
        Some(PrefetchReason::PlatformMissing) => Reason::PlatformMissing,
        Some(PrefetchReason::Unauthorized) => Reason::Unauthorized,
        Some(PrefetchReason::Forbidden) => Reason::Forbidden,
        Some(PrefetchReason::Unknown) => Reason::Unknown,
        Some(PrefetchReason::RateLimited) => Reason::RateLimited,
        Some(PrefetchReason::UpstreamUnavailable | PrefetchReason::Stale) => {
            Reason::UpstreamUnavailable
        }
        Some(PrefetchReason::InvalidImage) => Reason::DigestMismatch,
        Some(PrefetchReason::StorageFull) => Reason::InsufficientStorage,
        Some(PrefetchReason::Interrupted) | None => Reason::WaitingForCache,
    })
}
