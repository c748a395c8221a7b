//! Takes a changed configuration into use: per request as one snapshot, without touching running transfers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use coral_schema::process::tasks::Tasks;
use tokio::sync::watch;

use crate::access::{Access, HostedRules, Key, Rules, Snapshot, Users, UsersConfig};
use crate::config::Config;
use crate::hosted::{Hosted, Settings};
use crate::name::{NameRules, UpstreamName};
use crate::pull::{PullConfig, Puller};
use crate::transfer::{TransferConfig, Transfers};
use crate::upstream::lent::Lent;
use crate::upstream::{self, BuildError, Upstream, UpstreamConfig, UpstreamMetrics};

/// Builds snapshots. An upstream whose configuration did not change stays the same object, with its connections,
/// tokens and breakers.
#[derive(Debug)]
pub(super) struct Upstreams {
    metrics: UpstreamMetrics,
    lent: Lent,
    tasks: Tasks,
    built: Mutex<HashMap<UpstreamName, (UpstreamConfig, Arc<Upstream>)>>,
    key: Key,
    users: Mutex<Option<Arc<Users>>>,
}

impl Upstreams {
    /// `key` is what logins are proved with.
    pub(super) fn new(metrics: UpstreamMetrics, key: Key, tasks: Tasks) -> Self {
        Self {
            metrics,
            lent: Lent::default(),
            tasks,
            built: Mutex::default(),
            key,
            users: Mutex::default(),
        }
    }

    /// What is lent to all of them.
    pub(super) fn lent(&self) -> Lent {
        self.lent.clone()
    }

    /// Could a snapshot be made of this configuration? Reads certificate files: call it where blocking is allowed.
    pub(super) fn try_out(&self, config: &Config) -> Result<(), BuildError> {
        for wanted in &config.upstreams {
            let is_built = {
                let built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
                built
                    .get(&wanted.name)
                    .is_some_and(|(same, _)| same == wanted)
            };
            if !is_built {
                upstream::build(wanted, &self.lent, &self.metrics, &self.tasks)?;
            }
        }
        Ok(())
    }

    /// The same object as long as the same files are named: it knows what it has read.
    fn users(&self, config: Option<&UsersConfig>) -> Option<Arc<Users>> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.as_ref().map(|users| users.config()) != config {
            let make = |config: &UsersConfig| Users::new(config.clone(), self.key.clone());
            *users = config.map(make).map(Arc::new);
        }
        users.clone()
    }

    /// The snapshot of a configuration. Reads certificates and users: call it where blocking is allowed.
    pub(super) fn snapshot(&self, config: &Config) -> Result<Snapshot, BuildError> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = HashMap::new();
        for wanted in &config.upstreams {
            let upstream = match built.get(&wanted.name) {
                Some((same, upstream)) if same == wanted => Arc::clone(upstream),
                _ => Arc::new(upstream::build(
                    wanted,
                    &self.lent,
                    &self.metrics,
                    &self.tasks,
                )?),
            };
            next.insert(wanted.name.clone(), (wanted.clone(), upstream));
        }
        let names = config
            .upstreams
            .iter()
            .map(|upstream| (&upstream.name, upstream.aliases.as_slice()));
        let prefixes = config.hosted.iter().map(|hosted| hosted.prefix.clone());
        let own = config.address(config.listen).to_string();
        let rules = NameRules::new(names, config.default_upstream.clone())
            .with_hosted(prefixes.collect(), own.parse().ok());
        let upstreams = next
            .iter()
            .map(|(name, (_, upstream))| (name.clone(), Arc::clone(upstream)))
            .collect();
        *built = next;
        Ok(Snapshot {
            rules,
            upstreams,
            hosted: HostedRules::new(&config.hosted),
            grants: Rules::new(config.access.clone(), config.anonymous_push),
            users: self.users(config.users.as_ref()),
        })
    }
}

/// Who is told of a change.
#[derive(Debug, Clone)]
pub(super) struct Listeners {
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) access: Arc<Access>,
    pub(super) puller: Puller,
    pub(super) transfers: Transfers,
    pub(super) hosted: Hosted,
}

impl Listeners {
    /// Applies every change until the watch ends.
    pub(super) async fn follow(self, mut changes: watch::Receiver<Arc<Config>>) {
        while changes.changed().await.is_ok() {
            let config = Arc::clone(&changes.borrow_and_update());
            let (upstreams, wanted) = (Arc::clone(&self.upstreams), Arc::clone(&config));
            let snapshot = tokio::task::spawn_blocking(move || upstreams.snapshot(&wanted)).await;
            match snapshot {
                Ok(Ok(snapshot)) => self.apply(&config, snapshot),
                Ok(Err(error)) => tracing::error!(%error, "the changed configuration is not used"),
                Err(error) => tracing::error!(%error, "the changed configuration is not used"),
            }
        }
    }

    fn apply(&self, config: &Config, snapshot: Snapshot) {
        self.access.replace(snapshot);
        self.puller.reconfigure(pull_config(config));
        self.hosted.reconfigure(hosted_settings(config));
        self.transfers.reconfigure(transfer_config(config));
        tracing::info!("the changed configuration is in use");
    }
}

/// The puller's part of a configuration.
pub(super) fn pull_config(config: &Config) -> PullConfig {
    PullConfig {
        manifest_max_bytes: config.manifest_max_bytes,
        negative_ttl: config.cache.negative_ttl,
    }
}

/// The part of hosted repositories.
pub(super) fn hosted_settings(config: &Config) -> Settings {
    Settings {
        manifest_max_bytes: config.manifest_max_bytes,
        gc: config.gc,
    }
}

/// The transfers' part of a configuration.
pub(super) fn transfer_config(config: &Config) -> TransferConfig {
    TransferConfig {
        finish: config.cache.finish_transfers,
        fill_on_range: config.cache.fill_on_range,
    }
}
