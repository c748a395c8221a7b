//! `coral-operator`: turns `ImageCache`s into what each node should hold.

use std::process::ExitCode;

use clap::Parser as _;
use coral_operator::cli::{self, Cli};
use coral_schema::process::entry;

fn main() -> ExitCode {
    // A second call finds it installed; that is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    entry::run("coral-operator", &cli.flags.logs, async |telemetry| {
        Ok(cli::run(&cli, telemetry).await?)
    })
}
