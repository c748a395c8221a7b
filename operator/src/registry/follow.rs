//! What to ask the registry next, and what it said: jobs and pins of every `ImageCache`, the registries it serves, and
//! since when it is away. No I/O: the leader asks the [`Question`]s and brings the answers.
//!
//! One question per object is on its way at a time. While the registry is away only one question goes out, again and
//! again; when it is back every job is posted once more, since what it held may be gone. Posting costs nothing for what
//! is held.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use coral_schema::admin::{
    PinRequest, PrefetchImage, PrefetchRequest, PrefetchState, PrefetchStatus, RegistryEntry,
};
use tokio::time::Instant;

use super::RegistryError;
use crate::image_cache::dereference::CacheFacts;
use crate::image_cache::resources::{CacheRequests, Pins};
use crate::image_cache::served::Registries;
use crate::node_cache::wishes::ObjectKey;

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
}

#[derive(Debug)]
struct Followed {
    jobs: Vec<Job>,
    pins: Pins,
    pins_due: Instant,
    asking: bool,
}

#[derive(Debug)]
struct Job {
    request: PrefetchRequest,
    id: Option<String>,
    over: bool,
    /// The registry took it with `refresh`.
    refreshed: bool,
    /// Jobs in a row that ended with a failure.
    failures: u32,
    /// When to ask the next thing about it; nothing when it is done.
    due: Option<Instant>,
    images: Vec<PrefetchImage>,
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
            images: by_reference,
        }
    }

    /// What an object asks for now.
    pub fn want(&mut self, key: &ObjectKey, wanted: CacheRequests, now: Instant) {
        let CacheRequests { prefetch, pins } = wanted;
        if prefetch.is_empty() && pins.images.is_empty() {
            // It is being deleted.
            if self.objects.contains_key(key) {
                self.forget(key, pins.source, now);
            }
            return;
        }
        self.unpin.remove(&pins.source);
        let Some(followed) = self.objects.get_mut(key) else {
            let jobs = prefetch.into_iter().map(|request| Job::new(request, now));
            let followed = Followed {
                jobs: jobs.collect(),
                pins,
                pins_due: now,
                asking: false,
            };
            self.objects.insert(key.clone(), followed);
            return;
        };
        if followed.pins.images != pins.images {
            followed.pins_due = now;
        }
        followed.pins = pins;
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
        self.objects.remove(key);
        self.unpin.insert(source, now);
    }

    /// When to ask next.
    pub fn next(&self) -> Option<Instant> {
        let probe = (!self.probing).then_some(self.registries_due);
        if self.away.is_some() {
            return probe;
        }
        let objects = self.objects.values().filter_map(Followed::next);
        let unpin = self.unpin.values().copied();
        probe.into_iter().chain(objects).chain(unpin).min()
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
        match &answer {
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
            Question::Start(key, _) | Question::Progress(key, _) | Question::Pin(key, _, _) => {
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

impl Followed {
    fn next(&self) -> Option<Instant> {
        if self.asking {
            return None;
        }
        let jobs = self.jobs.iter().filter_map(|job| job.due);
        jobs.chain(std::iter::once(self.pins_due)).min()
    }

    fn ask(&mut self, key: &ObjectKey, now: Instant) -> Option<Question> {
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
            expires,
        } = self.pins.clone();
        let request = PinRequest {
            images,
            platforms: Vec::new(),
            expires: expires.to_string(),
        };
        Question::Pin(key.clone(), source, request)
    }

    /// Did the facts change?
    fn answer(
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

    fn start_again(&mut self, now: Instant) {
        self.pins_due = now;
        for job in &mut self.jobs {
            job.id = None;
            job.due = Some(now);
        }
    }
}

impl Job {
    fn new(request: PrefetchRequest, now: Instant) -> Self {
        Self {
            request,
            id: None,
            over: false,
            refreshed: false,
            failures: 0,
            due: Some(now),
            images: Vec::new(),
        }
    }

    /// What earlier jobs said of the same images stands until this one says otherwise.
    fn replacing(before: &[Self], request: PrefetchRequest, now: Instant) -> Self {
        let known = before
            .iter()
            .filter(|job| job.request.platforms == request.platforms)
            .flat_map(|job| &job.images)
            .filter(|image| request.images.contains(&image.reference));
        Self {
            images: known.cloned().collect(),
            ..Self::new(request, now)
        }
    }

    /// Is this what it does, or did?
    fn answers(&self, request: &PrefetchRequest) -> bool {
        self.request.images == request.images && self.request.platforms == request.platforms
    }

    /// Goes on, unless the upstream is to be asked anew.
    fn reuse(mut self, request: PrefetchRequest, now: Instant) -> Self {
        if request.refresh && !self.request.refresh {
            self.id = None;
            self.due = Some(now);
            self.refreshed = false;
        }
        self.request = request;
        self
    }

    fn progress(&mut self, status: PrefetchStatus, now: Instant) -> bool {
        let PrefetchStatus {
            id: _,
            state,
            images,
        } = status;
        let images: Vec<PrefetchImage> = images
            .into_iter()
            .map(|mut image| {
                // Only their sums are looked at.
                image.layers = Vec::new();
                image
            })
            .collect();
        let changed = self.images != images || self.over != state.is_over();
        self.images = images;
        self.over = state.is_over();
        self.due = match state {
            PrefetchState::Queued | PrefetchState::Running => Some(now + LOOK),
            PrefetchState::Done => {
                self.failures = 0;
                None
            }
            PrefetchState::Failed => {
                self.id = None;
                self.failures = self.failures.saturating_add(1);
                Some(now + pause(self.failures))
            }
        };
        changed
    }
}

/// Before a failed job starts again.
fn pause(failures: u32) -> Duration {
    let doubled = AFTER_FAILURE * 2_u32.saturating_pow(failures.saturating_sub(1).min(10));
    doubled.min(AFTER_FAILURES)
}

/// The same image for other platforms.
fn join(known: &mut PrefetchImage, other: &PrefetchImage) {
    let worse = |state| match state {
        PrefetchState::Failed => 0,
        PrefetchState::Queued => 1,
        PrefetchState::Running => 2,
        PrefetchState::Done => 3,
    };
    if worse(other.state) < worse(known.state) {
        known.state = other.state;
        known.reason = other.reason;
        known.message.clone_from(&other.message);
    }
    if known.digest.is_none() {
        known.digest.clone_from(&other.digest);
    }
    known.size_bytes = known.size_bytes.max(other.size_bytes);
    known.bytes_done += other.bytes_done;
    known.bytes_total += other.bytes_total;
}

/// Between two looks at the list of registries: a change of its configuration is rare.
const REGISTRIES: Duration = Duration::from_secs(30);
/// The same while it is away.
const PROBE: Duration = Duration::from_secs(5);
/// From the start of a job to the first look: what is held is reported within this time.
const FIRST_LOOK: Duration = Duration::from_millis(500);
/// Between two looks at a job.
const LOOK: Duration = Duration::from_secs(2);
/// After it could not do something.
const BUSY: Duration = Duration::from_secs(15);
/// Pins are renewed so often: they live for days.
const PINS: Duration = Duration::from_hours(1);
/// After the first failure of a job.
const AFTER_FAILURE: Duration = Duration::from_secs(15);
/// The longest wait after failures: upstreams that limit requests are not hammered.
const AFTER_FAILURES: Duration = Duration::from_mins(5);

#[cfg(test)]
mod tests;
