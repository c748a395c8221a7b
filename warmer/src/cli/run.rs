//! What the subcommands do.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use coral_schema::process::EXIT_SOCKET_DEAD;
use coral_schema::process::shutdown::Shutdown;
use coral_schema::process::tasks::Tasks;
use coral_schema::process::telemetry::Telemetry;
use prometheus_client::registry::Registry;

use super::{Cli, Command, Flags};
use crate::app::{self, App, Ended};
use crate::cri::containerd::Containerd;
use crate::disk::Space;
use crate::{metrics, mirror, pressure};

/// Runs the command.
pub async fn run(cli: &Cli, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    match cli.command {
        None => warm(&cli.flags, telemetry).await,
        Some(Command::Cleanup) => cleanup(&cli.flags).await,
    }
}

async fn warm(flags: &Flags, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    let config = app::Config {
        node: flags.node_name.clone().context("--node-name is missing")?,
        cri_socket: flags.cri_socket.clone(),
        containerd_api: flags.containerd_api,
        pull_secrets: flags.pull_secrets.clone(),
        state: flags.state.clone(),
        imagefs: flags
            .imagefs_path
            .clone()
            .unwrap_or_else(|| flags.state.clone()),
        measure: Space::of,
        pressure: pressure::FILE.into(),
        mirror_config: flags.mirror_config.clone(),
        admin_listen: flags.admin_listen,
        start_spread: app::START_SPREAD,
        probe_period: mirror::PERIOD,
    };
    let client = app::connect().await?;
    let mut registry = Registry::default();
    telemetry.register(metrics::prefixed(&mut registry));
    let tasks = Tasks::new();
    let shutdown = Shutdown::on_signals(&tasks)?;
    let app = App::build(config, client, registry, tasks).await?;
    tracing::info!("serving probes and metrics at http://{}", app.admin());
    match app.run(shutdown).await {
        Ended::Stopped => Ok(ExitCode::SUCCESS),
        Ended::SocketDead(dead) => {
            tracing::error!("{dead}");
            Ok(ExitCode::from(EXIT_SOCKET_DEAD))
        }
    }
}

async fn cleanup(flags: &Flags) -> anyhow::Result<ExitCode> {
    if flags.containerd_api {
        let unpinned = Containerd::new(&flags.cri_socket)?.unpin_all().await;
        let names = unpinned.context("our pins cannot be removed")?;
        writeln!(io::stdout(), "pins of ours removed from {names} names")?;
        if flags.mirror_config.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let folder = flags
        .mirror_config
        .clone()
        .context("say where: --mirror-config FOLDER")?;
    let shown = folder.display().to_string();
    let removed = tokio::task::spawn_blocking(move || mirror::cleanup(&folder))
        .await?
        .with_context(|| shown.clone())?;
    let said = if removed {
        "our mirror settings are removed"
    } else {
        "no mirror settings of ours"
    };
    writeln!(io::stdout(), "{shown}: {said}")?;
    Ok(ExitCode::SUCCESS)
}
