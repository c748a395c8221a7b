//! Pure: after an error, ask this source again, another one, or give up?

use std::time::Duration;

use crate::upstream::UpstreamErrorKind;

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(super) struct Retries {
    failures: u32,
    progress: u64,
}

impl Retries {
    /// Bytes arrived.
    pub(super) fn progressed(&mut self, bytes: u64) {
        self.progress += bytes;
        if self.progress >= RESET_AFTER {
            *self = Self::default();
        }
    }

    /// Another failure: how long to wait before the next try, `None` to give up. `jitter` is any number.
    pub(super) fn failed(
        &mut self,
        retry_after: Option<Duration>,
        jitter: u64,
    ) -> Option<Duration> {
        self.failures += 1;
        if self.failures > TRIES {
            return None;
        }
        let pause = FIRST_PAUSE
            .saturating_mul(1 << (self.failures - 1).min(16))
            .min(LONGEST_PAUSE);
        let pause =
            pause.mul_f64(0.5 + f64::from(u32::try_from(jitter % 512).unwrap_or(0)) / 1024.0);
        Some(retry_after.map_or(pause, |wanted| wanted.min(LONGEST_PAUSE).max(pause)))
    }
}

/// Will asking the same source again in this transfer never help?
pub(super) fn is_final(kind: &UpstreamErrorKind) -> bool {
    matches!(
        kind,
        UpstreamErrorKind::NotFound
            | UpstreamErrorKind::Refused { .. }
            | UpstreamErrorKind::TooLarge(_)
            // There is nothing where we go on: the blob is shorter than was said.
            | UpstreamErrorKind::Status(416)
    )
}

/// What the upstream asked us to wait.
pub(super) fn retry_after(kind: &UpstreamErrorKind) -> Option<Duration> {
    match kind {
        UpstreamErrorKind::RateLimited { retry_after } => *retry_after,
        UpstreamErrorKind::BreakerOpen { retry_after }
        | UpstreamErrorKind::QueueFull { retry_after } => Some(*retry_after),
        _ => None,
    }
}

/// First pause after a failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: shorter than the patience of a client that sees no byte (containerd's stall guard: 5 min in all).
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Tries in a row without real progress.
const TRIES: u32 = 8;
/// Progress that makes earlier failures forgotten, bytes: an upstream that cuts every 64 MiB still delivers any blob.
const RESET_AFTER: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_end() {
        let mut retries = Retries::default();
        let pauses: Vec<_> = std::iter::from_fn(|| retries.failed(None, 512)).collect();
        assert_eq!(pauses.len(), 8);
        assert_eq!(pauses[0], Duration::from_millis(50));
        assert!(pauses.is_sorted() && pauses[7] <= LONGEST_PAUSE);
    }

    #[test]
    fn jitter_spreads_between_half_and_all() {
        let pause = |jitter| Retries::default().failed(None, jitter).unwrap();
        assert_eq!(pause(0), Duration::from_millis(50));
        assert!(pause(511) > Duration::from_millis(99) && pause(511) <= Duration::from_millis(100));
    }

    #[test]
    fn progress_makes_failures_forgotten() {
        let mut retries = Retries::default();
        for _ in 0..7 {
            retries.failed(None, 0);
        }
        retries.progressed(RESET_AFTER - 1);
        assert!(
            retries.failed(None, 0).unwrap() > Duration::from_secs(1),
            "not forgotten yet"
        );
        retries.progressed(1);
        assert_eq!(retries.failed(None, 0), Some(Duration::from_millis(50)));
    }

    #[test]
    fn a_wish_to_wait_is_honoured_within_the_bound() {
        let wait = |secs| {
            Retries::default()
                .failed(Some(Duration::from_secs(secs)), 0)
                .unwrap()
        };
        assert_eq!(wait(3), Duration::from_secs(3));
        assert_eq!(wait(3600), LONGEST_PAUSE);
    }
}
