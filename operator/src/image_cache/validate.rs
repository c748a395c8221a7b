//! Pure: what a user wrote, parsed. Every mistake is reported at once, with its path.
//!
//! The API server checks the form already; what arrives here wrong was written under another version's definitions. Such
//! an object cannot be evaluated: it keeps what nodes hold in its name, and nothing of it is purged.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::image_cache::{
    DeletionPolicy, GcProtection, ImageCache, ImageCacheSpec, ImageSet, OnEviction, RegistryPolicy,
    Retry, RolloutOrder, Scheduling, TagPolicy,
};
use coral_schema::crd::{MOST_IMAGES, REFRESH_ANNOTATION};
use coral_schema::oci::{ImageReference, Platform};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource as _;

use super::pods::Discover;
use super::target::NodeFilter;
use super::window::Window;
use crate::node_cache::wishes::ObjectKey;

/// An `ImageCache` that can be evaluated.
#[derive(Debug, Clone)]
pub struct ValidatedImageCache {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Which spec this is.
    pub generation: i64,
    /// When it was made.
    pub created: Timestamp,
    /// Since when it is being deleted.
    pub deleted: Option<Timestamp>,
    /// Value of annotation `coral.dev/refresh`.
    pub refresh_request: Option<String>,
    /// Grant nothing new.
    pub suspend: bool,
    /// In the order of the spec.
    pub sets: Vec<ValidatedSet>,
    /// The distinct spellings of all sets, in the order of the spec.
    pub images: Vec<ValidatedImage>,
    /// Where nodes may pull from; never `Unknown`.
    pub policy: RegistryPolicy,
    /// `refresh.interval`, if the object has one of its own; zero is never.
    pub refresh_interval: Option<Duration>,
    /// Never `Unknown`.
    pub on_eviction: OnEviction,
    /// What happens when a tag means something else upstream; never `Unknown`.
    pub tag_policy: TagPolicy,
    /// How many nodes pull at once.
    pub concurrency: Concurrency,
    /// Nothing new is granted outside of it.
    pub window: Option<Window>,
    /// What Nodes say of warmth.
    pub scheduling: Option<Scheduling>,
    /// A set waits for the one before it.
    pub sequential: bool,
    /// Among objects.
    pub priority: i32,
    /// Names of Secrets in the object's own namespace (L30).
    pub pull_secrets: Vec<String>,
    /// After failures.
    pub retry: Retry,
    /// `gcProtection: Pin`.
    pub protect: bool,
    /// `PurgeUnused`, and how long a purge may take.
    pub purge: Option<Duration>,
}

/// One set.
#[derive(Debug, Clone)]
pub struct ValidatedSet {
    /// Its name.
    pub name: String,
    /// Indices in [`ValidatedImageCache::images`].
    pub images: Vec<usize>,
    /// Platforms that the user asked for; none means those of the nodes.
    pub platforms: Vec<Platform>,
    /// Images of running pods that join it: [`pods::join`](super::pods::join).
    pub discover: Option<Discover>,
    /// Its nodes; nothing means the cluster's cache only.
    pub nodes: Option<NodeFilter>,
}

/// One image.
#[derive(Debug, Clone)]
pub struct ValidatedImage {
    /// Exactly as pods spell it: this is what nodes pull (L16a).
    pub spelling: Arc<str>,
    /// What it means.
    pub reference: ImageReference,
}

impl ValidatedImage {
    /// Does it go on meaning what it meant first?
    pub fn is_frozen(&self, policy: TagPolicy) -> bool {
        policy == TagPolicy::Freeze && self.reference.digest.is_none()
    }
}

/// How many nodes pull at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    /// So many.
    Nodes(usize),
    /// A share of the object's target nodes, 1 to 100.
    Percent(usize),
}

impl Concurrency {
    /// Of so many target nodes; at least one, a share is rounded up.
    pub fn of(self, targets: usize) -> usize {
        match self {
            Self::Nodes(nodes) => nodes.max(1),
            Self::Percent(percent) => (targets * percent).div_ceil(100).max(1),
        }
    }
}

/// Why an object cannot be evaluated: every mistake, each with its path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid(pub Vec<Mistake>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", mistake.path, mistake.message)?;
        }
        Ok(())
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Like `spec.sets[0].images[2]`.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

/// Mistakes found so far.
#[derive(Debug, Default)]
pub(super) struct Mistakes(Vec<Mistake>);

impl Mistakes {
    pub(super) fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Mistake {
            path: path.into(),
            message: message.into(),
        });
    }

    /// A word that this version does not know.
    fn unknown(&mut self, unknown: bool, path: &str) {
        if unknown {
            self.add(path, "is a word that this version does not know");
        }
    }
}

impl ValidatedImageCache {
    /// Takes a further image in, if it is one that `may` join by its written-out name; answers its index.
    pub(super) fn image(&mut self, spelling: &str, may: impl Fn(&str) -> bool) -> Option<usize> {
        let reference: ImageReference = spelling.parse().ok()?;
        if !may(&reference.to_string()) && !may(&reference.name()) {
            return None;
        }
        self.images.push(ValidatedImage {
            spelling: spelling.into(),
            reference,
        });
        Some(self.images.len() - 1)
    }
}

/// Parses an object.
pub fn validate(object: &ImageCache) -> Result<ValidatedImageCache, Invalid> {
    let spec = &object.spec;
    let mut mistakes = Mistakes::default();
    words(spec, &mut mistakes);
    let mut images = Images::default();
    let sets = spec
        .sets
        .iter()
        .enumerate()
        .map(|(index, set)| images.set(index, set, &mut mistakes))
        .collect();
    if spec.sets.len() > MOST_SETS {
        let message = format!("has {} sets; at most {MOST_SETS}", spec.sets.len());
        mistakes.add("spec.sets", message);
    }
    if images.listed > MOST_IMAGES {
        let message = format!("list {} images; at most {MOST_IMAGES}", images.listed);
        mistakes.add("spec.sets", message);
    }
    let concurrency = concurrency(spec, &mut mistakes);
    let window = spec.rollout.window.as_ref();
    let window = window.and_then(|window| Window::new(window, &mut mistakes));
    if !mistakes.0.is_empty() {
        return Err(Invalid(mistakes.0));
    }
    let meta = object.meta();
    let annotation = |name| meta.annotations.as_ref()?.get(name).cloned();
    Ok(ValidatedImageCache {
        key: key(object),
        generation: meta.generation.unwrap_or_default(),
        created: meta
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        deleted: meta.deletion_timestamp.as_ref().map(|time| time.0),
        refresh_request: annotation(REFRESH_ANNOTATION)
            .map(|token| token.chars().take(LONGEST_TOKEN).collect()),
        suspend: spec.suspend,
        sets,
        images: images.all,
        policy: spec.registry_policy,
        refresh_interval: spec.refresh.interval.map(|interval| interval.0),
        on_eviction: spec.refresh.on_eviction,
        tag_policy: spec.refresh.tag_policy,
        concurrency,
        window,
        scheduling: spec.scheduling.clone(),
        sequential: spec.rollout.order == RolloutOrder::Sequential,
        priority: spec.rollout.priority,
        pull_secrets: pull_secrets(spec),
        retry: spec.retry.clone(),
        protect: spec.retention.gc_protection == GcProtection::Pin,
        purge: (spec.retention.deletion_policy == DeletionPolicy::PurgeUnused)
            .then_some(spec.retention.purge_timeout.0),
    })
}

/// Which object it is, whatever stands in it.
pub fn key(object: &ImageCache) -> ObjectKey {
    ObjectKey {
        namespace: object.meta().namespace.clone().unwrap_or_default(),
        name: object.meta().name.clone().unwrap_or_default(),
    }
}

/// Words of other versions, and fields that are refused so far.
fn words(spec: &ImageCacheSpec, mistakes: &mut Mistakes) {
    let unknown = |is: bool, path: &str, mistakes: &mut Mistakes| mistakes.unknown(is, path);
    let policy = spec.registry_policy;
    unknown(
        policy == RegistryPolicy::Unknown,
        "spec.registryPolicy",
        mistakes,
    );
    let refresh = &spec.refresh;
    unknown(
        refresh.on_eviction == OnEviction::Unknown,
        "spec.refresh.onEviction",
        mistakes,
    );
    unknown(
        refresh.tag_policy == TagPolicy::Unknown,
        "spec.refresh.tagPolicy",
        mistakes,
    );
    let order = spec.rollout.order;
    unknown(
        order == RolloutOrder::Unknown,
        "spec.rollout.order",
        mistakes,
    );
    let deletion = spec.retention.deletion_policy;
    unknown(
        spec.retention.gc_protection == GcProtection::Unknown,
        "spec.retention.gcProtection",
        mistakes,
    );
    unknown(
        deletion == DeletionPolicy::Unknown,
        "spec.retention.deletionPolicy",
        mistakes,
    );
}

fn pull_secrets(spec: &ImageCacheSpec) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for secret in spec.image_pull_secrets.iter().flatten() {
        if !names.contains(&secret.name) {
            names.push(secret.name.clone());
        }
    }
    names
}

fn concurrency(spec: &ImageCacheSpec, mistakes: &mut Mistakes) -> Concurrency {
    let parsed = match &spec.rollout.max_concurrent_nodes {
        None => Some(DEFAULT_CONCURRENCY),
        Some(IntOrString::Int(nodes)) => usize::try_from(*nodes)
            .ok()
            .filter(|nodes| *nodes > 0)
            .map(Concurrency::Nodes),
        Some(IntOrString::String(text)) => text
            .strip_suffix('%')
            .and_then(|number| number.parse().ok())
            .filter(|percent| (1..=100).contains(percent))
            .map(Concurrency::Percent),
    };
    parsed.unwrap_or_else(|| {
        mistakes.add(
            "spec.rollout.maxConcurrentNodes",
            "is a number from 1, or a share like 10%",
        );
        DEFAULT_CONCURRENCY
    })
}

/// Characters that `status.lastHandledRefresh` takes.
const LONGEST_TOKEN: usize = 1024;

/// One bit each in [`NodeWish::sets`](crate::node_cache::wishes::NodeWish::sets).
const MOST_SETS: usize = 16;

const DEFAULT_CONCURRENCY: Concurrency = Concurrency::Percent(10);

/// The images of all sets, each spelling once.
#[derive(Default)]
struct Images {
    all: Vec<ValidatedImage>,
    indices: HashMap<Arc<str>, usize>,
    listed: usize,
}

impl Images {
    fn set(&mut self, index: usize, set: &ImageSet, mistakes: &mut Mistakes) -> ValidatedSet {
        let path = format!("spec.sets[{index}]");
        self.listed += set.images.len();
        let images = set.images.iter().enumerate().filter_map(|(index, image)| {
            self.image(image)
                .inspect_err(|error| mistakes.add(format!("{path}.images[{index}]"), error))
                .ok()
        });
        let mut images: Vec<usize> = images.collect();
        images.sort_unstable();
        images.dedup();
        let platforms = set.platforms.iter().flatten().enumerate();
        let platforms = platforms
            .filter_map(|(index, platform)| {
                let at = format!("{path}.platforms[{index}]");
                platform
                    .parse()
                    .inspect_err(|error| mistakes.add(at, format!("{error}")))
                    .ok()
            })
            .collect();
        ValidatedSet {
            name: set.name.clone(),
            images,
            platforms,
            discover: set
                .discover
                .as_ref()
                .map(|discover| Discover::new(discover, &format!("{path}.discover"), mistakes)),
            nodes: set
                .nodes
                .as_ref()
                .map(|target| NodeFilter::new(target, &format!("{path}.nodes"), mistakes)),
        }
    }

    fn image(&mut self, spelling: &str) -> Result<usize, String> {
        if let Some(index) = self.indices.get(spelling) {
            return Ok(*index);
        }
        let reference = spelling
            .parse()
            .map_err(|error| format!("{spelling:?}: {error}"))?;
        let spelling: Arc<str> = spelling.into();
        self.indices.insert(Arc::clone(&spelling), self.all.len());
        self.all.push(ValidatedImage {
            spelling,
            reference,
        });
        Ok(self.all.len() - 1)
    }
}
