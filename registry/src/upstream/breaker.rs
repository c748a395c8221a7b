//! Pure circuit breaker of one endpoint; `now` is an argument.
//!
//! It opens after [`FAILURES`] failures or [`TIMEOUTS`] timeouts without a success between, for [`FIRST_OPEN`],
//! doubling up to [`LONGEST_OPEN`] until a real success. Open, it refuses at once. When the time is over, one probe
//! decides. A single timeout is enough to call the endpoint unresponsive: who holds a stale answer should not wait
//! for it, and a probe in the background finds out when that ends.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that open it.
const FAILURES: u32 = 5;
/// Timeouts in a row that open it: each of them cost somebody seconds.
const TIMEOUTS: u32 = 3;
/// How long it stays open at first.
pub(super) const FIRST_OPEN: Duration = Duration::from_secs(5);
/// How long at most.
const LONGEST_OPEN: Duration = Duration::from_mins(1);
/// A probe has this long; one that did not report within it is lost.
pub(super) const PROBE: Duration = Duration::from_secs(2);

/// What a finished call says about the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It answered, be it with 404.
    Answered,
    /// It failed.
    Failed,
    /// It was silent.
    Silent,
}

/// May a call go on?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Yes.
    Pass,
    /// Not before a probe succeeded, which the asker has to run now.
    Probe,
    /// Not for this long.
    Refuse(Duration),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    failures: u32,
    timeouts: u32,
    /// How often it opened without a real success between.
    openings: u32,
    /// While unresponsive but not open: when a probe may be run (again).
    next_check: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    Probing { lost: Instant },
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            state: State::Closed,
            failures: 0,
            timeouts: 0,
            openings: 0,
            next_check: None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// How long calls are refused still.
    pub(super) fn closed_for(&self, now: Instant) -> Duration {
        match self.state {
            State::Closed => Duration::ZERO,
            State::Open { until } => until.saturating_duration_since(now),
            State::Probing { lost } => lost.saturating_duration_since(now),
        }
    }

    /// No timeout since the last answer.
    pub(super) fn is_responsive(&self) -> bool {
        self.timeouts == 0 && !self.is_open()
    }

    /// Asked before each call.
    pub(super) fn admit(&mut self, now: Instant) -> Verdict {
        match self.state {
            State::Closed => Verdict::Pass,
            State::Open { until } if now < until => Verdict::Refuse(until - now),
            State::Probing { lost } if now < lost => Verdict::Refuse(lost - now),
            State::Open { .. } | State::Probing { .. } => {
                self.state = State::Probing {
                    lost: now + PROBE * 2,
                };
                Verdict::Probe
            }
        }
    }

    /// Should somebody who does not wait run a probe now? At most one at a time, [`FIRST_OPEN`] apart.
    pub(super) fn wants_check(&mut self, now: Instant) -> bool {
        if self.is_responsive() {
            return false;
        }
        if self.is_open() {
            return self.admit(now) == Verdict::Probe;
        }
        let due = self.next_check.is_none_or(|next| next <= now);
        if due {
            self.next_check = Some(now + FIRST_OPEN);
        }
        due
    }

    /// A call ended.
    pub(super) fn record(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Answered => *self = Self::new(),
            Outcome::Failed => self.failures += 1,
            Outcome::Silent => {
                self.failures += 1;
                self.timeouts += 1;
            }
        }
        // A call that began before it opened does not make it stay open longer.
        if self.state == State::Closed && (self.failures >= FAILURES || self.timeouts >= TIMEOUTS) {
            self.open(now);
        }
    }

    /// A probe ended. A healthy one lets calls pass again; only a call's success makes earlier openings forgotten,
    /// since an endpoint may answer probes and nothing else.
    pub(super) fn probed(&mut self, healthy: bool, now: Instant) {
        if healthy {
            *self = Self {
                openings: self.openings,
                ..Self::new()
            };
        } else if self.is_open() {
            self.open(now);
        } else {
            self.record(Outcome::Silent, now);
        }
    }

    fn open(&mut self, now: Instant) {
        let longer = FIRST_OPEN.saturating_mul(1 << self.openings.min(8));
        self.openings += 1;
        self.state = State::Open {
            until: now + longer.min(LONGEST_OPEN),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn after(outcomes: &[Outcome], now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        for outcome in outcomes {
            breaker.record(*outcome, now);
        }
        breaker
    }

    #[rstest::rstest]
    #[case(&[Outcome::Failed; 4], false)]
    #[case(&[Outcome::Failed; 5], true)]
    #[case(&[Outcome::Silent; 2], false)]
    #[case(&[Outcome::Silent; 3], true)]
    #[case(&[Outcome::Failed, Outcome::Failed, Outcome::Failed, Outcome::Silent, Outcome::Silent], true)]
    #[case(&[Outcome::Silent, Outcome::Silent, Outcome::Answered, Outcome::Silent], false)]
    #[case(&[Outcome::Failed, Outcome::Failed, Outcome::Failed, Outcome::Failed, Outcome::Answered, Outcome::Failed], false)]
    fn h11_opens(#[case] outcomes: &[Outcome], #[case] open: bool) {
        assert_eq!(after(outcomes, Instant::now()).is_open(), open);
    }

    #[test]
    fn h11_one_probe_decides_and_the_time_grows() {
        let mut now = Instant::now();
        let mut breaker = after(&[Outcome::Silent; 3], now);
        for expected in [5, 10, 20, 40, 60, 60] {
            assert_eq!(breaker.admit(now), Verdict::Refuse(SECOND * expected));
            now += SECOND * expected;
            assert_eq!(breaker.admit(now), Verdict::Probe);
            assert!(
                matches!(breaker.admit(now), Verdict::Refuse(_)),
                "one probe at a time"
            );
            breaker.probed(false, now);
        }
        now += SECOND * 60;
        assert_eq!(breaker.admit(now), Verdict::Probe);
        breaker.probed(true, now);
        assert_eq!(breaker.admit(now), Verdict::Pass);
        assert!(breaker.is_responsive());
    }

    #[test]
    fn h11_only_a_real_success_forgets() {
        let now = Instant::now();
        let mut breaker = after(&[Outcome::Failed; 5], now);
        let later = now + FIRST_OPEN;
        assert_eq!(breaker.admit(later), Verdict::Probe);
        breaker.probed(true, later);
        for _ in 0..5 {
            breaker.record(Outcome::Failed, later);
        }
        assert_eq!(breaker.admit(later), Verdict::Refuse(SECOND * 10));
        breaker.record(Outcome::Answered, later);
        for _ in 0..5 {
            breaker.record(Outcome::Failed, later);
        }
        assert_eq!(breaker.admit(later), Verdict::Refuse(SECOND * 5));
    }

    #[test]
    fn a_lost_probe_is_run_again() {
        let now = Instant::now();
        let mut breaker = after(&[Outcome::Silent; 3], now);
        assert_eq!(breaker.admit(now + FIRST_OPEN), Verdict::Probe);
        assert_eq!(breaker.admit(now + FIRST_OPEN + PROBE * 2), Verdict::Probe);
    }

    #[test]
    fn h11_one_timeout_makes_it_unresponsive_until_a_check_succeeded() {
        let now = Instant::now();
        let mut breaker = after(&[Outcome::Silent], now);
        assert!(!breaker.is_responsive());
        assert_eq!(
            breaker.admit(now),
            Verdict::Pass,
            "who has nothing stale still asks"
        );
        assert!(breaker.wants_check(now));
        assert!(!breaker.wants_check(now + SECOND * 4), "not twice");
        breaker.probed(false, now + SECOND * 2);
        assert!(breaker.wants_check(now + SECOND * 5));
        breaker.probed(true, now + SECOND * 6);
        assert!(breaker.is_responsive() && !breaker.wants_check(now + SECOND * 60));
    }
}
