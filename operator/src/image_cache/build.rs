//! Pure: an assignment to what nodes and the cache are asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::marker::PhantomData;
use std::sync::Arc;

use coral_schema::admin::PrefetchRequest;
use coral_schema::oci::Platform;

use super::assign::Assignment;
use super::dereference::Surroundings;
use super::refresh::Due;
use super::resources::{CacheRequests, Pins, Prepared, Resources};
use super::validate::ValidatedImageCache;
use crate::labels::pin_source;
use crate::node_cache::wishes::{ImageWish, NodeWish, ObjectWishes, SetName};

/// Builds it. An object that is being deleted asks for nothing, and says whether what it had is purged.
pub fn build(
    object: &ValidatedImageCache,
    assignment: &Assignment,
    around: &Surroundings<'_>,
    due: Due,
) -> Resources<Prepared> {
    Resources {
        wishes: wishes(object, assignment, around),
        cache: cache(object, assignment, around, &due),
        due,
        state: PhantomData,
    }
}

fn wishes(
    object: &ValidatedImageCache,
    assignment: &Assignment,
    around: &Surroundings<'_>,
) -> ObjectWishes {
    let granted = |plan: &super::assign::NodePlan| -> Vec<NodeWish> {
        let pairs = plan.pairs.iter().filter_map(|pair| {
            let grant = pair.grant?;
            Some(NodeWish {
                image: pair.image,
                sets: pair.sets,
                policy: grant.policy,
                revision: grant.revision,
            })
        });
        pairs.collect()
    };
    let nodes = assignment
        .nodes
        .iter()
        .map(|plan| (Arc::clone(&plan.node.name), granted(plan)))
        .filter(|(_, wishes)| !wishes.is_empty());
    ObjectWishes {
        object: object.key.clone(),
        created: object.created,
        priority: object.priority,
        purge: object.purge,
        on_eviction: object.on_eviction,
        retry: object.retry.clone(),
        sets: object
            .sets
            .iter()
            .map(|set| SetName {
                name: set.name.clone(),
                replicas: set
                    .nodes
                    .as_ref()
                    .is_some_and(|filter| filter.replicas.is_some()),
            })
            .collect(),
        images: known(object, assignment, around),
        nodes: nodes.collect(),
    }
}

/// What is known of the images: by the cache, else from before, so that an operator that starts, or a cache that is away,
/// does not rewrite the specs of all nodes.
fn known(
    object: &ValidatedImageCache,
    assignment: &Assignment,
    around: &Surroundings<'_>,
) -> Vec<ImageWish> {
    let before = around
        .previous
        .into_iter()
        .flat_map(|wishes| &wishes.images);
    let mut before: HashMap<&str, (Option<String>, Option<u64>)> = before
        .map(|image| (&*image.reference, (image.digest.clone(), image.size_bytes)))
        .collect();
    if around.previous.is_none() {
        stored(object, assignment, &mut before);
    }
    let images = object.images.iter().map(|image| {
        let progress = around.cache.images.get(&*image.spelling);
        let (digest, size_bytes) = match progress.and_then(|progress| progress.digest) {
            Some(digest) => (
                Some(digest.to_string()),
                progress
                    .map(|progress| progress.size_bytes)
                    .filter(|size| *size > 0),
            ),
            None => before.remove(&*image.spelling).unwrap_or_default(),
        };
        ImageWish {
            reference: Arc::clone(&image.spelling),
            digest,
            size_bytes,
        }
    });
    images.collect()
}

/// What nodes were told, by the first node that was told anything of an image: all were told the same.
fn stored<'a>(
    object: &'a ValidatedImageCache,
    assignment: &Assignment,
    known: &mut HashMap<&'a str, (Option<String>, Option<u64>)>,
) {
    for plan in &assignment.nodes {
        if known.len() == object.images.len() {
            return;
        }
        for pair in plan.pairs.iter().filter(|pair| pair.grant.is_some()) {
            let spelling = &*object.images[pair.image].spelling;
            if !known.contains_key(spelling)
                && let Some(wish) = plan.node.wished(spelling)
            {
                known.insert(spelling, (wish.digest.clone(), wish.size_bytes));
            }
        }
    }
}

fn cache(
    object: &ValidatedImageCache,
    assignment: &Assignment,
    around: &Surroundings<'_>,
    due: &Due,
) -> CacheRequests {
    let pins = |images: Vec<String>| Pins {
        source: pin_source(&object.key.namespace, &object.key.name),
        images,
        expires: around
            .now
            .saturating_add(Pins::LIFETIME)
            .unwrap_or(around.now),
    };
    if object.deleted.is_some() {
        return CacheRequests {
            prefetch: Vec::new(),
            pins: pins(Vec::new()),
        };
    }
    let mut by_platforms: BTreeMap<Vec<Platform>, Vec<String>> = BTreeMap::new();
    for (image, platforms) in object
        .images
        .iter()
        .zip(platforms(object, assignment, around))
    {
        by_platforms
            .entry(platforms.into_iter().collect())
            .or_default()
            .push(image.spelling.to_string());
    }
    let jobs = by_platforms
        .into_iter()
        .map(|(platforms, images)| PrefetchRequest {
            images,
            platforms,
            priority: object.priority,
            refresh: *due != Due::No,
        });
    let all = object.images.iter();
    CacheRequests {
        prefetch: jobs.collect(),
        pins: pins(all.map(|image| image.spelling.to_string()).collect()),
    }
}

/// Which platforms the cache holds of each image: what its sets say, else those of their nodes; without nodes those of all
/// Linux nodes.
fn platforms(
    object: &ValidatedImageCache,
    assignment: &Assignment,
    around: &Surroundings<'_>,
) -> Vec<BTreeSet<Platform>> {
    let mut all = vec![BTreeSet::new(); object.images.len()];
    let linux = around.nodes.values().filter(|node| node.is_linux());
    let everywhere: BTreeSet<Platform> = linux.filter_map(|node| node.platform()).collect();
    let masks: Vec<(u16, Option<Platform>)> = assignment
        .nodes
        .iter()
        .map(|plan| {
            let sets = plan.pairs.iter().fold(0, |sets, pair| sets | pair.sets);
            (sets, plan.node.platform())
        })
        .collect();
    for (index, set) in object.sets.iter().enumerate() {
        let own: BTreeSet<Platform> = if set.platforms.is_empty() {
            let nodes = masks.iter().filter(|(sets, _)| sets & (1 << index) != 0);
            nodes.filter_map(|(_, platform)| platform.clone()).collect()
        } else {
            set.platforms.iter().cloned().collect()
        };
        let own = if own.is_empty() { &everywhere } else { &own };
        for image in &set.images {
            all[*image].extend(own.iter().cloned());
        }
    }
    all
}

#[cfg(test)]
mod tests;
