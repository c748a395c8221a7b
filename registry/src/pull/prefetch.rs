//! Prefetch jobs: images that the cache shall hold before a client asks for them.
//!
//! A job is a list of images. For each one the reference is resolved like a client's, the manifests are walked (of an
//! index only the children for the platforms that are wanted), and every config and layer is fetched by the transfer
//! that a client would share, in the background. Repeating a job costs nothing: what is held is not fetched again.
//!
//! Jobs live in memory only. What bounds them: `LANES` run at a time, `MAX_WAITING` wait, those that ended within
//! `REMEMBERED` are known, at most `MAX_ENDED`, and a hostile image ends at the limits of `walk`.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coral_schema::admin::{
    PrefetchImage, PrefetchReason, PrefetchRequest, PrefetchState, PrefetchStatus,
};
use coral_schema::oci::{ImageReference, Platform};
use coral_schema::process::tasks::Tasks;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::access::cap::ReadCap;
use crate::pull::Puller;

mod job;
mod walk;

/// Makes the right to read an image's repository, or says why there is none. The composition root makes
/// it from `access`, which this module does not know.
pub type Admission =
    Box<dyn Fn(ImageReference) -> BoxFuture<'static, Result<ReadCap, Problem>> + Send + Sync>;

/// Why an image is not held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// For programs.
    pub reason: PrefetchReason,
    /// For people, a sentence.
    pub message: String,
}

/// Why a job was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefetchRefused {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Too many jobs wait.
    #[error("{MAX_WAITING} prefetch jobs wait already; try again when some of them have ended")]
    Full,
}

/// Takes jobs and runs them. Clones share them.
#[derive(Debug, Clone)]
pub struct Prefetcher(Arc<Inner>);

struct Inner {
    admit: Admission,
    puller: Puller,
    jobs: Mutex<Jobs>,
    /// A job waits.
    wake: Notify,
    /// In every id, so that an id from before a restart means nothing.
    epoch: i64,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("jobs", &self.jobs)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Jobs {
    /// How many there ever were.
    count: u64,
    waiting: Vec<Job>,
    /// In the order of their ends.
    ended: VecDeque<(Instant, Arc<str>)>,
    known: HashMap<Arc<str>, watch::Receiver<PrefetchStatus>>,
}

/// A job that waits or runs.
#[derive(Debug)]
struct Job {
    id: Arc<str>,
    priority: i32,
    images: Vec<ImageReference>,
    platforms: Vec<Platform>,
    refresh: bool,
    status: Arc<watch::Sender<PrefetchStatus>>,
}

impl Prefetcher {
    /// Starts the lanes; they end with `tasks`.
    pub fn new(admit: Admission, puller: Puller, tasks: &Tasks) -> Self {
        let prefetcher = Self(Arc::new(Inner {
            admit,
            puller,
            jobs: Mutex::default(),
            wake: Notify::new(),
            epoch: Timestamp::now().as_millisecond(),
        }));
        for _ in 0..LANES {
            tasks.spawn("prefetch", prefetcher.clone().lane(tasks.clone()));
        }
        prefetcher
    }

    /// Takes a job, and answers with its id.
    pub fn start(&self, request: &PrefetchRequest) -> Result<Arc<str>, PrefetchRefused> {
        let images = references(&request.images)?;
        let mut platforms = request.platforms.clone();
        if platforms.is_empty() {
            platforms.push(walk::own_platform());
        }
        let mut jobs = self.jobs();
        if jobs.waiting.len() >= MAX_WAITING {
            return Err(PrefetchRefused::Full);
        }
        jobs.count += 1;
        let id: Arc<str> = format!("{:x}-{}", self.0.epoch, jobs.count).into();
        let (status, seen) = watch::channel(queued(&id, &request.images));
        jobs.known.insert(Arc::clone(&id), seen);
        jobs.waiting.push(Job {
            id: Arc::clone(&id),
            priority: request.priority,
            images,
            platforms,
            refresh: request.refresh,
            status: Arc::new(status),
        });
        drop(jobs);
        self.0.wake.notify_one();
        Ok(id)
    }

    /// How a job stands, now and later; `None` when it is not, or no longer, known.
    pub fn status(&self, id: &str) -> Option<watch::Receiver<PrefetchStatus>> {
        let mut jobs = self.jobs();
        jobs.forget(Instant::now());
        jobs.known.get(id).cloned()
    }

    /// One job after the other.
    async fn lane(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        while let Some(job) = stopping.run_until_cancelled(self.next()).await {
            let (id, status) = (Arc::clone(&job.id), Arc::clone(&job.status));
            let (inner, stop) = (Arc::clone(&self.0), stopping.clone());
            // A task of its own: a job that panics must not take the lane with it.
            let running = tasks.spawn("prefetch job", async move {
                stop.run_until_cancelled(job::run(&inner, &job)).await;
            });
            let why = match running.await {
                Ok(()) => "the cache was stopped",
                Err(error) => {
                    tracing::error!(%id, %error, "a prefetch job broke; please report this");
                    "the job broke; the log of the cache says why"
                }
            };
            status.send_modify(|status| end(status, why));
            self.jobs().ended(id, Instant::now());
        }
    }

    async fn next(&self) -> Job {
        loop {
            let woken = self.0.wake.notified();
            if let Some(job) = self.jobs().take() {
                return job;
            }
            woken.await;
        }
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, Jobs> {
        // Nothing in the lock can panic half-way.
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    /// The oldest of those with the highest priority.
    fn take(&mut self) -> Option<Job> {
        let highest = self.waiting.iter().map(|job| job.priority).max()?;
        let place = self
            .waiting
            .iter()
            .position(|job| job.priority == highest)?;
        Some(self.waiting.remove(place))
    }

    fn ended(&mut self, id: Arc<str>, now: Instant) {
        self.ended.push_back((now, id));
        self.forget(now);
    }

    /// Forgets what ended long ago.
    fn forget(&mut self, now: Instant) {
        let is_over = |(when, _): &(Instant, Arc<str>)| now.duration_since(*when) >= REMEMBERED;
        while self.ended.len() > MAX_ENDED || self.ended.front().is_some_and(is_over) {
            if let Some((_, oldest)) = self.ended.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

fn references(images: &[String]) -> Result<Vec<ImageReference>, PrefetchRefused> {
    if images.is_empty() || images.len() > MAX_IMAGES {
        return Err(PrefetchRefused::Invalid(format!(
            "a prefetch job has 1 to {MAX_IMAGES} images"
        )));
    }
    let parse = |image: &String| {
        image
            .parse()
            .map_err(|error| PrefetchRefused::Invalid(format!("image {image:?}: {error}")))
    };
    images.iter().map(parse).collect()
}

fn queued(id: &str, images: &[String]) -> PrefetchStatus {
    PrefetchStatus {
        id: id.to_owned(),
        state: PrefetchState::Queued,
        images: images.iter().map(PrefetchImage::queued).collect(),
    }
}

/// The job is over: what is not done by now failed, and `why` says why.
fn end(status: &mut PrefetchStatus, why: &str) {
    for image in &mut status.images {
        if !image.state.is_over() {
            image.state = PrefetchState::Failed;
            image.reason = Some(PrefetchReason::Interrupted);
            image.message = Some(why.to_owned());
        }
    }
    let done = status
        .images
        .iter()
        .all(|image| image.state == PrefetchState::Done);
    status.state = if done {
        PrefetchState::Done
    } else {
        PrefetchState::Failed
    };
}

/// Jobs at a time: two, so that one image that hangs on its upstream does not hold up everything.
const LANES: usize = 2;
/// Most jobs that wait: more than any release, a few megabytes at most.
const MAX_WAITING: usize = 256;
/// How long a job is known after its end; a client that asks later posts again, which costs nothing.
const REMEMBERED: Duration = Duration::from_hours(1);
/// Most ended jobs that are known: more than a cluster starts in that time, some ten megabytes at most.
const MAX_ENDED: usize = 1024;
/// Most images of a job, since a status lists every layer of each.
const MAX_IMAGES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str, priority: i32) -> Job {
        Job {
            id: id.into(),
            priority,
            images: Vec::new(),
            platforms: Vec::new(),
            refresh: false,
            status: Arc::new(watch::Sender::new(queued(id, &[]))),
        }
    }

    #[test]
    fn the_highest_priority_first_then_the_oldest() {
        let mut jobs = Jobs {
            waiting: vec![job("a", 0), job("b", 5), job("c", 5), job("d", -1)],
            ..Jobs::default()
        };
        let order: Vec<_> = std::iter::from_fn(|| jobs.take())
            .map(|job| job.id)
            .collect();
        assert_eq!(
            order.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
            ["b", "c", "a", "d"]
        );
    }

    #[test]
    fn ended_jobs_are_forgotten_in_order() {
        let (mut jobs, start) = (Jobs::default(), Instant::now());
        for number in 0..=MAX_ENDED {
            let id: Arc<str> = number.to_string().into();
            let (_, seen) = watch::channel(queued(&id, &[]));
            jobs.known.insert(Arc::clone(&id), seen);
            jobs.ended(id, start);
        }
        assert_eq!(jobs.known.len(), MAX_ENDED);
        assert!(!jobs.known.contains_key("0") && jobs.known.contains_key("1"));
        jobs.forget(start + REMEMBERED - Duration::from_secs(1));
        assert_eq!(jobs.known.len(), MAX_ENDED);
        jobs.forget(start + REMEMBERED);
        assert!(jobs.known.is_empty());
    }

    #[test]
    fn requests_are_checked_before_they_are_taken() {
        let references = |images: &[&str]| {
            references(&images.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(
            references(&["nginx"]).unwrap()[0].to_string(),
            "docker.io/library/nginx:latest"
        );
        let refused = references(&["nginx", "quay.io/A/b"]).unwrap_err();
        assert!(refused.to_string().contains("quay.io/A/b"), "{refused}");
        assert!(references(&[]).is_err());
        assert!(references(&["a"; MAX_IMAGES + 1]).is_err());
    }

    #[test]
    fn a_stopped_job_says_so() {
        let mut status = queued("1", &["a".to_owned(), "b".to_owned()]);
        status.images[0].state = PrefetchState::Done;
        end(&mut status, "stopped");
        assert_eq!(status.state, PrefetchState::Failed);
        assert_eq!(status.images[0].message, None);
        assert_eq!(status.images[1].message.as_deref(), Some("stopped"));
        assert_eq!(status.images[1].reason, Some(PrefetchReason::Interrupted));
    }
}
