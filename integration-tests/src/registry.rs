//! `coral-registry` as a process, on ports of its own and a data folder that goes with it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tokio::process::Command;

use crate::client::Connection;
use crate::program::{Program, Usage, free_port};
use crate::upstream::Upstream;

/// A registry that can be stopped, killed and started again on the same data.
#[derive(Debug)]
pub struct Registry {
    program: Program,
    binary: PathBuf,
    arguments: Vec<String>,
    folder: TempDir,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Registry {
    /// Starts `binary` with this configuration and waits until it is ready. `listen`, `admin` and `data` come from
    /// here and must not stand in it.
    pub async fn start(binary: &Path, configuration: &str) -> anyhow::Result<Self> {
        Self::start_with(binary, &[], configuration).await
    }

    /// As [`Registry::start`]: a program that is one with these arguments.
    pub async fn start_with(
        binary: &Path,
        arguments: &[&str],
        configuration: &str,
    ) -> anyhow::Result<Self> {
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let folder = tempfile::Builder::new()
            .prefix("coral-registry-")
            .tempdir()?;
        std::fs::write(folder.path().join(CONFIGURATION), configuration)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let program = launch((binary, &arguments), folder.path(), address, admin)?;
        let mut registry = Self {
            program,
            binary: binary.to_owned(),
            arguments,
            folder,
            address,
            admin,
        };
        registry.wait_until_ready().await?;
        Ok(registry)
    }

    /// The binary that was built with the same profile as the running test or benchmark, when there is one.
    pub fn built() -> Option<PathBuf> {
        let this = std::env::current_exe().ok()?;
        // Tests are one folder deeper, in `deps`.
        let folders = this.ancestors().skip(1).take(2);
        folders
            .map(|folder| folder.join("coral-registry"))
            .find(|binary| binary.exists())
    }

    /// Where clients pull.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where probes, metrics and the admin API are.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The configuration file, to be changed while it runs.
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join(CONFIGURATION)
    }

    /// What it printed, on both outputs.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default()
    }

    /// What it has used.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        self.program.usage()
    }

    /// The process, for signals.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// SIGTERM, and waits at most `within`. Did it end by itself?
    pub async fn stop(&mut self, within: Duration) -> anyhow::Result<bool> {
        self.program.stop(within).await
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.program.kill().await
    }

    /// Starts it again on the same data and ports, after [`Registry::stop`] or [`Registry::kill`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let command = (self.binary.as_path(), self.arguments.as_slice());
        self.program = launch(command, self.folder.path(), self.address, self.admin)?;
        self.wait_until_ready().await
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let polling = async {
            loop {
                if let Some(status) = self.program.ended()? {
                    bail!("the registry ended with {status}");
                }
                if is_ready(self.admin).await {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ready = tokio::time::timeout(START, polling).await;
        let ready = ready.context("the registry was not ready in time");
        ready
            .and_then(|ready| ready)
            .with_context(|| format!("its output:\n{}", self.log()))
    }
}

/// Configuration for a registry whose only upstream, also by default, is `upstream`, under the name
/// [`UPSTREAM_NAME`]. `more` are further keys of the upstream, four spaces deep.
pub fn configuration(upstream: &Upstream, more: &str) -> String {
    let url = upstream.url();
    let plain = upstream.ca_pem().is_none();
    format!(
        "upstreams:\n  {UPSTREAM_NAME}:\n    endpoints: [\"{url}\"]\n    plainHttp: {plain}\n{more}\n\
         defaultUpstream: {UPSTREAM_NAME}\n"
    )
}

/// What the scripted upstream is called in [`configuration`].
pub const UPSTREAM_NAME: &str = "upstream.example";

fn launch(
    (binary, arguments): (&Path, &[String]),
    folder: &Path,
    address: SocketAddr,
    admin: SocketAddr,
) -> anyhow::Result<Program> {
    let mut command = Command::new(binary);
    command
        .args(arguments)
        .env("CORAL_CONFIG", folder.join(CONFIGURATION))
        .env("CORAL_DATA", folder.join("data"))
        .env("CORAL_LISTEN", address.to_string())
        .env("CORAL_ADMIN_LISTEN", admin.to_string());
    Program::start(command, &folder.join(LOG))
}

async fn is_ready(admin: SocketAddr) -> bool {
    let asking = async {
        let mut connection = Connection::open(admin).await?;
        connection.get("/readyz", &[]).await
    };
    let reply = tokio::time::timeout(Duration::from_secs(1), asking).await;
    matches!(reply, Ok(Ok(reply)) if reply.status == 200)
}

const CONFIGURATION: &str = "coral.yaml";
const LOG: &str = "log";
/// Lock and ports are retried for 5 s at start; twice that for a busy machine, and more.
const START: Duration = Duration::from_secs(20);
