//! The configuration: a YAML file, flags that win over it, and defaults for everything.
//!
//! Owns reading, checking and watching the file. Promises: a [`Config`] is valid as a whole; a file with mistakes gives
//! all of them at once ([`Mistakes`], with line, column and key), and no message holds a secret. Reading is total: any
//! bytes give a `Config` or mistakes, within bounds.
//!
//! # Defaults
//!
//! - Every key has a default, and a key without a value counts as absent. Relative paths are meant from the working
//!   directory.
//! - Without an `upstreams` key: docker.io, ghcr.io, quay.io, registry.k8s.io, gcr.io, public.ecr.aws and
//!   mcr.microsoft.com, all anonymous, and `defaultUpstream: docker.io`. A file with an `upstreams` key has exactly the
//!   upstreams that it names, and no default upstream unless it says so.
//! - `store.maxBytes`: with a file 90 % of the volume; without any file the smaller of 50 GiB and half of what is free.
//! - A `tags` list replaces the default rules. Tags that none of its rules matches are fresh for 5 minutes.
//!
//! `raw` parses text to a tree, `settings` and its siblings convert the tree (pure), this file does the reading.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coral_schema::mirror_config::HostPort;
use coral_schema::quantity::Ratio;

use crate::access::{HostedConfig, Rule, UsersConfig, users};
use crate::hosted::GcConfig;
use crate::name::UpstreamName;
use crate::upstream::UpstreamConfig;

mod access;
mod admin;
mod hosted;
mod item;
mod mistake;
mod names;
mod policy;
mod raw;
mod section;
mod settings;
mod suggest;
mod upstream;
mod value;
mod warnings;
pub mod watch;

pub use crate::admin::auth::AuthConfig;
pub use crate::server::tls::Files as TlsFiles;
pub use crate::transfer::{FillOnRange, FinishTransfers};
pub use mistake::{Mistake, Mistakes, Position};

/// Everything that the configuration says, validated. Equal values mean that nothing changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where clients connect to.
    pub listen: SocketAddr,
    /// How clients name us, if the file says it; see [`Config::address`].
    pub address: Option<HostPort>,
    /// The admin listener.
    pub admin: AdminConfig,
    /// Folder on a local disk: index, spool, uploads.
    pub data: PathBuf,
    /// Serve HTTPS.
    pub tls: Option<TlsFiles>,
    /// Most connections at once.
    pub connections: usize,
    /// How long running responses may take after the stop signal.
    pub shutdown_grace: Duration,
    /// Where content is kept.
    pub store: StoreConfig,
    /// At least one; their names and aliases are distinct.
    pub upstreams: Vec<UpstreamConfig>,
    /// For clients that name no upstream; one of `upstreams`.
    pub default_upstream: Option<UpstreamName>,
    /// Repositories that take pushes; their prefixes are distinct.
    pub hosted: Vec<HostedConfig>,
    /// When what they do not need goes.
    pub gc: GcConfig,
    /// May whoever reaches us push to them?
    pub anonymous_push: bool,
    /// Who may log in.
    pub users: Option<UsersConfig>,
    /// Who may do more than read what is public. Names upstreams and kinds of users that there are.
    pub access: Vec<Rule>,
    /// Longest manifest, bytes.
    pub manifest_max_bytes: u64,
    /// What is kept in memory, and when transfers run.
    pub cache: CacheConfig,
}

impl Config {
    /// How clients name us: what the file says, else where we listen.
    pub fn address(&self, bound: SocketAddr) -> HostPort {
        self.address
            .clone()
            .unwrap_or_else(|| HostPort::from(bound))
    }
}

/// See [`Config::admin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Values of `Host` besides addresses and `localhost`; lower case, without a port.
    pub hosts: Vec<String>,
    /// Serve HTTPS there.
    pub tls: Option<TlsFiles>,
    /// Ask for a token.
    pub auth: Option<AuthConfig>,
}

/// See [`Config::store`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The folder.
    pub folder: PathBuf,
    /// What it may hold.
    pub max_bytes: StoreLimit,
}

/// How much the store may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreLimit {
    /// So many bytes.
    Bytes(u64),
    /// A share of its volume.
    Volume(Ratio),
    /// The smaller of 50 GiB and half of the free space: for a first try on somebody's own machine.
    Modest,
}

impl StoreLimit {
    /// Bytes, on a volume of `total` bytes of which `free` are free, when the store holds `held` bytes already. What it
    /// holds counts as free, or the limit would shrink with every start.
    pub fn bytes(self, total: u64, free: u64, held: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Volume(share) => share.of(total),
            Self::Modest => (free.saturating_add(held) / 2).min(50 << 30),
        }
    }
}

/// See [`Config::cache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    /// Bytes of manifests in memory.
    pub manifest_memory: u64,
    /// How long a 404 of an upstream is remembered.
    pub negative_ttl: Duration,
    /// What happens to a transfer when its last reader leaves.
    pub finish_transfers: FinishTransfers,
    /// Does a request for a part of a blob start the transfer of all of it?
    pub fill_on_range: FillOnRange,
}

/// What flags and the environment say; it wins over the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--listen`
    pub listen: Option<SocketAddr>,
    /// `--admin-listen`
    pub admin_listen: Option<SocketAddr>,
    /// `--data`
    pub data: Option<PathBuf>,
}

/// A valid configuration, and what its administrator should know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Sentences for the log.
    pub warnings: Vec<String>,
}

/// Loads `file`, or the defaults when there is none. Blocks on the file and on those that it names.
pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Loaded, Mistakes> {
    match file {
        Some(file) => {
            let name = file.display().to_string();
            let bytes = read(file)
                .map_err(|error| Mistakes::whole(&name, format!("cannot be read: {error}")))?;
            from_bytes(&name, &bytes, overrides)
        }
        None => from_text("defaults", "", overrides, StoreLimit::Modest),
    }
}

/// `check-config`: what [`load`] says without flags.
pub fn check(file: &Path) -> Result<Loaded, Mistakes> {
    load(Some(file), &Overrides::default())
}

/// Leaves room for the index, uploads and what else lies on the volume.
const MOST_OF_A_VOLUME: Ratio = Ratio::from_percent(90).expect("90 is at most 100");

/// At most one byte more than a configuration may have, so that a wrong path (`/dev/zero`) ends.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let bound = raw::MAX_BYTES as u64 + 1;
    File::open(file)?.take(bound).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The configuration in `bytes`, which are the file `name`. Blocks on the files that it names.
fn from_bytes(name: &str, bytes: &[u8], overrides: &Overrides) -> Result<Loaded, Mistakes> {
    if bytes.len() > raw::MAX_BYTES {
        return Err(Mistakes::whole(
            name,
            "is longer than 1 MiB; this is not a configuration",
        ));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => from_text(name, text, overrides, StoreLimit::Volume(MOST_OF_A_VOLUME)),
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let line = good.matches('\n').count() + 1;
            let column = good.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let mistake = Mistake {
                at: Some(Position { line, column }),
                key: String::new(),
                what: "this is not UTF-8 text".to_owned(),
            };
            Err(Mistakes::new(name, vec![mistake]))
        }
    }
}

fn from_text(
    name: &str,
    text: &str,
    overrides: &Overrides,
    unset_limit: StoreLimit,
) -> Result<Loaded, Mistakes> {
    let found = mistake::Findings::default();
    let root = raw::parse(text, &found).map_err(|(at, what)| {
        let key = String::new();
        Mistakes::new(name, vec![Mistake { at, key, what }])
    })?;
    let config = settings::convert(&root, overrides, unset_limit, &found);
    let (mut mistakes, files) = found.into_parts();
    mistakes.extend(files.into_iter().filter_map(unreadable));
    mistakes.extend(config.users.iter().flat_map(wrong_users));
    if mistakes.is_empty() {
        let warnings = warnings::warnings(&config);
        Ok(Loaded { config, warnings })
    } else {
        Err(Mistakes::new(name, mistakes))
    }
}

/// What is wrong in the files of users.
fn wrong_users(config: &UsersConfig) -> impl Iterator<Item = Mistake> {
    let wrong = users::mistakes(config).into_iter();
    wrong.map(|(key, what)| Mistake {
        at: None,
        key: key.to_owned(),
        what,
    })
}

/// The mistake that a named file makes. Its path is not repeated: somebody may have written the secret itself there.
fn unreadable(file: mistake::NamedFile) -> Option<Mistake> {
    // Opening a pipe would wait for a writer, so the kind comes first.
    let problem = match std::fs::metadata(&file.path) {
        Err(error) => Some(error.kind().to_string()),
        Ok(metadata) if !metadata.is_file() => Some("it is not a file".to_owned()),
        Ok(_) => File::open(&file.path)
            .err()
            .map(|error| error.kind().to_string()),
    };
    problem.map(|problem| Mistake {
        at: file.at,
        key: file.key,
        what: format!(
            "the file cannot be read: {problem}; write the path of a file that this process may read"
        ),
    })
}

#[cfg(test)]
mod tests;
