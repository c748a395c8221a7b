//! Pure: an assignment to what nodes and the cache are asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::marker::PhantomData;
use std::sync::Arc;

use coral_schema::admin::{FrozenTag, PrefetchRequest};
use coral_schema::crd::image_cache::TagPolicy;
use coral_schema::oci::Platform;

use super::assign::Assignment;
use super::dereference::Surroundings;
use super::refresh::Due;
use super::resources::{CacheRequests, Pins, Prepared, Resources};
use super::secrets::{self, Lending};
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
    let wishes = wishes(object, assignment, around);
    Resources {
        cache: cache(object, assignment, around, &due, &wishes),
        wishes,
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
                follows: object.tag_policy == TagPolicy::Follow,
            })
        });
        pairs.collect()
    };
    let mut last = Arc::<[NodeWish]>::default();
    let nodes = assignment.nodes.iter().map(|plan| {
        let wishes = granted(plan);
        if *last != *wishes {
            last = wishes.into();
        }
        (Arc::clone(&plan.node.name), Arc::clone(&last))
    });
    let nodes = nodes.filter(|(_, wishes)| !wishes.is_empty());
    ObjectWishes {
        object: object.key.clone(),
        created: object.created,
        priority: object.priority,
        purge: object.purge,
        on_eviction: object.on_eviction,
        tag_policy: object.tag_policy,
        protect: object.protect,
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
/// does not change its mind. A frozen tag means what it meant first.
fn known(
    object: &ValidatedImageCache,
    assignment: &Assignment,
    around: &Surroundings<'_>,
) -> Vec<ImageWish> {
    let before = around
        .previous
        .into_iter()
        .flat_map(|wishes| &wishes.images);
    let mut before: HashMap<&str, Known> = before
        .map(|image| (&*image.reference, (image.digest.clone(), image.size_bytes)))
        .collect();
    if around.previous.is_none() {
        let said = around.status.into_iter().flat_map(|status| &status.entries);
        let said = said.filter(|entry| entry.digest.is_some());
        before.extend(said.map(|entry| {
            let known = (entry.digest.clone(), entry.size_bytes);
            (entry.reference.as_str(), known)
        }));
        stored(object, assignment, &mut before);
    }
    let images = object.images.iter().map(|image| {
        let progress = around.cache.images.get(&*image.spelling);
        let now = progress.and_then(|progress| {
            let size = Some(progress.size_bytes).filter(|size| *size > 0);
            Some((Some(progress.digest?.to_string()), size))
        });
        let before = before.remove(&*image.spelling);
        let frozen = before.as_ref().filter(|(digest, _)| {
            let now = now.as_ref().and_then(|(digest, _)| digest.as_ref());
            image.is_frozen(object.tag_policy) && digest.is_some() && digest.as_ref() != now
        });
        let (digest, size_bytes) = frozen.cloned().or(now).or(before).unwrap_or_default();
        ImageWish {
            reference: Arc::clone(&image.spelling),
            digest,
            size_bytes,
        }
    });
    images.collect()
}

/// Digest and size.
type Known = (Option<String>, Option<u64>);

/// What nodes were told, by the first node that was told anything of an image: all were told the same.
fn stored<'a>(
    object: &'a ValidatedImageCache,
    assignment: &Assignment,
    known: &mut HashMap<&'a str, Known>,
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
    wishes: &ObjectWishes,
) -> CacheRequests {
    let pins = |images: Vec<String>, frozen: Vec<FrozenTag>| Pins {
        source: pin_source(&object.key.namespace, &object.key.name),
        images,
        frozen,
        expires: around
            .now
            .saturating_add(Pins::LIFETIME)
            .unwrap_or(around.now),
    };
    let lending =
        |logins| Lending::new(pin_source(&object.key.namespace, &object.key.name), logins);
    if object.deleted.is_some() {
        return CacheRequests {
            prefetch: Vec::new(),
            pins: pins(Vec::new(), Vec::new()),
            lending: lending(Vec::new()),
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
    let frozen = all.clone().zip(&wishes.images).filter_map(|(image, wish)| {
        let digest = wish.digest.as_ref()?.parse().ok()?;
        image.is_frozen(object.tag_policy).then(|| FrozenTag {
            reference: image.spelling.to_string(),
            digest,
        })
    });
    let frozen = frozen.collect();
    let served = around.secrets.zip(around.cache.registries.as_ref());
    let logins = served.map(|(secrets, registries)| secrets::logins(object, secrets, registries));
    CacheRequests {
        prefetch: jobs.collect(),
        pins: pins(
            all.map(|image| image.spelling.to_string()).collect(),
            frozen,
        ),
        lending: lending(logins.unwrap_or_default()),
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
