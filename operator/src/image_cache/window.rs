//! Pure: maintenance windows. Outside of them nothing new is granted; what was granted goes on.

use std::fmt;
use std::time::Duration;

use coral_schema::crd::image_cache;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::validate::Mistakes;

/// When an object's nodes may be told of something new.
#[derive(Clone)]
pub struct Window {
    schedule: Cron,
    zone: TimeZone,
    duration: Duration,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window")
            .field("schedule", &self.schedule.as_str())
            .field("duration", &self.duration)
            .finish_non_exhaustive()
    }
}

impl Window {
    pub(super) fn new(window: &image_cache::Window, mistakes: &mut Mistakes) -> Option<Self> {
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let schedule = parser.parse(&window.schedule).map_err(|error| {
            mistakes.add("spec.rollout.window.schedule", error.to_string());
        });
        let name = window.time_zone.as_deref().unwrap_or("UTC");
        let zone = TimeZone::get(name).map_err(|_| {
            let message = format!("{name:?} is no time zone like Europe/Berlin");
            mistakes.add("spec.rollout.window.timeZone", message);
        });
        Some(Self {
            schedule: schedule.ok()?,
            zone: zone.ok()?,
            duration: window.duration.0,
        })
    }

    /// Is it open? It opened at some time of its schedule, less than its duration ago.
    pub fn is_open(&self, now: Timestamp) -> bool {
        let local = now.to_zoned(self.zone.clone());
        let opened = self.schedule.find_previous_occurrence(&local, true);
        opened.is_ok_and(|opened| {
            let since = now.duration_since(opened.timestamp());
            since.unsigned_abs() < self.duration
        })
    }

    /// When it opens next; nothing for a schedule that names no day there is.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let local = now.to_zoned(self.zone.clone());
        let next = self.schedule.find_next_occurrence(&local, false).ok()?;
        Some(next.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_cache::validate::validate;
    use crate::test_support::{EVERYWHERE, image_cache, object};

    fn window(text: &str) -> Window {
        let spec = format!("{EVERYWHERE}\nrollout: {{window: {text}}}");
        object("a", &spec).window.unwrap()
    }

    #[rstest::rstest]
    #[case("2026-06-01T21:59:59Z", false)]
    #[case("2026-06-01T22:00:00Z", true)]
    #[case("2026-06-02T03:59:59Z", true)]
    #[case("2026-06-02T04:00:00Z", false)]
    fn over_midnight(#[case] now: &str, #[case] open: bool) {
        let nightly = window("{schedule: '0 22 * * *', duration: 6h}");
        assert_eq!(nightly.is_open(now.parse().unwrap()), open);
    }

    /// Two in the morning in Berlin is another time in Greenwich in winter than in summer; on the day when clocks go
    /// forward there is no such time, and the window opens all the same.
    #[rstest::rstest]
    #[case("2026-01-15T01:30:00Z", true)]
    #[case("2026-01-15T00:30:00Z", false)]
    #[case("2026-07-15T00:30:00Z", true)]
    #[case("2026-07-15T01:30:00Z", false)]
    #[case::clocks_go_forward("2026-03-29T01:30:00Z", true)]
    #[case::clocks_go_back("2026-10-25T00:30:00Z", true)]
    fn by_the_clock_of_a_place(#[case] now: &str, #[case] open: bool) {
        let berlin = window("{schedule: '0 2 * * *', timeZone: Europe/Berlin, duration: 1h}");
        assert_eq!(berlin.is_open(now.parse().unwrap()), open, "{now}");
    }

    #[test]
    fn weekends() {
        let weekend = window("{schedule: '0 0 * * SAT', duration: 48h}");
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        assert!(weekend.is_open(at("2026-11-22T23:00:00Z")), "Sunday");
        assert!(!weekend.is_open(at("2026-11-23T00:00:00Z")));
        let next = weekend.next(at("2026-11-23T00:00:00Z"));
        assert_eq!(next, Some(at("2026-11-28T00:00:00Z")));
        let never = window("{schedule: '0 0 30 2 *', duration: 1h}");
        assert!(!never.is_open(at("2026-02-28T00:00:00Z")));
        assert_eq!(never.next(at("2026-02-28T00:00:00Z")), None);
    }

    #[test]
    fn mistakes_name_the_field() {
        let text = format!(
            "{EVERYWHERE}\nrollout: {{window: {{schedule: '0 0 22 * * *', timeZone: Mars/Base, duration: 1h}}}}"
        );
        let mistakes = validate(&image_cache("a", &text)).unwrap_err().0;
        let paths: Vec<&str> = mistakes.iter().map(|it| it.path.as_str()).collect();
        let expected = [
            "spec.rollout.window.schedule",
            "spec.rollout.window.timeZone",
        ];
        assert_eq!(paths, expected);
    }
}
