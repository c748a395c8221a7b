//! Pure: may the status be written now? With `reportInterval` ≥ nodes / 50 s, all nodes together write at most 50 times
//! per second, whatever happens on them.

use std::time::Duration;

use tokio::time::Instant;

/// News are written at once so often; the next time only when the interval gave a token back.
const BUCKET: u32 = 2;

/// One token per interval, for every write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    tokens: u32,
    refilled: Instant,
    last: Option<Instant>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tokens: BUCKET,
            refilled: now,
            last: None,
        }
    }

    /// Takes a token for a write now, or says how long to wait. News need only the token, the rest also the interval
    /// since the last write.
    pub(super) fn take(
        &mut self,
        news: bool,
        interval: Duration,
        now: Instant,
    ) -> Result<(), Duration> {
        let interval = interval.max(Duration::from_millis(1));
        while self.tokens < BUCKET && now.duration_since(self.refilled) >= interval {
            self.tokens += 1;
            self.refilled += interval;
        }
        if self.tokens == BUCKET {
            self.refilled = now;
        }
        let coalesced = self
            .last
            .filter(|_| !news)
            .map_or(Duration::ZERO, |last| (last + interval).duration_since(now));
        let token = if self.tokens == 0 {
            (self.refilled + interval).duration_since(now)
        } else {
            Duration::ZERO
        };
        let wait = coalesced.max(token);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        self.tokens -= 1;
        self.last = Some(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn l18_two_news_at_once_then_one_per_interval() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::new(start);
        assert_eq!(pace.take(true, INTERVAL, at(0)), Ok(()));
        assert_eq!(pace.take(true, INTERVAL, at(1)), Ok(()));
        assert_eq!(
            pace.take(true, INTERVAL, at(2)),
            Err(Duration::from_secs(8))
        );
        assert_eq!(pace.take(true, INTERVAL, at(10)), Ok(()));
        assert_eq!(
            pace.take(true, INTERVAL, at(11)),
            Err(Duration::from_secs(9))
        );
    }

    #[test]
    fn l18_the_rest_waits_for_the_interval() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::new(start);
        assert_eq!(pace.take(false, INTERVAL, at(0)), Ok(()));
        assert_eq!(
            pace.take(false, INTERVAL, at(3)),
            Err(Duration::from_secs(7))
        );
        assert_eq!(pace.take(true, INTERVAL, at(4)), Ok(()), "news do not wait");
        assert_eq!(
            pace.take(false, INTERVAL, at(10)),
            Err(Duration::from_secs(4))
        );
        assert_eq!(pace.take(false, INTERVAL, at(14)), Ok(()));
    }

    /// Whatever is wished for, in an hour there are no more writes than intervals, but for the first two.
    #[test]
    fn l18_no_mixture_writes_more_often() {
        let start = Instant::now();
        for every in [1, 3, 7] {
            let mut pace = Pace::new(start);
            let writes = (0..3600)
                .filter(|second| {
                    let now = start + Duration::from_secs(*second);
                    pace.take(second % every == 0, INTERVAL, now).is_ok()
                })
                .count();
            assert!((300..=362).contains(&writes), "{writes}");
        }
    }
}
