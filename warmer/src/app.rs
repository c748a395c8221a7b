//! The composition root: builds the parts in order, owns their tasks, and takes them down.
//!
//! Nothing decides here. [`App::build`] opens what is on disk and binds the listener; it asks neither the API server nor
//! the runtime, so that a node whose API server is away still starts. [`App::run`] works until it is told to stop, or
//! until the runtime's socket is dead.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use coral_schema::process::health::{self, Health};
use coral_schema::process::serve::{Drain, Limits, Router, Server};
use coral_schema::process::shutdown::Shutdown;
use coral_schema::process::tasks::Tasks;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::credentials::Credentials;
use crate::cri::alive::{self, SocketDead};
use crate::cri::containerd::{Containerd, Told};
use crate::cri::{self, Version};
use crate::disk::Space;
use crate::execute::{self, Executor, Metrics, Wishes};
use crate::metrics;
use crate::mirror::Mirrors;
use crate::mirror::gate::Gate;
use crate::record::Record;
use crate::report::{Reporter, Sources};
use crate::watch::Watch;

/// All nodes learn of new wishes in the same second: each starts at its own time within this one.
pub const START_SPREAD: Duration = Duration::from_secs(5);
/// How long background work may take to end.
const LAST_TASKS: Duration = Duration::from_secs(5);
/// Connections to the admin listener at once: probes and scrapes.
const CONNECTIONS: usize = 64;

/// What differs from node to node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// Socket of the container runtime.
    pub cri_socket: PathBuf,
    /// containerd's own API on that socket may be used.
    pub containerd_api: bool,
    /// Folder of copied pull secrets; `None`: there are none.
    pub pull_secrets: Option<PathBuf>,
    /// Folder for what must survive a restart; made if it is missing.
    pub state: PathBuf,
    /// Anything on the file system of the runtime's images.
    pub imagefs: PathBuf,
    /// Asks about that file system: [`Space::of`] but in tests.
    pub measure: fn(&Path) -> io::Result<Space>,
    /// Where the kernel says how busy the disks are: [`crate::pressure::FILE`] but in tests.
    pub pressure: PathBuf,
    /// Folder of the runtime's mirror settings; `None`: they are not touched.
    pub mirror_config: Option<PathBuf>,
    /// Where probes and metrics are served; port 0 takes any free one.
    pub admin_listen: SocketAddr,
    /// See [`START_SPREAD`].
    pub start_spread: Duration,
    /// Between two probes of the cache: [`crate::mirror::PERIOD`].
    pub probe_period: Duration,
}

/// Why it ended.
#[derive(Debug)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// Only a new container gets a socket that works.
    SocketDead(SocketDead),
}

/// A warmer that is ready to work.
#[derive(Debug)]
pub struct App {
    tasks: Tasks,
    admin: TcpListener,
    address: SocketAddr,
    router: Router,
    runtime: Arc<cri::Client>,
    version: watch::Sender<Option<Version>>,
    wishes: watch::Receiver<Option<Arc<Wishes>>>,
    watch: Watch,
    executor: Executor,
    containerd: Option<Containerd>,
    mirrors: Mirrors,
    reporter: Reporter,
}

/// A client of the API server, with in-cluster credentials or those of `KUBECONFIG`. Touches no network.
pub async fn connect() -> anyhow::Result<Client> {
    Client::try_default()
        .await
        .context("no API server: neither in-cluster credentials nor KUBECONFIG")
}

impl App {
    /// Reads the state folder, binds the listener and builds everything between them. `registry` has what the process
    /// itself counts.
    pub async fn build(
        config: Config,
        client: Client,
        mut registry: Registry,
        tasks: Tasks,
    ) -> anyhow::Result<Self> {
        let record = record(config.state.clone()).await?;
        let admin = TcpListener::bind(config.admin_listen)
            .await
            .with_context(|| {
                let address = config.admin_listen;
                format!("cannot listen on {address}, which --admin-listen changes")
            })?;
        let address = admin.local_addr()?;
        let families = metrics::prefixed(&mut registry);
        let runtime = Arc::new(cri::Client::new(&config.cri_socket, families)?);
        let counters = Metrics::register(families);
        let (version, who) = watch::channel(None);
        let node = config.node;
        let (watch, wishes) = Watch::new(client.clone(), node.clone(), config.state.clone()).await;
        let (mirrors, mirror) = Mirrors::new(config.mirror_config, config.probe_period);
        let containerd = if config.containerd_api {
            Some(Containerd::new(&config.cri_socket)?)
        } else {
            None
        };
        let surroundings = execute::Config {
            containerd: containerd.clone(),
            credentials: Credentials::new(config.pull_secrets),
            state: config.state,
            imagefs: config.imagefs,
            measure: config.measure,
            pressure: config.pressure,
            start_spread: config.start_spread,
        };
        let gate = Arc::new(Gate::new(mirror.clone()));
        let (executor, state) =
            Executor::new(runtime.clone(), gate, surroundings, record, counters);
        let sources = Sources {
            wishes: wishes.clone(),
            node: state,
            mirror,
            runtime: who.clone(),
        };
        let health = probes(who, &tasks);
        Ok(Self {
            router: health::router(Arc::new(health), Arc::new(registry)),
            reporter: Reporter::new(client, node, sources),
            tasks,
            admin,
            address,
            runtime,
            version,
            wishes,
            watch,
            executor,
            containerd,
            mirrors,
        })
    }

    /// Where probes and metrics are served.
    pub fn admin(&self) -> SocketAddr {
        self.address
    }

    /// Works until `shutdown`, or until the runtime's socket is dead.
    pub async fn run(self, shutdown: Shutdown) -> Ended {
        let Self {
            tasks,
            admin,
            address: _,
            router,
            runtime,
            version,
            wishes,
            watch,
            executor,
            containerd,
            mirrors,
            reporter,
        } = self;
        let stopping = tasks.stopping();
        let who = version.subscribe();
        tasks.spawn("watch", watch.run(stopping.clone()));
        tasks.spawn("mirror", mirrors.run(wishes.clone(), who, stopping.clone()));
        tasks.spawn("report", reporter.run(stopping.clone()));
        let (tells, told) = watch::channel(Told::default());
        if let Some(containerd) = containerd {
            tasks.spawn("containerd", containerd.listen(tells, stopping.clone()));
        }
        tasks.spawn("execute", executor.run(wishes, told, stopping));
        let serving = serve(admin, router, &tasks, &shutdown);
        let ended = tokio::select! {
            dead = alive::watch(runtime.as_ref(), &version) => Ended::SocketDead(dead),
            () = shutdown.stop.cancelled() => Ended::Stopped,
            () = serving => Ended::Stopped,
        };
        if !tasks.stop(LAST_TASKS).await {
            tracing::warn!("some background work did not end in time");
        }
        ended
    }
}

async fn record(state: PathBuf) -> anyhow::Result<Record> {
    let shown = state.display().to_string();
    let load = move || -> io::Result<Record> {
        std::fs::create_dir_all(&state)?;
        Record::load(&state)
    };
    tokio::task::spawn_blocking(load)
        .await?
        .with_context(|| format!("the state folder {shown}, which --state changes"))
}

/// Ready while the runtime answers. Neither the API server nor the cache counts: the node is repaired without them.
fn probes(who: watch::Receiver<Option<Version>>, tasks: &Tasks) -> Health {
    let mut health = Health::new();
    health.watch_event_loop(tasks);
    health.ready_while("container runtime", move || who.borrow().is_some());
    health
}

async fn serve(listener: TcpListener, router: Router, tasks: &Tasks, shutdown: &Shutdown) {
    let server = Server {
        listener,
        router,
        handshake: None,
        limits: Limits {
            connections: CONNECTIONS,
            ..Limits::default()
        },
        drain: Drain {
            linger: Duration::ZERO,
            grace: Duration::from_secs(1),
        },
    };
    server.run(tasks, shutdown.stop.clone()).await;
}
