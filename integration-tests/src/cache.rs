//! `coral-registry` in this process, on ports of its own: what hermetic tests talk to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use coral_registry::app::{App, Origin};
use coral_registry::config::{self, Overrides};
use coral_schema::process::shutdown::Shutdown;
use coral_schema::process::tasks::Tasks;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// A registry that can be stopped and started again on the same data.
#[derive(Debug)]
pub struct Cache {
    folder: TempDir,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    address: SocketAddr,
    admin: SocketAddr,
    shutdown: Shutdown,
    /// Owns the task that serves.
    _owner: Tasks,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Cache {
    /// Starts one with this configuration. `listen`, `admin` and `data` come from here and must not stand in it.
    pub async fn start(configuration: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("coral-cache-").tempdir()?;
        let mut cache = Self {
            folder,
            running: None,
        };
        std::fs::write(cache.configuration(), configuration)?;
        cache.restart().await?;
        Ok(cache)
    }

    /// Where clients pull.
    pub fn address(&self) -> SocketAddr {
        self.running().address
    }

    /// Where probes, metrics and the admin API are.
    pub fn admin(&self) -> SocketAddr {
        self.running().admin
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The configuration file, to be changed while it runs.
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("coral.yaml")
    }

    /// Stops it, without the time that it gives clients to notice.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        running.shutdown.stop.cancel();
        running.shutdown.now.cancel();
        tokio::time::timeout(DEADLINE, running.served)
            .await
            .context("the registry did not stop")??
    }

    /// Starts it (again) on the same data, on new ports.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        let overrides = Overrides {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            admin_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            data: Some(self.data()),
        };
        let file = self.configuration();
        let loaded = config::load(Some(&file), &overrides)?;
        let origin = Origin {
            file: Some(file),
            overrides,
        };
        let app = App::build(loaded.config, origin, Registry::default(), Tasks::new()).await?;
        let (addresses, shutdown, owner) = (app.addresses(), Shutdown::default(), Tasks::new());
        let served = owner.spawn("registry", app.run(shutdown.clone()));
        self.running = Some(Running {
            address: addresses.oci,
            admin: addresses.admin,
            shutdown,
            _owner: owner,
            served,
        });
        Ok(())
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the registry runs")
    }
}

/// Starting and stopping take milliseconds; a loaded machine may need more.
const DEADLINE: Duration = Duration::from_secs(30);
