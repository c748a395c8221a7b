//! Brings the node to what its `NodeCache` says: looks, plans, pulls, removes, and says where every image stands.
//!
//! One task owns all of it. Pulls and questions to the cache run inside it as futures, so that dropping one ends it, and
//! a change of the spec only ends pulls that nobody wishes for any more. What must survive a restart is in the
//! [`Record`]; all else is asked anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::NodeCacheSpec;
use coral_schema::crd::node_cache::{NodeImage, NodeImageStatus, PurgeOutcome};
use coral_schema::oci::{Digest, ImageReference};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::credentials::Credentials;
use crate::cri::containerd::{Containerd, Told};
use crate::cri::{CriError, Runtime};
use crate::disk::Space;
use crate::plan::{Asked, Situation, Step, Wait, plan};
use crate::presence::Found;
use crate::record::Record;

mod absorb;
mod job;
mod logins;
mod look;
mod metrics;
mod pins;
mod remove;
mod status;

pub use self::metrics::Metrics;

use self::job::{Ended, Running};
use self::status::Transitions;

/// Questions to the cache at once: each walks manifests and layers.
const QUESTIONS: usize = 4;
/// Nothing happens for so long at most, whatever the plan says.
const LONGEST_SLEEP: Duration = Duration::from_mins(5);
/// A collection goes on for a while; it is looked at once in so long.
const SETTLED: Duration = Duration::from_secs(2);
/// After a look that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Whatever the spec says.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// Asked before a pull that may only come from the cache. The answer needs a deadline of its own.
pub trait Cache: fmt::Debug + Send + Sync {
    /// What the cache has of the image, for this node's platform.
    fn holds<'a>(
        &'a self,
        image: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Held, CacheUnreachable>>;
}

/// What the cache has of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Every byte.
    Complete,
    /// The manifests, and transfers that run: a pull follows them.
    Filling,
    /// Less.
    Absent,
    /// The runtime's mirror settings for the image's registry are not in place.
    NotMirrored,
}

/// The cache gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CacheUnreachable(pub String);

/// What a `NodeCache` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Wishes {
    /// Of the object.
    pub generation: i64,
    /// Its spec.
    pub spec: NodeCacheSpec,
}

/// What the executor needs to know of its surroundings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the record.
    pub state: PathBuf,
    /// Anything on the file system of the images.
    pub imagefs: PathBuf,
    /// Asks about that file system, and may block: [`Space::of`], unless a test plays a full disk.
    pub measure: fn(&Path) -> io::Result<Space>,
    /// Where the kernel says how busy the disks are: [`crate::pressure::FILE`].
    pub pressure: PathBuf,
    /// containerd's own API, where it may be used: it pins.
    pub containerd: Option<Containerd>,
    /// For registries that the cache does not serve.
    pub credentials: Credentials,
    /// New wishes start within so long, each at its own time: all nodes learn of them at once.
    pub start_spread: Duration,
}

/// Where everything stands. Published when it changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeState {
    /// Of the wishes that this speaks of; `None` without a `NodeCache`.
    pub generation: Option<i64>,
    /// One per image of the spec, in its order.
    pub images: Vec<NodeImageStatus>,
    /// Wishes to remove that are settled.
    pub purge: Vec<PurgeOutcome>,
    /// The file system of the images, if it can be measured.
    pub space: Option<Space>,
    /// The last look failed, and why; images may have gone since.
    pub runtime_error: Option<CriError>,
    /// When the node held everything for the first time.
    pub first_ready: Option<Timestamp>,
    /// What the runtime can do beyond the CRI, and may.
    pub capabilities: Vec<&'static str>,
}

/// See the module.
#[derive(Debug)]
pub struct Executor {
    runtime: Arc<dyn Runtime>,
    cache: Arc<dyn Cache>,
    config: Config,
    metrics: Metrics,
    record: Record,
    stored: Record,
    wishes: Option<Arc<Wishes>>,
    found: Found,
    running: BTreeMap<String, Running>,
    asked: BTreeMap<String, Asked>,
    not_before: BTreeMap<String, Timestamp>,
    /// Pulls that were refused, with the mark of the logins that were tried.
    refused: BTreeMap<String, Option<Digest>>,
    settled: Vec<PurgeOutcome>,
    transitions: Transitions,
    space: Option<Space>,
    /// As full as it was since the last look at everything: a collection has made room before it is noticed.
    fullest: Option<Space>,
    /// The disks are too busy for another pull.
    disks_busy: bool,
    image_bytes: u64,
    runtime_error: Option<CriError>,
    look_at: Instant,
    told: Told,
    /// Names that are pinned; `None` until that is known.
    pinned: Option<BTreeSet<String>>,
    pin_at: Instant,
    lesson: Option<Lesson>,
    jobs: FuturesUnordered<BoxFuture<'static, Ended>>,
    state: watch::Sender<Arc<NodeState>>,
}

impl Executor {
    /// With what an earlier run recorded. The receiver always has the latest state.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        cache: Arc<dyn Cache>,
        config: Config,
        record: Record,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Arc<NodeState>>) {
        let (state, receiver) = watch::channel(Arc::default());
        let executor = Self {
            runtime,
            cache,
            config,
            metrics,
            stored: record.clone(),
            record,
            wishes: None,
            found: Found::new(),
            running: BTreeMap::new(),
            asked: BTreeMap::new(),
            not_before: BTreeMap::new(),
            refused: BTreeMap::new(),
            settled: Vec::new(),
            transitions: Transitions::default(),
            space: None,
            fullest: None,
            disks_busy: false,
            image_bytes: 0,
            runtime_error: None,
            look_at: Instant::now(),
            told: Told::default(),
            pinned: None,
            pin_at: Instant::now(),
            lesson: None,
            jobs: FuturesUnordered::new(),
            state,
        };
        (executor, receiver)
    }

    /// Works until `stopping`, or until nobody can send wishes any more. `None` means that there is no `NodeCache`: pulls
    /// end, nothing is removed. What containerd tells of deletions makes it look at once.
    pub async fn run(
        mut self,
        mut wishes: watch::Receiver<Option<Arc<Wishes>>>,
        mut told: watch::Receiver<Told>,
        stopping: CancellationToken,
    ) {
        self.wish(wishes.borrow_and_update().clone());
        loop {
            let sleep = tokio::select! {
                () = stopping.cancelled() => return,
                sleep = self.reconcile() => sleep,
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = wishes.changed() => match changed {
                    Ok(()) => self.wish(wishes.borrow_and_update().clone()),
                    Err(_) => return,
                },
                Some(ended) = self.jobs.next() => self.ended(ended),
                // Without containerd's own API nobody ever tells.
                Ok(()) = told.changed() => self.hear(*told.borrow_and_update()),
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Takes over new wishes. Pulls whose wish stays go on.
    fn wish(&mut self, wishes: Option<Arc<Wishes>>) {
        let spec = wishes.as_ref().map(|wishes| &wishes.spec);
        let is_wished = |spelling: &str| {
            spec.is_some_and(|spec| spec.images.iter().any(|image| image.reference == spelling))
        };
        for (spelling, running) in &self.running {
            if !is_wished(spelling) {
                running.cancel.cancel();
            }
        }
        self.asked.retain(|spelling, _| is_wished(spelling));
        self.not_before.retain(|spelling, _| is_wished(spelling));
        self.refused.retain(|spelling, _| is_wished(spelling));
        self.record.ratios.keep(is_wished);
        if let Some(spec) = spec {
            self.settled.retain(|outcome| {
                spec.purge
                    .iter()
                    .any(|wish| wish.reference == outcome.reference)
            });
        }
        self.wishes = wishes;
    }

    /// An image goes name by name: the look comes when all of them are gone.
    fn hear(&mut self, told: Told) {
        if told.deletions != self.told.deletions {
            self.look_at = self.look_at.min(Instant::now() + SETTLED);
        }
        self.told = told;
    }

    /// One round. Returns how long nothing has to happen.
    async fn reconcile(&mut self) -> Duration {
        let Some(wishes) = self.wishes.clone() else {
            self.publish(NodeState::default());
            return LONGEST_SLEEP;
        };
        let spec = &wishes.spec;
        self.measure().await;
        self.look(spec).await;
        if self.runtime_error.is_none() {
            self.remove(spec).await;
            self.pin(spec).await;
        }
        self.renew(spec).await;
        let now = Timestamp::now();
        let running = self
            .running
            .iter()
            .map(|(name, run)| (name.clone(), run.charge))
            .collect();
        let steps = plan(&Situation {
            spec,
            runtime_answers: self.runtime_error.is_none(),
            found: &self.found,
            record: &self.record,
            running: &running,
            space: self.space,
            disks_busy: self.disks_busy,
            cache: &self.asked,
            not_before: &self.not_before,
            now,
        });
        for (image, step) in &steps {
            match step {
                Step::Pull(charge) => self.pull(image, *charge),
                Step::Ask => self.ask(&image.reference),
                Step::Held | Step::Running | Step::Unseen | Step::Wait(_) => {}
            }
        }
        // What is told is on disk: a restart in between must not forget it.
        self.store().await;
        self.report(spec, &steps, now);
        // The first time that everything is held is found out on telling.
        self.store().await;
        self.idle(&steps, now)
    }

    /// What is not written is tried again in the next round.
    async fn store(&mut self) {
        if self.record == self.stored {
            return;
        }
        let (record, folder) = (self.record.clone(), self.config.state.clone());
        let written =
            tokio::task::spawn_blocking(move || record.store(&folder).map(|()| record)).await;
        match written {
            Ok(Ok(record)) => self.stored = record,
            Ok(Err(error)) => tracing::warn!(%error, "the record of our pulls cannot be written"),
            Err(error) => tracing::warn!(%error, "the record of our pulls was not written"),
        }
    }

    /// Until the next look, or the first wait that ends by itself.
    fn idle(&self, steps: &[(&NodeImage, Step)], now: Timestamp) -> Duration {
        let waits = steps.iter().filter_map(|(_, step)| match step {
            Step::Wait(Wait { until, .. }) => *until,
            _ => None,
        });
        let first = waits
            .map(|until| Duration::try_from(until.duration_since(now)).unwrap_or_default())
            .min()
            .unwrap_or(LONGEST_SLEEP);
        // Timestamps are finer than the timer: never wake before the time that is waited for.
        let first = first + Duration::from_millis(1);
        let logins = if self.refused.is_empty() {
            LONGEST_SLEEP
        } else {
            logins::LOOK
        };
        first
            .min(logins)
            .min(self.look_at.duration_since(Instant::now()))
            .min(LONGEST_SLEEP)
    }
}

/// What a pull that ran alone can teach.
#[derive(Debug)]
struct Lesson {
    spelling: String,
    compressed: u64,
    /// Bytes in use when it started.
    before: u64,
}

/// Fits a status.
fn short(message: &str) -> String {
    message.chars().take(256).collect()
}
