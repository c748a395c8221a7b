//! A scripted Kubernetes API server: objects of any kind in memory, with get, list, watch, server-side apply and delete.
//!
//! Kept small: an apply replaces `spec` or `status` as a whole, nothing is validated, and there is one field selector
//! (`metadata.name=`). What it was asked is kept for tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use coral_schema::process::serve::{Drain, Limits, Server};
use coral_schema::process::tasks::Tasks;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod answer;

/// No test waits longer for an object.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server. Ends with this value.
#[derive(Debug)]
pub struct Kube {
    address: SocketAddr,
    world: Arc<World>,
    serving: Option<Tasks>,
}

/// Which object: plural, namespace (empty for cluster-wide ones), name.
type Key = (String, String, String);

#[derive(Debug)]
struct World {
    state: Mutex<State>,
    /// The version of the last event.
    latest: watch::Sender<u64>,
    silent: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    /// Type, key and object of each event; its version is its place, from 1.
    events: Vec<(&'static str, Key, Value)>,
    requests: Vec<String>,
}

impl Kube {
    /// With no objects.
    pub async fn start() -> anyhow::Result<Self> {
        let mut kube = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            world: Arc::new(World {
                state: Mutex::default(),
                latest: watch::channel(0).0,
                silent: watch::channel(false).0,
            }),
            serving: None,
        };
        kube.listen().await?;
        Ok(kube)
    }

    /// Serves (again), at the same address; objects are as they were.
    pub async fn listen(&mut self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.address = listener.local_addr()?;
        let tasks = Tasks::new();
        let world = Arc::clone(&self.world);
        let router = Router::new().fallback(move |request| answer::answer(world.clone(), request));
        let server = Server {
            listener,
            router,
            handshake: None,
            limits: Limits::default(),
            drain: Drain {
                linger: Duration::ZERO,
                grace: Duration::ZERO,
            },
        };
        let owner = tasks.clone();
        tasks.spawn("kube", async move {
            let stop: CancellationToken = owner.stopping();
            server.run(&owner, stop).await
        });
        self.serving = Some(tasks);
        Ok(())
    }

    /// Nobody listens any more, and every connection is cut.
    pub async fn close(&mut self) {
        if let Some(tasks) = self.serving.take() {
            assert!(tasks.stop(PATIENCE).await, "the API server did not stop");
        }
    }

    /// Connections stay open, requests are taken, and nothing is answered.
    pub fn silence(&self, silent: bool) {
        self.world.silent.send_replace(silent);
    }

    /// Where it listens, without TLS.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client of it.
    pub fn client(&self) -> anyhow::Result<kube::Client> {
        let url = format!("http://{}", self.address).parse()?;
        Ok(kube::Client::try_from(kube::Config::new(url))?)
    }

    /// Makes an object, or gives it another spec.
    pub fn put(&self, plural: &str, namespace: &str, object: &Value) {
        let name = object["metadata"]["name"].as_str().expect("a name");
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.world.put(&key, object, "spec");
    }

    /// Gives a cluster-wide object another status.
    pub fn put_status(&self, plural: &str, name: &str, status: &Value) {
        let key = (plural.to_owned(), String::new(), name.to_owned());
        self.world.put(&key, &json!({ "status": status }), "status");
    }

    /// Makes a cluster-wide object disappear.
    pub fn delete(&self, plural: &str, name: &str) {
        let key = (plural.to_owned(), String::new(), name.to_owned());
        self.world.delete(&key);
    }

    /// A cluster-wide object as it is now.
    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), String::new(), name.to_owned());
        self.world.state().objects.get(&key).cloned()
    }

    /// Waits until a cluster-wide object is as it should be; returns it.
    pub async fn until(
        &self,
        plural: &str,
        name: &str,
        check: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let mut latest = self.world.latest.subscribe();
        let waiting = async {
            loop {
                latest.borrow_and_update();
                if let Some(object) = self.get(plural, name).filter(&check) {
                    return object;
                }
                if latest.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .with_context(|| format!("{plural}/{name} is {:#?}", self.get(plural, name)))
    }

    /// Every request so far: method, path and query.
    pub fn requests(&self) -> Vec<String> {
        self.world.state().requests.clone()
    }
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the lock")
    }

    /// Does not return while nothing is answered.
    async fn answering(&self) {
        let mut silent = self.silent.subscribe();
        // The sender lives as long as this.
        let _ = silent.wait_for(|silent| !silent).await;
    }

    /// Takes over `part` (`spec` or `status`), labels, annotations and the like. Returns the object.
    fn put(&self, key: &Key, applied: &Value, part: &str) -> Value {
        let mut state = self.state();
        let version = state.events.len() + 1;
        let known = state.objects.get(key).cloned();
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        let mut object = known.clone().unwrap_or_else(|| applied.clone());
        if let (Value::Object(all), Value::Object(new)) =
            (&mut object["metadata"], &applied["metadata"])
        {
            all.extend(new.clone());
        }
        object[part] = applied[part].clone();
        let known = known.unwrap_or_default();
        if known == object {
            return object;
        }
        let generation = known["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = known["spec"] != object["spec"];
        object["metadata"]["generation"] = json!(generation + i64::from(changed));
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if known.is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{version}"));
        }
        state.objects.insert(key.clone(), object.clone());
        state.events.push((kind, key.clone(), object.clone()));
        drop(state);
        self.latest.send_modify(|latest| *latest += 1);
        object
    }

    fn delete(&self, key: &Key) -> Option<Value> {
        let mut state = self.state();
        let mut object = state.objects.remove(key)?;
        let version = state.events.len() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        state.events.push(("DELETED", key.clone(), object.clone()));
        drop(state);
        self.latest.send_modify(|latest| *latest += 1);
        Some(object)
    }
}
