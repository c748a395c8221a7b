//! Where a granted image stands on a node, and whether it takes a slot there.

use std::time::Duration;

use coral_schema::crd::Reason;
use coral_schema::crd::node_cache::{ImageState, NodeImage};
use jiff::Timestamp;

use super::{Grant, Wait};
use crate::image_cache::dereference::{NodeFacts, Surroundings};
use crate::node_cache::stored::ImageReport;
use crate::node_cache::wishes::NodeWish;

/// Where an image stands on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The node was not told of it.
    NotGranted(Wait),
    /// The node was told; its turn has yet to come there.
    Waiting(Claim),
    /// The runtime pulls it.
    Pulling(Claim),
    /// Held.
    Ready,
    /// Held with older content than the cache has, which the object follows; the node was not told of the newer one.
    Outdated(Wait),
    /// The last pull failed, or the node removed it again and again.
    Failed,
    /// The node's list is full.
    LeftOut,
    /// The image has no variant for the node, which is not waited for.
    NoPlatform,
}

/// What an image that is not held counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The first try: it takes one of the object's slots.
    Slot,
    /// A repair, or another try: it takes none.
    Again,
    /// The node is not able to: it takes none, and nobody waits for it.
    Stuck,
}

impl Progress {
    /// Does the node hold the name, with whatever content?
    pub fn is_held(self) -> bool {
        matches!(self, Self::Ready | Self::Outdated(_))
    }

    /// Does it take one of the object's slots?
    pub fn takes_slot(self) -> bool {
        matches!(
            self,
            Self::Waiting(Claim::Slot) | Self::Pulling(Claim::Slot)
        )
    }

    /// May it be held soon, without anybody's doing?
    pub fn is_under_way(self) -> bool {
        matches!(
            self,
            Self::Waiting(Claim::Slot | Claim::Again) | Self::Pulling(Claim::Slot | Claim::Again)
        )
    }
}

/// A node that says nothing new about a grant for so long gives its slot back.
pub const SILENT_SLOT: Duration = Duration::from_mins(10);

/// What the node was told, and where it stands, by its stored spec and its report. `before` is what the object last wished there: a grant that may not have
/// reached the `NodeCache` yet.
pub(super) fn look(
    node: &NodeFacts,
    (stored, report): (Option<&NodeImage>, Option<&ImageReport>),
    before: Option<NodeWish>,
    around: &Surroundings<'_>,
) -> (Option<Grant>, Progress) {
    let grant = match (before, stored) {
        (Some(wish), _) => Grant {
            policy: wish.policy,
            revision: wish.revision.max(stored.map_or(0, |image| image.revision)),
        },
        (None, Some(image)) => Grant {
            policy: image.registry_policy,
            revision: image.revision,
        },
        (None, None) => return (None, Progress::NotGranted(Wait::Slot)),
    };
    // What the node says of an older revision says nothing of this one, until it has read of it.
    let told = stored.is_some_and(|image| image.revision >= grant.revision);
    let due = !told || node.unanswered_since.is_some();
    let is_about = |report: &&ImageReport| !(is_older(report, grant) && due);
    let report = stored.and(report).filter(is_about);
    let able = node.ready && !node.paused && !node.is_silent(around.uptime);
    let Some(report) = report else {
        // An answer that does not speak of it will not speak of it later.
        let hope = able && due && node.unanswered_for(around.uptime) < SILENT_SLOT;
        return (Some(grant), Progress::Waiting(claim(hope, true)));
    };
    let first_try = is_first_try(report, grant);
    let progress = match report.state {
        ImageState::Ready if is_older(report, grant) => {
            Progress::Waiting(claim(able && !is_stuck(report, around.now), first_try))
        }
        ImageState::Ready => Progress::Ready,
        ImageState::Failed | ImageState::Evicted => Progress::Failed,
        ImageState::Pulling => Progress::Pulling(claim(able, first_try)),
        ImageState::Waiting | ImageState::Unknown => {
            Progress::Waiting(claim(able && !is_stuck(report, around.now), first_try))
        }
    };
    (Some(grant), progress)
}

fn claim(hope: bool, first_try: bool) -> Claim {
    match (hope, first_try) {
        (true, true) => Claim::Slot,
        (true, false) => Claim::Again,
        (false, _) => Claim::Stuck,
    }
}

/// Does it hold what an earlier revision brought?
fn is_older(report: &ImageReport, grant: Grant) -> bool {
    report.state == ImageState::Ready && report.revision < grant.revision
}

/// Later tries and repairs take no slot; newer content is no repair.
fn is_first_try(report: &ImageReport, grant: Grant) -> bool {
    let repairs = report.evictions > 0 && report.revision >= grant.revision;
    report.attempts == 0 && !repairs
}

/// Waits for something on the node itself, for long. Waiting for the cache keeps the slot: giving it back would widen the
/// wave until all nodes ask the cache at the moment of its return (L5).
fn is_stuck(report: &ImageReport, now: Timestamp) -> bool {
    let on_node = report.state == ImageState::Unknown
        || !matches!(report.reason, None | Some(Reason::WaitingForCache));
    let since = report.last_transition;
    on_node
        && since.is_none_or(|since| {
            now.duration_since(since).unsigned_abs() >= SILENT_SLOT && now > since
        })
}
