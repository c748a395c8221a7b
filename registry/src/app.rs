//! The composition root: builds the parts in order, owns their tasks, and takes them down in the reverse order.
//!
//! Nothing decides here. [`App::build`] opens what is on disk and binds the listeners, so that whatever can fail fails
//! before the first request; it never contacts an upstream. [`App::run`] serves until it is told to stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use coral_schema::process::health::{self, Health};
use coral_schema::process::serve::Router;
use coral_schema::process::shutdown::Shutdown;
use coral_schema::process::tasks::Tasks;
use prometheus_client::registry::Registry;

use self::lock::DataLock;
use self::parts::Opened;
use self::reload::{Listeners, hosted_settings, pull_config, transfer_config};
use crate::access::Access;
use crate::admin::{self, auth, guard, page};
use crate::config::watch::{self, ConfigWatch, ReloadState};
use crate::config::{Config, Overrides};
use crate::hosted::{self, Hosted, HostedMetrics};
use crate::http;
use crate::index::Index;
use crate::metrics;
use crate::name::RepoKey;
use crate::pull::{Parts, PullMetrics, Puller};
use crate::rebuild::{Progress, Rebuild};
use crate::server::{self, Addresses, Server};
use crate::store::BlobStore;
use crate::transfer::{Stores, TransferMetrics, Transfers};

mod admission;
mod durability;
pub mod lock;
mod panel;
mod parts;
mod reload;

/// A registry that is ready to serve.
#[derive(Debug)]
pub struct App {
    server: Server,
    oci: Router,
    admin: Router,
    accepting: health::Latch,
    tasks: Tasks,
    index: Index,
    blobs: Arc<dyn BlobStore>,
    /// Held until the end.
    _lock: DataLock,
}

/// Where the configuration comes from, for reloading it.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// What wins over it.
    pub overrides: Overrides,
}

impl Origin {
    fn state(&self) -> ReloadState {
        match self.file {
            Some(_) => ReloadState::Current,
            None => ReloadState::Defaults,
        }
    }
}

impl App {
    /// Opens the data folder, binds the listeners and builds everything between them. `registry` has what the process
    /// itself counts.
    pub async fn build(
        config: Config,
        origin: Origin,
        mut registry: Registry,
        tasks: Tasks,
    ) -> anyhow::Result<Self> {
        let lock = DataLock::acquire(&config.data).await?;
        let server = Server::bind(&server_config(&config)).await?;
        let metrics = metrics::prefixed(&mut registry);
        let opened = parts::open(&config, metrics, &tasks).await?;
        let (upstreams, access) = admission::open(&config, &opened, metrics, &tasks)?;
        let rebuild = rebuilder(&opened, &access);
        rebuild.start(&tasks);
        admission::follow_users(&access, &tasks);
        let (transfers, puller) = pulling(&config, &opened, &rebuild, metrics, &tasks);
        let hosted = hosting(&config, &opened, (&rebuild, &access), metrics, &tasks);
        let (pull, push) = (puller.clone(), hosted.clone());
        let oci = http::router(Arc::clone(&access), pull, push, place(&server), metrics);
        let watched = Arc::new(ConfigWatch::new(config, origin.state(), metrics));
        let (health, accepting) = probes(&opened, &tasks);
        let listeners = Listeners {
            upstreams,
            access: Arc::clone(&access),
            puller: puller.clone(),
            transfers: transfers.clone(),
            hosted,
        };
        let view = panel::View {
            address: server.addresses().oci,
            is_tls: server.is_tls(),
            health: Arc::clone(&health),
            watched: Arc::clone(&watched),
            access,
            transfers,
            puller,
            lent: listeners.upstreams.lent(),
            hosted: listeners.hosted.clone(),
        };
        follow_configuration(&watched, origin, listeners, &tasks);
        let mut api = admin::router(panel::panel(view, &opened, &tasks));
        if let Some(auth) = watched.config().borrow().admin.auth.clone() {
            api = auth::authenticated(api, auth);
        }
        let open = page::router().merge(health::router(health, Arc::new(registry)));
        let admin = api.merge(open);
        let admin = guard::guarded(admin, watched.config().borrow().admin.hosts.clone());
        Ok(Self {
            server,
            oci,
            admin,
            accepting,
            tasks,
            index: opened.index,
            blobs: opened.blobs,
            _lock: lock,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.server.addresses()
    }

    /// Is the OCI listener's scheme `https`?
    pub fn is_tls(&self) -> bool {
        self.server.is_tls()
    }

    /// Serves until `shutdown`, lets running responses finish, and writes down what is known.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.accepting.open();
        let accepting = self.accepting.clone();
        let stop = shutdown.stop.clone();
        self.tasks.spawn("not ready", async move {
            stop.cancelled().await;
            accepting.close();
        });
        let serving = self
            .server
            .serve(self.oci, self.admin, &self.tasks, shutdown.stop.clone());
        tokio::select! {
            finished = serving => if !finished {
                tracing::warn!("some responses were cut: they took longer than shutdownGrace");
            },
            () = shutdown.now.cancelled() => {}
        }
        if !self.tasks.stop(LAST_TASKS).await {
            tracing::warn!("some background work did not end in time");
        }
        // "Clean" promises that everything is on disk (H-09).
        let syncing = durability::sync(&*self.blobs, &self.index);
        if !tokio::time::timeout(LAST_SYNC, syncing)
            .await
            .unwrap_or(false)
        {
            tracing::warn!(
                "not everything is known to be on disk; after a power loss it is looked at again"
            );
            return Ok(self.index.flush().await?);
        }
        self.index
            .close()
            .await
            .context("the index was not closed cleanly; it is checked at the next start")
    }
}

/// Makes the index anew from the store, while no registry uses it.
pub async fn rebuild(config: Config) -> anyhow::Result<Progress> {
    let _lock = DataLock::acquire(&config.data).await?;
    parts::remove_index(&config.data).await?;
    let (tasks, mut registry) = (Tasks::new(), Registry::default());
    let opened = parts::open(&config, &mut registry, &tasks).await?;
    let (_, access) = admission::open(&config, &opened, &mut registry, &tasks)?;
    let progress = rebuilder(&opened, &access).whole().await?;
    tasks.stop(LAST_TASKS).await;
    opened.index.close().await?;
    Ok(progress)
}

fn server_config(config: &Config) -> server::Config {
    server::Config {
        listen: config.listen,
        admin_listen: config.admin.listen,
        admin_tls: config.admin.tls.clone(),
        tls: config.tls.clone(),
        connections: config.connections,
        shutdown_grace: config.shutdown_grace,
    }
}

/// What brings a lost index back; the configuration may say more about who may read than the records do.
fn rebuilder(opened: &Opened, access: &Arc<Access>) -> Rebuild {
    let access = Arc::clone(access);
    let is_public = Box::new(move |repo: &RepoKey, row| access.is_public_on_record(repo, row));
    let (blobs, records) = (Arc::clone(&opened.blobs), Arc::clone(&opened.records));
    Rebuild::new(opened.index.clone(), blobs, records, is_public)
}

fn pulling(
    config: &Config,
    opened: &Opened,
    rebuild: &Rebuild,
    metrics: &mut Registry,
    tasks: &Tasks,
) -> (Transfers, Puller) {
    let counters = TransferMetrics::register(metrics);
    let stores = Stores {
        blobs: Arc::clone(&opened.blobs),
        records: Arc::clone(&opened.records),
        room: opened.evictor.room().clone(),
    };
    let transfers = Transfers::new(
        transfer_config(config),
        stores,
        opened.index.clone(),
        tasks.clone(),
        counters,
    );
    let parts = Parts {
        index: opened.index.clone(),
        blobs: Arc::clone(&opened.blobs),
        records: Arc::clone(&opened.records),
        transfers: transfers.clone(),
        rebuild: rebuild.clone(),
        tasks: tasks.clone(),
        metrics: PullMetrics::register(metrics),
    };
    let puller = Puller::new(parts, pull_config(config), config.cache.manifest_memory);
    (transfers, puller)
}

/// Where clients find us.
fn place(server: &Server) -> http::Place {
    http::Place {
        bound: server.addresses().oci,
        is_tls: server.is_tls(),
    }
}

/// Takes pushes, forgets the uploads that nobody goes on with, and collects what nobody needs.
fn hosting(
    config: &Config,
    opened: &Opened,
    (rebuild, access): (&Rebuild, &Arc<Access>),
    metrics: &mut Registry,
    tasks: &Tasks,
) -> Hosted {
    let parts = hosted::Parts {
        index: opened.index.clone(),
        blobs: Arc::clone(&opened.blobs),
        uploads: Arc::clone(&opened.uploads),
        records: Arc::clone(&opened.records),
        rebuild: rebuild.clone(),
        access: Arc::clone(access),
        evictor: opened.evictor.clone(),
        metrics: HostedMetrics::register(metrics),
        tasks: tasks.clone(),
    };
    let hosted = Hosted::new(parts, hosted_settings(config));
    hosted.start_collecting(tasks);
    let (sweeping, stopping) = (hosted.clone(), tasks.stopping());
    tasks.spawn("sweep uploads", async move {
        stopping.run_until_cancelled(sweeping.sweep_forever()).await
    });
    hosted
}

fn probes(opened: &Opened, tasks: &Tasks) -> (Arc<Health>, health::Latch) {
    let mut health = Health::new();
    health.watch_event_loop(tasks);
    let index = opened.index.clone();
    health.live_while("index", move || index.progressing(STUCK));
    let accepting = health.latch("listeners");
    (Arc::new(health), accepting)
}

fn follow_configuration(
    watched: &Arc<ConfigWatch>,
    origin: Origin,
    listeners: Listeners,
    tasks: &Tasks,
) {
    let stopping = tasks.stopping();
    let changes = watched.config();
    let upstreams = Arc::clone(&listeners.upstreams);
    tasks.spawn("reload", async move {
        stopping
            .run_until_cancelled(listeners.follow(changes))
            .await
    });
    if let Some(file) = origin.file {
        let source = watch::Source {
            file,
            overrides: origin.overrides,
            period: watch::PERIOD,
        };
        let trial = move |config: &Config| upstreams.try_out(config).map_err(|e| e.to_string());
        tasks.spawn(
            "configuration",
            Arc::clone(watched).run(source, Arc::new(trial), tasks.stopping()),
        );
    }
}

/// How long background work may take to end after the last response.
const LAST_TASKS: Duration = Duration::from_secs(5);
/// How long the last sync may take: a Pod has little more time to end.
const LAST_SYNC: Duration = Duration::from_secs(10);
/// Silence of the index thread after which the process should be restarted.
const STUCK: Duration = Duration::from_mins(1);
