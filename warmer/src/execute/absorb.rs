//! What looks and pulls mean for the record.

use std::time::Duration;

use coral_schema::crd::image_cache::{OnEviction, Retry};
use coral_schema::crd::node_cache::NodeImage;
use coral_schema::crd::{NodeCacheSpec, Reason};
use coral_schema::oci::Digest;
use jiff::Timestamp;

use super::job::{Outcome, PullEnd, is_refusal};
use super::{Executor, Lesson, short};
use crate::chance;
use crate::cri::CriError;
use crate::plan::RATE_LIMIT_PAUSE;
use crate::presence::{Cause, Found};
use crate::record::{Entry, Failure};

impl Executor {
    /// Takes over what a look found. An image that was held and is gone was removed by the node.
    pub(super) fn absorb_look(
        &mut self,
        spec: &NodeCacheSpec,
        found: Found,
        full: bool,
        now: Timestamp,
    ) {
        for image in &spec.images {
            let spelling = &image.reference;
            let Some(facts) = found.get(spelling) else {
                continue;
            };
            if let Some(facts) = facts {
                let entry = self
                    .record
                    .images
                    .entry(spelling.clone())
                    .or_insert_with(|| Entry {
                        revision: image.revision,
                        ..Entry::default()
                    });
                entry.held_since.get_or_insert(now);
                // Whoever brought it: there is nothing left to try.
                let revision = entry.revision;
                entry.failure.take_if(|_| revision >= image.revision);
                // Somebody else's pull moved the name.
                entry.ours.take_if(|ours| *ours != facts.id);
                self.not_before.remove(spelling);
            } else if !self.running.contains_key(spelling) {
                self.gone(image, now);
            }
        }
        if full {
            let wished =
                |spelling: &str| spec.images.iter().any(|image| image.reference == spelling);
            let held = |spelling: &str| found.get(spelling).is_none_or(Option::is_some);
            self.record
                .images
                .retain(|spelling, _| wished(spelling) || held(spelling));
            self.found = found;
        } else {
            self.found.extend(found);
        }
    }

    fn gone(&mut self, image: &NodeImage, now: Timestamp) {
        let spelling = image.reference.as_str();
        let Some(entry) = self.record.images.get_mut(spelling) else {
            return;
        };
        entry.ours = None;
        let Some(since) = entry.held_since.take() else {
            return;
        };
        let cause = Cause::guess(self.fullest, Some(since), entry.evictions.total, now);
        entry.evictions.gone(Some(since), cause, now);
        let left_away =
            image.on_eviction == OnEviction::Ignore || entry.evictions.paused(now).is_some();
        self.metrics.evicted(cause, left_away);
        tracing::info!(
            image = spelling,
            cause = cause.as_str(),
            left_away,
            "the node removed an image"
        );
    }

    pub(super) fn pull_ended(&mut self, end: PullEnd) {
        let PullEnd {
            image,
            took,
            outcome,
            logins,
        } = end;
        let spelling = image.reference.as_str();
        let running = self.running.remove(spelling);
        self.asked.remove(spelling);
        self.refused.remove(spelling);
        let result = match outcome {
            Outcome::Cancelled => {
                // It may have come to its end in the same moment.
                self.found.remove(spelling);
                tracing::info!(
                    image = spelling,
                    "pull ended: nobody wishes for it any more"
                );
                return;
            }
            Outcome::AlreadyThere(facts) => {
                self.held(spelling, image.revision);
                self.found.insert(spelling.to_owned(), Some(facts));
                return;
            }
            Outcome::Held { before, after } => {
                let entry = self.held(spelling, image.revision);
                // What was there before is only ours if we had brought that, too.
                let brought = match &before {
                    None => true,
                    Some(before) => entry.ours.as_ref() == Some(&before.id),
                };
                entry.ours = brought.then(|| after.id.clone());
                let fresh = before.is_none();
                self.found.insert(spelling.to_owned(), Some(after));
                let before = running.and_then(|run| run.alone_since);
                self.lesson = match (image.size_bytes, before) {
                    (Some(compressed), Some(before)) if fresh => Some(Lesson {
                        spelling: spelling.to_owned(),
                        compressed,
                        before,
                    }),
                    _ => None,
                };
                tracing::info!(image = spelling, seconds = took.as_secs_f64(), "pulled");
                "ok"
            }
            Outcome::Failed(error) => {
                self.failed(&image, &error, logins);
                error.reason.as_str()
            }
        };
        self.metrics.pulled(result, image.registry_policy, took);
    }

    fn failed(&mut self, image: &NodeImage, error: &CriError, logins: Option<Digest>) {
        let (spelling, reason) = (image.reference.as_str(), error.reason);
        if self.config.credentials.are_copied() && is_refusal(reason) {
            self.refused.insert(spelling.to_owned(), logins);
        }
        let entry = self.record.images.entry(spelling.to_owned()).or_default();
        entry.fail(&image.retry, image.revision, error, Timestamp::now());
        tracing::warn!(image = spelling, reason = reason.as_str(), %error, "pull failed");
    }

    fn held(&mut self, spelling: &str, revision: u64) -> &mut Entry {
        let entry = self.record.images.entry(spelling.to_owned()).or_default();
        entry.failure = None;
        entry.revision = revision;
        entry.held_since.get_or_insert_with(Timestamp::now);
        entry
    }
}

impl Entry {
    /// One more failed try.
    fn fail(&mut self, retry: &Retry, revision: u64, error: &CriError, now: Timestamp) {
        let earlier = self.failure.as_ref();
        let attempts = earlier
            .filter(|failure| failure.revision == revision)
            .map_or(0, |failure| failure.attempts)
            .saturating_add(1);
        let wait = backoff(retry, attempts, error.reason, chance::any());
        self.failure = Some(Failure {
            attempts,
            revision,
            reason: error.reason,
            message: short(&error.message),
            next: now.checked_add(wait).unwrap_or(now),
        });
    }
}

/// Twice as long after every failure, and a random half of it taken off. `jitter` is any number.
fn backoff(retry: &Retry, attempts: u32, reason: Reason, jitter: u64) -> Duration {
    let doubled = retry
        .initial_backoff
        .0
        .saturating_mul(1 << attempts.saturating_sub(1).min(20));
    let mut wait = doubled.min(retry.max_backoff.0);
    if reason == Reason::RateLimited {
        wait = wait.max(RATE_LIMIT_PAUSE.unsigned_abs() * 2);
    }
    chance::shortened(wait, jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_spread() {
        let retry = Retry::default();
        let wait =
            |attempts, jitter| backoff(&retry, attempts, Reason::NotFound, jitter).as_millis();
        assert_eq!(
            [1, 2, 3, 4].map(|attempts| wait(attempts, 0)),
            [2_500, 5_000, 10_000, 20_000]
        );
        assert_eq!(wait(u32::MAX, 0), 150_000);
        assert!((9_900..10_000).contains(&wait(2, 1023)));
    }

    #[test]
    fn a_registry_that_limits_us_is_left_alone() {
        let retry = Retry::default();
        for attempts in [1, 5, 100] {
            let wait = backoff(&retry, attempts, Reason::RateLimited, 0);
            assert!(wait >= RATE_LIMIT_PAUSE.unsigned_abs());
        }
    }
}
