//! Pure: what running pods of an object's namespace say: which nodes a set means (`nodes.podSelector`), and which images
//! join it (`discover`).
//!
//! An image stays in its set for `keepFor` after the last pod that names it is gone. When that was is known to one process
//! only; another one that finds the image in the status counts from its own start.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coral_schema::crd::MOST_IMAGES;
use coral_schema::crd::image_cache::{self, ImageCacheStatus};
use globset::{GlobBuilder, GlobMatcher};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::target::{Requirement, requirements};
use super::validate::{Mistakes, ValidatedImageCache};
use crate::pods::{is_running, named};

/// Which images join a set.
#[derive(Debug, Clone)]
pub struct Discover {
    pods: Vec<Requirement>,
    include: Vec<GlobMatcher>,
    max: usize,
    keep_for: Duration,
}

/// When one object's discovered images were last named by a pod, on the scale of the process; by set and spelling.
pub type Seen = BTreeMap<String, BTreeMap<String, Duration>>;

impl Discover {
    pub(super) fn new(
        discover: &image_cache::Discover,
        path: &str,
        mistakes: &mut Mistakes,
    ) -> Self {
        let include = discover.include.iter().flatten().enumerate();
        let include = include.filter_map(|(index, text)| {
            let glob = GlobBuilder::new(text).literal_separator(true).build();
            glob.map(|glob| glob.compile_matcher())
                .inspect_err(|error| {
                    mistakes.add(format!("{path}.include[{index}]"), error.to_string());
                })
                .ok()
        });
        let include = include.collect();
        Self {
            pods: requirements(
                Some(&discover.pod_selector),
                &format!("{path}.podSelector"),
                mistakes,
            ),
            include,
            max: usize::try_from(discover.max).unwrap_or(usize::MAX),
            keep_for: discover.keep_for.0,
        }
    }

    /// As pods write it, or written out.
    fn includes(&self, spelling: &str, written_out: &str) -> bool {
        let mut globs = self.include.iter();
        self.include.is_empty()
            || globs.any(|glob| glob.is_match(spelling) || glob.is_match(written_out))
    }
}

/// Does any set depend on pods?
pub fn are_used(object: &ValidatedImageCache) -> bool {
    object.sets.iter().any(|set| {
        let by_pods = set.nodes.as_ref().is_some_and(|nodes| nodes.pods.is_some());
        by_pods || set.discover.is_some()
    })
}

/// Takes into the object what its namespace's running pods say.
pub fn join(
    object: &mut ValidatedImageCache,
    pods: &[&Pod],
    seen: &mut Seen,
    said: Option<&ImageCacheStatus>,
    uptime: Duration,
) {
    let running: Vec<&Pod> = pods.iter().copied().filter(|pod| is_running(pod)).collect();
    for index in 0..object.sets.len() {
        let set = &mut object.sets[index];
        if let Some(nodes) = &mut set.nodes
            && let Some(selector) = &nodes.pods
        {
            let names = running.iter().filter(|pod| matches(selector, pod));
            let names = names.filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
            nodes.pod_nodes = Some(names.collect());
        }
        if let Some(discover) = set.discover.clone() {
            let name = set.name.clone();
            let seen = seen.entry(name).or_default();
            look(&discover, &running, seen, uptime);
            // Afterwards it would not have been kept.
            if let Some(said) = said.filter(|_| uptime < discover.keep_for) {
                remember(object, index, seen, said);
            }
            add(object, index, &discover, seen, uptime);
        }
    }
}

fn matches(selector: &[Requirement], pod: &Pod) -> bool {
    selector.iter().all(|it| it.holds(pod.labels()))
}

/// Which images pods name now.
fn look(
    discover: &Discover,
    running: &[&Pod],
    seen: &mut BTreeMap<String, Duration>,
    uptime: Duration,
) {
    let pods = running.iter().filter(|pod| matches(&discover.pods, pod));
    for image in pods.filter_map(|pod| pod.spec.as_ref()).flat_map(named) {
        seen.insert(image.clone(), uptime);
    }
    seen.retain(|_, last| uptime.saturating_sub(*last) < discover.keep_for);
}

/// What an earlier process found: it stands in the status, and in no list. Where several sets discover, the first one
/// that may have it keeps it.
fn remember(
    object: &ValidatedImageCache,
    index: usize,
    seen: &mut BTreeMap<String, Duration>,
    said: &ImageCacheStatus,
) {
    let is_first = object.sets[..index]
        .iter()
        .all(|set| set.discover.is_none());
    if !is_first || said.observed_generation != Some(object.generation) {
        return;
    }
    for entry in &said.entries {
        let listed = object
            .images
            .iter()
            .any(|image| *image.spelling == *entry.reference);
        if !listed {
            seen.entry(entry.reference.clone())
                .or_insert(Duration::ZERO);
        }
    }
}

/// The images join the set: those in use first, then by when they were.
fn add(
    object: &mut ValidatedImageCache,
    index: usize,
    discover: &Discover,
    seen: &BTreeMap<String, Duration>,
    uptime: Duration,
) {
    let mut found: Vec<(&String, Duration)> = seen
        .iter()
        .map(|(image, last)| (image, uptime.saturating_sub(*last)))
        .collect();
    found.sort_by(|a, b| (a.1, a.0).cmp(&(b.1, b.0)));
    let mut room = discover.max;
    let mut indices: BTreeSet<usize> = object.sets[index].images.iter().copied().collect();
    for (spelling, _) in found {
        let listed = object
            .images
            .iter()
            .position(|it| *it.spelling == **spelling);
        let image = match listed {
            Some(image) if indices.contains(&image) => continue,
            _ if room == 0 => break,
            Some(image) => image,
            None if object.images.len() >= MOST_IMAGES => break,
            None => match object.image(spelling, |written| discover.includes(spelling, written)) {
                Some(image) => image,
                None => continue,
            },
        };
        room -= 1;
        indices.insert(image);
    }
    object.sets[index].images = indices.into_iter().collect();
}

#[cfg(test)]
mod tests;
