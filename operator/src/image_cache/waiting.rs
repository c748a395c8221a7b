//! Pure: what each image waits for on each node, in words (`coral-operator explain`).

use coral_schema::admin::{PrefetchImage, PrefetchState};
use coral_schema::quantity::ByteSize;

use super::assign::{Assignment, NodePlan, Pair, Progress, Wait, Way};
use super::dereference::Surroundings;
use super::status::failures::no_image_for;
use super::validate::ValidatedImageCache;
use crate::node_cache::stored::ImageReport;

/// One line per image for the cache, then one per node and image that is not held; a warm node has one line in all.
pub fn explain(
    object: &ValidatedImageCache,
    assignment: &Assignment,
    around: &Surroundings<'_>,
) -> Vec<String> {
    let mut lines = vec![format!("imagecache {}", object.key)];
    if object.deleted.is_some() {
        lines.push("is being deleted".to_owned());
        return lines;
    }
    if let Some(away) = around.cache.away {
        lines.push(format!("cache: has not answered for {} s", away.as_secs()));
    }
    for (image, way) in object.images.iter().zip(&assignment.ways) {
        let progress = around.cache.images.get(&*image.spelling);
        lines.push(format!(
            "cache: {}: {}; {}",
            image.spelling,
            in_cache(progress),
            in_words(*way)
        ));
    }
    for name in &assignment.missing {
        lines.push(format!("node {name}: does not exist"));
    }
    for set in &assignment.unmatched {
        lines.push(format!("set {set}: no node matches"));
    }
    for plan in &assignment.nodes {
        node(object, plan, around, &mut lines);
    }
    lines
}

fn in_cache(progress: Option<&PrefetchImage>) -> String {
    let Some(progress) = progress else {
        return "not asked for yet".to_owned();
    };
    let done = ByteSize(progress.bytes_done);
    let total = ByteSize(progress.bytes_total);
    let message = progress.message.as_deref().unwrap_or("no reason given");
    match progress.state {
        PrefetchState::Queued => "queued".to_owned(),
        PrefetchState::Running if progress.digest.is_none() => "looks for its manifests".to_owned(),
        PrefetchState::Running => format!("has {done} of {total}"),
        PrefetchState::Done => match no_image_for(progress) {
            None => format!("complete ({total})"),
            Some(missing) => format!("has {total}; {missing}"),
        },
        PrefetchState::Failed => format!("failed: {message}"),
    }
}

fn in_words(way: Way) -> &'static str {
    use coral_schema::crd::node_cache::NodeRegistryPolicy::MirrorOnly;
    match way {
        Way::Open(MirrorOnly) => "nodes pull from the cache only",
        Way::Open(_) => "nodes pull as their runtime does",
        Way::OneAhead => "nodes pull as their runtime does, one ahead of the others",
        Way::AwaitCache => "nodes wait for the cache",
    }
}

fn node(
    object: &ValidatedImageCache,
    plan: &NodePlan,
    around: &Surroundings<'_>,
    lines: &mut Vec<String>,
) {
    let name = &plan.node.name;
    let open = plan
        .pairs
        .iter()
        .filter(|pair| pair.progress != Progress::Ready);
    let open: Vec<&Pair> = open.collect();
    if !plan.node.ready {
        lines.push(format!("node {name}: not Ready, skipped"));
    } else if plan.silent {
        let silence = plan.node.unanswered_for(around.uptime).as_secs();
        lines.push(format!(
            "node {name}: its warmer has not answered for {silence} s; look at its pod"
        ));
    } else if open.is_empty() {
        lines.push(format!("node {name}: warm"));
    }
    for pair in open {
        let spelling = &*object.images[pair.image].spelling;
        let report = plan.node.reported(spelling);
        let text = match pair.progress {
            Progress::Ready => continue,
            Progress::NotGranted(wait) => format!("waits: {}", why(wait)),
            Progress::Outdated(wait) => format!("holds older content; waits: {}", why(wait)),
            Progress::LeftOut => "left out: the node's list is full".to_owned(),
            Progress::NoPlatform => "left out: it has no image for the node's platform".to_owned(),
            Progress::Waiting(_) => format!("told; {}", said(report, "waits for its turn")),
            Progress::Pulling(_) => {
                let failed = report.map_or(0, |report| report.attempts);
                format!("pulling (try {})", failed + 1)
            }
            Progress::Failed => said(report, "failed"),
        };
        lines.push(format!("node {name}: {spelling}: {text}"));
    }
}

fn why(wait: Wait) -> &'static str {
    match wait {
        Wait::NodeNotReady => "the node is not Ready",
        Wait::WarmerSilent => "the node's warmer does not answer",
        Wait::Paused => "the node is paused (annotation coral.dev/paused)",
        Wait::Suspended => "spec.suspend is true",
        Wait::Window => "for the maintenance window (spec.rollout.window)",
        Wait::EarlierSet => "an earlier set is not done (spec.rollout.order: Sequential)",
        Wait::Cache => "for the cache to have its manifests",
        Wait::NodeAhead => "for the node that pulls it first",
        Wait::Slot => "for one of the object's slots (spec.rollout.maxConcurrentNodes)",
        Wait::SharedSlot => "for one of all objects' slots (--max-concurrent-nodes)",
    }
}

/// What the warmer said of it.
fn said(report: Option<&ImageReport>, otherwise: &str) -> String {
    let Some(report) = report else {
        return "no report yet".to_owned();
    };
    let mut parts = vec![match report.reason {
        Some(reason) => format!("{:?}: {}", report.state, reason.as_str()),
        None => otherwise.to_owned(),
    }];
    parts.extend(report.message.as_deref().map(str::to_owned));
    if let Some(next) = &report.next_attempt {
        parts.push(format!("next try at {next}"));
    }
    parts.extend(report.reason.map(|reason| reason.remedy().to_owned()));
    parts.join("; ")
}

#[cfg(test)]
mod tests;
