//! The command line: flags, their environment names, and subcommands. A flag wins over the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use coral_schema::duration::HumanDuration;
use coral_schema::process::entry::LogFlags;
use url::Url;

use crate::address::NodeAddress;

mod run;

pub use self::run::run;

/// What the process was started with.
#[derive(Debug, Parser)]
#[command(
    name = "coral-operator",
    version,
    about = "Turns ImageCaches into what each node should hold"
)]
pub struct Cli {
    /// For every subcommand.
    #[command(flatten)]
    pub flags: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

impl Cli {
    /// What to do: `run`, unless the command line says otherwise.
    pub fn command(&self) -> &Command {
        self.command.as_ref().unwrap_or(&Command::Run)
    }
}

/// What differs from cluster to cluster. The API server is found by `KUBECONFIG`, or by the pod's own credentials.
#[derive(Debug, Args)]
pub struct Flags {
    /// The registry's admin listener, like `http://coral-registry:9090`
    #[arg(long, global = true, env = "CORAL_REGISTRY_ADMIN", value_name = "URL")]
    pub registry_admin: Option<Url>,
    /// File of the token for the registry's admin listener; read anew for each call
    #[arg(
        long,
        global = true,
        env = "CORAL_REGISTRY_TOKEN_FILE",
        value_name = "FILE"
    )]
    pub registry_token_file: Option<PathBuf>,
    /// Where nodes reach the registry: HOST:PORT, or service/NAME:PORT for the cluster address of a Service in
    /// --namespace; with https:// in front when it serves TLS. Without it nodes' mirror settings are not touched
    #[arg(
        long,
        global = true,
        env = "CORAL_REGISTRY_ADDRESS",
        value_name = "ADDRESS"
    )]
    pub registry_address: Option<NodeAddress>,
    /// PEM certificates that the registry's certificates are checked against, by the operator and by nodes
    #[arg(long, global = true, env = "CORAL_REGISTRY_CA", value_name = "FILE")]
    pub registry_ca: Option<PathBuf>,
    /// The operator's own namespace, by default that of its credentials; for `explain` the object's
    #[arg(
        short,
        long,
        global = true,
        env = "CORAL_NAMESPACE",
        value_name = "NAMESPACE"
    )]
    pub namespace: Option<String>,
    /// How often images are verified in full, unless an object says otherwise; 0s is never
    #[arg(
        long,
        global = true,
        env = "CORAL_REFRESH_INTERVAL",
        value_name = "DURATION",
        default_value = "1h"
    )]
    pub refresh_interval: RefreshInterval,
    /// So many nodes pull at once for all objects together
    #[arg(
        long,
        global = true,
        env = "CORAL_MAX_CONCURRENT_NODES",
        value_name = "NUMBER",
        default_value = "100",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub max_concurrent_nodes: u32,
    /// Secret in --namespace that pull secrets are copied into for registries that the cache does not serve; nodes mount
    /// it. Without it none are copied
    #[arg(
        long,
        global = true,
        env = "CORAL_NODE_PULL_SECRETS",
        value_name = "NAME"
    )]
    pub node_pull_secrets: Option<String>,
    /// Where probes and metrics are served
    #[arg(
        long,
        global = true,
        env = "CORAL_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:9091"
    )]
    pub admin_listen: SocketAddr,
    /// What is logged, and how.
    #[command(flatten)]
    pub logs: LogFlags,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lead, or wait to lead (the default)
    Run,
    /// Print what each image of an object waits for, on each node
    Explain {
        /// Like ic/inference
        #[arg(value_name = "ic/NAME")]
        object: ObjectName,
    },
    /// Write the custom resource definitions of this version, and wait until they are in use
    ApplyCrds,
    /// Take everything away from nodes, and delete what the operator made
    Uninstall,
}

/// `refresh.interval` of objects without one: zero, or at least a minute.
#[derive(Debug, Clone, Copy)]
pub struct RefreshInterval(pub HumanDuration);

impl FromStr for RefreshInterval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let interval: HumanDuration = text.parse().map_err(|error| format!("{text:?} {error}"))?;
        if interval.0.is_zero() || interval.0 >= SHORTEST_REFRESH {
            Ok(Self(interval))
        } else {
            Err("is at least 1m, or 0s to switch it off".to_owned())
        }
    }
}

/// Upstreams count requests.
const SHORTEST_REFRESH: std::time::Duration = std::time::Duration::from_mins(1);

/// The name of an `ImageCache`, as kubectl writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName(pub String);

impl FromStr for ObjectName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = match text.split_once('/') {
            Some(("ic" | "imagecache" | "imagecaches", name)) => name,
            Some(_) => return Err("only an ImageCache is explained: ic/NAME"),
            None => text,
        };
        if name.is_empty() || name.contains('/') {
            return Err("is written as ic/NAME");
        }
        Ok(Self(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

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
            "coral-operator --registry-admin http://r:9090 --namespace coral",
            "coral-operator run --registry-admin http://r:9090 -n coral",
        ] {
            let cli = parse(line).unwrap();
            assert!(matches!(cli.command(), Command::Run));
            assert_eq!(cli.flags.namespace.as_deref(), Some("coral"));
            assert_eq!(cli.flags.admin_listen.port(), 9091);
            assert_eq!(cli.flags.refresh_interval.0, HumanDuration::from_secs(3600));
        }
    }

    #[test]
    fn explain_takes_an_object_of_a_namespace() {
        for line in [
            "coral-operator explain ic/inference -n ml",
            "coral-operator explain inference -n ml",
            "coral-operator -n ml explain imagecache/inference",
        ] {
            let cli = parse(line).unwrap();
            let Command::Explain { object } = cli.command() else {
                panic!("another command");
            };
            assert_eq!(object.0, "inference");
            assert_eq!(cli.flags.namespace.as_deref(), Some("ml"));
        }
    }

    #[test]
    fn mistakes_are_refused() {
        for line in [
            "coral-operator --registry-address registry",
            "coral-operator --registry-address service/registry",
            "coral-operator --refresh-interval 30s",
            "coral-operator --refresh-interval hourly",
            "coral-operator --max-concurrent-nodes 0",
            "coral-operator explain nc/node",
            "coral-operator explain ic/",
            "coral-operator explain",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("coral-operator --refresh-interval 0s").is_ok());
    }
}
