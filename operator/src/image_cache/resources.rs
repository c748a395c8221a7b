//! What one `ImageCache` asks nodes and the cache for, before and after it was asked.
//!
//! Only [`build`](super::build) makes the prepared form and only `apply` the applied one, so a status never speaks of what
//! was not asked for yet. Whoever takes the bundle apart does so without `..`: a new field stops the build there.

use std::marker::PhantomData;

use coral_schema::admin::{FrozenTag, PrefetchRequest};
use jiff::Timestamp;

use super::assign::Assignment;
use super::refresh::{self, Due};
use super::secrets::Lending;
use crate::node_cache::wishes::ObjectWishes;

/// Not asked for yet.
#[derive(Debug, Clone, Copy)]
pub struct Prepared;

/// Nodes and the cache were asked.
#[derive(Debug, Clone, Copy)]
pub struct Applied;

/// What one object asks for.
#[derive(Debug)]
pub struct Resources<S> {
    /// What nodes shall hold.
    pub wishes: ObjectWishes,
    /// What the cache shall hold.
    pub cache: CacheRequests,
    /// Why the cache is asked to verify everything, if it is.
    pub due: Due,
    /// Has it been asked for?
    pub state: PhantomData<S>,
}

/// What the cache shall fetch and keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRequests {
    /// One job per list of platforms. Posting one again costs nothing.
    pub prefetch: Vec<PrefetchRequest>,
    /// What it shall not evict; without images the source's pins go.
    pub pins: Pins,
    /// What it may log in with.
    pub lending: Lending,
}

/// What the cache shall not evict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    /// In whose name (`/api/v1/pins/<source>`).
    pub source: String,
    /// References as the spec spells them.
    pub images: Vec<String>,
    /// Tags among them that go on meaning what they meant first (`tagPolicy: Freeze`).
    pub frozen: Vec<FrozenTag>,
    /// Until when; [`Pins::LIFETIME`] from now on. Renew it after half of that.
    pub expires: Timestamp,
}

impl Pins {
    /// An operator that is away for a weekend loses nothing.
    pub const LIFETIME: jiff::SignedDuration = jiff::SignedDuration::from_hours(72);
}

impl Resources<Prepared> {
    /// For `apply`, once the cache was asked, and before nodes are told. `cache_took` says that the registry took the
    /// prefetch: a refresh that it did not take is due again; one that was asked for by a person, and is taken now, tries
    /// again on nodes what failed there.
    pub fn applied(self, cache_took: bool, assignment: &Assignment) -> Resources<Applied> {
        let Self {
            mut wishes,
            cache,
            due,
            state: _,
        } = self;
        let due = if cache_took { due } else { Due::No };
        if matches!(due, Due::Asked(_)) {
            refresh::try_again(&mut wishes, assignment);
        }
        Resources {
            wishes,
            cache,
            due,
            state: PhantomData,
        }
    }
}
