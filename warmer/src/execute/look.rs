//! What is asked in every round: the file system, and the runtime when it is time.

use std::collections::BTreeSet;
use std::io;

use coral_schema::crd::NodeCacheSpec;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Executor, LOOK_AGAIN, SHORTEST_INTERVAL};
use crate::chance;
use crate::disk::Space;
use crate::presence::{look, next_look};
use crate::pressure::{Pressure, too_high};

impl Executor {
    /// Looks at everything when it is time, else only at what is new.
    pub(super) async fn look(&mut self, spec: &NodeCacheSpec) {
        let now = Instant::now();
        let interval = spec.look_interval.0.max(SHORTEST_INTERVAL);
        // An interval that became shorter counts at once.
        self.look_at = self.look_at.min(now + interval + interval / 5);
        let full = now >= self.look_at;
        let spellings = self.to_look_at(spec, full);
        if spellings.is_empty() && !full {
            return;
        }
        match look(self.runtime.as_ref(), &spellings).await {
            Ok(found) => {
                self.runtime_error = None;
                self.absorb_look(spec, found, full, Timestamp::now());
                self.spread_starts(spec);
                if full {
                    self.fullest = self.space;
                    self.look_at = now + next_look(interval, chance::any());
                    if let Ok(bytes) = self.runtime.image_bytes().await {
                        self.image_bytes = bytes;
                    }
                }
            }
            Err(error) => {
                if self.runtime_error.is_none() {
                    tracing::warn!(%error, "the runtime does not say what it holds");
                }
                self.runtime_error = Some(error);
                self.look_at = now + LOOK_AGAIN;
            }
        }
    }

    /// While the runtime fails, only the regular looks ask it.
    fn to_look_at(&self, spec: &NodeCacheSpec, full: bool) -> Vec<String> {
        let wished = spec.images.iter().map(|image| &image.reference);
        if !full {
            let new = wished.filter(|name| !self.found.contains_key(*name));
            return match self.runtime_error {
                None => new.cloned().collect(),
                Some(_) => Vec::new(),
            };
        }
        let purged = spec.purge.iter().map(|wish| &wish.reference);
        let all: BTreeSet<&String> = wished
            .chain(purged)
            .chain(self.record.images.keys())
            .collect();
        all.into_iter().cloned().collect()
    }

    /// Gives each image that is not there a time of its own to start.
    fn spread_starts(&mut self, spec: &NodeCacheSpec) {
        let now = Timestamp::now();
        for image in &spec.images {
            let absent = self
                .found
                .get(&image.reference)
                .is_some_and(Option::is_none);
            if absent && !self.not_before.contains_key(&image.reference) {
                let share = chance::share(chance::any());
                let start = now + self.config.start_spread.mul_f64(share);
                self.not_before.insert(image.reference.clone(), start);
            }
        }
    }

    pub(super) async fn measure(&mut self) {
        let (measure, path) = (self.config.measure, self.config.imagefs.clone());
        let pressure = self.config.pressure.clone();
        let asking = move || (measure(&path), Pressure::read(&pressure));
        let (space, pressure) = match tokio::task::spawn_blocking(asking).await {
            Ok((space, pressure)) => (space, pressure),
            Err(error) => (Err(io::Error::other(error)), None),
        };
        self.disks_busy = too_high(self.disks_busy, pressure);
        self.space = match space {
            Ok(space) => {
                self.learn(space);
                let space = space.with_images(self.image_bytes);
                let fullest = self.fullest.get_or_insert(space);
                if space.used > fullest.used {
                    *fullest = space;
                }
                Some(space)
            }
            Err(error) => {
                if self.space.is_some() {
                    tracing::warn!(%error, "the image file system cannot be measured");
                }
                None
            }
        };
    }

    /// A pull that ran alone has just ended: how much fuller did it make the disk?
    fn learn(&mut self, now: Space) {
        if let Some(lesson) = self.lesson.take() {
            let grown = now.used.saturating_sub(lesson.before);
            self.record
                .ratios
                .learn(&lesson.spelling, lesson.compressed, grown);
        }
    }
}
