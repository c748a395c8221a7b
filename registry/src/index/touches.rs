//! Last uses: noted in memory for each hit, written in one go every few seconds. A crash loses seconds of them, which
//! costs nothing but a slightly worse order of eviction.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError, Weak};
use std::time::Duration;

use coral_schema::oci::Digest;
use coral_schema::process::tasks::Tasks;
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use super::file::{IndexFile, database};
use super::{Index, IndexError, Inner, columns};

/// What was used since the last writing.
#[derive(Debug, Default)]
pub(super) struct Touches(Mutex<HashMap<Digest, Timestamp>>);

impl Touches {
    fn note(&self, digest: Digest, now: Timestamp) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() < NOTED || noted.contains_key(&digest) {
            noted.insert(digest, now);
        }
    }

    fn take(&self) -> HashMap<Digest, Timestamp> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Index {
    /// The blob was served. Never blocks; written within some seconds.
    pub fn touch(&self, digest: &Digest) {
        self.0.touches.note(*digest, self.now());
    }

    /// From now on the wall clock is wrong by so much more.
    #[cfg(test)]
    pub(crate) fn jump(&self, by: jiff::SignedDuration) {
        self.0.clock.jump(by);
    }

    /// Writes what was touched. Also wakes the writer, which then looks after its file.
    pub(super) async fn flush_touches(&self) -> Result<(), IndexError> {
        let touched = self.0.touches.take();
        let write = move |db: &rusqlite::Connection| {
            let mut statement = db.prepare_cached(TOUCH)?;
            for (digest, time) in &touched {
                statement.execute((digest.bytes(), columns::from_time(*time)))?;
            }
            Ok(())
        };
        self.0.worker.call(write).await
    }
}

/// Writes every few seconds until the index or the process ends.
pub(super) fn spawn_ticker(tasks: &Tasks, index: Weak<Inner>) {
    let stopping = tasks.stopping();
    tasks.spawn("index-tick", async move {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let Some(inner) = index.upgrade() else { return };
            // The writer logs when it cannot write.
            let _ = Index(inner).flush_touches().await;
        }
    });
}

/// The wall clock, but never backwards: after a jump back it stands nearly still, so the order of uses stays true.
#[derive(Debug)]
pub(super) struct Clock {
    /// The last answer, microseconds since 1970.
    last: AtomicI64,
    /// By how much a test has set the wall clock.
    #[cfg(test)]
    jumped: AtomicI64,
}

impl Clock {
    pub(super) fn starting_at(latest: Timestamp) -> Self {
        Self {
            last: AtomicI64::new(latest.as_microsecond()),
            #[cfg(test)]
            jumped: AtomicI64::new(0),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        let wall = Timestamp::now();
        #[cfg(test)]
        let wall = wall + jiff::SignedDuration::from_micros(self.jumped.load(Ordering::Relaxed));
        self.tick(wall)
    }

    #[cfg(test)]
    pub(super) fn jump(&self, by: jiff::SignedDuration) {
        let micros = i64::try_from(by.as_micros()).expect("a jump of less than an age");
        self.jumped.fetch_add(micros, Ordering::Relaxed);
    }

    fn tick(&self, wall: Timestamp) -> Timestamp {
        let wall = wall.as_microsecond();
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(wall.max(last.saturating_add(1)))
            })
            .unwrap_or(wall);
        Timestamp::from_microsecond(wall.max(last.saturating_add(1))).unwrap_or(Timestamp::MAX)
    }
}

/// The latest use that the file knows.
pub(super) fn latest(file: &IndexFile) -> Result<Timestamp, IndexError> {
    let latest = file.db.query_row(LATEST, [], |row| columns::time(row, 0));
    latest.map_err(database)
}

/// Some seconds of last uses are lost in a crash; the order of eviction is about hours.
const TICK: Duration = Duration::from_secs(10);

/// About 8 MiB. More different blobs in one tick than this is no working set worth ordering.
const NOTED: usize = 65_536;

const TOUCH: &str = "UPDATE blobs SET last_use = MAX(last_use, ?2) WHERE digest = ?1";

const LATEST: &str = "SELECT COALESCE(MAX(last_use), 0) FROM blobs";

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::ToSpan as _;

    /// H-30: after a jump of the wall clock, later uses are still later.
    #[test]
    fn h30_order_survives_jumps() {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        let wall = Timestamp::from_second(1_800_000_000).unwrap();
        let jumps = [0, 24, 0, -24, 1, 48].map(|hours: i64| wall + hours.hours());
        let seen = jumps.map(|wall| clock.tick(wall));
        assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
        assert_eq!(seen[5], jumps[5], "and it follows the wall clock again");
    }

    #[test]
    fn notes_are_bounded() {
        let touches = Touches::default();
        for number in 0..=NOTED {
            touches.note(Digest::sha256(&number.to_le_bytes()), Timestamp::MIN);
        }
        touches.note(Digest::sha256(&0_usize.to_le_bytes()), Timestamp::MAX);
        let noted = touches.take();
        assert_eq!(noted.len(), NOTED);
        assert_eq!(
            noted[&Digest::sha256(&0_usize.to_le_bytes())],
            Timestamp::MAX
        );
    }
}
