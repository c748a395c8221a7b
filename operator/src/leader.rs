//! The leader: one loop that takes in what the API server and the registry say, looks at what that affects, and writes
//! what came out different.
//!
//! Nothing but the API server's objects is remembered between two leaders. Decisions are made in the loop, by pure steps;
//! calls run beside it, each with a deadline, at most so many at once, at most one write per object. So a slow API server
//! delays writes and never the loop.
//!
//! | Part | Does |
//! |---|---|
//! | `world` | what the watches told, as facts, and what each change affects |
//! | `objects` | looks at one `ImageCache`: the pipeline of [`image_cache`](crate::image_cache), its wishes |
//! | `reports` | what is said of it: status, events, finalizer |
//! | `nodes` | looks at one node: merges wishes, writes its `NodeCache` |
//! | `says` | labels and taint of one Node |
//! | `pace` | how fast it writes |
//! | `copies` | pull secrets that nodes need, in one Secret |
//! | `secrets` | pull secrets, read by name and again every minute |
//! | `calls` | the calls on their way, and what their answers mean |

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::ImageCacheStatus;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kube::Client;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::calls::Call;
use self::copies::Copies;
use self::pace::Pace;
use self::secrets::Secrets;
use self::world::{Mark, World};
use crate::address::NodeAddress;
use crate::events::Limiter;
use crate::image_cache::assign::Slots;
use crate::image_cache::pods;
use crate::lease::Candidate;
use crate::node_cache::wishes::{ObjectKey, Wishes};
use crate::queue::Queue;
use crate::registry::Registry;
use crate::registry::follow::{Affected, Follower};
use crate::scheduling::Scheduling;

mod calls;
mod changes;
mod copies;
mod metrics;
mod nodes;
mod objects;
mod pace;
mod reports;
mod says;
mod secrets;
mod world;

pub use self::metrics::Metrics;

/// What differs from cluster to cluster.
#[derive(Debug)]
pub struct Settings {
    /// For the lease.
    pub candidate: Candidate,
    /// Our own namespace.
    pub namespace: String,
    /// The cache.
    pub registry: Registry,
    /// Where nodes reach the cache; without it their mirror settings are not touched.
    pub address: Option<NodeAddress>,
    /// PEM certificates that nodes check the cache's certificate against.
    pub ca: Option<String>,
    /// Of objects that say nothing; zero is never.
    pub refresh_interval: Duration,
    /// Nodes that pull at once, for all objects together.
    pub max_concurrent_nodes: usize,
    /// Secret in our own namespace that pull secrets are copied into, for registries that the cache does not serve.
    pub node_pull_secrets: Option<String>,
}

/// Everything that one leader knows and does.
pub struct Leader {
    client: Client,
    settings: Arc<Settings>,
    metrics: Metrics,
    world: World,
    cache: Follower,
    secrets: Secrets,
    copies: Copies,
    scheduling: Scheduling,
    /// Which images pods named when, for objects that discover them.
    seen: HashMap<ObjectKey, pods::Seen>,
    wishes: Wishes,
    slots: Slots,
    /// Statuses as last computed, written or not.
    statuses: HashMap<ObjectKey, ImageCacheStatus>,
    counts: HashMap<ObjectKey, metrics::Images>,
    told: Limiter,
    due: Due,
    pace: Pace,
    /// When every object was looked at with all that is to be known; no `NodeCache` is written before.
    open: Opening,
    calls: FuturesUnordered<Call>,
    /// Of these, questions to the registry: a slow one must not keep the API server waiting.
    questions: usize,
    /// Who wanted an image removed from a node, while the node has not answered.
    purging: HashMap<(Arc<str>, String), Vec<ObjectKey>>,
    /// Objects and nodes that are being written.
    writing: HashSet<Writing>,
    /// Nodes that became others than objects have seen, and when all have looked: none loses its taint before.
    unseen: HashMap<Arc<str>, Instant>,
}

/// What is to be looked at.
#[derive(Debug)]
struct Due {
    objects: Queue<ObjectKey>,
    nodes: Queue<Arc<str>>,
    statuses: Queue<ObjectKey>,
    /// What Nodes say of warmth.
    says: Queue<Arc<str>>,
}

/// May `NodeCache`s be written yet?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// The watches have not told everything.
    Listing,
    /// Objects are looked at; the registry has not answered. At the latest then.
    Waiting(Instant),
    /// Yes.
    Open,
}

/// Who is written at most once at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Writing {
    Object(ObjectKey),
    Node(Arc<str>),
    Says(Arc<str>),
}

impl Leader {
    /// Knows nothing yet.
    pub fn new(client: Client, settings: Arc<Settings>, metrics: Metrics) -> Self {
        let now = Instant::now();
        Self {
            world: World::new(&settings, now),
            cache: Follower::new(now),
            secrets: Secrets::default(),
            copies: Copies::default(),
            scheduling: Scheduling::default(),
            seen: HashMap::new(),
            wishes: Wishes::default(),
            slots: Slots::new(settings.max_concurrent_nodes),
            statuses: HashMap::new(),
            counts: HashMap::new(),
            told: Limiter::default(),
            due: Due {
                objects: Queue::new(OBJECT_PAUSE),
                nodes: Queue::new(NODE_PAUSE),
                statuses: Queue::new(STATUS_PAUSE),
                says: Queue::new(NODE_PAUSE),
            },
            pace: Pace::new(now),
            open: Opening::Listing,
            calls: FuturesUnordered::new(),
            questions: 0,
            purging: HashMap::new(),
            writing: HashSet::new(),
            unseen: HashMap::new(),
            client,
            settings,
            metrics,
        }
    }

    /// Works until `stop`; then lets the calls end that are on their way. Dropping this future drops them, too.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut watches = world::watches(&self.client, &self.settings);
        loop {
            let wake = self.next();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(seen) = watches.next() => {
                    let now = Instant::now();
                    let marks = self.world.take_in(seen, now);
                    self.mark(marks);
                    if self.world.starts_with_pods(now) {
                        watches.push(world::watch_pods(&self.client));
                    }
                }
                Some(answer) = self.calls.next(), if !self.calls.is_empty() => self.answered(answer),
                () = sleep_until(wake) => {}
            }
            self.work(Instant::now());
        }
        let rest = async { while self.calls.next().await.is_some() {} };
        if timeout(LAST_CALLS, rest).await.is_err() {
            tracing::warn!("some writes did not end in time");
        }
    }

    /// When something is due; an hour is as good as never.
    fn next(&self) -> Instant {
        let now = Instant::now();
        let mut all = vec![now + Duration::from_hours(1)];
        let nodes = match self.open {
            Opening::Listing => None,
            Opening::Waiting(until) => {
                all.push(until);
                None
            }
            Opening::Open => {
                let others = self.due.says.next().into_iter().chain(self.copies.next());
                self.due.nodes.next().into_iter().chain(others).min()
            }
        };
        if self.open != Opening::Listing {
            all.extend(self.due.objects.next());
            all.extend(self.secrets.next());
            let writes = nodes.into_iter().chain(self.due.statuses.next()).min();
            let pace = self.pace.next(now);
            all.extend(writes.zip(pace).map(|(due, free)| due.max(free)));
        }
        if self.questions < MOST_QUESTIONS {
            all.extend(self.cache.next());
        }
        if self.calls.len() >= MOST_CALLS {
            // Whatever is due waits for an answer.
            all.retain(|at| *at > now);
        }
        all.into_iter().min().unwrap_or(now)
    }

    /// Looks at what is due.
    fn work(&mut self, now: Instant) {
        if self.open == Opening::Listing && self.world.is_complete() {
            self.first_look(now);
        }
        if self.open != Opening::Listing {
            while let Some(key) = self.due.objects.take(now) {
                let begun = Instant::now();
                self.look_at_object(&key, now);
                let took = begun.elapsed();
                self.metrics.reconcile.observe(took.as_secs_f64());
            }
            self.open_up(now);
            self.read_secrets(now);
            self.write_statuses(now);
        }
        if self.open == Opening::Open {
            self.write_nodes(now);
            self.write_says(now);
            self.write_copies(now);
        }
        self.ask_registry(now);
    }

    /// Everything is known: slots that are taken are counted before any is given away.
    fn first_look(&mut self, now: Instant) {
        self.open = Opening::Waiting(now + OPEN_WITHIN);
        let keys: Vec<ObjectKey> = self.world.object_keys();
        for key in &keys {
            self.wishes.keep(key);
            self.count_slots(key, now);
        }
        for key in keys {
            self.due.objects.mark(&key, now);
        }
        self.mark(vec![Mark::AllNodes]);
        // Objects may have gone while nobody led.
        self.copies.mark(now);
        tracing::info!(
            image_caches = self.world.objects.len(),
            nodes = self.world.facts.len(),
            "the cluster is read"
        );
    }

    /// Writes may begin when every object was looked at, with the registry's word on what it serves and with the pods
    /// that it asks for.
    fn open_up(&mut self, now: Instant) {
        let is_told = self.cache.registries().is_some() && !self.world.awaits_pods(now);
        if let Opening::Waiting(until) = self.open
            && (is_told || until <= now)
            && self.due.objects.next().is_none_or(|next| next > now)
        {
            self.open = Opening::Open;
        }
    }

    fn mark(&mut self, marks: Vec<Mark>) {
        let now = Instant::now();
        for mark in marks {
            match mark {
                Mark::Object(key) => self.due.objects.mark(&key, now),
                Mark::AllObjects => {
                    for key in self.world.object_keys() {
                        self.due.objects.mark(&key, now);
                    }
                }
                Mark::Node(node) => self.due.nodes.mark(&node, now),
                Mark::Says(node) => self.due.says.mark(&node, now),
                // No object is looked at later than that.
                Mark::Unseen(node) => drop(self.unseen.insert(node, now + OBJECT_PAUSE)),
                Mark::AllNodes => {
                    for node in self.world.node_names() {
                        self.due.nodes.mark(&node, now);
                    }
                }
                Mark::Outcome(node, outcome) => self.tell_outcome(&node, &outcome),
                Mark::Warm(took) => self.metrics.time_to_warm.observe(took.as_secs_f64()),
            }
        }
    }

    fn ask_registry(&mut self, now: Instant) {
        let room = MOST_CALLS.saturating_sub(self.calls.len());
        let room = room.min(MOST_QUESTIONS.saturating_sub(self.questions));
        if room == 0 {
            return;
        }
        for question in self.cache.ask(room, now) {
            self.questions += 1;
            self.calls
                .push(calls::ask(&self.settings.registry, question));
        }
    }

    fn read_secrets(&mut self, now: Instant) {
        let room = MOST_CALLS.saturating_sub(self.calls.len());
        for key in self.secrets.ask(room, now) {
            self.calls.push(calls::read_secret(&self.client, key));
        }
    }

    fn registry_said(&mut self, affected: Affected) {
        self.metrics
            .registry_reachable
            .set(i64::from(self.cache.is_reachable()));
        match affected {
            Affected::None => {}
            Affected::One(key) => self.mark(vec![Mark::Object(key)]),
            Affected::All => self.mark(vec![Mark::AllObjects, Mark::AllNodes]),
        }
    }
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leader")
            .field("open", &self.open)
            .field("calls", &self.calls.len())
            .finish_non_exhaustive()
    }
}

/// Between two looks at an object: a look at thousands of nodes takes a tenth of it.
const OBJECT_PAUSE: Duration = Duration::from_secs(1);
/// Between two writes of a `NodeCache`: grants of several objects become one write.
const NODE_PAUSE: Duration = Duration::from_millis(500);
/// Between two writes of a status (L20).
const STATUS_PAUSE: Duration = Duration::from_secs(2);
/// The first `NodeCache` is written at the latest so long after everything was read.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// Calls at once, of all kinds: the API server's fairness gives one client few more.
const MOST_CALLS: usize = 32;
/// Questions to the registry among them.
const MOST_QUESTIONS: usize = 8;
/// Longer than any call.
const LAST_CALLS: Duration = Duration::from_secs(12);

#[cfg(test)]
mod tests;
