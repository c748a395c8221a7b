//! The node's side of the warmer, without an API server: an executor on a scripted runtime, over a real socket.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coral_schema::crd::NodeCacheSpec;
use coral_schema::crd::node_cache::{ImageState, NodeImageStatus, PurgeResult};
use coral_schema::oci::ImageReference;
use coral_schema::process::tasks::Tasks;
use coral_warmer::credentials::Credentials;
use coral_warmer::cri::Client;
use coral_warmer::cri::containerd::{Containerd, Told};
use coral_warmer::disk::Space;
use coral_warmer::execute::{
    Cache, CacheUnreachable, Config, Executor, Held, Metrics, NodeState, Wishes,
};
use coral_warmer::record::Record;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cri::Cri;

const PATIENCE: Duration = Duration::from_secs(30);

/// A cache that says the same about everything.
#[derive(Debug)]
pub struct Shelf(Mutex<Result<Held, CacheUnreachable>>);

impl Shelf {
    /// It does so from now on.
    pub fn says(&self, answer: Result<Held, CacheUnreachable>) {
        *self.0.lock().expect("no panic with the lock") = answer;
    }
}

impl Cache for Shelf {
    fn holds<'a>(&'a self, _: &'a ImageReference) -> BoxFuture<'a, Result<Held, CacheUnreachable>> {
        async { self.0.lock().expect("no panic with the lock").clone() }.boxed()
    }
}

/// A file system of 100 GiB, as full in percent as a file in it says, else empty.
fn space(folder: &Path) -> io::Result<Space> {
    let percent = match fs::read_to_string(folder.join("percent")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        percent => percent.unwrap_or_default(),
    };
    let percent: u64 = percent.parse().unwrap_or(0);
    Ok(Space {
        capacity: 100 << 30,
        used: percent << 30,
    })
}

/// An executor on a runtime, with a state folder that outlives it.
#[derive(Debug)]
pub struct Node {
    /// The cache.
    pub shelf: Arc<Shelf>,
    /// What it is told.
    pub wishes: watch::Sender<Option<Arc<Wishes>>>,
    /// What it says.
    pub state: watch::Receiver<Arc<NodeState>>,
    tasks: Tasks,
    registry: Registry,
    /// Between two looks.
    pub look_interval: &'static str,
    /// Percent of the disk that may be used.
    pub budget: u8,
    /// Of the last wishes.
    pub generation: i64,
}

impl Node {
    /// Starts on what an earlier one left in `folder`. The disk is as full as its file `percent` says, and as busy as its
    /// file `pressure` says in the words of the kernel; copied pull secrets are in its folder `pull-secrets`.
    pub fn start(cri: &Cri, folder: &Path) -> Self {
        Self::start_with(cri, folder, None)
    }

    /// The same, with leave to use containerd's own API.
    pub fn start_beyond_the_cri(cri: &Cri, folder: &Path) -> Self {
        let containerd = Containerd::new(&cri.socket()).expect("a path");
        Self::start_with(cri, folder, Some(containerd))
    }

    fn start_with(cri: &Cri, folder: &Path, containerd: Option<Containerd>) -> Self {
        let mut registry = Registry::default();
        let runtime = Arc::new(Client::new(&cri.socket(), &mut registry).expect("a path"));
        let shelf = Arc::new(Shelf(Mutex::new(Ok(Held::Absent))));
        let config = Config {
            state: folder.to_owned(),
            imagefs: folder.to_owned(),
            measure: space,
            pressure: folder.join("pressure"),
            containerd: containerd.clone(),
            credentials: Credentials::new(Some(folder.join("pull-secrets"))),
            start_spread: Duration::ZERO,
        };
        let record = Record::load(folder).expect("a folder");
        let metrics = Metrics::register(&mut registry);
        let (executor, state) =
            Executor::new(runtime, Arc::clone(&shelf) as _, config, record, metrics);
        let (wishes, receiver) = watch::channel(None);
        let tasks = Tasks::new();
        let (tells, told) = watch::channel(Told::default());
        if let Some(containerd) = containerd {
            tasks.spawn("containerd", containerd.listen(tells, tasks.stopping()));
        }
        tasks.spawn("executor", executor.run(receiver, told, tasks.stopping()));
        Self {
            shelf,
            wishes,
            state,
            tasks,
            registry,
            look_interval: "1s",
            budget: 100,
            generation: 0,
        }
    }

    /// The whole spec anew.
    pub fn wish(&mut self, images: &Value, purge: &[&str]) {
        let purge: Vec<Value> = purge
            .iter()
            .map(|name| json!({ "ref": name, "notAfter": "2999-01-01T00:00:00Z" }))
            .collect();
        let spec: NodeCacheSpec = serde_json::from_value(json!({
            "nodeUID": "u", "lookInterval": self.look_interval, "images": images, "purge": purge,
            "budget": { "maxUsedPercent": self.budget },
        }))
        .expect("a spec");
        self.generation += 1;
        let generation = self.generation;
        self.wishes
            .send_replace(Some(Arc::new(Wishes { generation, spec })));
    }

    /// Waits until the state is as it should be.
    pub async fn until(
        &mut self,
        what: &str,
        reached: impl Fn(&NodeState) -> bool,
    ) -> Arc<NodeState> {
        let wait = self.state.wait_for(|state| reached(state));
        let reached = tokio::time::timeout(PATIENCE, wait)
            .await
            .map(|state| state.expect("the executor runs").clone());
        reached.unwrap_or_else(|_| panic!("not {what}: {:#?}", self.state.borrow()))
    }

    /// Waits until the image stands so.
    pub async fn image(&mut self, name: &str, state: ImageState) -> NodeImageStatus {
        let found = |node: &NodeState| {
            let mut images = node.images.iter();
            images
                .find(|image| image.reference == name && image.state == state)
                .cloned()
        };
        let node = self
            .until(&format!("{name} {state:?}"), |node| found(node).is_some())
            .await;
        found(&node).expect("it was found")
    }

    /// Whenever it holds the images the node removes them, so often.
    pub async fn evicted(&mut self, cri: &Cri, names: &[&str], times: u32) {
        for evictions in 0..times {
            self.until("everything held", |state| {
                !state.images.is_empty()
                    && state.images.iter().all(|image| {
                        image.state == ImageState::Ready && image.evictions == evictions
                    })
            })
            .await;
            for name in names {
                cri.evict(name);
            }
        }
    }

    /// Waits until the wish to remove is settled.
    pub async fn purged(&mut self, name: &str) -> PurgeResult {
        let found = |node: &NodeState| {
            let mut outcomes = node.purge.iter();
            outcomes
                .find(|outcome| outcome.reference == name)
                .map(|outcome| outcome.result)
        };
        let node = self
            .until(&format!("{name} settled"), |node| found(node).is_some())
            .await;
        found(&node).expect("it was found")
    }

    /// A counter or gauge as it is scraped.
    pub fn metric(&self, name: &str) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String can be written");
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or("none").to_owned()
    }

    /// Ends it.
    pub async fn stop(self) {
        assert!(self.tasks.stop(PATIENCE).await);
    }
}
