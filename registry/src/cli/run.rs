//! What the subcommands do.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use coral_schema::process::EXIT_FAILURE;
use coral_schema::process::shutdown::Shutdown;
use coral_schema::process::tasks::Tasks;
use coral_schema::process::telemetry::Telemetry;
use prometheus_client::registry::Registry;

use super::{Cli, Command, Flags, gc, prefetch};
use crate::app::{self, App};
use crate::config::{self, Loaded, Overrides};
use crate::metrics;

/// Runs the command.
pub async fn run(cli: &Cli, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    match cli.command() {
        Command::Serve => serve(&cli.flags, telemetry).await,
        Command::CheckConfig { file } => check_config(file),
        Command::Prefetch(command) => {
            Ok(prefetch::run(command).await.map(|()| ExitCode::SUCCESS)?)
        }
        Command::Gc(command) => Ok(gc::run(command).await.map(|()| ExitCode::SUCCESS)?),
        Command::Rebuild => rebuild(&cli.flags).await,
    }
}

fn load(flags: &Flags) -> anyhow::Result<(Loaded, app::Origin)> {
    let overrides = Overrides {
        listen: flags.listen,
        admin_listen: flags.admin_listen,
        data: flags.data.clone(),
    };
    let loaded = config::load(flags.config.as_deref(), &overrides)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok((
        loaded,
        app::Origin {
            file: flags.config.clone(),
            overrides,
        },
    ))
}

async fn serve(flags: &Flags, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    let (loaded, origin) = load(flags)?;
    let mut registry = Registry::default();
    telemetry.register(metrics::prefixed(&mut registry));
    let tasks = Tasks::new();
    let shutdown = Shutdown::on_signals(&tasks)?;
    let app = App::build(loaded.config, origin, registry, tasks).await?;
    greet(&app);
    app.run(shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

/// One line per listener, and on a terminal what a newcomer would try.
fn greet(app: &App) {
    let addresses = app.addresses();
    let scheme = if app.is_tls() { "https" } else { "http" };
    tracing::info!("serving images at {scheme}://{}", addresses.oci);
    tracing::info!("serving administrators at http://{}", addresses.admin);
    if io::stdout().is_terminal() {
        let (oci, admin) = (addresses.oci, addresses.admin);
        let _ = writeln!(
            io::stdout(),
            "\nTry:\n  docker pull localhost:{port}/docker.io/library/alpine\n  \
             coral-registry prefetch --admin http://{admin} alpine\n  \
             curl -s http://{admin}/api/v1/mirror-config?runtime=containerd\n",
            port = oci.port(),
        );
    }
}

fn check_config(file: &Path) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match config::check(file) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                writeln!(out, "warning: {warning}")?;
            }
            writeln!(out, "{}: no mistakes", file.display())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(mistakes) => {
            writeln!(out, "{mistakes}")?;
            Ok(ExitCode::from(EXIT_FAILURE))
        }
    }
}

async fn rebuild(flags: &Flags) -> anyhow::Result<ExitCode> {
    let (loaded, _) = load(flags)?;
    let progress = app::rebuild(loaded.config).await?;
    writeln!(
        io::stdout(),
        "{} records, {} blobs, {} unreadable",
        progress.records,
        progress.blobs,
        progress.unreadable
    )?;
    Ok(ExitCode::SUCCESS)
}
