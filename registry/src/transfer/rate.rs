//! Pure: how fast something arrives, and when it will be there.

use std::time::Duration;

use tokio::time::Instant;

/// A rate over the last seconds, from looks at a growing number of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Of the last look that counted.
    at: Instant,
    bytes: u64,
    per_second: Option<u64>,
}

impl Rate {
    /// No rate yet; `bytes` are there at `now`.
    pub fn new(bytes: u64, now: Instant) -> Self {
        Self {
            at: now,
            bytes,
            per_second: None,
        }
    }

    /// `bytes` are there at `now`. Looks that follow each other closely count as one.
    pub fn observe(&mut self, bytes: u64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        if elapsed < LOOK {
            return;
        }
        let grown = u128::from(bytes.saturating_sub(self.bytes)) * 1000;
        let sample = u64::try_from(grown / elapsed.as_millis()).unwrap_or(u64::MAX);
        self.per_second = Some(match self.per_second {
            // A quarter per look: smooth over a few seconds, and down to nothing soon after a stall.
            Some(rate) => rate - rate / 4 + sample / 4,
            None => sample,
        });
        self.at = now;
        self.bytes = bytes;
    }

    /// Bytes per second; 0 while it is not known.
    pub fn per_second(&self) -> u64 {
        self.per_second.unwrap_or(0)
    }

    /// Until `left` more bytes are there; `None` when they do not come.
    pub fn seconds_left(&self, left: u64) -> Option<u64> {
        let rate = self.per_second.filter(|rate| *rate > 0)?;
        Some(left.div_ceil(rate))
    }
}

/// Shortest time between two looks that count.
const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_what_arrives() {
        let start = Instant::now();
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut rate = Rate::new(500, start);
        rate.observe(5_000_000, after(0.5));
        assert_eq!((rate.per_second(), rate.seconds_left(1)), (0, None));
        rate.observe(2500, after(2.0));
        assert_eq!(rate.per_second(), 1000);
        assert_eq!(rate.seconds_left(2500), Some(3));
        rate.observe(6500, after(3.0));
        assert_eq!(rate.per_second(), 1750);
        for second in 4..40 {
            rate.observe(6500, after(f64::from(second)));
        }
        assert!(rate.per_second() < 10, "a stall shows");
        rate.observe(0, after(41.0));
        assert!(rate.per_second() < 10, "going back is no progress");
    }
}
