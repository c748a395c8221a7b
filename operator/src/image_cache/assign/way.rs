//! From where nodes pull an image, and whether they may start.
//!
//! `registryPolicy: Auto` is decided once per image: by way of the cache where the cache serves the registry, as soon as it
//! has the manifests and its transfers run (they stream: still one download); else as the runtime would, one node ahead.
//! What was decided is read back from the nodes: an image that a node holds by the runtime's own way stays on it. An image
//! on the way of the cache leaves it when the cache was away for five minutes, one node first; if the cache returns before
//! that node is done, the image comes back.

use std::time::Duration;

use coral_schema::admin::{PrefetchImage, PrefetchReason, PrefetchState};
use coral_schema::crd::image_cache::RegistryPolicy;
use coral_schema::crd::node_cache::NodeRegistryPolicy;

use super::NodePlan;
use crate::image_cache::dereference::{CacheFacts, Surroundings};
use crate::image_cache::validate::{ValidatedImage, ValidatedImageCache};

/// A cache that is away for so long is no longer waited for.
pub const AWAY_FOR_GOOD: Duration = Duration::from_mins(5);

/// How an image gets to nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Every node may start.
    Open(NodeRegistryPolicy),
    /// As the runtime would; one node starts, the others when it is done.
    OneAhead,
    /// Nobody may start: the cache has to have it first.
    AwaitCache,
}

/// What nodes do with an image.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Nodes hold it, by the runtime's own way.
    by_default: bool,
    /// Nodes hold it, by way of the cache.
    by_mirror: bool,
    /// Nodes were told to use the cache.
    told_mirror: bool,
}

/// Decides for every image, and tells those that do not hold it yet.
pub(super) fn ways(
    object: &ValidatedImageCache,
    around: &Surroundings<'_>,
    nodes: &mut [NodePlan],
) -> Vec<Way> {
    let mut seen = vec![Seen::default(); object.images.len()];
    for pair in nodes.iter().flat_map(|plan| &plan.pairs) {
        let Some(grant) = pair.grant else { continue };
        let seen = &mut seen[pair.image];
        let held = pair.progress.is_held();
        let mirror = grant.policy == NodeRegistryPolicy::MirrorOnly;
        seen.by_default |= held && !mirror;
        seen.by_mirror |= held && mirror;
        seen.told_mirror |= mirror;
    }
    let ways: Vec<Way> = object
        .images
        .iter()
        .zip(&seen)
        .map(|(image, seen)| match object.policy {
            RegistryPolicy::Default => Way::Open(NodeRegistryPolicy::Default),
            RegistryPolicy::MirrorOnly => Way::Open(NodeRegistryPolicy::MirrorOnly),
            RegistryPolicy::Auto | RegistryPolicy::Unknown => auto(image, *seen, around.cache),
        })
        .collect();
    tell(object, &ways, nodes);
    ways
}

fn auto(image: &ValidatedImage, seen: Seen, cache: &CacheFacts) -> Way {
    if seen.by_default {
        return Way::Open(NodeRegistryPolicy::Default);
    }
    if cache.away.is_some_and(|away| away >= AWAY_FOR_GOOD) {
        return Way::OneAhead;
    }
    let progress = cache.images.get(&*image.spelling);
    match cache.registries.as_ref() {
        Some(registries) if !registries.serve(&image.reference) => Way::OneAhead,
        Some(_) if progress.is_some_and(is_refused) => Way::OneAhead,
        Some(_) if seen.by_mirror || progress.is_some_and(is_streaming) => {
            Way::Open(NodeRegistryPolicy::MirrorOnly)
        }
        None if seen.by_mirror => Way::Open(NodeRegistryPolicy::MirrorOnly),
        Some(_) | None => Way::AwaitCache,
    }
}

/// The cache will not hold it, whatever time passes; a node may be able to pull it all the same.
fn is_refused(image: &PrefetchImage) -> bool {
    image.state == PrefetchState::Failed
        && matches!(
            image.reason,
            Some(
                PrefetchReason::Unauthorized
                    | PrefetchReason::Forbidden
                    // Some nodes may be of a platform that it has.
                    | PrefetchReason::PlatformMissing
                    | PrefetchReason::StorageFull
                    | PrefetchReason::InvalidImage
            )
        )
}

/// Its manifests are there, and its blobs are there or on their way.
fn is_streaming(image: &PrefetchImage) -> bool {
    image.digest.is_some() && matches!(image.state, PrefetchState::Running | PrefetchState::Done)
}

/// Corrects what nodes were told, where they do not hold the image yet.
fn tell(object: &ValidatedImageCache, ways: &[Way], nodes: &mut [NodePlan]) {
    let mut ahead = somebody_ahead(ways.len(), nodes);
    for plan in nodes {
        let able = plan.node.ready && !plan.node.paused && !plan.silent;
        for pair in &mut plan.pairs {
            let Some(grant) = &mut pair.grant else {
                continue;
            };
            let held = pair.progress.is_held();
            match ways[pair.image] {
                Way::Open(policy) if !held || object.policy != RegistryPolicy::Auto => {
                    grant.policy = policy;
                }
                // A node that failed by way of the cache may lead as well as one that waits.
                Way::OneAhead
                    if !held
                        && able
                        && !ahead[pair.image]
                        && grant.policy == NodeRegistryPolicy::MirrorOnly =>
                {
                    grant.policy = NodeRegistryPolicy::Default;
                    ahead[pair.image] = true;
                }
                Way::Open(_) | Way::OneAhead | Way::AwaitCache => {}
            }
        }
    }
}

/// Per image: does a node pull it the runtime's own way, with some hope?
pub(super) fn somebody_ahead(images: usize, nodes: &[NodePlan]) -> Vec<bool> {
    let mut ahead = vec![false; images];
    for pair in nodes.iter().flat_map(|plan| &plan.pairs) {
        let default = pair
            .grant
            .is_some_and(|grant| grant.policy == NodeRegistryPolicy::Default);
        ahead[pair.image] |= default && pair.progress.is_under_way();
    }
    ahead
}
