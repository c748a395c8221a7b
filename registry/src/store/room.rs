//! Between those who need room and the one who makes it, and the alarm while there is none.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::StoreError;

/// Shared by fills, which ask for room, and by eviction, which makes it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Room(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    wanted: Notify,
    /// Rounds that have ended.
    rounds: watch::Sender<u64>,
    trouble: Mutex<Trouble>,
    /// 1 while there is trouble.
    degraded: Gauge,
}

/// Why the store does not take what is fetched.
#[derive(Debug, Default)]
struct Trouble {
    /// When something last found it full.
    full: Option<Instant>,
    /// Did the last write fail for another reason?
    broken: bool,
}

impl Room {
    /// The metric `store_degraded`.
    pub fn degraded(&self) -> Gauge {
        self.0.degraded.clone()
    }

    /// Asks for room and waits until it was tried to make some: a moment, since deleting is quick.
    pub async fn ask(&self) {
        let mut rounds = self.0.rounds.subscribe();
        // One that is under way may not have seen what is needed.
        let enough = *rounds.borrow_and_update() + 2;
        self.0.wanted.notify_one();
        let again = rounds.wait_for(|round| {
            if *round + 1 == enough {
                self.0.wanted.notify_one();
            }
            *round >= enough
        });
        let _ = timeout(PATIENCE, again).await;
    }

    /// Returns when somebody asks for room.
    pub async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// A round of making room has ended; `has_room`: may fills start now? The alarm about a full store stays long
    /// enough to be seen.
    pub fn tried(&self, has_room: bool) {
        self.0.rounds.send_modify(|rounds| *rounds += 1);
        self.change(|trouble| {
            if !has_room {
                trouble.full = Some(Instant::now());
            }
            trouble.full = trouble.full.filter(|since| since.elapsed() < CALM);
        });
    }

    /// The store did not take something.
    pub fn failed(&self, error: &StoreError) {
        self.change(|trouble| match error {
            StoreError::Full => trouble.full = Some(Instant::now()),
            StoreError::Damaged(_) | StoreError::Io { .. } => trouble.broken = true,
        });
    }

    /// The store took something.
    pub fn works(&self) {
        self.change(|trouble| trouble.broken = false);
    }

    fn change(&self, change: impl FnOnce(&mut Trouble)) {
        let trouble = &mut *self
            .0
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(trouble);
        let degraded = trouble.broken || trouble.full.is_some();
        self.0.degraded.set(i64::from(degraded));
    }
}

/// Clients wait for it. Longer than deleting takes, unless the disk is in trouble.
const PATIENCE: Duration = Duration::from_secs(1);
/// A store that was full is called so for this long after, or nobody would see it between two scrapes.
const CALM: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[tokio::test(start_paused = true)]
    async fn h08_the_alarm_ends_by_itself_when_there_is_room() {
        let room = Room::default();
        room.failed(&StoreError::Full);
        assert_eq!(room.degraded().get(), 1);
        room.tried(true);
        assert_eq!(room.degraded().get(), 1, "too short to be seen");
        tokio::time::advance(CALM).await;
        room.tried(true);
        assert_eq!(room.degraded().get(), 0);
        room.tried(false);
        assert_eq!(room.degraded().get(), 1, "nobody has to try a write");
    }

    #[test]
    fn a_broken_store_works_again_when_it_took_something() {
        let room = Room::default();
        let source = Arc::new(io::Error::other("rigged"));
        let operation = "write";
        room.failed(&StoreError::Io { operation, source });
        room.tried(true);
        assert_eq!(room.degraded().get(), 1);
        room.works();
        assert_eq!(room.degraded().get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn asking_waits_for_a_whole_round_but_not_for_ever() {
        let room = Room::default();
        let making = async {
            for _ in 0..2 {
                room.wanted().await;
                room.tried(true);
                // As the task of the evictor: others run in between.
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(room.ask(), making);
        assert_eq!(*room.0.rounds.borrow(), 2);
        room.ask().await;
    }
}
