//! What to measure, how much of it, and where the programs are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use coral_integration_tests::registry::Registry;

use crate::idle::Idle;
use crate::scale::Scale;

/// Peer, direct and ours side by side, on loopback.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    /// What to measure.
    pub(crate) case: Case,
    /// Small sizes: a look at the program, not at the figures.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Size of the large layer, MiB [default: 1024].
    #[arg(long)]
    layer: Option<u64>,
    /// Size of each of the ten layers of the cold-n image, MiB [default: 20].
    #[arg(long)]
    small_layer: Option<u64>,
    /// Numbers of clients in cold-n [default: 50,200].
    #[arg(long, value_delimiter = ',')]
    clients: Vec<usize>,
    /// Runs of each cold case; the best counts [default: 2].
    #[arg(long)]
    runs: Option<usize>,
    /// Seconds of each load [default: 5].
    #[arg(long)]
    seconds: Option<u64>,
    /// Our binary [default: the one built beside this program].
    #[arg(long, env = "CORAL_REGISTRY_BIN")]
    ours: Option<PathBuf>,
    /// The peer: distribution's `registry` [default: the one in the folder of tools].
    #[arg(long)]
    distribution: Option<PathBuf>,
    /// The limit of a hit.
    #[arg(long, default_value = "/usr/sbin/nginx")]
    nginx: PathBuf,
    /// Our operator, for operator-scale [default: the one built beside this program].
    #[arg(long, env = "CORAL_OPERATOR_BIN")]
    operator: Option<PathBuf>,
    /// Our warmer, for warmer-idle [default: the one built beside this program].
    #[arg(long, env = "CORAL_WARMER_BIN")]
    warmer: Option<PathBuf>,
    /// Nodes in operator-scale [default: 5000].
    #[arg(long)]
    nodes: Option<usize>,
    /// Images on each node in operator-scale and warmer-idle, at most 256 [default: 64].
    #[arg(long)]
    images: Option<usize>,
    /// Contestants to leave out.
    #[arg(long, value_delimiter = ',')]
    pub(crate) skip: Vec<Skip>,
    /// Folder of tools that `integration-tests/run` builds [default: ~/.cache/coral-tools].
    #[arg(long, env = "CORAL_TOOLS")]
    tools: Option<PathBuf>,
}

/// A contestant that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Skip {
    Ours,
    Peer,
    Limit,
}

/// A case of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// One client, one large layer that nobody has yet.
    #[value(name = "cold-1")]
    Cold1,
    /// Many clients, one image that nobody has yet.
    ColdN,
    /// What is held: manifests by digest and tag, blobs.
    Hit,
    /// The upstream ends each connection after 64 MiB.
    Break,
    /// One bit is wrong.
    Wrong,
    /// The upstream refuses, is silent, or says 429.
    Down,
    /// 1000 bytes out of a layer that is not held.
    RangeMiss,
    /// HEAD of a layer that is not held.
    HeadMiss,
    /// Resident memory of the cold cases, alone.
    Rss,
    /// Blobs that ten clients push at once.
    Push,
    /// Images of mixed sizes that 64 clients push and pull, every byte checked.
    Mixed,
    /// What the operator writes and takes for thousands of nodes; not part of `all`.
    OperatorScale,
    /// What a warmer takes while nothing happens; not part of `all`.
    WarmerIdle,
    /// Everything.
    All,
}

impl Case {
    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The cases that it stands for. Memory is measured within the cold cases.
    pub(crate) fn parts(self) -> Vec<Self> {
        match self {
            Self::All => vec![
                Self::Cold1,
                Self::ColdN,
                Self::Hit,
                Self::Break,
                Self::Wrong,
                Self::Down,
                Self::RangeMiss,
                Self::HeadMiss,
                Self::Push,
                Self::Mixed,
            ],
            one => vec![one],
        }
    }
}

/// How much.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    /// The large layer, bytes.
    pub(crate) layer: u64,
    /// Each of ten layers, bytes.
    pub(crate) small_layer: u64,
    pub(crate) clients: Vec<usize>,
    pub(crate) runs: usize,
    pub(crate) seconds: u64,
    /// What an upstream connection carries in `break`, bytes.
    pub(crate) connection: u64,
    /// The blobs that are pushed, bytes, and how many of each a client pushes.
    pub(crate) pushed: [(u64, u64); 3],
    /// How long a client waits for an answer when the upstream is down, seconds.
    pub(crate) patience: u64,
}

/// Where the programs are, when they are there.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) ours: Option<PathBuf>,
    pub(crate) distribution: Option<PathBuf>,
    pub(crate) nginx: Option<PathBuf>,
}

impl Cli {
    pub(crate) fn sizes(&self) -> Sizes {
        let either = |full, quick| if self.quick { quick } else { full };
        let clients = match (self.clients.as_slice(), self.quick) {
            ([], false) => vec![50, 200],
            ([], true) => vec![20],
            (clients, _) => clients.to_vec(),
        };
        let runs = if self.quick { 1 } else { 2 };
        Sizes {
            layer: self.layer.unwrap_or(either(1024, 64)) << 20,
            small_layer: self.small_layer.unwrap_or(either(20, 2)) << 20,
            clients,
            runs: self.runs.unwrap_or(runs),
            seconds: self.seconds.unwrap_or(either(5, 1)),
            connection: either(64, 8) << 20,
            pushed: [
                (1 << 20, either(30, 2)),
                (10 << 20, either(5, 1)),
                (either(100, 20) << 20, 1),
            ],
            patience: either(35, 5),
        }
    }

    fn tools(&self) -> PathBuf {
        let home = std::env::home_dir().unwrap_or_default();
        let tools = self.tools.clone();
        tools.unwrap_or_else(|| home.join(".cache/coral-tools"))
    }

    /// What operator-scale needs, when our programs are there.
    pub(crate) fn scale(&self) -> Option<Scale> {
        let registry = self.ours.clone().or_else(Registry::built)?;
        let beside = registry.with_file_name("coral-operator");
        Some(Scale {
            nodes: self.nodes.unwrap_or(if self.quick { 200 } else { 5000 }),
            images: self.images.unwrap_or(64),
            operator: self.operator.clone().unwrap_or(beside),
            registry,
            tools: self.tools(),
        })
    }

    /// What warmer-idle needs, when our programs are there.
    pub(crate) fn idle(&self) -> Option<Idle> {
        let registry = self.ours.clone().or_else(Registry::built)?;
        let beside = registry.with_file_name("coral-warmer");
        Some(Idle {
            images: self.images.unwrap_or(64),
            time: Duration::from_secs(if self.quick { 10 } else { 240 }),
            warmer: self.warmer.clone().unwrap_or(beside),
            registry,
        })
    }

    pub(crate) fn programs(&self) -> Programs {
        let tools = self.tools();
        let kept = |contestant, program: Option<PathBuf>| {
            program.filter(|path| path.exists() && !self.skip.contains(&contestant))
        };
        let distribution = self.distribution.clone();
        Programs {
            ours: kept(Skip::Ours, self.ours.clone().or_else(Registry::built)),
            distribution: kept(
                Skip::Peer,
                distribution.or_else(|| tool(&tools, "distribution", "registry")),
            ),
            nginx: kept(Skip::Limit, Some(self.nginx.clone())),
        }
    }
}

/// A program of a tool: `integration-tests/run` keeps each in a folder with its version.
pub(crate) fn tool(tools: &Path, name: &str, program: &str) -> Option<PathBuf> {
    let prefix = format!("{name}-");
    let folders = std::fs::read_dir(tools).ok()?.flatten();
    folders
        .filter(|folder| folder.file_name().to_string_lossy().starts_with(&prefix))
        .map(|folder| folder.path().join(program))
        .filter(|path| path.exists())
        .max()
}
