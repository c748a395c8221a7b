//! The life of a program: its logs, the runtime, the command that it was started for, and a last sentence when that fails.

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::runtime;

use super::telemetry::{Format, Telemetry};
use super::{EXIT_FAILURE, open_files};

/// What a command ends with.
pub type Ended = Result<ExitCode, Box<dyn Error + Send + Sync>>;

/// Flags of every program, before or after a subcommand.
#[derive(Debug, Args)]
pub struct LogFlags {
    /// Which events are logged: a level, or one with exceptions, like `info,hyper=debug`
    #[arg(
        long,
        global = true,
        env = "CORAL_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,
    /// How a log line looks: text or json
    #[arg(
        long,
        global = true,
        env = "CORAL_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: Format,
}

/// Runs `command` to its end; `main` returns what this returns. An error is said on standard error, after the logs.
pub fn run(
    program: &str,
    flags: &LogFlags,
    command: impl AsyncFnOnce(&Telemetry) -> Ended,
) -> ExitCode {
    let telemetry = match Telemetry::init(&flags.log, flags.log_format) {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(program, &error),
    };
    if let Err(error) = open_files::raise_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let runtime = match runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(program, &error),
    };
    let ended = runtime.block_on(command(&telemetry));
    // A thread that waits for a disk, or for a name to be resolved, must not keep the process.
    runtime.shutdown_timeout(LAST_WORK);
    if let Err(error) = &ended {
        tracing::debug!(?error, "failed");
    }
    telemetry.flush(LAST_WORK);
    ended.unwrap_or_else(|error| fail(program, &*error))
}

fn fail(program: &str, error: &(dyn Error + 'static)) -> ExitCode {
    // Nobody is left to tell when standard error is gone, too.
    let _ = writeln!(io::stderr(), "{program}: {}", sentence(error));
    ExitCode::from(EXIT_FAILURE)
}

/// The error and its causes, but for those that it says itself.
fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

/// For what is left when the command has ended, and for the last lines of the log.
const LAST_WORK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("cannot listen")]
        Bare(#[source] io::Error),
        #[error("cannot listen: {0}")]
        Whole(#[source] io::Error),
    }

    #[test]
    fn a_cause_is_said_once() {
        let cause = || io::Error::other("the port is taken");
        for error in [Failed::Bare(cause()), Failed::Whole(cause())] {
            assert_eq!(sentence(&error), "cannot listen: the port is taken");
        }
    }
}
