//! Bandwidth: a line that is busy until some moment. Whoever sends reserves the next piece of it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// One line, shared by all connections or owned by one.
#[derive(Debug, Default)]
pub(super) struct Line {
    busy_until: Mutex<Option<Instant>>,
}

impl Line {
    /// When `bytes` more have passed a line of `rate` bytes per second. A body that goes on may make up for time that
    /// its sender lost waiting for the processor, since a real line would have been busy meanwhile; one that begins
    /// may not.
    pub(super) fn reserve(&self, bytes: u64, rate: u64, goes_on: bool, now: Instant) -> Instant {
        let mut busy_until = self
            .busy_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let earliest = if goes_on {
            now.checked_sub(CATCH_UP).unwrap_or(now)
        } else {
            now
        };
        let start = busy_until.unwrap_or(earliest).max(earliest);
        #[expect(
            clippy::cast_precision_loss,
            reason = "chunks are far below 2^52 bytes"
        )]
        let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let end = start + takes;
        *busy_until = Some(end);
        end
    }
}

/// How much fits into one write at this rate: about two milliseconds of it, so that timers are precise enough and
/// the processor is spent on bytes.
pub(super) fn chunk_size(rate: Option<u64>) -> usize {
    let two_milliseconds = rate.map_or(u64::MAX, |rate| rate / 500);
    usize::try_from(two_milliseconds.clamp(1, LARGEST_CHUNK)).expect("a chunk fits into memory")
}

/// Larger writes cost no less.
const LARGEST_CHUNK: u64 = 256 << 10;

/// Lost time beyond this is lost: then it was the receiver who did not read.
const CATCH_UP: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_carries_its_rate_and_makes_up_for_small_delays_only() {
        let line = Line::default();
        let start = Instant::now();
        let ms = Duration::from_millis;
        assert_eq!(line.reserve(1000, 100_000, false, start), start + ms(10));
        assert_eq!(line.reserve(1000, 100_000, false, start), start + ms(20));
        let late = start + ms(35);
        assert_eq!(line.reserve(1000, 100_000, true, late), start + ms(30));
        let idle = start + ms(1000);
        assert_eq!(line.reserve(1000, 100_000, true, idle), start + ms(990));
        assert_eq!(
            line.reserve(1000, 100_000, false, start + ms(2000)),
            start + ms(2010)
        );
    }
}
