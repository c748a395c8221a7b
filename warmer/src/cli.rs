//! The command line: flags, their environment names, and subcommands. A flag wins over the environment.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use coral_schema::process::WARMER_ADMIN_PORT;
use coral_schema::process::entry::LogFlags;

mod run;

pub use self::run::run;

/// What the process was started with.
#[derive(Debug, Parser)]
#[command(
    name = "coral-warmer",
    version,
    about = "Keeps the images that a node's NodeCache names on that node",
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// For every subcommand.
    #[command(flatten)]
    pub flags: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What differs from node to node.
#[derive(Debug, Args)]
pub struct Flags {
    /// The node's name, which is also that of its resource
    #[arg(
        long,
        env = "CORAL_NODE_NAME",
        value_name = "NAME",
        required = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub node_name: Option<String>,
    /// Socket of the container runtime
    #[arg(
        long,
        global = true,
        env = "CORAL_CRI_SOCKET",
        value_name = "FILE",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub cri_socket: PathBuf,
    /// Use containerd's own API on that socket too: evictions are noticed at once, and images can be pinned
    #[arg(long, global = true, env = "CORAL_CONTAINERD_API")]
    pub containerd_api: bool,
    /// Folder of pull secrets that the operator copied, for registries that the cache does not serve
    #[arg(long, env = "CORAL_PULL_SECRETS", value_name = "FOLDER")]
    pub pull_secrets: Option<PathBuf>,
    /// Folder for what must survive a restart
    #[arg(
        long,
        env = "CORAL_STATE",
        value_name = "FOLDER",
        default_value = "/var/lib/coral-warmer"
    )]
    pub state: PathBuf,
    /// Anything on the file system of the runtime's images; the state folder by default
    #[arg(long, env = "CORAL_IMAGEFS_PATH", value_name = "PATH")]
    pub imagefs_path: Option<PathBuf>,
    /// The runtime's certs.d or registries.conf.d folder; without it mirror settings are not touched
    #[arg(
        long,
        global = true,
        env = "CORAL_MIRROR_CONFIG",
        value_name = "FOLDER"
    )]
    pub mirror_config: Option<PathBuf>,
    /// Where probes and metrics are served
    #[arg(
        long,
        env = "CORAL_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, WARMER_ADMIN_PORT))
    )]
    pub admin_listen: SocketAddr,
    /// What is logged, and how.
    #[command(flatten)]
    pub logs: LogFlags,
}

/// What to do instead of warming.
#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Remove the mirror settings that a warmer wrote below --mirror-config, and its pins with --containerd-api
    Cleanup,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
        assert_eq!(Cli::command().get_name(), "coral-warmer");
    }

    /// The chart relies on these.
    #[test]
    fn defaults() {
        let flags = parse("coral-warmer --node-name n1").unwrap().flags;
        assert_eq!(flags.node_name.as_deref(), Some("n1"));
        assert_eq!(
            flags.cri_socket,
            PathBuf::from("/run/containerd/containerd.sock")
        );
        assert_eq!(flags.state, PathBuf::from("/var/lib/coral-warmer"));
        assert_eq!(flags.admin_listen.to_string(), "0.0.0.0:9092");
        assert_eq!((flags.imagefs_path, flags.mirror_config), (None, None));
        assert!(!flags.containerd_api);
    }

    #[test]
    fn cleanup_needs_no_node() {
        for line in [
            "coral-warmer cleanup --mirror-config /etc/containerd/certs.d",
            "coral-warmer --mirror-config /etc/containerd/certs.d cleanup",
            "coral-warmer cleanup --mirror-config /c --containerd-api --cri-socket /s",
        ] {
            let cli = parse(line).unwrap();
            assert!(matches!(cli.command, Some(Command::Cleanup)));
            assert!(cli.flags.mirror_config.is_some());
        }
    }

    #[rstest::rstest]
    #[case("coral-warmer")]
    #[case("coral-warmer --node-name ")]
    #[case("coral-warmer --node-name n1 --admin-listen 9092")]
    #[case("coral-warmer --node-name n1 --log-format xml")]
    #[case("coral-warmer --node-name n1 scrub")]
    fn mistakes_are_refused(#[case] line: &str) {
        assert!(parse(line).is_err());
    }
}
