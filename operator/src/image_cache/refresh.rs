//! Pure: when everything is to be verified again.
//!
//! The registry is asked to fetch the images with `refresh`: it asks the upstreams what each tag means now, and fetches
//! what it lacks. With `tagPolicy: Keep` no revision is raised: nodes look at what they hold in their own rhythm
//! (`lookInterval`) and pull only what is absent; what they hold under another digest than the cache is Drifted.
//!
//! A request by annotation is handled when its value differs from `status.lastHandledRefresh` (L24): nothing is deleted
//! that whoever keeps objects as they stand in a repository would put back.

use std::time::Duration;

use coral_schema::crd::ImageCacheStatus;
use jiff::Timestamp;

use super::validate::ValidatedImageCache;

/// Why everything is to be verified, if it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// It is not.
    No,
    /// The interval passed.
    Interval,
    /// This value of the annotation is new.
    Asked(String),
}

/// Is it time? `default` is the operator's own interval; zero is never.
pub fn due(
    object: &ValidatedImageCache,
    status: Option<&ImageCacheStatus>,
    default: Duration,
    now: Timestamp,
) -> Due {
    let handled = status.and_then(|status| status.last_handled_refresh.as_ref());
    if let Some(request) = &object.refresh_request
        && Some(request) != handled
    {
        return Due::Asked(request.clone());
    }
    match next(object, status, default) {
        Some(next) if next <= now => Due::Interval,
        Some(_) | None => Due::No,
    }
}

/// When the interval passes; nothing when it is off. The first fetch verifies as well, so it counts from the object's
/// making.
pub fn next(
    object: &ValidatedImageCache,
    status: Option<&ImageCacheStatus>,
    default: Duration,
) -> Option<Timestamp> {
    let interval = object.refresh_interval.unwrap_or(default);
    if interval.is_zero() || object.deleted.is_some() {
        return None;
    }
    let last = status
        .and_then(|status| status.last_refresh.as_ref())
        .map_or(object.created, |time| time.0);
    last.checked_add(interval).ok()
}
