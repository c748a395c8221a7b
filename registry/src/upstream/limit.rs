//! Bounds on what one endpoint is asked: places for downloads, token buckets, and the upstream's own budget.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Priority;

/// Downloads that may wait for a place. Clients behind it would wait longer than their patience.
const WAITING: usize = 1024;

/// Locks; what the lock guards is consistent between any two statements, so a panicked holder does not matter.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Places for downloads: whoever a client waits for goes first, background work has at most a quarter.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Mutex<Queue>>);

#[derive(Debug)]
struct Queue {
    places: usize,
    taken: usize,
    taken_by_background: usize,
    interactive: VecDeque<oneshot::Sender<Slot>>,
    background: VecDeque<oneshot::Sender<Slot>>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    priority: Priority,
    /// `None` once given back.
    of: Option<Slots>,
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Slots {
    /// `places` downloads at once; at least one.
    pub(super) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(Queue {
            places: places.max(1),
            taken: 0,
            taken_by_background: 0,
            interactive: VecDeque::new(),
            background: VecDeque::new(),
        })))
    }

    /// Places taken now.
    pub(super) fn taken(&self) -> usize {
        lock(&self.0).taken
    }

    /// Waits for a place. Dropping the future leaves the queue.
    pub(super) async fn acquire(&self, priority: Priority) -> Result<Slot, Full> {
        let place = {
            let mut queue = lock(&self.0);
            queue.forget_gone();
            if queue.interactive.len() + queue.background.len() >= WAITING {
                return Err(Full);
            }
            let (sender, receiver) = oneshot::channel();
            queue.waiting(priority).push_back(sender);
            receiver
        };
        self.hand_out();
        place.await.map_err(|_| Full)
    }

    /// Gives free places to those who wait.
    fn hand_out(&self) {
        loop {
            let Some((sender, priority)) = lock(&self.0).next() else {
                return;
            };
            // Outside of the lock: whoever left takes the place along, and dropping it locks again.
            if let Err(mut slot) = sender.send(Slot {
                priority,
                of: Some(self.clone()),
            }) {
                slot.of = None;
                lock(&self.0).give_back(priority);
            }
        }
    }
}

impl Queue {
    fn waiting(&mut self, priority: Priority) -> &mut VecDeque<oneshot::Sender<Slot>> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Background => &mut self.background,
        }
    }

    fn forget_gone(&mut self) {
        self.interactive.retain(|waiting| !waiting.is_closed());
        self.background.retain(|waiting| !waiting.is_closed());
    }

    /// Takes a place for the next in line, if there is one for it.
    fn next(&mut self) -> Option<(oneshot::Sender<Slot>, Priority)> {
        if self.taken >= self.places {
            return None;
        }
        if let Some(waiting) = self.interactive.pop_front() {
            self.taken += 1;
            return Some((waiting, Priority::Interactive));
        }
        if self.taken_by_background >= (self.places / 4).max(1) {
            return None;
        }
        let waiting = self.background.pop_front()?;
        self.taken += 1;
        self.taken_by_background += 1;
        Some((waiting, Priority::Background))
    }

    fn give_back(&mut self, priority: Priority) {
        self.taken -= 1;
        if priority == Priority::Background {
            self.taken_by_background -= 1;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(slots) = self.of.take() {
            lock(&slots.0).give_back(self.priority);
            slots.hand_out();
        }
    }
}

/// A token bucket; pure, `now` is an argument. Whoever takes more than there is waits until it would be there again,
/// and those behind wait longer: first come, first served.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Per second.
    rate: f64,
    burst: f64,
    /// Negative while somebody waits.
    tokens: f64,
    updated: Instant,
}

impl Bucket {
    /// `rate` per second, and at most `burst` of it saved up.
    pub(super) fn new(rate: f64, burst: f64, now: Instant) -> Self {
        Self {
            rate,
            burst,
            tokens: burst,
            updated: now,
        }
    }

    /// Requests per minute; a burst may have a tenth of them.
    pub(super) fn requests(per_minute: u32, now: Instant) -> Self {
        let per_minute = f64::from(per_minute.max(1));
        Self::new(per_minute / 60.0, (per_minute / 10.0).max(1.0), now)
    }

    /// Bytes per second; a burst may have a fifth of a second.
    pub(super) fn bytes(per_second: u64, now: Instant) -> Self {
        let per_second = as_f64(per_second.max(1));
        Self::new(per_second, per_second / 5.0, now)
    }

    /// Takes `amount` and says how long to wait before using it. Takes nothing if that were longer than `patience`.
    pub(super) fn take(
        &mut self,
        amount: u64,
        patience: Duration,
        now: Instant,
    ) -> Result<Duration, Duration> {
        let since = now.saturating_duration_since(self.updated).as_secs_f64();
        self.tokens = (self.tokens + since * self.rate).min(self.burst);
        self.updated = now;
        let left = self.tokens - as_f64(amount);
        let wait = Duration::try_from_secs_f64(-left / self.rate).unwrap_or_default();
        if wait > patience {
            return Err(wait);
        }
        self.tokens = left;
        Ok(wait)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "rates and chunks are far below 2^52, and a bucket is no account"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}

/// What the upstream said of its own budget (Docker Hub: `ratelimit-limit: 100;w=21600`), and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    pub(super) limit: Option<u64>,
    pub(super) remaining: u64,
    /// Until when it is believed.
    pub(super) until: Instant,
}

impl Budget {
    /// May background work go on, if `reserve` percent are to be left?
    pub(super) fn allows_background(&self, reserve: u8, now: Instant) -> bool {
        let reserved = |limit: u64| limit.saturating_mul(u64::from(reserve)) / 100;
        now >= self.until || self.remaining > self.limit.map_or(0, reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn background_has_a_quarter_and_clients_go_first() {
        let slots = Slots::new(8);
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(slots.acquire(Priority::Background).await.unwrap());
        }
        let mut third = Box::pin(slots.acquire(Priority::Background));
        assert!(third.as_mut().now_or_never().is_none());
        for _ in 0..6 {
            held.push(slots.acquire(Priority::Interactive).await.unwrap());
        }
        let mut client = Box::pin(slots.acquire(Priority::Interactive));
        assert!(client.as_mut().now_or_never().is_none());
        assert_eq!(slots.taken(), 8);

        held.remove(0);
        let client = client.await.unwrap();
        assert!(
            third.as_mut().now_or_never().is_none(),
            "the client went first"
        );
        drop(client);
        third.await.unwrap();
    }

    #[tokio::test]
    async fn whoever_leaves_loses_no_place() {
        let slots = Slots::new(1);
        let held = slots.acquire(Priority::Interactive).await.unwrap();
        let mut gone = Box::pin(slots.acquire(Priority::Interactive));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut granted = Box::pin(slots.acquire(Priority::Interactive));
        assert!(granted.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held);
        // The place is in the channel of one who leaves without looking.
        assert_eq!(slots.taken(), 1);
        drop(granted);
        assert_eq!(slots.taken(), 0);
        slots.acquire(Priority::Background).await.unwrap();
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let slots = Slots::new(1);
        let _held = slots.acquire(Priority::Interactive).await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING)
            .map(|_| Box::pin(slots.acquire(Priority::Interactive)))
            .collect();
        for acquire in &mut waiting {
            assert!(acquire.as_mut().now_or_never().is_none());
        }
        assert_eq!(
            slots.acquire(Priority::Interactive).await.unwrap_err(),
            Full
        );
        waiting.pop();
        assert!(
            slots
                .acquire(Priority::Interactive)
                .now_or_never()
                .is_none(),
            "room again"
        );
    }

    #[test]
    fn a_bucket_keeps_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::requests(60, start);
        let patience = Duration::from_secs(3);
        let waits: Vec<_> = (0..10).map(|_| bucket.take(1, patience, start)).collect();
        assert_eq!(waits[..6], [Ok(Duration::ZERO); 6]);
        assert_eq!(
            waits[6..9],
            [1, 2, 3].map(|seconds| Ok(Duration::from_secs(seconds)))
        );
        assert_eq!(
            waits[9],
            Err(Duration::from_secs(4)),
            "refused without taking"
        );
        assert_eq!(
            bucket.take(1, patience, start + Duration::from_secs(4)),
            Ok(Duration::ZERO)
        );
        assert_eq!(
            Bucket::bytes(1000, start).take(1200, patience, start),
            Ok(Duration::from_secs(1))
        );
    }

    #[test]
    fn background_leaves_the_reserve() {
        let now = Instant::now();
        let budget = |remaining| Budget {
            limit: Some(100),
            remaining,
            until: now + Duration::from_secs(1),
        };
        assert!(budget(21).allows_background(20, now));
        assert!(!budget(20).allows_background(20, now));
        assert!(
            budget(0).allows_background(20, now + Duration::from_secs(1)),
            "an old statement"
        );
        assert!(
            !Budget {
                limit: None,
                ..budget(0)
            }
            .allows_background(20, now)
        );
    }
}
