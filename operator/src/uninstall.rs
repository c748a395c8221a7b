//! `uninstall`: leaves no trace. Nodes first, while their warmers still run: mirror settings that point at a cache that is
//! gone make pulls slower.
//!
//! Takes the lease from a running operator, so that none writes again what is taken away: not before it is done, and not in
//! the minute after it, in which helm deletes the operators. Empties every `NodeCache`, waits until warmers
//! answered that their mirror settings are gone, then removes finalizers and the `NodeCache`s. `ImageCache`s stay: they
//! are the users'.

use std::time::Duration;

use coral_schema::crd::node_cache::NodeCacheSpec;
use coral_schema::crd::{ConditionType, ImageCache, NodeCache, PURGE_FINALIZER};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, sleep, timeout};

use crate::api::{self, ApiError};
use crate::lease::Candidate;
use crate::scheduling::node;
use crate::{image_cache, node_cache};

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The lease could not be taken.
    #[error("the lease could not be taken within {} s; the log says why", LEASE_WITHIN.as_secs())]
    NoLease,
    /// The lease was lost in the middle.
    #[error("somebody else took the lease; try again when no other uninstall runs")]
    Lost,
    /// The API server did not do it.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Takes everything away. Answers what is worth telling, as lines.
pub async fn uninstall(
    client: &Client,
    candidate: &Candidate,
) -> Result<Vec<String>, UninstallError> {
    let mut tenure = timeout(LEASE_WITHIN, candidate.seize())
        .await
        .map_err(|_| UninstallError::NoLease)?;
    let done = tokio::select! {
        _ = tenure.keep() => Err(UninstallError::Lost),
        done = take_away(client) => done,
    };
    match &done {
        Ok(_) => tenure.bar(LAST_WORD).await,
        Err(_) => tenure.release().await,
    }
    done
}

async fn take_away(client: &Client) -> Result<Vec<String>, UninstallError> {
    let caches: Api<NodeCache> = Api::all(client.clone());
    let all = api::list(&caches).await?;
    for cache in &all {
        empty(client, cache).await?;
    }
    let silent = wait_for_warmers(&caches).await?;
    let freed = remove_finalizers(client).await?;
    clean_nodes(client).await?;
    for cache in &all {
        node_cache::apply::delete(client, &cache.name_any(), cache.uid()).await?;
    }
    let mut lines = vec![format!(
        "{} nodes released, {freed} ImageCaches freed of their finalizer",
        all.len()
    )];
    lines.extend(silent.into_iter().map(|node| {
        format!(
            "{node}: its warmer did not answer; run `coral-warmer cleanup` there, or remove its files with our marker"
        )
    }));
    Ok(lines)
}

/// Nothing to hold, nothing to purge, no mirror.
async fn empty(client: &Client, cache: &NodeCache) -> Result<(), ApiError> {
    let spec = NodeCacheSpec {
        images: Vec::new(),
        purge: Vec::new(),
        mirror: None,
        ..cache.spec.clone()
    };
    node_cache::apply::apply(client, &cache.name_any(), spec)
        .await
        .map(drop)
}

/// Names of nodes whose warmers did not answer in time.
async fn wait_for_warmers(api: &Api<NodeCache>) -> Result<Vec<String>, ApiError> {
    let deadline = Instant::now() + WARMERS_WITHIN;
    loop {
        let all = api::list(api).await?;
        let waiting: Vec<String> = all
            .iter()
            .filter(|cache| !is_released(cache))
            .map(ResourceExt::name_any)
            .collect();
        if waiting.is_empty() || Instant::now() >= deadline {
            return Ok(waiting);
        }
        sleep(POLL).await;
    }
}

/// Has its warmer seen the empty spec, and taken its mirror settings away? One that never had any says nothing of them.
fn is_released(cache: &NodeCache) -> bool {
    let Some(status) = &cache.status else {
        return false;
    };
    let answered = status.observed_generation >= cache.metadata.generation;
    let mirror = ConditionType::MirrorConfigured.as_str();
    let configured = status.conditions.iter().find(|it| it.type_ == mirror);
    answered && configured.is_none_or(|it| it.status == "False")
}

/// Our labels and our taint go. Where the operator may not write to Nodes it never did.
async fn clean_nodes(client: &Client) -> Result<(), ApiError> {
    let nodes: Api<Node> = Api::all(client.clone());
    for node in api::list(&nodes).await? {
        match node::clean(client, &node).await {
            Ok(()) | Err(ApiError::NotFound | ApiError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn remove_finalizers(client: &Client) -> Result<usize, ApiError> {
    let everywhere: Api<ImageCache> = Api::all(client.clone());
    let mut freed = 0;
    for object in api::list(&everywhere).await? {
        if object.finalizers().iter().any(|it| it == PURGE_FINALIZER) {
            match image_cache::apply::finalizer(client, &object, false).await {
                Ok(_) => freed += 1,
                Err(ApiError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(freed)
}

/// Until a running operator has surely stopped, and some more for an API server that is slow.
const LEASE_WITHIN: Duration = Duration::from_secs(45);
/// Afterwards no operator leads for this long: until it is deleted.
const LAST_WORD: Duration = Duration::from_mins(1);
/// How long warmers may take.
const WARMERS_WITHIN: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_secs(2);
