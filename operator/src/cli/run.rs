//! What the subcommands do.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use coral_schema::process::shutdown::Shutdown;
use coral_schema::process::tasks::Tasks;
use coral_schema::process::telemetry::Telemetry;
use jiff::Timestamp;
use kube::{Client, Config};
use prometheus_client::registry::Registry as Metrics;

use super::{Cli, Command, Flags};
use crate::app::App;
use crate::leader::Settings;
use crate::lease::{self, Candidate};
use crate::node_cache::wishes::ObjectKey;
use crate::registry::{self, Registry};
use crate::{crds, explain, metrics, uninstall};

/// Runs the command.
pub async fn run(cli: &Cli, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    let flags = &cli.flags;
    match cli.command() {
        Command::Run => Box::pin(lead(flags, telemetry)).await,
        Command::Explain { object } => {
            let (client, namespace) = connect(flags).await?;
            let key = ObjectKey {
                namespace,
                name: object.0.clone(),
            };
            let registry = match flags.registry_admin {
                Some(_) => Some(registry(flags).await?.0),
                None => None,
            };
            let most = usize::try_from(flags.max_concurrent_nodes)?;
            let text = explain::explain(&client, registry.as_ref(), &key, most).await?;
            io::stdout().write_all(text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::ApplyCrds => {
            let (client, _) = connect(flags).await?;
            for name in crds::apply(&client).await? {
                writeln!(io::stdout(), "{name} is in use")?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Uninstall => {
            let (client, namespace) = connect(flags).await?;
            let candidate = candidate(&client, &namespace)?;
            let left = uninstall::uninstall(&client, &candidate).await?;
            for line in &left {
                writeln!(io::stdout(), "{line}")?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn lead(flags: &Flags, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    let (registry, ca) = registry(flags).await?;
    let (client, namespace) = connect(flags).await?;
    let settings = Settings {
        candidate: candidate(&client, &namespace)?,
        namespace,
        registry,
        address: flags.registry_address.clone(),
        ca: ca.map(|pem| String::from_utf8_lossy(&pem).into_owned()),
        refresh_interval: flags.refresh_interval.0.0,
        max_concurrent_nodes: usize::try_from(flags.max_concurrent_nodes)?,
        node_pull_secrets: flags.node_pull_secrets.clone(),
    };
    let mut metrics = Metrics::default();
    telemetry.register(metrics::prefixed(&mut metrics));
    let tasks = Tasks::new();
    let shutdown = Shutdown::on_signals(&tasks)?;
    let app = App::build(client, flags.admin_listen, settings, metrics, tasks).await?;
    tracing::info!("serving probes and metrics at http://{}", app.address());
    Box::pin(app.run(shutdown)).await;
    Ok(ExitCode::SUCCESS)
}

/// The registry, and the certificates that come with it.
async fn registry(flags: &Flags) -> anyhow::Result<(Registry, Option<Vec<u8>>)> {
    let admin = flags.registry_admin.clone().context(
        "say with --registry-admin (CORAL_REGISTRY_ADMIN) where the registry's admin listener is",
    )?;
    let ca = match &flags.registry_ca {
        Some(path) => Some(read(path).await?),
        None => None,
    };
    let registry = Registry::new(registry::Config {
        admin,
        token: flags.registry_token_file.clone(),
        ca: ca.clone(),
    })?;
    Ok((registry, ca))
}

async fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    tokio::fs::read(path)
        .await
        .with_context(|| format!("{} cannot be read", path.display()))
}

/// The API server by `KUBECONFIG` or the pod's credentials, and our namespace there.
async fn connect(flags: &Flags) -> anyhow::Result<(Client, String)> {
    let mut config = Config::infer()
        .await
        .context("neither KUBECONFIG nor a pod's credentials lead to an API server")?;
    config.connect_timeout = Some(CONNECT_WITHIN);
    let namespace = flags.namespace.clone();
    let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
    Ok((Client::try_from(config)?, namespace))
}

fn candidate(client: &Client, namespace: &str) -> anyhow::Result<Candidate> {
    let api = kube::Api::namespaced(client.clone(), namespace);
    Ok(Candidate::new(api, identity()?, lease::Times::default()))
}

/// Of this process and no other: a container keeps its host's name when it starts again.
fn identity() -> anyhow::Result<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").context("no host name")?;
    let now = Timestamp::now().as_nanosecond();
    Ok(format!("{}_{}_{now:x}", host.trim(), std::process::id()))
}

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
