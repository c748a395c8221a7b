//! Failures: by image and reason, the most frequent first, each with a few nodes and what to do.

use std::collections::BTreeMap;

use coral_schema::admin::{PrefetchImage, PrefetchState};
use coral_schema::crd::Reason;
use coral_schema::crd::image_cache::{Failure, ImageCacheStatus};
use coral_schema::crd::node_cache::ImageState;
use jiff::Timestamp;

use super::count::{Tally, reason};
use super::{Outcome, whole_seconds};
use crate::image_cache::assign::{NodePlan, Progress};
use crate::node_cache::wishes::Verdict;

/// Failures that a status shows.
const MOST: usize = 20;
/// Nodes that each of them names.
const SAMPLES: usize = 3;
/// Characters of a message.
const LONGEST: usize = 256;

/// One kind of failure, everywhere.
#[derive(Debug, Default)]
pub struct Found {
    nodes: u32,
    samples: Vec<String>,
    message: Option<String>,
}

/// By image (nothing: it is about nodes) and reason.
pub type Failures<'a> = BTreeMap<(Option<&'a str>, Reason), Found>;

impl Found {
    /// One more node; the first one with a message speaks for all, so that the text does not change with their order.
    fn on(&mut self, node: &str, message: Option<&str>) {
        self.nodes += 1;
        if self.samples.len() < SAMPLES {
            self.samples.push(node.to_owned());
        }
        if self.message.is_none() {
            self.message = message.map(str::to_owned);
        }
    }

    /// How many nodes.
    pub fn nodes(&self) -> u32 {
        self.nodes
    }
}

/// All of them.
pub(super) fn failures<'a>(outcome: &Outcome<'a>, tally: &Tally) -> Failures<'a> {
    let mut all = Failures::new();
    for plan in outcome
        .assignment
        .nodes
        .iter()
        .filter(|plan| plan.is_desired())
    {
        if plan.silent {
            all.entry((None, Reason::WarmerSilent))
                .or_default()
                .on(&plan.node.name, None);
        } else {
            of_node(outcome, plan, &mut all);
        }
    }
    for name in &outcome.assignment.missing {
        all.entry((None, Reason::NodeNotFound))
            .or_default()
            .on(name, None);
    }
    for (index, image) in outcome.object.images.iter().enumerate() {
        // What nodes get without the cache is not missed there.
        if tally.by_nodes[index] && tally.entries[index].failed_nodes == 0 {
            continue;
        }
        let progress = outcome.around.cache.images.get(&*image.spelling);
        if let Some((reason, message)) = progress.and_then(cache_failure) {
            let found = all.entry((Some(&image.spelling), reason)).or_default();
            // What the cache says is nearer to the cause than what nodes say.
            found.message = with_secrets(outcome, reason, message);
        }
    }
    conflicts(outcome, &mut all);
    all
}

/// A pull secret that is of no use explains a refusal; upstreams also say that what they do not show does not exist.
fn with_secrets(outcome: &Outcome<'_>, reason: Reason, message: Option<String>) -> Option<String> {
    if !matches!(
        reason,
        Reason::Unauthorized | Reason::Forbidden | Reason::NotFound
    ) {
        return message;
    }
    let around = outcome.around;
    let mut secrets = around.secrets.into_iter().flat_map(|it| &it.problems);
    let problem = around.cache.lending.as_ref().or(secrets.next());
    let words: Vec<String> = problem.cloned().into_iter().chain(message).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

fn cache_failure(progress: &PrefetchImage) -> Option<(Reason, Option<String>)> {
    let message = match progress.state {
        PrefetchState::Failed => progress.message.clone(),
        _ => no_image_for(progress),
    };
    Some((reason(progress)?, message))
}

/// A sentence about an image that is there for some of the wanted platforms only.
pub fn no_image_for(progress: &PrefetchImage) -> Option<String> {
    let missing = &progress.missing_platforms;
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    (!names.is_empty()).then(|| format!("it has no image for {}", names.join(", ")))
}

fn of_node<'a>(outcome: &Outcome<'a>, plan: &'a NodePlan, all: &mut Failures<'a>) {
    for pair in &plan.pairs {
        let spelling = &*outcome.object.images[pair.image].spelling;
        match pair.progress {
            Progress::Ready
            | Progress::Outdated(_)
            | Progress::NotGranted(_)
            | Progress::Pulling(_) => {}
            Progress::LeftOut => all
                .entry((Some(spelling), Reason::NodeListFull))
                .or_default()
                .on(&plan.node.name, None),
            Progress::NoPlatform => all
                .entry((Some(spelling), Reason::PlatformMissing))
                .or_default()
                .on(&plan.node.name, None),
            // What waits with a reason is shown as well: a full disk is no failed pull.
            Progress::Failed | Progress::Waiting(_) => {
                let Some(report) = plan.node.reported(spelling) else {
                    continue;
                };
                let reason = match (report.reason, report.state) {
                    (Some(reason), _) => reason,
                    (None, ImageState::Evicted) => Reason::EvictedRepeatedly,
                    (None, ImageState::Failed) => Reason::Internal,
                    (None, _) => continue,
                };
                all.entry((Some(spelling), reason))
                    .or_default()
                    .on(&plan.node.name, report.message.as_deref());
            }
        }
    }
}

fn conflicts<'a>(outcome: &Outcome<'a>, all: &mut Failures<'a>) {
    for (node, verdicts) in outcome.around.verdicts.into_iter().flatten() {
        for verdict in verdicts {
            let Verdict::Conflict { reference, winner } = verdict else {
                continue;
            };
            let mut images = outcome.object.images.iter();
            if let Some(image) = images.find(|image| image.spelling == *reference) {
                let message = format!("{winner} decides how it is pulled");
                all.entry((Some(&image.spelling), Reason::Conflict))
                    .or_default()
                    .on(node, Some(&message));
            }
        }
    }
}

/// The most frequent ones, as the status shows them. One that stood there before keeps its time.
pub(super) fn shown(
    all: Failures<'_>,
    previous: Option<&ImageCacheStatus>,
    now: Timestamp,
) -> Vec<Failure> {
    let before = previous.map_or(&[][..], |status| &status.failures);
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(_, found)| std::cmp::Reverse(found.nodes));
    all.truncate(MOST);
    let shown = all.into_iter().map(|((reference, reason), found)| {
        let same = before
            .iter()
            .find(|failure| failure.reference.as_deref() == reference && failure.reason == reason);
        Failure {
            reference: reference.map(str::to_owned),
            reason,
            message: sentence(found.message.as_deref(), reason),
            nodes: found.nodes,
            sample_nodes: found.samples,
            since: same
                .and_then(|failure| failure.since.clone())
                .or_else(|| Some(whole_seconds(now))),
        }
    });
    shown.collect()
}

/// What was said and the remedy; where both are too long, the remedy stays whole.
pub(super) fn sentence(message: Option<&str>, reason: Reason) -> String {
    let remedy = reason.remedy();
    let Some(message) = message.filter(|message| !message.is_empty()) else {
        return shortened(remedy, LONGEST);
    };
    let room = LONGEST.saturating_sub(remedy.chars().count() + 2);
    format!("{}; {remedy}", shortened(message, room))
}

/// No more than `longest` characters.
pub(super) fn shortened(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest {
        return text.to_owned();
    }
    let kept: String = text.chars().take(longest.saturating_sub(1)).collect();
    format!("{kept}…")
}
