//! The command line: flags, their environment names, and subcommands.
//!
//! A flag wins over the environment, which wins over the configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use coral_schema::process::entry::LogFlags;

pub mod api;
mod gc;
pub mod prefetch;
mod progress;
mod run;

pub use self::run::run;

/// What the process was started with.
#[derive(Debug, Parser)]
#[command(
    name = "coral-registry",
    version,
    about = "A pull-through caching OCI registry"
)]
pub struct Cli {
    /// For every subcommand.
    #[command(flatten)]
    pub flags: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

impl Cli {
    /// What to do: `serve`, unless the command line says otherwise.
    pub fn command(&self) -> &Command {
        self.command.as_ref().unwrap_or(&Command::Serve)
    }
}

/// What differs from machine to machine.
#[derive(Debug, Args)]
pub struct Flags {
    /// Configuration file (YAML); without one the defaults make a cache in ./coral-data
    #[arg(long, global = true, env = "CORAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where clients connect to, like 0.0.0.0:5000
    #[arg(long, global = true, env = "CORAL_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Where probes, metrics and administrators connect to, like 127.0.0.1:9090
    #[arg(
        long,
        global = true,
        env = "CORAL_ADMIN_LISTEN",
        value_name = "ADDRESS"
    )]
    pub admin_listen: Option<SocketAddr>,
    /// Folder on a local disk that holds everything the cache keeps
    #[arg(long, global = true, env = "CORAL_DATA", value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// What is logged, and how.
    #[command(flatten)]
    pub logs: LogFlags,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clients (the default)
    Serve,
    /// Print every mistake of a configuration file; exits 1 when there is one
    CheckConfig {
        /// The file
        file: PathBuf,
    },
    /// Have a running registry fetch images ahead of their first pull
    Prefetch(prefetch::Prefetch),
    /// Have a running registry remove what its hosted repositories do not need any more
    Gc(gc::Gc),
    /// Make the index anew from the store
    Rebuild,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use coral_schema::process::telemetry::Format;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn is_consistent() {
        <Cli as CommandFactory>::command().debug_assert();
    }

    #[test]
    fn flags_stand_before_or_after_the_subcommand() {
        for line in [
            "coral-registry --data /d --log-format json",
            "coral-registry --data /d --log-format json serve",
            "coral-registry serve --data /d --log-format json",
        ] {
            let cli = parse(line).unwrap();
            assert!(matches!(cli.command(), Command::Serve));
            assert_eq!(cli.flags.data, Some("/d".into()));
            assert_eq!(cli.flags.logs.log_format, Format::Json);
        }
    }

    #[test]
    fn prefetch_takes_images_and_platforms() {
        let line =
            "coral-registry prefetch nginx alpine:3 --platform linux/amd64 --platform linux/arm64";
        let Command::Prefetch(prefetch) = parse(line).unwrap().command.unwrap() else {
            panic!("another command");
        };
        assert_eq!(prefetch.images, ["nginx", "alpine:3"]);
        assert_eq!(prefetch.platforms.len(), 2);
        assert_eq!(prefetch.server.admin.as_str(), "http://127.0.0.1:9090/");
    }

    #[test]
    fn gc_tries_out() {
        let dry_run = |line: &str| match parse(line).unwrap().command.unwrap() {
            Command::Gc(gc) => gc.dry_run,
            _ => panic!("another command"),
        };
        assert!(dry_run(
            "coral-registry gc --dry-run --admin http://10.0.0.5:9090"
        ));
        assert!(!dry_run("coral-registry gc"));
    }

    #[test]
    fn mistakes_are_refused() {
        for line in [
            "coral-registry --listen 5000",
            "coral-registry --log-format xml",
            "coral-registry prefetch",
            "coral-registry prefetch nginx --platform amd64",
            "coral-registry check-config",
            "coral-registry scrub",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
