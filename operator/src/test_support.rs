//! For tests: objects from minimal YAML through the real validator, and a small world in which nodes, the API server's
//! store and the cache are values. It runs the real steps; only warmers are scripted.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coral_schema::admin::{PrefetchImage, PrefetchReason, PrefetchState, RegistryEntry};
use coral_schema::crd::image_cache::{ImageCache, ImageCacheStatus};
use coral_schema::crd::node_cache::{
    ImageState, NodeCache, NodeCacheStatus, NodeImageStatus, PurgeOutcome, PurgeResult,
};
use coral_schema::crd::{NodeCacheSpec, Reason};
use coral_schema::oci::{Digest, ImageReference};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::image_cache::assign::{Assignment, Slots, assign};
use crate::image_cache::build::build;
use crate::image_cache::dereference::{CacheFacts, NodeFacts, Nodes, Surroundings};
use crate::image_cache::refresh::{self, Due};
use crate::image_cache::resources::{Prepared, Resources};
use crate::image_cache::secrets::PullSecrets;
use crate::image_cache::served::Registries;
use crate::image_cache::status::{Outcome, status};
use crate::image_cache::validate::{ValidatedImageCache, validate};
use crate::image_cache::waiting::explain;
use crate::node_cache::merge::{Circumstances, Cluster, Merged, merge};
use crate::node_cache::stored::{Common, Stored};
use crate::node_cache::wishes::{ObjectKey, Wishes};

/// A spec as YAML, in namespace `ml`.
pub(crate) fn image_cache(name: &str, spec: &str) -> ImageCache {
    let indented = spec.replace('\n', "\n  ");
    let yaml = format!(
        "apiVersion: coral.dev/v1alpha1\nkind: ImageCache\nmetadata:\n  name: {name}\n  namespace: ml\n  \
         generation: 1\n  creationTimestamp: 2026-01-01T00:00:00Z\nspec:\n  {indented}\n"
    );
    serde_saphyr::from_str(&yaml).unwrap()
}

/// The same, validated.
pub(crate) fn object(name: &str, spec: &str) -> ValidatedImageCache {
    validate(&image_cache(name, spec)).unwrap()
}

/// One image on all nodes.
pub(crate) const EVERYWHERE: &str = "sets: [{name: a, images: [nginx:1.27], nodes: {}}]";

/// Everything outside of the steps.
pub(crate) struct World {
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) stored: BTreeMap<String, NodeCache>,
    pub(crate) cache: CacheFacts,
    pub(crate) wishes: Wishes,
    pub(crate) slots: Slots,
    pub(crate) statuses: BTreeMap<ObjectKey, ImageCacheStatus>,
    /// What pods name, on every node.
    pub(crate) pods: HashSet<ImageReference>,
    /// What every object's pull secrets hold.
    pub(crate) secrets: Option<PullSecrets>,
    pub(crate) now: Timestamp,
    pub(crate) uptime: Duration,
    facts: Nodes,
}

impl World {
    /// Serves docker.io, holds nothing; the operator runs for an hour.
    pub(crate) fn new() -> Self {
        Self {
            nodes: BTreeMap::new(),
            stored: BTreeMap::new(),
            cache: CacheFacts {
                registries: Some(Registries::new(&[registry("docker.io")])),
                ..CacheFacts::default()
            },
            wishes: Wishes::default(),
            slots: Slots::new(usize::MAX / 2),
            statuses: BTreeMap::new(),
            pods: HashSet::new(),
            secrets: None,
            now: "2026-06-01T12:00:00Z".parse().unwrap(),
            uptime: Duration::from_hours(1),
            facts: Nodes::new(),
        }
    }

    /// Nodes `n000`, `n001` …
    pub(crate) fn with_nodes(count: usize) -> Self {
        let mut world = Self::new();
        for index in 0..count {
            world.add_node(&format!("n{index:03}"), &[]);
        }
        world
    }

    /// A Ready Linux node; labels are added to those of every node.
    pub(crate) fn add_node(&mut self, name: &str, labels: &[(&str, &str)]) {
        let mut node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": name,
                "uid": format!("uid-{name}"),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64" },
            },
            "status": { "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }
            ] },
        }))
        .unwrap();
        let all = node.metadata.labels.get_or_insert_default();
        all.extend(
            labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        self.nodes.insert(name.to_owned(), node);
    }

    /// Changes the Ready condition, now.
    pub(crate) fn set_ready(&mut self, name: &str, ready: bool) {
        let status = self.nodes.get_mut(name).unwrap().status.as_mut().unwrap();
        let condition = &mut status.conditions.as_mut().unwrap()[0];
        condition.status = if ready { "True" } else { "Unknown" }.to_owned();
        condition.last_transition_time = Some(Time(self.now));
    }

    /// Both clocks.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.uptime += time;
    }

    /// The cache holds it.
    pub(crate) fn cached(&mut self, reference: &str) {
        self.progress(reference, PrefetchState::Done, None);
    }

    /// Where the cache's job stands for it.
    pub(crate) fn progress(
        &mut self,
        reference: &str,
        state: PrefetchState,
        reason: Option<PrefetchReason>,
    ) {
        let known = matches!(state, PrefetchState::Done | PrefetchState::Running);
        let image = PrefetchImage {
            state,
            digest: known.then(|| Digest::sha256(reference.as_bytes())),
            size_bytes: 1000,
            bytes_done: 1000,
            bytes_total: 1000,
            reason,
            ..PrefetchImage::queued(reference)
        };
        self.cache.images.insert(reference.to_owned(), image);
    }

    /// Makes facts of what changed.
    pub(crate) fn look(&mut self) -> &Nodes {
        let facts = self.nodes.iter().map(|(name, node)| {
            let stored = self.kept(name).map(Arc::new);
            let before = self.facts.get(name.as_str()).map(|facts| &**facts);
            let facts = NodeFacts::new(node, stored, before, self.uptime);
            (Arc::from(name.as_str()), Arc::new(facts))
        });
        self.facts = facts.collect();
        &self.facts
    }

    /// What the operator remembers of a node's `NodeCache`.
    pub(crate) fn kept(&self, name: &str) -> Option<Stored> {
        let stored = self.stored.get(name).cloned();
        stored.map(|stored| Common::default().keep(stored))
    }

    fn with_surroundings<T>(
        &mut self,
        object: &ValidatedImageCache,
        run: impl FnOnce(&Surroundings<'_>, &Slots) -> T,
    ) -> T {
        self.look();
        let around = Surroundings {
            nodes: &self.facts,
            cache: &self.cache,
            previous: self.wishes.of(&object.key),
            verdicts: self.wishes.verdicts(&object.key),
            secrets: self.secrets.as_ref(),
            status: self.statuses.get(&object.key),
            now: self.now,
            uptime: self.uptime,
        };
        run(&around, &self.slots)
    }

    pub(crate) fn assign(&mut self, object: &ValidatedImageCache) -> Assignment {
        self.with_surroundings(object, |around, slots| assign(object, around, slots))
    }

    pub(crate) fn build(&mut self, object: &ValidatedImageCache) -> Resources<Prepared> {
        let assignment = self.assign(object);
        self.with_surroundings(object, |around, _| {
            build(object, &assignment, around, Due::No)
        })
    }

    pub(crate) fn explain(&mut self, object: &ValidatedImageCache) -> Vec<String> {
        let assignment = self.assign(object);
        self.with_surroundings(object, |around, _| explain(object, &assignment, around))
    }

    /// All steps for one object. Nothing reaches a `NodeCache` before [`World::write`].
    pub(crate) fn reconcile(&mut self, object: &ValidatedImageCache) -> ImageCacheStatus {
        let assignment = self.assign(object);
        self.slots.record(object, assignment.slots.clone());
        let previous = self.statuses.get(&object.key).cloned();
        let due = refresh::due(object, previous.as_ref(), Duration::ZERO, self.now);
        let (wishes, status) = self.with_surroundings(object, |around, _| {
            let resources = build(object, &assignment, around, due).applied(true, &assignment);
            let outcome = Outcome {
                object,
                assignment: &assignment,
                around,
                resources: &resources,
                previous: previous.as_ref(),
            };
            let status = status(&outcome);
            (resources.wishes, status)
        });
        self.wishes.set(wishes);
        self.statuses.insert(object.key.clone(), status.clone());
        status
    }

    /// What would be written for a node; pods are asked for when it has to be.
    pub(crate) fn merge(&self, name: &str) -> Merged {
        let cluster = Cluster {
            nodes: self.nodes.len(),
            mirror: None,
        };
        let stored = self.kept(name);
        let around = Circumstances {
            uid: self.nodes[name].metadata.uid.as_deref().unwrap(),
            paused: false,
            stored: stored.as_ref(),
            pods: None,
            cluster: &cluster,
            now: self.now,
        };
        let first = merge(name, &self.wishes, &around);
        if first.undecided.is_empty() {
            return first;
        }
        let pods = Some(&self.pods);
        merge(name, &self.wishes, &Circumstances { pods, ..around })
    }

    /// Writes every `NodeCache` that is different. Answers which.
    pub(crate) fn write(&mut self) -> Vec<String> {
        let mut written = Vec::new();
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            let merged = self.merge(&name);
            self.wishes.record(&name.as_str().into(), merged.verdicts);
            if self.store(&name, merged.spec) {
                written.push(name);
            }
        }
        written
    }

    fn store(&mut self, name: &str, spec: NodeCacheSpec) -> bool {
        let stored = self
            .stored
            .entry(name.to_owned())
            .or_insert_with(|| NodeCache::new(name, spec.clone()));
        let generation = stored.metadata.generation.get_or_insert(0);
        if *generation > 0 && stored.spec == spec {
            return false;
        }
        *generation += 1;
        stored.spec = spec;
        true
    }

    /// The node's warmer answers its spec; images that it did not speak of yet wait.
    pub(crate) fn answer(&mut self, name: &str) -> &mut NodeCacheStatus {
        let stored = self.stored.get_mut(name).unwrap();
        let status = stored.status.get_or_insert_default();
        status.observed_generation = stored.metadata.generation;
        status.node_uid = Some(stored.spec.node_uid.clone());
        let before = std::mem::take(&mut status.images);
        for image in &stored.spec.images {
            let known = before.iter().find(|old| old.reference == image.reference);
            status
                .images
                .push(known.cloned().unwrap_or(NodeImageStatus {
                    reference: image.reference.clone(),
                    state: ImageState::Waiting,
                    ..NodeImageStatus::default()
                }));
        }
        status
    }

    /// The node's warmer says this of an image.
    pub(crate) fn say(&mut self, name: &str, reference: &str, state: ImageState) {
        let now = self.now;
        let status = self.answer(name);
        let mut images = status.images.iter_mut();
        let image = images.find(|image| image.reference == reference).unwrap();
        if image.state == ImageState::Ready && state != ImageState::Ready {
            image.evictions += 1;
        }
        image.attempts = match state {
            ImageState::Failed => image.attempts + 1,
            ImageState::Ready => 0,
            _ => image.attempts,
        };
        image.state = state;
        image.reason = (state == ImageState::Failed).then_some(Reason::NotFound);
        image.last_transition = Some(Time(now));
    }

    /// The cache holds other content under the name from now on.
    pub(crate) fn moved(&mut self, reference: &str, content: &str) -> String {
        self.cached(reference);
        let image = self.cache.images.get_mut(reference).unwrap();
        let digest = Digest::sha256(content.as_bytes());
        image.digest = Some(digest);
        digest.to_string()
    }

    /// The node pulled what it was sent for, and got this.
    pub(crate) fn pulled(&mut self, name: &str, reference: &str, digest: &str) {
        let mut told = self.stored[name].spec.images.iter();
        let revision = told.find(|it| it.reference == reference).unwrap().revision;
        self.say(name, reference, ImageState::Ready);
        let mut images = self.answer(name).images.iter_mut();
        let image = images.find(|it| it.reference == reference).unwrap();
        image.digest = Some(digest.to_owned());
        image.revision = revision;
    }

    /// Revision and digest that a node was sent for.
    pub(crate) fn sent(&self, name: &str, reference: &str) -> (u64, Option<&str>) {
        let mut told = self.stored[name].spec.images.iter();
        let image = told.find(|it| it.reference == reference).unwrap();
        (image.revision, image.digest.as_deref())
    }

    /// The same, if the node was told of the image.
    pub(crate) fn say_if_told(&mut self, name: &str, reference: &str, state: ImageState) {
        if self.told(reference).contains(&name) {
            self.say(name, reference, state);
        }
    }

    /// Every warmer holds what it was told, and has answered each purge so.
    pub(crate) fn finish_pulls(&mut self, result: PurgeResult) {
        for name in self.stored.keys().cloned().collect::<Vec<_>>() {
            for image in self.stored[&name].spec.images.clone() {
                self.say(&name, &image.reference, ImageState::Ready);
            }
            let time = Time(self.now);
            let purge = self.stored[&name].spec.purge.clone();
            self.answer(&name).purge = purge
                .into_iter()
                .map(|wish| PurgeOutcome {
                    reference: wish.reference,
                    result,
                    time: time.clone(),
                })
                .collect();
        }
    }

    /// Nodes that were told of an image, by the stored objects.
    pub(crate) fn told(&self, reference: &str) -> Vec<&str> {
        let told = self.stored.iter().filter(|(_, stored)| {
            let mut images = stored.spec.images.iter();
            images.any(|image| image.reference == reference)
        });
        told.map(|(name, _)| name.as_str()).collect()
    }
}

/// An upstream without rules.
pub(crate) fn registry(name: &str) -> RegistryEntry {
    RegistryEntry {
        name: name.to_owned(),
        aliases: Vec::new(),
        allow: Vec::new(),
        deny: Vec::new(),
    }
}
