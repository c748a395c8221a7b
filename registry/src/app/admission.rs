//! Who may do what: from the configuration, and from the files of users, which are looked at as often as it is.

use std::sync::Arc;

use coral_schema::process::tasks::Tasks;
use prometheus_client::registry::Registry;
use tokio::time::MissedTickBehavior;

use super::parts::Opened;
use super::reload::Upstreams;
use crate::access::{Access, AccessMetrics};
use crate::config::{Config, watch};
use crate::upstream::{BuildError, UpstreamMetrics};

/// What makes snapshots of configurations, and what goes by the first.
pub(super) fn open(
    config: &Config,
    opened: &Opened,
    metrics: &mut Registry,
    tasks: &Tasks,
) -> Result<(Arc<Upstreams>, Arc<Access>), BuildError> {
    let key = opened.key.clone();
    let upstreams = UpstreamMetrics::register(metrics);
    let upstreams = Upstreams::new(upstreams, key.clone(), tasks.clone());
    let snapshot = upstreams.snapshot(config)?;
    let (index, metrics) = (opened.index.clone(), AccessMetrics::register(metrics));
    let access = Access::new(snapshot, key, index, tasks.clone(), metrics);
    Ok((Arc::new(upstreams), Arc::new(access)))
}

/// Looks at the files of users again and again.
pub(super) fn follow_users(access: &Arc<Access>, tasks: &Tasks) {
    let (access, stopping) = (Arc::clone(access), tasks.stopping());
    let looking = async move {
        let mut ticks = tokio::time::interval(watch::PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let access = Arc::clone(&access);
            let looked = tokio::task::spawn_blocking(move || access.look_at_users()).await;
            if let Err(error) = looked {
                tracing::error!(%error, "the files of users could not be looked at");
            }
        }
    };
    tasks.spawn("users", async move {
        stopping.run_until_cancelled(looking).await
    });
}
