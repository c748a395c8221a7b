//! What has to go, and in which order. Pure.
//!
//! First what nobody used for long, down to the low watermark. What is protected (blobs stored within the last hour, what
//! the upstream does not have any more, manifests) goes only as far as the high watermark demands: an administrator's
//! limit is a promise, too. What is pinned never goes.

use coral_schema::oci::Digest;
use jiff::{SignedDuration, Timestamp};

use crate::index::EvictionCandidate;
use crate::store::Volume;

/// Why something has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The store's own limit.
    Limit,
    /// The volume has no room, whoever fills it.
    Volume,
}

/// How much has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Which watermark was crossed.
    pub reason: Reason,
    /// Bytes above the high watermark: this much in any case.
    pub need: u64,
    /// Bytes above the low watermark: this much of what nobody used for long. At least `need`.
    pub goal: u64,
}

/// A blob that has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Victim {
    /// Which.
    pub digest: Digest,
    /// Its length, bytes.
    pub size: u64,
}

/// Does anything have to go? `held` are the bytes of all blobs, `limit` the most that they may have.
pub fn pressure(held: u64, limit: u64, volume: Volume) -> Option<Pressure> {
    let by_limit = limit_pressure(held, limit);
    let by_volume = volume_pressure(held, volume);
    match (by_limit, by_volume) {
        (Some(limit), Some(volume)) if volume.goal > limit.goal => Some(volume),
        (limit, volume) => limit.or(volume),
    }
}

/// From above 90 % of the limit down to 80 %.
fn limit_pressure(held: u64, limit: u64) -> Option<Pressure> {
    let (high, low) = (limit - limit / 10, limit - limit / 5);
    (held > high).then(|| Pressure {
        reason: Reason::Limit,
        need: held - high,
        goal: held - low,
    })
}

/// The volume is measured by what it has for us: our blobs and what is free. A tenth of that stays free, a fifth after
/// evicting. So on a volume of our own these are 90 % and 80 %, while on one that others have filled we keep what we
/// have instead of throwing it away without effect. Where it has an effect, fills get the twentieth of the volume that
/// they need to go on (see [`Space::may_fill`](crate::store::Space::may_fill)).
fn volume_pressure(held: u64, volume: Volume) -> Option<Pressure> {
    let ours = held.saturating_add(volume.free);
    let for_fills = match volume.total / 10 {
        tenth if ours >= tenth => tenth / 2,
        _ => 0,
    };
    let floor = (ours / 10).max(for_fills);
    let ceiling = (floor * 2).min(ours);
    (volume.total > 0 && volume.free <= floor && held > 0).then(|| Pressure {
        reason: Reason::Volume,
        need: floor - volume.free + 1,
        goal: (ceiling - volume.free).max(floor - volume.free + 1),
    })
}

/// Chooses among `candidates`, which come least recently used first, and are asked for no longer than needed.
pub fn victims(
    candidates: &mut dyn Iterator<Item = EvictionCandidate>,
    pressure: Pressure,
    now: Timestamp,
) -> Vec<Victim> {
    let mut found = Tier::ALL.map(|tier| Found::up_to(tier.target(pressure)));
    for candidate in candidates {
        if let Some(tier) = tier(&candidate, now) {
            found[tier as usize].offer(&candidate);
        }
        if found[Tier::Idle as usize].is_enough() {
            break;
        }
    }
    let mut victims = Vec::new();
    let mut freed = 0_u64;
    for (tier, found) in Tier::ALL.into_iter().zip(found) {
        for victim in found.victims {
            if freed >= tier.target(pressure) || victims.len() >= MOST_VICTIMS {
                break;
            }
            freed = freed.saturating_add(victim.size);
            victims.push(victim);
        }
    }
    victims
}

/// What goes before what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// Layers and configs that nobody used for long.
    Idle,
    /// Manifests of which nothing else was held, and that nobody used, for a month.
    Bare,
    /// Blobs stored within the last hour: an image that is just being pulled.
    Young,
    /// Blobs that the upstream may not have any more.
    Missing,
    /// All other manifests: small, and without them nothing can be found.
    Manifest,
}

impl Tier {
    const ALL: [Self; 5] = [
        Self::Idle,
        Self::Bare,
        Self::Young,
        Self::Missing,
        Self::Manifest,
    ];

    fn target(self, pressure: Pressure) -> u64 {
        match self {
            Self::Idle | Self::Bare => pressure.goal,
            Self::Young | Self::Missing | Self::Manifest => pressure.need,
        }
    }
}

fn tier(candidate: &EvictionCandidate, now: Timestamp) -> Option<Tier> {
    let for_long = |since: Timestamp, long: SignedDuration| now.duration_since(since) >= long;
    let bare = || {
        let since = candidate.bare_since;
        since.is_some_and(|since| for_long(since.max(candidate.last_use), BARE_FOR))
    };
    match candidate {
        EvictionCandidate { pinned: true, .. } => None,
        EvictionCandidate {
            manifest: true,
            missing,
            ..
        } => Some(if !missing && bare() {
            Tier::Bare
        } else {
            Tier::Manifest
        }),
        EvictionCandidate { missing: true, .. } => Some(Tier::Missing),
        _ if for_long(candidate.stored, YOUNG_FOR) => Some(Tier::Idle),
        _ => Some(Tier::Young),
    }
}

/// The first of a tier, as many as could be needed.
struct Found {
    victims: Vec<Victim>,
    bytes: u64,
    target: u64,
}

impl Found {
    fn up_to(target: u64) -> Self {
        Self {
            victims: Vec::new(),
            bytes: 0,
            target,
        }
    }

    fn is_enough(&self) -> bool {
        self.bytes >= self.target || self.victims.len() >= MOST_VICTIMS
    }

    fn offer(&mut self, candidate: &EvictionCandidate) {
        if !self.is_enough() {
            self.bytes = self.bytes.saturating_add(candidate.size);
            self.victims.push(Victim {
                digest: candidate.digest,
                size: candidate.size,
            });
        }
    }
}

/// An image whose layers arrive one after the other must not lose the first before it has the last.
const YOUNG_FOR: SignedDuration = SignedDuration::from_hours(1);

/// Longer than the longest holidays of a job that runs once a month would be worse than fetching a manifest again.
const BARE_FOR: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Bounds the memory of one round; the next follows at once.
const MOST_VICTIMS: usize = 10_000;

#[cfg(test)]
mod tests;
