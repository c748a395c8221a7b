//! `coral-registry` in this process, on ports of its own: what hermetic tests talk to.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use coral_registry::app::{App, Origin};
use coral_registry::config::{self, Overrides};
use coral_schema::oci::Digest;
use coral_schema::process::shutdown::Shutdown;
use coral_schema::process::tasks::Tasks;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::client::Connection;

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

    /// The files of the blobs in the store, by digest, whatever is in them.
    pub fn stored(&self) -> BTreeMap<Digest, PathBuf> {
        stored(&self.data())
    }

    /// The part files of downloads that run or were interrupted.
    pub fn parts(&self) -> Vec<PathBuf> {
        let mut files = entries(&self.data().join("store/spool"));
        files.retain(|file| {
            file.extension()
                .is_some_and(|extension| extension == "part")
        });
        files
    }

    /// Fails if a file in the store is not what its name says: true at any moment, whatever happens (promise 3).
    pub fn assert_sound(&self) {
        assert_sound(&self.data());
    }

    /// The value of a metric, by its name with labels but without `coral_registry_`; `None` if it is not there.
    pub async fn metric(&self, name: &str) -> anyhow::Result<Option<f64>> {
        let mut connection = Connection::open(self.admin()).await?;
        let mut reply = connection.get("/metrics", &[]).await?;
        let text = connection.read_all(&mut reply).await?;
        let text = String::from_utf8_lossy(&text);
        let wanted = format!("coral_registry_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&wanted));
        Ok(value.map(str::parse).transpose()?)
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

/// The index's threads end by themselves, a moment after whoever asks them is gone.
impl Drop for Cache {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test ends: nobody else is kept waiting"
    )]
    fn drop(&mut self) {
        drop(self.running.take());
        for _ in 0..200 {
            match std::fs::remove_dir_all(self.folder.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => break,
            }
        }
    }
}

/// The files of the blobs in the store of this data folder, by digest, whatever is in them.
pub fn stored(data: &Path) -> BTreeMap<Digest, PathBuf> {
    let mut found = BTreeMap::new();
    for algorithm in entries(&data.join("store/v1/blobs")) {
        for file in entries(&algorithm).iter().flat_map(|first| entries(first)) {
            let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
            let digest = name(&algorithm).zip(name(&file));
            let digest = digest.map(|(algorithm, hex)| format!("{algorithm}:{hex}"));
            let digest = digest.and_then(|digest| digest.parse().ok());
            found.insert(digest.expect("files of blobs are named by digests"), file);
        }
    }
    found
}

/// Fails if a file in the store of this data folder is not what its name says.
pub fn assert_sound(data: &Path) {
    for (digest, file) in stored(data) {
        // Evicted since it was listed.
        let Ok(bytes) = std::fs::read(&file) else {
            continue;
        };
        assert_eq!(Digest::sha256(&bytes), digest, "{}", file.display());
    }
}

/// What is in a folder; nothing if there is none.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(folder);
    let found = found.into_iter().flatten().filter_map(Result::ok);
    found.map(|entry| entry.path()).collect()
}

/// Starting and stopping take milliseconds; a loaded machine may need more.
const DEADLINE: Duration = Duration::from_secs(30);
