//! `coral-warmer`: keeps a node's images where they are needed.

use std::process::ExitCode;

use clap::Parser as _;
use coral_schema::process::entry;
use coral_warmer::cli::{self, Cli};

fn main() -> ExitCode {
    // A second call finds it installed; that is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    entry::run("coral-warmer", &cli.flags.logs, async |telemetry| {
        Ok(cli::run(&cli, telemetry).await?)
    })
}
