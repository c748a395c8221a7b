//! What the runtime holds under the spellings that matter, and what the node made of what it held.
//!
//! Only the runtime is believed, one spelling at a time: `node.status.images` ends after 50 entries, and another
//! spelling of an image does not make a pod start.

use std::collections::BTreeMap;
use std::time::Duration;

use coral_schema::oci::ImageReference;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::cri::{CriError, ImageFacts, Runtime};
use crate::disk::Space;

/// So many removals within [`WINDOW`] are a war that we do not fight.
const MOST_EVICTIONS: usize = 3;
const WINDOW: SignedDuration = SignedDuration::from_hours(1);
const FIRST_PAUSE: SignedDuration = SignedDuration::from_mins(10);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(24);
/// An image that stayed so long is at peace with the node.
const PEACE: SignedDuration = SignedDuration::from_hours(24);
/// The kubelet looks every five minutes: what is gone after at most two of these was gone by age, however young.
const TWO_COLLECTIONS: SignedDuration = SignedDuration::from_mins(10);
/// The low mark that the kubelet's collection frees down to: right after one, the disk is about this full.
const COLLECTED_DOWN_TO: u8 = 75;

/// What was found under each spelling that was looked for.
pub type Found = BTreeMap<String, Option<ImageFacts>>;

/// Asks for each spelling. The first failure ends the look: a runtime that does not answer says nothing about images.
pub async fn look(runtime: &dyn Runtime, spellings: &[String]) -> Result<Found, CriError> {
    let mut found = Found::new();
    for spelling in spellings {
        found.insert(spelling.clone(), look_at(runtime, spelling).await?);
    }
    Ok(found)
}

/// Asks for one spelling.
pub async fn look_at(
    runtime: &dyn Runtime,
    spelling: &str,
) -> Result<Option<ImageFacts>, CriError> {
    let image = runtime.image(spelling).await?;
    Ok(image.filter(|image| is_meant(spelling, image)))
}

/// Runtimes also resolve the beginning of an identifier: an image `cafe` must not be found because another one's
/// identifier starts with these letters.
fn is_meant(spelling: &str, image: &ImageFacts) -> bool {
    let identifier = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    !identifier.starts_with(spelling) || name_of(spelling, image).is_some()
}

/// The name among the image's that the spelling means.
fn name_of<'a>(spelling: &str, image: &'a ImageFacts) -> Option<&'a str> {
    let wanted: ImageReference = spelling.parse().ok()?;
    image
        .tags
        .iter()
        .chain(&image.digests)
        .map(String::as_str)
        .find(|name| {
            name.parse::<ImageReference>()
                .is_ok_and(|name| same_name(&wanted, &name))
        })
}

/// Do two references mean the same content of one repository? With a digest the tag says nothing: runtimes drop it.
pub fn same_name(one: &ImageReference, other: &ImageReference) -> bool {
    one.host == other.host
        && one.repository == other.repository
        && one.manifest_ref() == other.manifest_ref()
}

/// The digest that the image has in the spelling's repository, else in any.
pub fn digest_of(spelling: &str, image: &ImageFacts) -> Option<String> {
    let wanted: Option<ImageReference> = spelling.parse().ok();
    let named: Vec<ImageReference> = image
        .digests
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    let same_repository = |name: &&ImageReference| {
        wanted
            .as_ref()
            .is_some_and(|wanted| wanted.host == name.host && wanted.repository == name.repository)
    };
    named
        .iter()
        .find(same_repository)
        .or(named.first())
        .and_then(|name| name.digest)
        .map(|digest| digest.to_string())
}

/// Time to the next look: within a fifth of the interval, so that nodes drift apart. `jitter` is any number.
pub fn next_look(interval: Duration, jitter: u64) -> Duration {
    let share = f64::from(u32::try_from(jitter % 401).unwrap_or(0)) / 1000.0;
    interval.mul_f64(0.8 + share)
}

/// Who removed an image, most likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// The kubelet, to free disk.
    DiskGC,
    /// The kubelet, by `imageMaximumGCAge`: an image that never ran has no age that would save it.
    AgeGC,
    /// Somebody by hand, or another cleaner.
    ExternalDelete,
}

impl Cause {
    /// As it stands in messages and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DiskGC => "DiskGC",
            Self::AgeGC => "AgeGC",
            Self::ExternalDelete => "ExternalDelete",
        }
    }

    /// The same for a person.
    pub fn means(self) -> &'static str {
        match self {
            Self::DiskGC => "the kubelet freed disk",
            Self::AgeGC => "the kubelet's imageMaximumGCAge",
            Self::ExternalDelete => "a person or another cleaner",
        }
    }

    /// A guess from what is known: how full the disk was at most since the last look, how long the image stayed, and
    /// whether that is a habit.
    pub fn guess(
        fullest: Option<Space>,
        held_since: Option<Timestamp>,
        earlier: u32,
        now: Timestamp,
    ) -> Self {
        let short = held_since.is_some_and(|since| now.duration_since(since) <= TWO_COLLECTIONS);
        match fullest {
            Some(space) if space.used_percent() >= COLLECTED_DOWN_TO => Self::DiskGC,
            _ if short && earlier > 0 => Self::AgeGC,
            _ => Self::ExternalDelete,
        }
    }
}

/// How the node removed one image, and how long we leave it at that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evictions {
    /// Ever.
    pub total: u32,
    /// The last ones, oldest first.
    recent: Vec<Timestamp>,
    /// Pauses in a row; each is twice as long as the one before.
    pauses: u32,
    /// Not pulled before.
    pub until: Option<Timestamp>,
    /// Who did it, most likely.
    pub cause: Option<Cause>,
}

impl Evictions {
    /// It was held since `held_since` and is gone.
    pub fn gone(&mut self, held_since: Option<Timestamp>, cause: Cause, now: Timestamp) {
        if held_since.is_some_and(|since| now.duration_since(since) >= PEACE) {
            self.pauses = 0;
            self.recent.clear();
        }
        self.total = self.total.saturating_add(1);
        self.cause = Some(cause);
        self.recent.push(now);
        if self.recent.len() > MOST_EVICTIONS {
            self.recent.remove(0);
        }
        let often =
            self.recent.len() == MOST_EVICTIONS && now.duration_since(self.recent[0]) <= WINDOW;
        if often || self.pauses > 0 {
            let doubled = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(16));
            self.pauses = self.pauses.saturating_add(1);
            self.until = now.checked_add(doubled.min(LONGEST_PAUSE)).ok();
        }
    }

    /// Is it left alone now, and until when? Bounded, so that a clock that was wrong cannot keep an image away for ever.
    pub fn paused(&self, now: Timestamp) -> Option<Timestamp> {
        let until = self.until?;
        (now < until && until.duration_since(now) <= LONGEST_PAUSE).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
    }

    #[test]
    fn l02_three_evictions_in_an_hour_end_the_war() {
        let mut evictions = Evictions::default();
        for minute in [0, 61, 100] {
            evictions.gone(None, Cause::DiskGC, minutes(minute));
            assert_eq!(
                evictions.paused(minutes(minute)),
                None,
                "not yet three in an hour"
            );
        }
        evictions.gone(None, Cause::DiskGC, minutes(119));
        assert_eq!(evictions.paused(minutes(119)), Some(minutes(129)));
        assert_eq!(evictions.paused(minutes(129)), None);
        assert_eq!(evictions.total, 4);
    }

    #[test]
    fn l02_each_pause_is_twice_the_last_up_to_a_day() {
        let mut evictions = Evictions::default();
        for _ in 0..3 {
            evictions.gone(None, Cause::AgeGC, minutes(0));
        }
        let mut now = minutes(0);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let until = evictions.paused(now).unwrap();
            pauses.push(until.duration_since(now).as_mins());
            now = until;
            evictions.gone(Some(until), Cause::AgeGC, now);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440]);
        let later = now + SignedDuration::from_hours(60);
        evictions.gone(Some(now), Cause::DiskGC, later);
        assert_eq!(
            evictions.paused(later),
            None,
            "it had stayed for more than a day"
        );
    }

    #[test]
    fn a_clock_that_was_wrong_does_not_keep_an_image_away() {
        let mut evictions = Evictions::default();
        for _ in 0..3 {
            evictions.gone(None, Cause::AgeGC, minutes(10_000));
        }
        assert_eq!(evictions.paused(minutes(0)), None);
    }

    #[rstest::rstest]
    #[case::full(90, 30, 0, Cause::DiskGC)]
    #[case::gone_at_once_again(20, 3, 1, Cause::AgeGC)]
    #[case::gone_once(20, 3, 0, Cause::ExternalDelete)]
    #[case::gone_after_long(20, 600, 5, Cause::ExternalDelete)]
    fn l01_the_likely_cause_is_named(
        #[case] used: u64,
        #[case] held_minutes: i64,
        #[case] earlier: u32,
        #[case] cause: Cause,
    ) {
        let space = Some(Space {
            capacity: 100,
            used,
        });
        let now = minutes(1_000);
        let since = Some(minutes(1_000 - held_minutes));
        assert_eq!(Cause::guess(space, since, earlier, now), cause);
    }

    /// Another cleaner that comes once a day is named, and no reason to give up.
    #[test]
    fn l10_who_removes_an_image_every_day_is_named_and_outlasted() {
        let space = Some(Space {
            capacity: 100,
            used: 20,
        });
        let mut evictions = Evictions::default();
        for day in 1..10 {
            let (since, now) = (minutes(1440 * (day - 1)), minutes(1440 * day));
            let cause = Cause::guess(space, Some(since), evictions.total, now);
            assert_eq!(cause, Cause::ExternalDelete);
            evictions.gone(Some(since), cause, now);
            assert_eq!(evictions.paused(now), None);
        }
    }

    fn image(tags: &[&str], digests: &[&str]) -> ImageFacts {
        ImageFacts {
            id: "sha256:cafe00".to_owned(),
            tags: tags.iter().map(ToString::to_string).collect(),
            digests: digests.iter().map(ToString::to_string).collect(),
            size_bytes: 1,
        }
    }

    #[rstest::rstest]
    #[case::the_start_of_an_identifier("cafe", &["r.test/other:1"], false)]
    #[case::a_name_that_looks_like_one("cafe", &["docker.io/library/cafe:latest"], true)]
    #[case::a_short_name("nginx:1.27", &["docker.io/library/nginx:1.27"], true)]
    #[case::a_short_name_that_the_runtime_resolved("nginx:1.27", &["quay.test/nginx:1.27"], true)]
    fn l12_a_spelling_is_not_an_identifier(
        #[case] spelling: &str,
        #[case] tags: &[&str],
        #[case] meant: bool,
    ) {
        assert_eq!(is_meant(spelling, &image(tags, &[])), meant);
    }

    #[test]
    fn l12_digests_are_compared_within_the_repository() {
        let one = format!("sha256:{}", "1".repeat(64));
        let two = format!("sha256:{}", "2".repeat(64));
        let names = [
            format!("r.test/b@{two}"),
            format!("docker.io/library/nginx@{one}"),
        ];
        let facts = image(&[], &[&names[0], &names[1]]);
        assert_eq!(digest_of("nginx:1", &facts), Some(one));
        assert_eq!(digest_of("r.test/c:1", &facts), Some(two));
        assert_eq!(digest_of("r.test/c:1", &image(&[], &[])), None);
    }

    #[test]
    fn l05_looks_of_nodes_drift_apart() {
        let interval = Duration::from_mins(3);
        assert_eq!(next_look(interval, 0), Duration::from_secs(144));
        assert_eq!(next_look(interval, 400), Duration::from_secs(216));
        assert!(next_look(interval, u64::MAX) <= Duration::from_secs(216));
    }
}
