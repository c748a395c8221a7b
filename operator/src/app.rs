//! The composition root: serves probes, waits for the definitions and for the lease, then leads until it is lost.
//!
//! A follower is as ready as a leader. All work of a leader is one future: losing the lease drops it, with every request
//! that is on its way.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::process::health::{self, Health, Latch};
use coral_schema::process::serve::{Drain, Limits, Router, Server};
use coral_schema::process::shutdown::Shutdown;
use coral_schema::process::tasks::Tasks;
use kube::Client;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry as Metrics;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::leader::{self, Leader, Settings};
use crate::lease::Candidate;
use crate::{crds, metrics};

/// An operator that can start.
pub struct App {
    client: Client,
    settings: Arc<Settings>,
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    definitions: Latch,
    leading: Gauge<i64>,
    metrics: leader::Metrics,
    tasks: Tasks,
}

impl App {
    /// Binds the admin listener, for probes and metrics. `metrics` has what the process itself counts.
    pub async fn build(
        client: Client,
        admin_listen: SocketAddr,
        settings: Settings,
        mut metrics: Metrics,
        tasks: Tasks,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(admin_listen).await?;
        let address = listener.local_addr()?;
        let mut health = Health::new();
        health.watch_event_loop(&tasks);
        let definitions = health.latch(crds::REMEDY);
        let prefixed = metrics::prefixed(&mut metrics);
        let leading = Gauge::<i64, _>::default();
        prefixed.register(
            "leading",
            "1 while this process holds the lease",
            leading.clone(),
        );
        let leader = leader::Metrics::register(prefixed);
        Ok(Self {
            client,
            settings: Arc::new(settings),
            listener,
            address,
            router: health::router(Arc::new(health), Arc::new(metrics)),
            definitions,
            leading,
            metrics: leader,
            tasks,
        })
    }

    /// Where probes and metrics are served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Works until `shutdown`; then lets running writes end, and gives the lease to the next.
    pub async fn run(self, shutdown: Shutdown) {
        let Self {
            client,
            settings,
            listener,
            address: _,
            router,
            definitions,
            leading,
            metrics,
            tasks,
        } = self;
        let server = Server {
            listener,
            router,
            handshake: None,
            limits: Limits {
                connections: ADMIN_CONNECTIONS,
                ..Limits::default()
            },
            drain: Drain {
                linger: Duration::ZERO,
                grace: Duration::from_secs(1),
            },
        };
        let (serving, closing) = (tasks.clone(), tasks.stopping());
        tasks.spawn("admin", async move { server.run(&serving, closing).await });
        let terms = async {
            wait_for_definitions(&client, &definitions).await;
            loop {
                let leader = Leader::new(client.clone(), Arc::clone(&settings), metrics.clone());
                term(&settings.candidate, leader, &leading, &shutdown.stop).await;
                if shutdown.stop.is_cancelled() {
                    return;
                }
            }
        };
        tokio::select! {
            () = terms => {}
            () = until_given_up(&shutdown) => tracing::warn!("ending with work undone"),
        }
        if !tasks.stop(LAST_TASKS).await {
            tracing::warn!("some background work did not end in time");
        }
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Leads once, from the lease to its loss or to the end of the process.
async fn term(
    candidate: &Candidate,
    leader: Leader,
    leading: &Gauge<i64>,
    stop: &CancellationToken,
) {
    let Some(mut tenure) = stop.run_until_cancelled(candidate.acquire()).await else {
        return;
    };
    tracing::info!("leading");
    leading.set(1);
    let lost = tokio::select! {
        lost = tenure.keep() => Some(lost),
        () = leader.run(stop.clone()) => None,
    };
    leading.set(0);
    match lost {
        Some(lost) => tracing::warn!(?lost, "the lease is lost; all work stopped"),
        None => tenure.release().await,
    }
}

/// Opens the latch when the cluster's definitions are those that we were built with. They may be written at any time.
async fn wait_for_definitions(client: &Client, latch: &Latch) {
    let mut told = String::new();
    loop {
        let problem = match crds::check(client).await {
            Ok(other) if other.is_empty() => break,
            Ok(other) => format!("{}: {}", crds::REMEDY, other.join(", ")),
            Err(error) => error.to_string(),
        };
        if problem != told {
            tracing::warn!("{problem}");
            told = problem;
        }
        sleep(DEFINITIONS).await;
    }
    latch.open();
}

/// The first signal, and then the second or the end of our patience.
async fn until_given_up(shutdown: &Shutdown) {
    shutdown.stop.cancelled().await;
    tokio::select! {
        () = shutdown.now.cancelled() => {}
        () = sleep(LAST_WORK) => {}
    }
}

/// Probes and a few scrapers.
const ADMIN_CONNECTIONS: usize = 64;
/// Between two looks at the definitions.
const DEFINITIONS: Duration = Duration::from_secs(5);
/// From the stop signal: running writes end, and the lease is released. Each has its own, shorter deadline.
const LAST_WORK: Duration = Duration::from_secs(20);
const LAST_TASKS: Duration = Duration::from_secs(5);
