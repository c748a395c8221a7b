//! What stands before each call to an endpoint, and what is learned from each: breaker, budgets, places, last error.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::breaker::{Breaker, Outcome, Verdict};
use super::limit::{Bucket, Budget, Full, Slot, Slots, lock};
use super::metrics::{Kind, Meter};
use super::retry;
use super::{Limits, Priority, UpstreamErrorKind};

/// When to try again if our own queue is full: a few downloads may have ended by then.
const QUEUE_RETRY: Duration = Duration::from_secs(2);
/// When background work may look again whether the upstream's budget allows it.
const BUDGET_RETRY: Duration = Duration::from_mins(1);
/// Clients are refused for at most this long after a 429: then one of them finds out.
const CLIENT_WAIT: Duration = Duration::from_mins(1);
/// A call that is dropped after so long a silence counts as a timeout: its caller lost patience, or another endpoint
/// was faster.
const SILENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    /// For the log.
    endpoint: Arc<str>,
    breaker: Mutex<Breaker>,
    pub(super) slots: Slots,
    requests: Option<Mutex<Bucket>>,
    pub(super) bandwidth: Option<Arc<Mutex<Bucket>>>,
    budget: Mutex<Option<Budget>>,
    /// Until when a 429 asked us not to repeat that kind of request. Kinds have budgets of their own: on Docker Hub
    /// a manifest GET counts, HEADs and blobs do not.
    refused_until: Mutex<HashMap<Kind, Instant>>,
    last_error: Mutex<Option<String>>,
    reserve: u8,
    meter: Meter,
}

impl Gate {
    pub(super) fn new(endpoint: Arc<str>, limits: &Limits, meter: Meter) -> Self {
        let now = Instant::now();
        Self {
            endpoint,
            breaker: Mutex::new(Breaker::new()),
            slots: Slots::new(limits.concurrent_transfers),
            requests: limits
                .requests_per_minute
                .map(|rate| Mutex::new(Bucket::requests(rate, now))),
            bandwidth: limits
                .bandwidth
                .map(|rate| Arc::new(Mutex::new(Bucket::bytes(rate, now)))),
            budget: Mutex::new(None),
            refused_until: Mutex::new(HashMap::new()),
            last_error: Mutex::new(None),
            reserve: limits.reserve,
            meter,
        }
    }

    /// May a call go on, as far as the breaker is concerned?
    pub(super) fn admit(&self) -> Verdict {
        self.change(|breaker| breaker.admit(Instant::now()))
    }

    /// Should a probe be run in the background?
    pub(super) fn wants_check(&self) -> bool {
        self.change(|breaker| breaker.wants_check(Instant::now()))
    }

    /// A probe ended.
    pub(super) fn probed(&self, healthy: bool) {
        self.change(|breaker| breaker.probed(healthy, Instant::now()));
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.breaker).is_open()
    }

    /// How long it is left alone still.
    pub(super) fn closed_for(&self) -> Duration {
        lock(&self.breaker).closed_for(Instant::now())
    }

    pub(super) fn is_responsive(&self) -> bool {
        lock(&self.breaker).is_responsive()
    }

    pub(super) fn remaining(&self) -> Option<u64> {
        lock(&self.budget).map(|budget| budget.remaining)
    }

    pub(super) fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }

    /// The upstream spoke of its budget.
    pub(super) fn learn(&self, budget: Budget) {
        self.meter.remaining(budget.remaining);
        *lock(&self.budget) = Some(budget);
    }

    /// Waits for a place for a download, at most until `deadline`.
    pub(super) async fn place(
        &self,
        priority: &watch::Receiver<Priority>,
        deadline: Instant,
    ) -> Result<Slot, UpstreamErrorKind> {
        let first = *priority.borrow();
        self.upstreams_budget(Kind::Blob, first)?;
        match timeout_at(deadline, self.slots.acquire(priority.clone())).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(Full)) | Err(_) => Err(UpstreamErrorKind::QueueFull {
                retry_after: QUEUE_RETRY,
            }),
        }
    }

    /// Waits for our turn, at most until `deadline`.
    pub(super) async fn turn(
        &self,
        kind: Kind,
        priority: Priority,
        deadline: Instant,
    ) -> Result<(), UpstreamErrorKind> {
        self.upstreams_budget(kind, priority)?;
        if let Some(requests) = &self.requests {
            let now = Instant::now();
            let patience = match priority {
                Priority::Interactive => deadline.saturating_duration_since(now),
                Priority::Background => Duration::ZERO,
            };
            let wait = lock(requests).take(1, patience, now);
            let wait = wait.map_err(|retry_after| UpstreamErrorKind::QueueFull { retry_after })?;
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    fn upstreams_budget(&self, kind: Kind, priority: Priority) -> Result<(), UpstreamErrorKind> {
        let now = Instant::now();
        let refused = lock(&self.refused_until)
            .get(&kind)
            .map(|until| until.saturating_duration_since(now));
        if let Some(wait) = refused.filter(|wait| !wait.is_zero()) {
            return Err(UpstreamErrorKind::RateLimited {
                retry_after: Some(wait),
            });
        }
        let allowed =
            lock(&self.budget).is_none_or(|budget| budget.allows_background(self.reserve, now));
        if priority == Priority::Background && !allowed {
            return Err(UpstreamErrorKind::QueueFull {
                retry_after: BUDGET_RETRY,
            });
        }
        Ok(())
    }

    /// A call ended.
    pub(super) fn record(&self, kind: Kind, error: Option<&UpstreamErrorKind>) {
        if let Some(outcome) = retry::outcome(error) {
            self.change(|breaker| breaker.record(outcome, Instant::now()));
        }
        match error {
            Some(UpstreamErrorKind::RateLimited {
                retry_after: Some(wait),
            }) => {
                lock(&self.refused_until).insert(kind, Instant::now() + (*wait).min(CLIENT_WAIT));
            }
            Some(UpstreamErrorKind::NotFound) | None => return,
            Some(_) => {}
        }
        *lock(&self.last_error) = error.map(ToString::to_string);
    }

    /// Changes the breaker, and tells the log and the metric when it opens or closes.
    fn change<T>(&self, change: impl FnOnce(&mut Breaker) -> T) -> T {
        let (result, before, after) = {
            let mut breaker = lock(&self.breaker);
            let before = breaker.is_open();
            let result = change(&mut breaker);
            (result, before, breaker.is_open())
        };
        if before != after {
            self.meter.breaker(after);
            let endpoint = &self.endpoint;
            if after {
                tracing::warn!(%endpoint, "the upstream failed too often and is left alone for a while");
            } else {
                tracing::info!(%endpoint, "the upstream answers again");
            }
        }
        result
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.is_open() {
            self.meter.breaker(false);
        }
    }
}

/// Watches a call, so that one that is dropped in a long silence counts, too.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    gate: &'a Gate,
    kind: Kind,
    silent_since: Mutex<Instant>,
    ended: bool,
}

impl<'a> Watch<'a> {
    pub(super) fn new(gate: &'a Gate, kind: Kind) -> Self {
        Self {
            gate,
            kind,
            silent_since: Mutex::new(Instant::now()),
            ended: false,
        }
    }

    /// An answer came.
    pub(super) fn heard(&self) {
        *lock(&self.silent_since) = Instant::now();
    }

    /// The call ended.
    pub(super) fn end(mut self, error: Option<&UpstreamErrorKind>) {
        self.ended = true;
        self.gate.record(self.kind, error);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let silence = lock(&self.silent_since).elapsed();
        if !self.ended && silence >= SILENCE {
            self.gate
                .change(|breaker| breaker.record(Outcome::Silent, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::UpstreamMetrics;
    use prometheus_client::registry::Registry;

    fn gate(limits: Limits) -> Gate {
        let metrics = UpstreamMetrics::register(&mut Registry::default());
        Gate::new(
            "test".into(),
            &limits,
            Meter::new(&metrics, &"registry.example".parse().unwrap()),
        )
    }

    const LIMITS: Limits = Limits {
        concurrent_transfers: 1,
        requests_per_minute: None,
        bandwidth: None,
        reserve: 20,
    };

    async fn turn(gate: &Gate, kind: Kind, priority: Priority) -> Result<(), UpstreamErrorKind> {
        gate.turn(kind, priority, Instant::now() + Duration::from_secs(10))
            .await
    }

    async fn place(gate: &Gate) -> Result<Slot, UpstreamErrorKind> {
        let client = watch::channel(Priority::Interactive).1;
        gate.place(&client, Instant::now() + Duration::from_secs(10))
            .await
    }

    #[tokio::test(start_paused = true)]
    async fn h13_background_stops_before_the_upstreams_budget_is_used_up() {
        let gate = gate(LIMITS);
        let until = Instant::now() + Duration::from_hours(6);
        gate.learn(Budget {
            limit: Some(100),
            remaining: 20,
            until,
        });
        assert!(matches!(
            turn(&gate, Kind::HeadManifest, Priority::Background).await,
            Err(UpstreamErrorKind::QueueFull { .. })
        ));
        assert!(
            turn(&gate, Kind::HeadManifest, Priority::Interactive)
                .await
                .is_ok()
        );
        assert_eq!(gate.remaining(), Some(20));
        tokio::time::advance(Duration::from_hours(6)).await;
        assert!(
            turn(&gate, Kind::HeadManifest, Priority::Background)
                .await
                .is_ok()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn h13_retry_after_is_honoured_per_kind() {
        let gate = gate(LIMITS);
        let wait = Duration::from_secs(30);
        gate.record(
            Kind::Manifest,
            Some(&UpstreamErrorKind::RateLimited {
                retry_after: Some(wait),
            }),
        );
        let refused = turn(&gate, Kind::Manifest, Priority::Interactive)
            .await
            .unwrap_err();
        assert_eq!(
            refused,
            UpstreamErrorKind::RateLimited {
                retry_after: Some(wait)
            }
        );
        assert!(
            turn(&gate, Kind::HeadManifest, Priority::Interactive)
                .await
                .is_ok()
        );
        tokio::time::advance(wait).await;
        assert!(
            turn(&gate, Kind::Manifest, Priority::Interactive)
                .await
                .is_ok()
        );
        assert!(gate.is_responsive(), "an answer, not a failure");
    }

    #[tokio::test(start_paused = true)]
    async fn h34_a_place_is_waited_for_until_the_deadline() {
        let gate = gate(LIMITS);
        let held = place(&gate).await.unwrap();
        let full = place(&gate).await.unwrap_err();
        assert!(matches!(full, UpstreamErrorKind::QueueFull { .. }));
        drop(held);
        place(&gate).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn requests_per_minute_are_kept() {
        let gate = gate(Limits {
            requests_per_minute: Some(6),
            ..LIMITS
        });
        let start = Instant::now();
        for expected in [0, 10] {
            turn(&gate, Kind::Tags, Priority::Interactive)
                .await
                .unwrap();
            assert_eq!(start.elapsed().as_secs(), expected);
        }
        let refused = turn(&gate, Kind::Tags, Priority::Background)
            .await
            .unwrap_err();
        assert_eq!(
            refused,
            UpstreamErrorKind::QueueFull {
                retry_after: Duration::from_secs(10)
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn h11_a_call_dropped_in_silence_counts_and_one_dropped_early_does_not() {
        let gate = gate(LIMITS);
        let watch = Watch::new(&gate, Kind::Manifest);
        tokio::time::advance(Duration::from_secs(1)).await;
        watch.heard();
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(watch);
        assert!(gate.is_responsive());
        let watch = Watch::new(&gate, Kind::Manifest);
        tokio::time::advance(SILENCE).await;
        drop(watch);
        assert!(!gate.is_responsive());
    }
}
