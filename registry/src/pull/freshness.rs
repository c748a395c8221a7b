//! Pure: may this tag be answered without asking, must it be checked, is it still good enough when nobody can say?

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use coral_schema::oci::Tag;
use jiff::Timestamp;

use crate::index::TagRow;
use crate::name::RepoKey;
use crate::upstream::Policy;

/// What to do for a tag that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Answer from what is held.
    Fresh,
    /// Ask the upstream first.
    Check,
}

/// Is `row` fresh at `now`? An age that makes no sense (the clock went back) means: check once.
pub fn freshness(
    repo: &RepoKey,
    tag: &Tag,
    row: &TagRow,
    policy: &Policy,
    now: Timestamp,
) -> Freshness {
    let window = jittered(window(repo, tag, policy), repo, tag);
    match age(row.checked, now) {
        Some(age) if age < window => Freshness::Fresh,
        _ => Freshness::Check,
    }
}

/// May `row` be answered although it could not be checked? An age that makes no sense is no evidence against it.
pub fn may_serve_stale(row: &TagRow, policy: &Policy, now: Timestamp) -> bool {
    age(row.checked, now).is_none_or(|age| age <= policy.stale_if_error)
}

/// How long ago; `None` when that lies in the future, or is not known: a rebuilt index knows no time of a check and
/// puts the epoch there.
pub fn age(since: Timestamp, now: Timestamp) -> Option<Duration> {
    if since == Timestamp::UNIX_EPOCH {
        return None;
    }
    Duration::try_from(now.duration_since(since)).ok()
}

/// The first rule that matches `repository:tag`.
fn window(repo: &RepoKey, tag: &Tag, policy: &Policy) -> Duration {
    let name = format!("{}:{tag}", repo.repository());
    policy
        .tags
        .iter()
        .find(|rule| rule.pattern.matches(&name))
        .map_or(Duration::ZERO, |rule| rule.freshness)
}

/// ±10 %, always the same for a tag, so that tags stored together do not expire together (H-13).
fn jittered(window: Duration, repo: &RepoKey, tag: &Tag) -> Duration {
    let mut hasher = DefaultHasher::new();
    (repo, tag).hash(&mut hasher);
    let permille = u32::try_from(hasher.finish() % 201).unwrap_or(100);
    window.mul_f64(f64::from(900 + permille) / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{Glob, OnMissing, TagRule, VisibilityMode};
    use coral_schema::oci::Digest;

    fn policy() -> Policy {
        let rule = |pattern, secs| TagRule {
            pattern: Glob::new(pattern, false).unwrap(),
            freshness: Duration::from_secs(secs),
        };
        Policy {
            allow: Vec::new(),
            deny: Vec::new(),
            tags: vec![rule("*:v?*", 3600), rule("*", 300)],
            stale_if_error: Duration::from_hours(720),
            on_missing: OnMissing::Serve,
            revoke_grace: Duration::from_hours(1),
            visibility: VisibilityMode::Auto,
        }
    }

    fn row(checked: Timestamp) -> TagRow {
        TagRow {
            digest: Digest::sha256(b""),
            previous: None,
            etag: None,
            updated: checked,
            checked,
            missing_since: None,
            origin: "https://registry.example".into(),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[rstest::rstest]
    #[case("latest", 0, Freshness::Fresh)]
    #[case("latest", 269, Freshness::Fresh)]
    #[case("latest", 331, Freshness::Check)]
    #[case("v1.2", 331, Freshness::Fresh)]
    #[case("v1.2", 3961, Freshness::Check)]
    #[case::clock_went_back("latest", -10, Freshness::Check)]
    fn the_first_rule_decides(#[case] tag: &str, #[case] age: i64, #[case] expected: Freshness) {
        let repo = "docker.io/library/nginx".parse().unwrap();
        assert_eq!(
            freshness(
                &repo,
                &tag.parse().unwrap(),
                &row(at(0)),
                &policy(),
                at(age)
            ),
            expected
        );
    }

    /// H-13: tags that were stored together do not expire together.
    #[test]
    fn h13_windows_differ_by_up_to_a_tenth() {
        let repo = "docker.io/library/nginx".parse().unwrap();
        let windows: std::collections::BTreeSet<_> = (0..50)
            .map(|tag| {
                jittered(
                    Duration::from_secs(1000),
                    &repo,
                    &format!("t{tag}").parse().unwrap(),
                )
            })
            .collect();
        assert!(windows.len() > 30);
        assert!(
            windows
                .iter()
                .all(|window| (900..=1100).contains(&window.as_secs()))
        );
    }

    /// H-30: a clock that jumped back never makes a stale tag unservable; one that jumped ahead makes it checked.
    #[test]
    fn h30_clock_jumps() {
        let policy = policy();
        let day = 24 * 3600;
        assert!(may_serve_stale(&row(at(0)), &policy, at(-day)));
        let rebuilt = row(Timestamp::UNIX_EPOCH);
        assert!(may_serve_stale(&rebuilt, &policy, at(day)), "H-31");
        assert!(may_serve_stale(&row(at(0)), &policy, at(day)));
        assert!(!may_serve_stale(&row(at(0)), &policy, at(31 * day)));
    }

    /// H-31: a tag whose age was lost with the index is checked once, and served if nobody can say.
    #[test]
    fn h31_a_lost_age_is_no_evidence() {
        let lost = row(Timestamp::UNIX_EPOCH);
        let repo = "docker.io/library/nginx".parse().unwrap();
        assert_eq!(
            freshness(&repo, &Tag::latest(), &lost, &policy(), at(0)),
            Freshness::Check
        );
        assert!(may_serve_stale(&lost, &policy(), at(0)));
    }
}
