//! Bounds on what one endpoint is asked: places for downloads, token buckets, and the upstream's own budget.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Priority;

/// Downloads that may wait for a place. Clients behind it would wait longer than their patience.
const WAITING: usize = 1024;

/// Locks; what the lock guards is consistent between any two statements, so a panicked holder does not matter.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Places for downloads: whoever a client waits for goes first, background work has at most a quarter. Whom a download
/// is for may change while it waits, so that is looked at when there is a place.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Mutex<Queue>>);

#[derive(Debug)]
struct Queue {
    places: usize,
    taken: usize,
    taken_by_background: usize,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    sender: oneshot::Sender<Slot>,
    priority: watch::Receiver<Priority>,
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
            waiting: VecDeque::new(),
        })))
    }

    /// Places taken now.
    pub(super) fn taken(&self) -> usize {
        lock(&self.0).taken
    }

    /// Waits for a place. Dropping the future leaves the queue.
    pub(super) async fn acquire(
        &self,
        mut priority: watch::Receiver<Priority>,
    ) -> Result<Slot, Full> {
        let mut place = {
            let mut queue = lock(&self.0);
            queue.waiting.retain(|one| !one.sender.is_closed());
            if queue.waiting.len() >= WAITING {
                return Err(Full);
            }
            let (sender, receiver) = oneshot::channel();
            let priority = priority.clone();
            queue.waiting.push_back(Waiting { sender, priority });
            receiver
        };
        loop {
            self.hand_out();
            tokio::select! {
                slot = &mut place => return slot.map_err(|_| Full),
                // There may be a place that was not for background work.
                Ok(()) = priority.changed() => {}
            }
        }
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
    /// Takes a place for the next in line, if there is one for it.
    fn next(&mut self) -> Option<(oneshot::Sender<Slot>, Priority)> {
        if self.taken >= self.places {
            return None;
        }
        let client = |one: &Waiting| *one.priority.borrow() == Priority::Interactive;
        let background_may = self.taken_by_background < (self.places / 4).max(1);
        let first = self.waiting.iter().position(client);
        let next = first.or(background_may.then_some(0))?;
        let Waiting { sender, priority } = self.waiting.remove(next)?;
        let priority = *priority.borrow();
        self.taken += 1;
        if priority == Priority::Background {
            self.taken_by_background += 1;
        }
        Some((sender, priority))
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

    fn background() -> watch::Receiver<Priority> {
        watch::channel(Priority::Background).1
    }

    fn client() -> watch::Receiver<Priority> {
        watch::channel(Priority::Interactive).1
    }

    #[tokio::test]
    async fn a_download_that_a_client_comes_to_wait_for_is_next() {
        let slots = Slots::new(1);
        let held = slots.acquire(background()).await.unwrap();
        let (raise, raised) = watch::channel(Priority::Background);
        let mut others: Vec<_> = [background(), background()]
            .map(|priority| {
                let slots = slots.clone();
                async move { slots.acquire(priority).await }.boxed()
            })
            .into();
        let mut last = slots.acquire(raised).boxed();
        for waiting in others.iter_mut().chain([&mut last]) {
            assert!(waiting.now_or_never().is_none());
        }
        raise.send_replace(Priority::Interactive);
        drop(held);
        for waiting in &mut others {
            assert!(waiting.now_or_never().is_none());
        }
        let last = last.await.unwrap();
        drop(last);
        others.remove(0).await.unwrap();
    }

    #[tokio::test]
    async fn a_free_place_is_taken_as_soon_as_a_client_waits() {
        let slots = Slots::new(2);
        let _held = slots.acquire(background()).await.unwrap();
        let (raise, raised) = watch::channel(Priority::Background);
        let mut waiting = slots.acquire(raised).boxed();
        assert!((&mut waiting).now_or_never().is_none());
        raise.send_replace(Priority::Interactive);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn background_has_a_quarter_and_clients_go_first() {
        let slots = Slots::new(8);
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(slots.acquire(background()).await.unwrap());
        }
        let mut third = Box::pin(slots.acquire(background()));
        assert!(third.as_mut().now_or_never().is_none());
        for _ in 0..6 {
            held.push(slots.acquire(client()).await.unwrap());
        }
        let mut client = Box::pin(slots.acquire(client()));
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
        let held = slots.acquire(client()).await.unwrap();
        let mut gone = Box::pin(slots.acquire(client()));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut granted = Box::pin(slots.acquire(client()));
        assert!(granted.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held);
        // The place is in the channel of one who leaves without looking.
        assert_eq!(slots.taken(), 1);
        drop(granted);
        assert_eq!(slots.taken(), 0);
        slots.acquire(background()).await.unwrap();
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let slots = Slots::new(1);
        let _held = slots.acquire(client()).await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING)
            .map(|_| Box::pin(slots.acquire(client())))
            .collect();
        for acquire in &mut waiting {
            assert!(acquire.as_mut().now_or_never().is_none());
        }
        assert_eq!(slots.acquire(client()).await.unwrap_err(), Full);
        waiting.pop();
        assert!(
            slots.acquire(client()).now_or_never().is_none(),
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
