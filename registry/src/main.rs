//! `coral-registry`: a pull-through caching OCI registry.

use std::process::ExitCode;

use clap::Parser as _;
use coral_registry::cli::{self, Cli};
use coral_schema::process::entry;

fn main() -> ExitCode {
    // A second call finds it installed; that is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    entry::run("coral-registry", &cli.flags.logs, async |telemetry| {
        Ok(cli::run(&cli, telemetry).await?)
    })
}
