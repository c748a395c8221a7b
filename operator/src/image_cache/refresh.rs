//! Pure: when everything is to be verified again.
//!
//! The registry is asked to fetch the images with `refresh`: it asks the upstreams what each tag means now, and fetches
//! what it lacks. With `tagPolicy: Keep` no revision is raised: nodes look at what they hold in their own rhythm
//! (`lookInterval`) and pull only what is absent; what they hold under another digest than the cache is Drifted. With
//! `Follow` the newer content is granted anew, in waves. With `Freeze` the registry only says what the tag means upstream.
//!
//! Whoever asks by annotation wants another try as well: images whose pulls failed on nodes, that the nodes keep removing,
//! or that are something else than what is followed, get a raised revision there, which starts the count of `retry.limit`
//! anew and ends a pause.
//!
//! A request by annotation is handled when its value differs from `status.lastHandledRefresh` (L24): nothing is deleted
//! that whoever keeps objects as they stand in a repository would put back.

use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::ImageCacheStatus;
use coral_schema::crd::image_cache::TagPolicy;
use coral_schema::crd::node_cache::ImageState;
use jiff::Timestamp;

use super::assign::{Assignment, Progress};
use super::validate::ValidatedImageCache;
use crate::node_cache::wishes::ObjectWishes;

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

/// Raises the revision of every image whose pull failed on a node, that the node removed, or that is not what is followed,
/// as its warmer last reported. For the one round in which a request counts as handled.
pub fn try_again(wishes: &mut ObjectWishes, assignment: &Assignment) {
    let follows = wishes.tag_policy == TagPolicy::Follow;
    for plan in &assignment.nodes {
        let Some(told) = wishes.nodes.get_mut(&plan.node.name) else {
            continue;
        };
        for wish in Arc::make_mut(told) {
            let image = &wishes.images[wish.image];
            let Some(report) = plan.node.reported(&image.reference) else {
                continue;
            };
            let mut pairs = plan.pairs.iter().filter(|pair| pair.image == wish.image);
            // It gets its turn.
            let outdated = pairs.any(|pair| matches!(pair.progress, Progress::Outdated(_)));
            let another =
                report.digest.is_some() && report.digest.as_deref() != image.digest.as_deref();
            let again = match report.state {
                ImageState::Failed | ImageState::Evicted => true,
                ImageState::Ready => follows && another && !outdated,
                _ => false,
            };
            if again {
                wish.revision += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::test_support::{EVERYWHERE, object};

    const HOUR: Duration = Duration::from_hours(1);

    #[rstest::rstest]
    #[case("", 59, Due::No)]
    #[case("", 60, Due::Interval)]
    #[case("refresh: {interval: 2h}", 60, Due::No)]
    #[case("refresh: {interval: 2h}", 120, Due::Interval)]
    #[case("refresh: {interval: 0s}", 10_000, Due::No)]
    fn by_interval(#[case] spec: &str, #[case] minutes: i64, #[case] expected: Due) {
        let object = object("a", &format!("{EVERYWHERE}\n{spec}"));
        let after = |time: Timestamp| time + jiff::SignedDuration::from_mins(minutes);
        assert_eq!(due(&object, None, HOUR, after(object.created)), expected);
        let last = object.created + jiff::SignedDuration::from_hours(1000);
        let status = ImageCacheStatus {
            last_refresh: Some(Time(last)),
            ..ImageCacheStatus::default()
        };
        assert_eq!(due(&object, Some(&status), HOUR, after(last)), expected);
    }

    #[test]
    fn off_for_all() {
        let object = object("a", EVERYWHERE);
        assert_eq!(next(&object, None, Duration::ZERO), None);
    }
}
