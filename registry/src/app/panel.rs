//! What the admin API reads: closures over the parts, none of which waits.

use std::net::SocketAddr;
use std::sync::Arc;

use coral_schema::admin::{
    ConfigState, ConfigStatus, DiskStatus, IndexState, PrefetchReason, RegistryEntry,
    TransferStatus,
};
use coral_schema::mirror_config::{Cache, HostPort, Registry};
use coral_schema::oci::ImageReference;
use coral_schema::process::health::Health;
use coral_schema::process::tasks::Tasks;
use futures::FutureExt as _;
use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;

use super::parts::Opened;
use crate::access::cap::ReadCap;
use crate::access::{Access, AccessError, Caller, Probe};
use crate::admin::Admin;
use crate::admin::mirror_config::Mirrors;
use crate::config::Config;
use crate::config::watch::{ConfigWatch, ReloadState};
use crate::hosted::Hosted;
use crate::index::Index;
use crate::name::RepoKey;
use crate::pull::Puller;
use crate::pull::prefetch::{Admission, Prefetcher, Problem};
use crate::store::Space;
use crate::transfer::Transfers;
use crate::upstream::lent::Lent;
use crate::upstream::{RepositoryPattern, Upstream, UpstreamConfig};

/// What there is to see.
pub(super) struct View {
    pub(super) address: SocketAddr,
    pub(super) is_tls: bool,
    pub(super) health: Arc<Health>,
    pub(super) watched: Arc<ConfigWatch>,
    pub(super) access: Arc<Access>,
    pub(super) transfers: Transfers,
    pub(super) puller: Puller,
    pub(super) lent: Lent,
    pub(super) hosted: Hosted,
}

pub(super) fn panel(view: View, opened: &Opened, tasks: &Tasks) -> Admin {
    let View {
        address,
        is_tls,
        health,
        watched,
        access,
        transfers,
        puller,
        lent,
        hosted,
    } = view;
    let (state, config) = (watched.state(), watched.config());
    let served = watched.config();
    let is_fit = {
        let admin = &served.borrow().admin;
        admin.tls.is_some() && admin.auth.is_some()
    };
    let index = opened.index.clone();
    let disk = Disk {
        index: index.clone(),
        space: Arc::clone(&opened.space),
        limit: opened.limit,
        degraded: opened.evictor.room().degraded(),
    };
    let names = Arc::clone(&access);
    let (rules, logins) = (Arc::clone(&access), Arc::clone(&access));
    Admin {
        ready: Box::new(move || health.not_ready().is_empty()),
        disk: Box::new(move || disk.read()),
        config: Box::new(move || config_status(&state.borrow(), logins.users_problem().as_deref())),
        upstreams: Box::new(move || upstreams(&names)),
        transfers: Box::new(move || transfers.list().iter().map(transfer_status).collect()),
        index_state: Box::new(move || {
            if index.complete() {
                IndexState::Open
            } else {
                IndexState::Rebuilding
            }
        }),
        registries: Box::new(move || registries(&served.borrow())),
        mirrors: Box::new(move || mirrors(&config.borrow(), address, is_tls)),
        repository: Box::new(move |image| repository(&rules, image)),
        index: opened.index.clone(),
        lent: is_fit.then_some(lent),
        hosted,
        prefetcher: Prefetcher::new(admission(access), puller, tasks),
        started: Timestamp::now(),
    }
}

struct Disk {
    index: Index,
    space: Arc<Space>,
    limit: u64,
    degraded: Gauge,
}

impl Disk {
    fn read(&self) -> DiskStatus {
        DiskStatus {
            used: self.index.totals().borrow().bytes(),
            limit: self.limit,
            free: self.space.recent_volume().free,
            degraded: self.degraded.get() != 0 || !self.space.may_fill(),
        }
    }
}

/// `users`: what is wrong with the files of users, which are a part of the configuration.
fn config_status(state: &ReloadState, users: Option<&str>) -> ConfigStatus {
    match (state, users) {
        (ReloadState::Defaults | ReloadState::Current, Some(problem)) => ConfigStatus {
            state: ConfigState::Refused,
            error: Some(problem.to_owned()),
        },
        (state, _) => state_of(state),
    }
}

fn state_of(state: &ReloadState) -> ConfigStatus {
    match state {
        ReloadState::Defaults => ConfigStatus {
            state: ConfigState::Defaults,
            error: None,
        },
        ReloadState::Current => ConfigStatus {
            state: ConfigState::Current,
            error: None,
        },
        ReloadState::Refused(reason) => ConfigStatus {
            state: ConfigState::Refused,
            error: Some(reason.clone()),
        },
    }
}

fn upstreams(access: &Access) -> Vec<Arc<Upstream>> {
    access.snapshot().upstreams.values().cloned().collect()
}

fn transfer_status(status: &crate::transfer::TransferStatus) -> TransferStatus {
    let progress = &status.progress;
    let left = progress
        .size
        .map(|size| size.saturating_sub(progress.watermark));
    TransferStatus {
        digest: status.digest,
        repository: Some(status.repo.to_string()),
        size: progress.size,
        watermark: progress.watermark,
        rate: status.rate.per_second(),
        seconds_left: left.and_then(|left| status.rate.seconds_left(left)),
        readers: status.readers as u64,
        state: progress.phase.state(),
    }
}

fn registries(config: &Config) -> Vec<RegistryEntry> {
    let patterns = |patterns: &[RepositoryPattern]| {
        let texts = patterns.iter().map(|pattern| pattern.0.as_str().to_owned());
        texts.collect()
    };
    let entry = |upstream: &UpstreamConfig| RegistryEntry {
        name: upstream.name.to_string(),
        aliases: upstream.aliases.iter().map(ToString::to_string).collect(),
        allow: patterns(&upstream.policy.allow),
        deny: patterns(&upstream.policy.deny),
    };
    config.upstreams.iter().map(entry).collect()
}

fn mirrors(config: &Config, bound: SocketAddr, is_tls: bool) -> Mirrors {
    let host = |name: &crate::name::UpstreamName| name.as_str().parse::<HostPort>().ok();
    let registries = config.upstreams.iter().filter_map(|upstream| {
        let aliases = upstream.aliases.iter().filter_map(host).collect();
        Some(Registry {
            host: host(&upstream.name)?,
            aliases,
            plain_http: upstream.plain_http,
        })
    });
    Mirrors {
        cache: Cache {
            address: config.address(bound),
            tls: is_tls,
        },
        registries: registries.collect(),
    }
}

/// Nothing is held of a registry that is not configured; what is said about it counts when it is.
fn repository(access: &Access, image: &ImageReference) -> Option<RepoKey> {
    let path = image.repository.as_str();
    let known = access.resolve(Some(&image.host), path).ok();
    known.or_else(|| format!("{}/{path}", image.host).parse().ok())
}

/// A prefetch may read what a client without a login may.
fn admission(access: Arc<Access>) -> Admission {
    Box::new(move |image: ImageReference| {
        let access = Arc::clone(&access);
        async move {
            let admitted = admit(&access, &image).await;
            admitted.map_err(|error| Problem {
                reason: reason(&error),
                message: error.to_string(),
            })
        }
        .boxed()
    })
}

fn reason(error: &AccessError) -> PrefetchReason {
    match error {
        AccessError::Name(_)
        | AccessError::Hidden(_)
        | AccessError::LoginNeeded(_)
        | AccessError::Scope { .. }
        | AccessError::WrongLogin
        | AccessError::WrongToken => PrefetchReason::Unauthorized,
        AccessError::Denied(_) | AccessError::Proxied(_) | AccessError::PushDenied(_) => {
            PrefetchReason::Forbidden
        }
        AccessError::Unavailable { .. } | AccessError::Busy => PrefetchReason::UpstreamUnavailable,
    }
}

async fn admit(access: &Access, image: &ImageReference) -> Result<ReadCap, AccessError> {
    let repo = access.resolve(Some(&image.host), image.repository.as_str())?;
    let probe = image.manifest_ref();
    access
        .read(&Caller::anonymous(), repo, Probe::Manifest(&probe))
        .await
}
