//! `coral-operator`: turns `ImageCache`s into what each node should hold.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use coral_operator::cli::{self, Cli};
use coral_schema::process::telemetry::Telemetry;

fn main() -> ExitCode {
    // A second call finds it installed; that is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    let telemetry = match Telemetry::init(&cli.flags.log, cli.flags.log_format) {
        Ok(telemetry) => telemetry,
        Err(error) => return cli::fail(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return cli::fail(&error),
    };
    let code = runtime.block_on(cli::run(&cli, &telemetry));
    // A name that does not resolve must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    telemetry.flush(Duration::from_secs(1));
    code.unwrap_or_else(|error| {
        tracing::debug!(?error, "failed");
        cli::fail(&format!("{error:#}"))
    })
}
