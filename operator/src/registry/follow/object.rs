//! Jobs and pins of one `ImageCache`: one question at a time.

use std::time::Duration;

use coral_schema::admin::PinRequest;
use tokio::time::Instant;

use super::job::{FIRST_LOOK, Job};
use super::{Answer, BUSY, Question, RegistryError};
use crate::image_cache::resources::Pins;
use crate::image_cache::secrets::Lending;
use crate::node_cache::wishes::ObjectKey;

/// What one object asks for.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) jobs: Vec<Job>,
    pub(super) pins: Pins,
    pub(super) pins_due: Instant,
    pub(super) lending: Lending,
    /// When to lend, or renew; nothing when there is nothing to lend.
    pub(super) lend_due: Option<Instant>,
    /// The registry has some of its logins.
    pub(super) is_lent: bool,
    /// Why it does not take them.
    pub(super) lend_problem: Option<String>,
    pub(super) asking: bool,
}

impl Followed {
    pub(super) fn next(&self) -> Option<Instant> {
        if self.asking {
            return None;
        }
        let jobs = self.jobs.iter().filter_map(|job| job.due);
        let rest = std::iter::once(self.pins_due).chain(self.lend_due);
        jobs.chain(rest).min()
    }

    pub(super) fn ask(&mut self, key: &ObjectKey, now: Instant) -> Option<Question> {
        if self.asking {
            return None;
        }
        let due = |job: &&Job| job.due.is_some_and(|due| due <= now);
        // Logins before what needs them.
        let question = if self.lend_due.is_some_and(|due| due <= now) {
            Question::Lend(key.clone(), self.lending.clone())
        } else if self.pins_due <= now {
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
        if let Question::Lend(_, asked) = question {
            return self.lend_answered(asked, answer, now);
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

    /// What it lends from now on. Answers in whose name nothing is lent any more.
    pub(super) fn lend(&mut self, lending: Lending, now: Instant) -> Option<String> {
        if self.lending == lending {
            return None;
        }
        self.lending = lending;
        if self.lending.logins.is_empty() {
            self.lend_due = None;
            self.lend_problem = None;
            return std::mem::take(&mut self.is_lent).then(|| self.lending.source.clone());
        }
        self.lend_due = Some(now);
        None
    }

    fn lend_answered(
        &mut self,
        asked: &Lending,
        answer: Result<Answer, RegistryError>,
        now: Instant,
    ) -> bool {
        let before = self.lend_problem.take();
        match answer {
            Ok(_) => {
                self.is_lent = true;
                for job in &mut self.jobs {
                    job.try_again(now);
                }
            }
            Err(error) => {
                self.lend_problem = Some(error.to_string());
                if self.lend_problem != before {
                    tracing::warn!(%error, source = asked.source, "pull secrets are not lent to the cache");
                }
            }
        }
        if self.lending == *asked {
            let wait = if self.lend_problem.is_none() {
                RENEW
            } else {
                BUSY
            };
            self.lend_due = Some(now + wait);
        }
        self.lend_problem != before
    }

    pub(super) fn start_again(&mut self, now: Instant) {
        self.pins_due = now;
        self.lend_due = self.lend_due.map(|_| now);
        for job in &mut self.jobs {
            job.id = None;
            job.due = Some(now);
        }
    }
}

/// What is lent lives for so long: an operator that is away for longer leaves the cache with what it holds.
pub(crate) const LENT_FOR: Duration = Duration::from_hours(1);
/// And is renewed so often.
pub(super) const RENEW: Duration = Duration::from_mins(20);
/// Pins are renewed so often: they live for days.
pub(super) const PINS: Duration = Duration::from_hours(1);
