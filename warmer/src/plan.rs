//! From wishes and facts to what happens next, for every image of the node, in the order in which they matter.

use std::collections::BTreeMap;

use coral_schema::crd::image_cache::OnEviction;
use coral_schema::crd::node_cache::{ImageState, NodeImage, NodeRegistryPolicy};
use coral_schema::crd::{NodeCacheSpec, Reason};
use jiff::{SignedDuration, Timestamp};

use crate::disk::{PRESSURE_PERCENT, Space};
use crate::presence::Found;
use crate::pressure::WINDOW;
use crate::record::{Entry, Failure, Record};

/// Compressed bytes up to which an image takes the small lane: seconds on any network.
const SMALL: u64 = 64 << 20;
/// Pulls at once in the small lane, whatever the budget says about large ones.
const SMALL_PULLS: usize = 1;
/// A registry that limits us is left alone at least so long, whatever the wish's back-off says.
pub const RATE_LIMIT_PAUSE: SignedDuration = SignedDuration::from_mins(1);

/// All that a plan depends on.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'s, 'a> {
    /// The wishes.
    pub spec: &'s NodeCacheSpec,
    /// Did the runtime answer the last look?
    pub runtime_answers: bool,
    /// What the last looks found.
    pub found: &'a Found,
    /// What we did and what the node did.
    pub record: &'a Record,
    /// Pulls that run, by spelling.
    pub running: &'a BTreeMap<String, Charge>,
    /// The file system of the images; `None` while it cannot be measured.
    pub space: Option<Space>,
    /// The disks are too busy for another pull.
    pub disks_busy: bool,
    /// What the cache said, by spelling.
    pub cache: &'a BTreeMap<String, Asked>,
    /// Starts are spread: not before this, by spelling.
    pub not_before: &'a BTreeMap<String, Timestamp>,
    /// The wall clock.
    pub now: Timestamp,
}

/// What a running pull takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// Its lane.
    pub lane: Lane,
    /// Bytes on disk, estimated.
    pub bytes: u64,
}

/// Small images do not wait behind large ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Up to 64 MiB compressed.
    Small,
    /// Larger, or of unknown size.
    Large,
}

/// A question to the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// On its way.
    Asking,
    /// Answered; asked again after `until`.
    Answered {
        /// What the cache said.
        answer: Answer,
        /// The answer counts so long.
        until: Timestamp,
    },
}

/// What the cache has of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// All of it, or its transfers run.
    Held,
    /// Not (yet) enough for this node's platform.
    Absent,
    /// The runtime does not ask the cache for this registry.
    NotMirrored,
    /// No answer, with the cause.
    Unreachable(String),
}

/// What happens to one image now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It is there.
    Held,
    /// Its pull runs.
    Running,
    /// Nobody has looked yet.
    Unseen,
    /// The cache has to be asked first.
    Ask,
    /// It is pulled.
    Pull(Charge),
    /// Nothing for now.
    Wait(Wait),
}

/// Why nothing happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// `Waiting`, `Failed` or `Evicted`.
    pub state: ImageState,
    /// In one word; `None` when it only waits for its turn.
    pub reason: Option<Reason>,
    /// In a sentence.
    pub message: String,
    /// Looked at again then, if nothing else happens before.
    pub until: Option<Timestamp>,
}

impl Wait {
    fn waiting(reason: impl Into<Option<Reason>>, message: impl Into<String>) -> Self {
        Self {
            state: ImageState::Waiting,
            reason: reason.into(),
            message: message.into(),
            until: None,
        }
    }
}

/// One step per image of the spec, the most wanted first.
pub fn plan<'s>(situation: &Situation<'s, '_>) -> Vec<(&'s NodeImage, Step)> {
    let mut images: Vec<&'s NodeImage> = situation.spec.images.iter().collect();
    images.sort_by_key(|image| std::cmp::Reverse(image.priority));
    let mut taken = Taken::by(situation.running.values());
    images
        .into_iter()
        .map(|image| {
            let step = step(image, situation, &taken);
            if let Step::Pull(charge) = &step {
                taken.add(charge);
            }
            (image, step)
        })
        .collect()
}

/// The order of the checks is the contract: the first that says no is what the status shows.
fn step(image: &NodeImage, situation: &Situation<'_, '_>, taken: &Taken) -> Step {
    let spelling = image.reference.as_str();
    if situation.running.contains_key(spelling) {
        return Step::Running;
    }
    let Some(found) = situation.found.get(spelling) else {
        return Step::Unseen;
    };
    let entry = situation.record.images.get(spelling);
    if found.is_some() && entry.is_none_or(|entry| entry.revision >= image.revision) {
        return Step::Held;
    }
    if !situation.runtime_answers {
        let message = "the container runtime does not answer";
        return Step::Wait(Wait::waiting(Reason::RuntimeUnavailable, message));
    }
    let charge = charge(image, situation.record);
    let refused = entry
        .and_then(|entry| {
            after_eviction(image, entry, situation.now)
                .or_else(|| after_failure(image, entry, situation.now))
        })
        .or_else(|| paused(situation))
        .or_else(|| no_room(charge.bytes, situation, taken));
    if let Some(wait) = refused {
        return Step::Wait(wait);
    }
    if image.registry_policy != NodeRegistryPolicy::Default {
        match cache_holds(situation.cache.get(spelling), situation.now) {
            CacheSays::Go => {}
            CacheSays::Ask => return Step::Ask,
            CacheSays::Wait(wait) => return Step::Wait(wait),
        }
    }
    match disks_busy(situation).or_else(|| no_turn(charge.lane, spelling, situation, taken)) {
        Some(wait) => Step::Wait(wait),
        None => Step::Pull(charge),
    }
}

/// What the pull of an image would take.
fn charge(image: &NodeImage, record: &Record) -> Charge {
    match image.size_bytes {
        Some(compressed) => Charge {
            lane: if compressed <= SMALL {
                Lane::Small
            } else {
                Lane::Large
            },
            bytes: record.ratios.need(&image.reference, compressed),
        },
        None => Charge {
            lane: Lane::Large,
            bytes: 0,
        },
    }
}

/// What the node removes is not fought for; a raised revision asks for it anew.
fn after_eviction(image: &NodeImage, entry: &Entry, now: Timestamp) -> Option<Wait> {
    if entry.revision < image.revision {
        return None;
    }
    let evictions = &entry.evictions;
    let cause = evictions.cause?;
    let (cause, means) = (cause.as_str(), cause.means());
    let evicted = |reason, message, until| Wait {
        state: ImageState::Evicted,
        reason: Some(reason),
        message,
        until,
    };
    if image.on_eviction == OnEviction::Ignore {
        let message = format!(
            "the node removed it, most likely by {cause} ({means}); by onEviction: Ignore it stays away"
        );
        return Some(evicted(Reason::Evicted, message, None));
    }
    let until = evictions.paused(now)?;
    let total = evictions.total;
    let message = format!("the node removed it {total} times, most likely by {cause} ({means})");
    Some(evicted(Reason::EvictedRepeatedly, message, Some(until)))
}

fn after_failure(image: &NodeImage, entry: &Entry, now: Timestamp) -> Option<Wait> {
    let failure = entry.failure.as_ref()?;
    // A raised revision asks anew.
    if failure.revision < image.revision {
        return None;
    }
    let failed = |until| Wait {
        state: ImageState::Failed,
        reason: Some(failure.reason),
        message: failure.message.clone(),
        until,
    };
    if image
        .retry
        .limit
        .is_some_and(|limit| failure.attempts >= limit)
    {
        return Some(failed(None));
    }
    let next = next_try(image, failure, now);
    (now < next).then(|| failed(Some(next)))
}

/// Bounded by the longest back-off, so that a clock that was wrong cannot keep an image away for ever.
fn next_try(image: &NodeImage, failure: &Failure, now: Timestamp) -> Timestamp {
    let longest = SignedDuration::try_from(image.retry.max_backoff.0)
        .unwrap_or(SignedDuration::MAX)
        .max(RATE_LIMIT_PAUSE);
    match now.checked_add(longest) {
        Ok(latest) => failure.next.min(latest),
        Err(_) => failure.next,
    }
}

fn paused(situation: &Situation<'_, '_>) -> Option<Wait> {
    situation
        .spec
        .paused
        .then(|| Wait::waiting(Reason::Suspended, "the node is paused"))
}

/// Pressure first: then nothing is pulled, whatever the budget says.
fn no_room(need: u64, situation: &Situation<'_, '_>, taken: &Taken) -> Option<Wait> {
    let Some(space) = situation.space else {
        return Some(Wait::waiting(
            Reason::InsufficientStorage,
            "the image file system cannot be measured",
        ));
    };
    let used = space.used_percent();
    if used >= PRESSURE_PERCENT {
        return Some(Wait::waiting(
            Reason::InsufficientStorage,
            format!("the image file system is {used} % full: the node is under disk pressure"),
        ));
    }
    let ceiling = situation.spec.budget.max_used_percent;
    let charged = need.saturating_add(taken.bytes);
    (!space.fits(charged, ceiling)).then(|| {
        let mebibytes = charged >> 20;
        Wait::waiting(
            Reason::InsufficientStorage,
            format!(
                "the image file system is {used} % full, the budget ends at {ceiling} %, \
                 and with what is being pulled it would take another {mebibytes} MiB"
            ),
        )
    })
}

enum CacheSays {
    Go,
    Ask,
    Wait(Wait),
}

fn cache_holds(asked: Option<&Asked>, now: Timestamp) -> CacheSays {
    let waiting = |message: String, until| {
        CacheSays::Wait(Wait {
            until,
            ..Wait::waiting(Reason::WaitingForCache, message)
        })
    };
    match asked {
        None => CacheSays::Ask,
        Some(Asked::Asking) => waiting("the cache is being asked".to_owned(), None),
        Some(Asked::Answered { until, .. }) if now >= *until => CacheSays::Ask,
        Some(Asked::Answered { answer, until }) => match answer {
            Answer::Held => CacheSays::Go,
            Answer::Absent => waiting("the cache does not hold it yet".to_owned(), Some(*until)),
            Answer::NotMirrored => waiting(
                "the runtime's mirror settings do not lead to the cache".to_owned(),
                Some(*until),
            ),
            Answer::Unreachable(cause) => {
                waiting(format!("the cache does not answer: {cause}"), Some(*until))
            }
        },
    }
}

fn disks_busy(situation: &Situation<'_, '_>) -> Option<Wait> {
    let message = "the node's disks are too busy for another pull";
    situation.disks_busy.then(|| Wait {
        until: situation.now.checked_add(WINDOW).ok(),
        ..Wait::waiting(Reason::NodeUnderPressure, message)
    })
}

fn no_turn(
    lane: Lane,
    spelling: &str,
    situation: &Situation<'_, '_>,
    taken: &Taken,
) -> Option<Wait> {
    let turn = || Wait::waiting(None, "waits for its turn");
    let full = match lane {
        Lane::Small => taken.small >= SMALL_PULLS,
        Lane::Large => {
            u32::try_from(taken.large).unwrap_or(u32::MAX)
                >= situation.spec.budget.concurrent_pulls.max(1)
        }
    };
    if full {
        return Some(turn());
    }
    let not_before = situation.not_before.get(spelling)?;
    (situation.now < *not_before).then(|| Wait {
        until: Some(*not_before),
        ..turn()
    })
}

/// Slots and room that pulls take, those of this plan too.
#[derive(Debug, Default)]
struct Taken {
    small: usize,
    large: usize,
    bytes: u64,
}

impl Taken {
    fn by<'a>(charges: impl Iterator<Item = &'a Charge>) -> Self {
        let mut taken = Self::default();
        charges.for_each(|charge| taken.add(charge));
        taken
    }

    fn add(&mut self, charge: &Charge) {
        match charge.lane {
            Lane::Small => self.small += 1,
            Lane::Large => self.large += 1,
        }
        self.bytes = self.bytes.saturating_add(charge.bytes);
    }
}

#[cfg(test)]
mod tests;
