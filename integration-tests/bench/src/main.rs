//! The benchmark: the same pulls directly, through us, through a peer, and from files, side by side in one run.
//!
//! Absolute figures are the machine's. What counts are the ratios of one run, against the column "ours must".

mod cases;
mod cli;
mod contestant;
mod idle;
mod load;
mod pull;
mod scale;
mod table;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cases::Bench;
use crate::cli::Cli;

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let mut output = std::io::stdout().lock();
    if cfg!(debug_assertions) {
        writeln!(output, "This is a debug build: its figures mean nothing.\n")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let bench = Bench::new(&cli);
    for note in bench.notes() {
        writeln!(output, "{note}\n")?;
    }
    let mut table = table::Table::default();
    let mut failed = false;
    for case in cli.case.parts() {
        writeln!(std::io::stderr(), "{} …", case.name())?;
        if let Err(error) = runtime.block_on(bench.run(case, &mut table)) {
            // The other cases are still worth their rows.
            writeln!(std::io::stderr(), "{}: {error:#}", case.name())?;
            failed = true;
        }
    }
    write!(output, "{}", table.render())?;
    Ok(if table.is_good() && !failed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
