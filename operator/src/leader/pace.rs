//! How fast the leader writes: at most so many objects a second, and nearly nothing while the API server does not do it.
//!
//! When it fails, one write at a time is tried, less and less often; the first one that is answered opens the way again.
//! So its return meets no storm, neither of what was tried meanwhile nor of what piled up.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::ApiError;

/// When the next write may start.
#[derive(Debug)]
pub(super) struct Pace {
    /// Up to when the writes so far have taken their time.
    taken: Instant,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    failures: u32,
    /// When to try one.
    until: Instant,
    /// One is on its way.
    trying: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            taken: now,
            trouble: None,
        }
    }

    /// When a write may start; nothing while one answer has to come first.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let own = self.taken.checked_sub(BURST).map_or(now, |at| at.max(now));
        match &self.trouble {
            Some(Trouble { trying: true, .. }) => None,
            Some(trouble) => Some(own.max(trouble.until)),
            None => Some(own),
        }
    }

    /// May one start now?
    pub(super) fn is_free(&self, now: Instant) -> bool {
        self.next(now).is_some_and(|at| at <= now)
    }

    /// One starts.
    pub(super) fn start(&mut self, now: Instant) {
        self.taken = self.taken.max(now) + EACH;
        if let Some(trouble) = &mut self.trouble {
            trouble.trying = true;
        }
    }

    /// One ended.
    pub(super) fn ended<T>(&mut self, answer: &Result<T, ApiError>, now: Instant) {
        let away = matches!(answer, Err(ApiError::Unavailable(_) | ApiError::Silent));
        if !away {
            self.trouble = None;
            return;
        }
        // Those that started together fail together: that counts once.
        if let Some(trouble) = self.trouble.as_ref().filter(|it| !it.trying) {
            debug_assert!(trouble.failures > 0);
            return;
        }
        let failures = self.trouble.as_ref().map_or(0, |it| it.failures) + 1;
        let pause = FIRST_PAUSE * 2_u32.pow(failures.min(10) - 1);
        self.trouble = Some(Trouble {
            failures,
            until: now + pause.min(LONGEST_PAUSE),
            trying: false,
        });
    }
}

/// Fifty writes a second: of five thousand nodes each is written within two minutes.
const EACH: Duration = Duration::from_millis(20);
/// After a rest so many may start at once as fit into this time.
const BURST: Duration = Duration::from_secs(1);
/// After the first failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// After many.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn l18_no_more_than_fifty_writes_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut writes = Vec::new();
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            while pace.is_free(now) {
                pace.start(now);
                pace.ended(&Ok(()), now);
                writes.push(now);
            }
        }
        let in_last_second = writes
            .iter()
            .filter(|at| **at >= start + Duration::from_secs(9));
        assert_eq!(in_last_second.count(), 50);
        assert!(writes.len() <= 551, "{}", writes.len());
    }

    #[tokio::test(start_paused = true)]
    async fn l18_one_write_at_a_time_while_the_api_server_is_away() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let failed = || Err::<(), _>(ApiError::Silent);
        for _ in 0..32 {
            pace.start(start);
        }
        for _ in 0..32 {
            pace.ended(&failed(), start);
        }
        let mut pauses = Vec::new();
        let mut now = start;
        for _ in 0..7 {
            let next = pace.next(now).unwrap();
            pauses.push((next - now).as_secs());
            now = next;
            pace.start(now);
            assert_eq!(pace.next(now), None, "it waits for the answer");
            pace.ended(&failed(), now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        now = pace.next(now).unwrap();
        pace.start(now);
        pace.ended(&Ok(()), now);
        assert!(pace.is_free(now));
        // A refusal is an answer.
        pace.start(now);
        pace.ended(&Err::<(), _>(ApiError::NotFound), now);
        assert!(pace.is_free(now));
    }
}
