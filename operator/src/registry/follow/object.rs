//! Jobs and pins of one `ImageCache`: one question at a time.

use std::time::Duration;

use coral_schema::admin::PinRequest;
use tokio::time::Instant;

use super::job::{FIRST_LOOK, Job};
use super::{Answer, BUSY, Question, RegistryError};
use crate::image_cache::resources::Pins;
use crate::node_cache::wishes::ObjectKey;

/// What one object asks for.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) jobs: Vec<Job>,
    pub(super) pins: Pins,
    pub(super) pins_due: Instant,
    pub(super) asking: bool,
}

impl Followed {
    pub(super) fn next(&self) -> Option<Instant> {
        if self.asking {
            return None;
        }
        let jobs = self.jobs.iter().filter_map(|job| job.due);
        jobs.chain(std::iter::once(self.pins_due)).min()
    }

    pub(super) fn ask(&mut self, key: &ObjectKey, now: Instant) -> Option<Question> {
        if self.asking {
            return None;
        }
        let due = |job: &&Job| job.due.is_some_and(|due| due <= now);
        let question = if self.pins_due <= now {
            self.pin(key)
        } else {
            let job = self.jobs.iter().filter(due).min_by_key(|job| job.due)?;
            match &job.id {
                Some(id) => Question::Progress(key.clone(), id.clone()),
                None => Question::Start(key.clone(), job.request.clone()),
            }
        };
        self.asking = true;
        Some(question)
    }

    fn pin(&self, key: &ObjectKey) -> Question {
        let Pins {
            source,
            images,
            frozen,
            expires,
        } = self.pins.clone();
        let request = PinRequest {
            images,
            frozen,
            platforms: Vec::new(),
            expires: expires.to_string(),
        };
        Question::Pin(key.clone(), source, request)
    }

    /// Did the facts change?
    pub(super) fn answer(
        &mut self,
        question: &Question,
        answer: Result<Answer, RegistryError>,
        now: Instant,
    ) -> bool {
        let of = |job: &&mut Job| match question {
            Question::Start(_, request) => job.id.is_none() && job.request == *request,
            Question::Progress(_, id) => job.id.as_ref() == Some(id),
            _ => false,
        };
        if let Question::Pin(..) = question {
            let wait = match answer {
                Ok(_) => PINS,
                Err(error) => {
                    tracing::warn!(%error, "images are not pinned in the cache");
                    BUSY
                }
            };
            self.pins_due = now + wait;
            return false;
        }
        // It may have been replaced meanwhile.
        let Some(job) = self.jobs.iter_mut().find(of) else {
            return false;
        };
        match answer {
            Ok(Answer::Started(id)) => {
                job.id = Some(id);
                job.due = Some(now + FIRST_LOOK);
                job.refreshed = job.request.refresh;
                job.refreshed
            }
            Ok(Answer::Progress(status)) => job.progress(status, now),
            Ok(Answer::Registries(_) | Answer::Done) => false,
            Err(RegistryError::Forgotten) => {
                job.id = None;
                job.due = Some(now);
                false
            }
            Err(error) => {
                tracing::warn!(%error, "a prefetch is tried again");
                job.due = Some(now + BUSY);
                false
            }
        }
    }

    pub(super) fn start_again(&mut self, now: Instant) {
        self.pins_due = now;
        for job in &mut self.jobs {
            job.id = None;
            job.due = Some(now);
        }
    }
}

/// Pins are renewed so often: they live for days.
pub(super) const PINS: Duration = Duration::from_hours(1);
