//! `explain`: what each image of an `ImageCache` waits for, on each node, as the operator would decide now.
//!
//! Reads what the operator reads, decides with the same steps, and writes nothing. What the cache holds is taken from the
//! object's status; how long a warmer has been silent only the operator knows, and says there.

use std::sync::Arc;
use std::time::Duration;

use coral_schema::admin::{PrefetchImage, PrefetchState};
use coral_schema::crd::image_cache::Entry;
use coral_schema::crd::{ImageCache, ImageCacheStatus, NodeCache};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use crate::api::{self, ApiError};
use crate::image_cache::assign::{Slots, assign};
use crate::image_cache::dereference::{CacheFacts, NodeFacts, Nodes, Surroundings};
use crate::image_cache::served::Registries;
use crate::image_cache::validate::{ValidatedImageCache, validate};
use crate::image_cache::{pods, waiting};
use crate::node_cache::stored::Common;
use crate::node_cache::wishes::ObjectKey;
use crate::registry::Registry;

/// Why there is nothing to tell.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// There is no such object.
    #[error("there is no ImageCache {0}; say with -n which namespace it is in")]
    NotFound(ObjectKey),
    /// The API server did not answer.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// The text to print. With a registry it tells whether the cache serves the images.
pub async fn explain(
    client: &Client,
    registry: Option<&Registry>,
    key: &ObjectKey,
    most_nodes: usize,
) -> Result<String, ExplainError> {
    let api: Api<ImageCache> = Api::namespaced(client.clone(), &key.namespace);
    let Some(object) = api::find(api.get(&key.name)).await? else {
        return Err(ExplainError::NotFound(key.clone()));
    };
    let objects = api::list(&Api::<ImageCache>::all(client.clone())).await?;
    let nodes = api::list(&Api::<Node>::all(client.clone())).await?;
    let caches = api::list(&Api::<NodeCache>::all(client.clone())).await?;
    let mut cache = CacheFacts {
        lending: None,
        registries: None,
        away: None,
        images: held(object.status.as_ref()),
    };
    let mut lines = said(&object);
    if let Some(registry) = registry {
        match registry.registries().await {
            Ok(entries) => cache.registries = Some(Registries::new(&entries)),
            Err(error) => {
                lines.push(error.to_string());
                cache.away = Some(Duration::ZERO);
            }
        }
    }
    let nodes = facts(&nodes, caches);
    match validate(&object) {
        Ok(mut validated) => {
            if pods::are_used(&validated) {
                let running = ListParams::default().fields("status.phase=Running");
                let pods = Api::<Pod>::namespaced(client.clone(), &key.namespace);
                join(
                    &mut validated,
                    &object,
                    &api::list_with(&pods, running).await?,
                );
            }
            lines.extend(decide(&validated, &objects, &nodes, &cache, most_nodes));
        }
        Err(mistakes) => lines.push(format!("cannot be evaluated: {mistakes}")),
    }
    Ok(lines.join("\n") + "\n")
}

/// As a leader that starts now would see it.
fn join(validated: &mut ValidatedImageCache, object: &ImageCache, pods: &[Pod]) {
    let pods: Vec<&Pod> = pods.iter().collect();
    let said = object.status.as_ref();
    pods::join(
        validated,
        &pods,
        &mut pods::Seen::new(),
        said,
        Duration::ZERO,
    );
}

fn decide(
    object: &ValidatedImageCache,
    objects: &[ImageCache],
    nodes: &Nodes,
    cache: &CacheFacts,
    most_nodes: usize,
) -> Vec<String> {
    let around = Surroundings {
        nodes,
        cache,
        previous: None,
        verdicts: None,
        secrets: None,
        status: None,
        now: Timestamp::now(),
        uptime: Duration::ZERO,
    };
    let mut slots = Slots::new(most_nodes);
    let none_free = Slots::new(0);
    let others = objects.iter().filter_map(|other| validate(other).ok());
    for other in others.filter(|other| other.key != object.key) {
        let assignment = assign(&other, &around, &none_free);
        slots.record(&other, assignment.slots);
    }
    waiting::explain(object, &assign(object, &around, &slots), &around)
}

/// What the operator said last.
fn said(object: &ImageCache) -> Vec<String> {
    let Some(status) = &object.status else {
        return vec!["the operator has not said anything yet".to_owned()];
    };
    let ready = status.conditions.iter().filter(|it| it.type_ == "Ready");
    let ready = ready.map(|it| format!("Ready={} {}: {}", it.status, it.reason, it.message));
    let failures = status.failures.iter().map(|failure| {
        let about = failure.reference.as_deref().unwrap_or("nodes");
        let sample = failure.sample_nodes.join(", ");
        format!("{about}: {} ({sample})", failure.message)
    });
    ready.chain(failures).collect()
}

fn held(status: Option<&ImageCacheStatus>) -> std::collections::HashMap<String, PrefetchImage> {
    let entries = status.into_iter().flat_map(|status| &status.entries);
    let known = entries.filter_map(|entry| Some((entry.reference.clone(), image(entry)?)));
    known.collect()
}

fn image(entry: &Entry) -> Option<PrefetchImage> {
    let digest = entry.digest.as_ref()?.parse().ok()?;
    let size = entry.size_bytes.unwrap_or_default();
    Some(PrefetchImage {
        state: if entry.cached {
            PrefetchState::Done
        } else {
            PrefetchState::Running
        },
        digest: Some(digest),
        size_bytes: size,
        bytes_done: if entry.cached { size } else { 0 },
        bytes_total: size,
        ..PrefetchImage::queued(&entry.reference)
    })
}

fn facts(nodes: &[Node], caches: Vec<NodeCache>) -> Nodes {
    let caches = caches.into_iter().map(|cache| (cache.name_any(), cache));
    let mut caches: std::collections::HashMap<String, NodeCache> = caches.collect();
    let mut common = Common::default();
    let facts = nodes.iter().map(|node| {
        let cache = caches.remove(&node.name_any());
        let cache = cache.map(|cache| Arc::new(common.keep(cache)));
        let facts = NodeFacts::new(node, cache, None, Duration::ZERO);
        (Arc::clone(&facts.name), Arc::new(facts))
    });
    facts.collect()
}
