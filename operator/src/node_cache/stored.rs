//! A `NodeCache` as the operator remembers it: what its decisions need, and what many nodes have in common only once. Of
//! five thousand nodes with 64 images each, whole objects would take a quarter of a gibibyte.

use std::borrow::Cow;
use std::sync::Arc;

use coral_schema::crd::node_cache::{
    Budget, ImageState, Mirror, NodeCacheStatus, NodeImage, NodeImageStatus, PurgeOutcome,
    PurgeWish,
};
use coral_schema::crd::{NodeCache, NodeCacheSpec, Reason};
use coral_schema::duration::HumanDuration;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use crate::shared::Shared;

/// One `NodeCache`.
#[derive(Debug)]
pub struct Stored {
    /// Name, UID and generation.
    pub metadata: ObjectMeta,
    /// What the node should hold.
    pub spec: StoredSpec,
    /// What its warmer said; the fields that decisions need.
    pub status: Option<StoredStatus>,
}

/// See [`NodeCacheSpec`].
#[derive(Debug, PartialEq)]
pub struct StoredSpec {
    /// UID of the Node.
    pub node_uid: String,
    /// Time between two writes of the status.
    pub report_interval: HumanDuration,
    /// Time between two looks at the runtime.
    pub look_interval: HumanDuration,
    /// In the order of their spellings.
    pub images: Vec<Arc<NodeImage>>,
    /// What to remove.
    pub purge: Vec<PurgeWish>,
    /// How much of the node may be used.
    pub budget: Budget,
    /// The cache, as nodes reach it.
    pub mirror: Option<Arc<Mirror>>,
    /// Nothing is pulled or removed.
    pub paused: bool,
}

/// See [`NodeCacheStatus`].
#[derive(Debug, PartialEq)]
pub struct StoredStatus {
    /// The generation that it speaks of.
    pub observed_generation: Option<i64>,
    /// The node that it speaks of.
    pub node_uid: Option<String>,
    /// In the order of their spellings.
    pub images: Vec<ImageReport>,
    /// What became of the wishes to remove.
    pub purge: Vec<PurgeOutcome>,
    /// When the node held everything for the first time.
    pub first_ready: Option<Timestamp>,
}

/// See [`NodeImageStatus`].
#[derive(Debug, PartialEq)]
pub struct ImageReport {
    /// As in the spec.
    pub reference: Arc<str>,
    /// Where it stands.
    pub state: ImageState,
    /// What the node holds under the reference.
    pub digest: Option<Arc<str>>,
    /// The revision that was pulled, or found present.
    pub revision: u64,
    /// Why it waits or failed.
    pub reason: Option<Reason>,
    /// The same in a sentence.
    pub message: Option<Arc<str>>,
    /// Pulls that failed since it was last held.
    pub attempts: u32,
    /// How often the node removed it.
    pub evictions: u32,
    /// When it is tried again.
    pub next_attempt: Option<Timestamp>,
    /// When the state last changed.
    pub last_transition: Option<Timestamp>,
}

/// What nodes have in common.
#[derive(Debug, Default)]
pub struct Common {
    texts: Shared<str>,
    images: Shared<NodeImage>,
    mirrors: Shared<Mirror>,
}

impl Common {
    /// Takes from an object what is remembered of it.
    pub fn keep(&mut self, cache: NodeCache) -> Stored {
        let NodeCache {
            metadata,
            spec,
            status,
        } = cache;
        Stored {
            metadata: ObjectMeta {
                name: metadata.name,
                uid: metadata.uid,
                generation: metadata.generation,
                ..ObjectMeta::default()
            },
            spec: self.spec(spec),
            status: status.map(|status| self.status(status)),
        }
    }

    fn spec(&mut self, spec: NodeCacheSpec) -> StoredSpec {
        let NodeCacheSpec {
            node_uid,
            report_interval,
            look_interval,
            images,
            purge,
            budget,
            mirror,
            paused,
        } = spec;
        let images = images.into_iter().map(|image| self.images.one(image));
        let mut images: Vec<Arc<NodeImage>> = images.collect();
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        StoredSpec {
            node_uid,
            report_interval,
            look_interval,
            images,
            purge,
            budget,
            mirror: mirror.map(|mirror| self.mirrors.one(mirror)),
            paused,
        }
    }

    fn status(&mut self, status: NodeCacheStatus) -> StoredStatus {
        let images = status.images.into_iter().map(|image| self.report(image));
        let mut images: Vec<ImageReport> = images.collect();
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        StoredStatus {
            observed_generation: status.observed_generation,
            node_uid: status.node_uid,
            images,
            purge: status.purge,
            first_ready: status.first_ready_time.map(|time| time.0),
        }
    }

    fn report(&mut self, image: NodeImageStatus) -> ImageReport {
        ImageReport {
            reference: self.texts.one(image.reference),
            state: image.state,
            digest: image.digest.map(|digest| self.texts.one(digest)),
            revision: image.revision,
            reason: image.reason,
            message: image.message.map(|message| self.texts.one(message)),
            attempts: image.attempts,
            evictions: image.evictions,
            next_attempt: image.next_attempt.map(|time| time.0),
            last_transition: image.last_transition.map(|time| time.0),
        }
    }
}

impl StoredSpec {
    /// Does it say the same? Images of a spec that we make are in the order of their spellings.
    pub fn says(&self, spec: &NodeCacheSpec) -> bool {
        let NodeCacheSpec {
            node_uid,
            report_interval,
            look_interval,
            images,
            purge,
            budget,
            mirror,
            paused,
        } = spec;
        self.node_uid == *node_uid
            && self.report_interval == *report_interval
            && self.look_interval == *look_interval
            && self.images.iter().map(Arc::as_ref).eq(images)
            && self.purge == *purge
            && self.budget == *budget
            && self.mirror.as_deref() == mirror.as_ref()
            && self.paused == *paused
    }
}

/// For the tables of what is watched: it is one of its kind, with less in it.
impl Resource for Stored {
    type DynamicType = <NodeCache as Resource>::DynamicType;
    type Scope = <NodeCache as Resource>::Scope;

    fn kind(kind: &Self::DynamicType) -> Cow<'_, str> {
        NodeCache::kind(kind)
    }

    fn group(kind: &Self::DynamicType) -> Cow<'_, str> {
        NodeCache::group(kind)
    }

    fn version(kind: &Self::DynamicType) -> Cow<'_, str> {
        NodeCache::version(kind)
    }

    fn plural(kind: &Self::DynamicType) -> Cow<'_, str> {
        NodeCache::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{EVERYWHERE, World, object};

    fn two_nodes() -> (Stored, Stored) {
        let mut world = World::with_nodes(2);
        let all = object(
            "a",
            &format!("{EVERYWHERE}\nregistryPolicy: Default\nrollout: {{maxConcurrentNodes: 2}}"),
        );
        world.reconcile(&all);
        world.write();
        for node in ["n000", "n001"] {
            world.say(node, "nginx:1.27", ImageState::Ready);
        }
        let mut common = Common::default();
        let mut keep = |name: &str| common.keep(world.stored[name].clone());
        (keep("n000"), keep("n001"))
    }

    #[test]
    fn nodes_share_what_they_are_told_and_say() {
        let (one, other) = two_nodes();
        assert!(Arc::ptr_eq(&one.spec.images[0], &other.spec.images[0]));
        let report = |stored: &Stored| {
            let status = stored.status.as_ref().unwrap();
            Arc::clone(&status.images[0].reference)
        };
        assert!(Arc::ptr_eq(&report(&one), &report(&other)));
    }
}
