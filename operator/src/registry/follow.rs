//! What to ask the registry next, and what it said: jobs and pins of every `ImageCache`, the registries it serves, and
//! since when it is away. No I/O: the leader asks the [`Question`]s and brings the answers.
//!
//! One question per object is on its way at a time. While the registry is away only one question goes out, again and
//! again; when it is back every job is posted once more, since what it held may be gone. Posting costs nothing for what
//! is held.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use coral_schema::admin::{
    PinRequest, PrefetchImage, PrefetchRequest, PrefetchStatus, RegistryEntry,
};
use tokio::time::Instant;

use self::job::{Job, join};
use self::object::Followed;
use super::RegistryError;
use crate::image_cache::dereference::CacheFacts;
use crate::image_cache::resources::CacheRequests;
use crate::image_cache::secrets::Lending;
use crate::image_cache::served::Registries;
use crate::node_cache::wishes::ObjectKey;

mod job;
mod object;

pub(crate) use self::object::LENT_FOR;

/// Something to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Which registries are served?
    Registries,
    /// Start this job of an object.
    Start(ObjectKey, PrefetchRequest),
    /// How does this job of an object stand?
    Progress(ObjectKey, String),
    /// Pin this for an object.
    Pin(ObjectKey, String, PinRequest),
    /// The object is gone, or pins nothing.
    Unpin(String),
    /// Take these logins of an object.
    Lend(ObjectKey, Lending),
    /// The object is gone, or lends nothing any more.
    TakeBack(String),
}

/// An answer.
#[derive(Debug)]
pub enum Answer {
    /// To [`Question::Registries`].
    Registries(Vec<RegistryEntry>),
    /// To [`Question::Start`]: the job's id.
    Started(String),
    /// To [`Question::Progress`].
    Progress(PrefetchStatus),
    /// To pins.
    Done,
}

/// Everything known of the registry.
#[derive(Debug)]
pub struct Follower {
    registries: Option<(Vec<RegistryEntry>, Registries)>,
    registries_due: Instant,
    /// Since when it does not answer.
    away: Option<Instant>,
    probing: bool,
    /// What it said last instead of an answer.
    error: Option<RegistryError>,
    objects: BTreeMap<ObjectKey, Followed>,
    /// Sources whose pins go, with the time of the next try.
    unpin: BTreeMap<String, Instant>,
    /// Sources whose logins go, with the time of the next try.
    take_back: BTreeMap<String, Instant>,
}

impl Follower {
    /// Nothing is known; it counts as away until it answers.
    pub fn new(now: Instant) -> Self {
        Self {
            registries: None,
            registries_due: now,
            away: Some(now),
            probing: false,
            error: None,
            objects: BTreeMap::new(),
            unpin: BTreeMap::new(),
            take_back: BTreeMap::new(),
        }
    }

    /// Does it answer?
    pub fn is_reachable(&self) -> bool {
        self.away.is_none()
    }

    /// What it said last instead of an answer.
    pub fn error(&self) -> Option<&RegistryError> {
        self.error.as_ref()
    }

    /// The registries that it serves, if it ever said so.
    pub fn registries(&self) -> Option<&Registries> {
        self.registries.as_ref().map(|(_, registries)| registries)
    }

    /// What an object's steps look at.
    pub fn facts(&self, key: &ObjectKey, now: Instant) -> CacheFacts {
        let jobs = self.objects.get(key).into_iter().flat_map(|it| &it.jobs);
        let images = jobs.flat_map(|job| &job.images);
        let mut by_reference: HashMap<String, PrefetchImage> = HashMap::new();
        for image in images {
            // Wanted by several sets for several platforms: it is there when each says so.
            by_reference
                .entry(image.reference.clone())
                .and_modify(|known| join(known, image))
                .or_insert_with(|| image.clone());
        }
        CacheFacts {
            registries: self.registries().cloned(),
            away: self.away.map(|since| now.duration_since(since)),
            lending: self
                .objects
                .get(key)
                .and_then(|followed| followed.lend_problem.clone()),
            images: by_reference,
        }
    }

    /// What an object asks for now.
    pub fn want(&mut self, key: &ObjectKey, wanted: CacheRequests, now: Instant) {
        let CacheRequests {
            prefetch,
            pins,
            lending,
        } = wanted;
        if prefetch.is_empty() && pins.images.is_empty() {
            // It is being deleted.
            if self.objects.contains_key(key) {
                self.forget(key, pins.source, now);
            }
            return;
        }
        self.unpin.remove(&pins.source);
        if !lending.logins.is_empty() {
            self.take_back.remove(&lending.source);
        }
        let Some(followed) = self.objects.get_mut(key) else {
            let jobs = prefetch.into_iter().map(|request| Job::new(request, now));
            let followed = Followed {
                jobs: jobs.collect(),
                pins,
                pins_due: now,
                lend_due: (!lending.logins.is_empty()).then_some(now),
                lending,
                is_lent: false,
                lend_problem: None,
                asking: false,
            };
            self.objects.insert(key.clone(), followed);
            return;
        };
        if followed.pins.frozen != pins.frozen {
            // What was fetched before may be what a tag means by now.
            followed.start_again(now);
        } else if followed.pins.images != pins.images {
            followed.pins_due = now;
        }
        followed.pins = pins;
        if let Some(source) = followed.lend(lending, now) {
            self.take_back.insert(source, now);
        }
        let mut before = std::mem::take(&mut followed.jobs);
        for request in prefetch {
            let same = before.iter().position(|job| job.answers(&request));
            followed.jobs.push(match same {
                Some(index) => before.swap_remove(index).reuse(request, now),
                None => Job::replacing(&before, request, now),
            });
        }
    }

    /// Did the registry take every job that the object asks for, anew where it wants that?
    pub fn took(&self, key: &ObjectKey) -> bool {
        let mut jobs = self.objects.get(key).into_iter().flat_map(|it| &it.jobs);
        jobs.all(|job| !job.request.refresh || job.refreshed)
    }

    /// The object is gone, and its pins go, too.
    pub fn forget(&mut self, key: &ObjectKey, source: String, now: Instant) {
        let followed = self.objects.remove(key);
        if followed.is_some_and(|followed| followed.is_lent) {
            self.take_back.insert(source.clone(), now);
        }
        self.unpin.insert(source, now);
    }

    /// When to ask next.
    pub fn next(&self) -> Option<Instant> {
        let probe = (!self.probing).then_some(self.registries_due);
        if self.away.is_some() {
            return probe;
        }
        let objects = self.objects.values().filter_map(Followed::next);
        let sources = self.unpin.values().chain(self.take_back.values());
        probe
            .into_iter()
            .chain(objects)
            .chain(sources.copied())
            .min()
    }

    /// What to ask now, at most `most` questions. Each has to be answered by [`Follower::answer`].
    pub fn ask(&mut self, most: usize, now: Instant) -> Vec<Question> {
        let mut questions = Vec::new();
        if !self.probing && self.registries_due <= now {
            self.probing = true;
            questions.push(Question::Registries);
        }
        if self.away.is_some() {
            return questions;
        }
        for (source, due) in &mut self.unpin {
            if questions.len() < most && *due <= now {
                *due = now + BUSY;
                questions.push(Question::Unpin(source.clone()));
            }
        }
        for (source, due) in &mut self.take_back {
            if questions.len() < most && *due <= now {
                *due = now + BUSY;
                questions.push(Question::TakeBack(source.clone()));
            }
        }
        for (key, followed) in &mut self.objects {
            if questions.len() < most
                && let Some(question) = followed.ask(key, now)
            {
                questions.push(question);
            }
        }
        questions
    }

    /// Takes an answer in. Whose status may be different now: an object's, or everybody's.
    pub fn answer(
        &mut self,
        question: &Question,
        answer: Result<Answer, RegistryError>,
        now: Instant,
    ) -> Affected {
        let was_away = self.away.is_some();
        let is_lending = matches!(question, Question::Lend(..) | Question::TakeBack(_));
        match &answer {
            // Who may not lend may still ask for the rest.
            Err(RegistryError::Denied { .. } | RegistryError::Plain) if is_lending => {}
            Err(error @ (RegistryError::Away(_) | RegistryError::Denied { .. })) => {
                if self.error.as_ref() != Some(error) {
                    tracing::warn!(%error, "the cache cannot be asked");
                }
                self.error = Some(error.clone());
                self.away.get_or_insert(now);
            }
            Err(error) => self.error = Some(error.clone()),
            Ok(_) => {
                self.error = None;
                self.away = None;
            }
        }
        if was_away && self.away.is_none() {
            tracing::info!("the cache answers");
            self.objects.values_mut().for_each(|it| it.start_again(now));
        }
        let turned = was_away != self.away.is_some();
        let affected = self.take_in(question, answer, now);
        if turned { Affected::All } else { affected }
    }

    fn take_in(
        &mut self,
        question: &Question,
        answer: Result<Answer, RegistryError>,
        now: Instant,
    ) -> Affected {
        match question {
            Question::Registries => self.registries_answered(answer, now),
            Question::Unpin(source) => {
                match answer {
                    Ok(_) | Err(RegistryError::Refused { .. }) => drop(self.unpin.remove(source)),
                    Err(_) => {}
                }
                Affected::None
            }
            Question::TakeBack(source) => {
                match answer {
                    // They end by themselves within the hour.
                    Ok(_)
                    | Err(
                        RegistryError::Refused { .. }
                        | RegistryError::Denied { .. }
                        | RegistryError::Plain,
                    ) => drop(self.take_back.remove(source)),
                    Err(_) => {}
                }
                Affected::None
            }
            Question::Start(key, _)
            | Question::Progress(key, _)
            | Question::Pin(key, _, _)
            | Question::Lend(key, _) => {
                let Some(followed) = self.objects.get_mut(key) else {
                    return Affected::None;
                };
                followed.asking = false;
                if followed.answer(question, answer, now) {
                    Affected::One(key.clone())
                } else {
                    Affected::None
                }
            }
        }
    }

    fn registries_answered(
        &mut self,
        answer: Result<Answer, RegistryError>,
        now: Instant,
    ) -> Affected {
        self.probing = false;
        self.registries_due = now
            + if self.away.is_some() {
                PROBE
            } else {
                REGISTRIES
            };
        let Ok(Answer::Registries(entries)) = answer else {
            return Affected::None;
        };
        if self
            .registries
            .as_ref()
            .is_some_and(|(known, _)| *known == entries)
        {
            return Affected::None;
        }
        let registries = Registries::new(&entries);
        self.registries = Some((entries, registries));
        Affected::All
    }
}

/// Whose facts changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affected {
    /// Nobody's.
    None,
    /// This object's.
    One(ObjectKey),
    /// Everybody's.
    All,
}

/// Between two looks at the list of registries: a change of its configuration is rare.
const REGISTRIES: Duration = Duration::from_secs(30);
/// The same while it is away.
const PROBE: Duration = Duration::from_secs(5);
/// After it could not do something.
const BUSY: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests;
