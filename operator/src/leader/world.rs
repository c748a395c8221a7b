//! What the API server has, made into facts, and what has to be looked at when it changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::node_cache::PurgeOutcome;
use coral_schema::crd::{ImageCache, NodeCache, PAUSED_ANNOTATION};
use futures::stream::{BoxStream, SelectAll};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, PodStatus, Service};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt as _};
use tokio::time::Instant;

use super::Settings;
use super::changes::{
    asks_for_pods, is_deleted, is_spec_affected, matters, new_outcomes, object_changed,
    pod_matters, says_another_thing, warm_after,
};
use crate::address::Host;
use crate::image_cache::dereference::{NodeFacts, Nodes};
use crate::node_cache::stored::{Common, Stored};
use crate::node_cache::wishes::{ObjectKey, Owner};
use crate::pods::named;
use crate::watch::{self, Change, Objects};

/// Everything that is watched.
#[derive(Debug)]
pub(super) struct World {
    pub(super) objects: Objects<ImageCache>,
    pub(super) caches: Objects<Stored>,
    common: Common,
    nodes: Objects<Node>,
    /// The registry's, if nodes reach it by one.
    services: Option<Objects<Service>>,
    /// Running ones, once an object asked for them.
    pods: Option<Pods>,
    pub(super) facts: Nodes,
    start: Instant,
}

#[derive(Debug)]
struct Pods {
    all: Objects<Pod>,
    /// The watch began.
    since: Instant,
}

/// An event of one of the watches.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, on its way into the world"
)]
pub(super) enum Seen {
    Object(Event<ImageCache>),
    Cache(Event<NodeCache>),
    Node(Event<Node>),
    Service(Event<Service>),
    Pod(Event<Pod>),
}

/// What has to be looked at.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Mark {
    Object(ObjectKey),
    AllObjects,
    Node(Arc<str>),
    AllNodes,
    /// What the Node itself says may have to change.
    Says(Arc<str>),
    /// Another Node than objects have seen.
    Unseen(Arc<str>),
    /// A node's warmer answered a wish to remove an image.
    Outcome(Arc<str>, PurgeOutcome),
    /// A node's warmer says for the first time that it holds everything, so long after the node became Ready.
    Warm(Duration),
}

impl World {
    pub(super) fn new(settings: &Settings, start: Instant) -> Self {
        let watches_service = matches!(
            settings.address.as_ref().map(|address| &address.host),
            Some(Host::Service(_))
        );
        Self {
            objects: Objects::default(),
            caches: Objects::default(),
            common: Common::default(),
            nodes: Objects::default(),
            services: watches_service.then(Objects::default),
            pods: None,
            facts: Nodes::new(),
            start,
        }
    }

    /// Has every watch told what there is?
    pub(super) fn is_complete(&self) -> bool {
        self.objects.is_complete()
            && self.caches.is_complete()
            && self.nodes.is_complete()
            && self.services.as_ref().is_none_or(Objects::is_complete)
    }

    /// The running pods of a namespace; nothing before all of them are known.
    pub(super) fn pods(&self, namespace: &str) -> Option<Vec<&Pod>> {
        let pods = self.pods.as_ref().map(|pods| &pods.all);
        let pods = pods.filter(|pods| pods.is_complete())?;
        Some(pods.in_namespace(namespace).map(Arc::as_ref).collect())
    }

    /// Are pods on their way, and not overdue?
    pub(super) fn awaits_pods(&self, now: Instant) -> bool {
        let pods = self.pods.as_ref();
        pods.is_some_and(|pods| !pods.all.is_complete() && now < pods.since + PODS_WITHIN)
    }

    /// Has somebody asked for pods that are not watched yet? They are from now on.
    pub(super) fn starts_with_pods(&mut self, now: Instant) -> bool {
        if self.pods.is_some() || !self.objects.iter().any(|object| asks_for_pods(object)) {
            return false;
        }
        self.pods = Some(Pods {
            all: Objects::default(),
            since: now,
        });
        true
    }

    /// The Service behind which the registry is.
    pub(super) fn service(&self) -> Option<&Service> {
        let services = self.services.as_ref()?;
        services.iter().next().map(Arc::as_ref)
    }

    pub(super) fn object_keys(&self) -> Vec<ObjectKey> {
        self.objects
            .iter()
            .map(|object| object_key(object))
            .collect()
    }

    /// Nodes, and `NodeCache`s whose nodes are gone.
    pub(super) fn node_names(&self) -> Vec<Arc<str>> {
        let caches = self.caches.iter().map(|cache| cache.name_any());
        let orphans = caches.filter(|name| !self.facts.contains_key(name.as_str()));
        let orphans = orphans.map(Into::into);
        self.facts.keys().cloned().chain(orphans).collect()
    }

    pub(super) fn uptime(&self, now: Instant) -> Duration {
        now.duration_since(self.start)
    }

    /// Takes an event in.
    pub(super) fn take_in(&mut self, seen: Seen, now: Instant) -> Vec<Mark> {
        match seen {
            Seen::Object(event) => {
                let changes = self.objects.apply(event);
                changes.iter().filter_map(object_changed).collect()
            }
            Seen::Cache(event) => {
                let event = watch::map(event, |cache| self.common.keep(cache));
                let changes = self.caches.apply(event);
                let changes = changes.iter();
                changes
                    .flat_map(|change| self.cache_changed(change, now))
                    .collect()
            }
            Seen::Node(event) => {
                let changes = self.nodes.apply(event);
                let changes = changes.iter();
                changes
                    .flat_map(|change| self.node_changed(&change.key.1, now))
                    .collect()
            }
            Seen::Pod(event) => self.pods_changed(event),
            Seen::Service(event) => {
                let changed = self.services.as_mut().map(|services| services.apply(event));
                let changed = changed.is_some_and(|changes| !changes.is_empty());
                changed.then_some(Mark::AllNodes).into_iter().collect()
            }
        }
    }

    /// Our own write of a `NodeCache` was answered.
    pub(super) fn written(&mut self, cache: NodeCache, now: Instant) -> Vec<Mark> {
        let change = self.caches.put(self.common.keep(cache));
        let change = change.iter();
        change
            .flat_map(|change| self.cache_changed(change, now))
            .collect()
    }

    fn pods_changed(&mut self, event: Event<Pod>) -> Vec<Mark> {
        let Some(pods) = &mut self.pods else {
            return Vec::new();
        };
        let was_complete = pods.all.is_complete();
        let changes = pods.all.apply(event);
        let first = !was_complete && pods.all.is_complete();
        let news = changes.iter().filter(|change| pod_matters(change));
        let namespaces: BTreeSet<&String> = news.map(|change| &change.key.0).collect();
        let asking = self.objects.iter().filter(|object| asks_for_pods(object));
        let keys = asking.map(|object| object_key(object));
        keys.filter(|key| first || (was_complete && namespaces.contains(&key.namespace)))
            .map(Mark::Object)
            .collect()
    }

    fn cache_changed(&mut self, change: &Change<Stored>, now: Instant) -> Vec<Mark> {
        let Change { key, before, after } = change;
        let known = self.facts.get(key.1.as_str()).cloned();
        self.renew_facts(&key.1, now);
        let facts = self.facts.get(key.1.as_str());
        let owners = |facts: Option<&Arc<NodeFacts>>| -> Vec<ObjectKey> {
            let owners = facts.into_iter().flat_map(|facts| &facts.owners);
            owners
                .filter_map(|owner| owner.parse::<Owner>().ok())
                .map(|owner| owner.object)
                .collect()
        };
        let (before, after) = (before.as_deref(), after.as_deref());
        let outcomes = new_outcomes(before, after);
        let node: Arc<str> = key.1.as_str().into();
        let outcomes = outcomes.map(|outcome| Mark::Outcome(Arc::clone(&node), outcome.clone()));
        let mut marks: Vec<Mark> = outcomes.collect();
        if is_spec_affected(before, after) {
            marks.push(Mark::Node(Arc::clone(&node)));
        }
        if says_another_thing(before, after) {
            let mut all = [owners(known.as_ref()), owners(facts)].concat();
            // What is being deleted owns nothing any more, and waits for nodes.
            let deleted = self.objects.iter().filter(|object| is_deleted(object));
            all.extend(deleted.map(|object| object_key(object)));
            all.sort_unstable();
            all.dedup();
            marks.extend(all.into_iter().map(Mark::Object));
        }
        marks.extend(
            facts
                .and_then(|facts| warm_after(before, after?, facts))
                .map(Mark::Warm),
        );
        marks
    }

    fn node_changed(&mut self, name: &str, now: Instant) -> Vec<Mark> {
        let known = self.facts.get(name).cloned();
        self.renew_facts(name, now);
        let says = Mark::Says(name.into());
        if !matters(known.as_deref(), self.facts.get(name).map(Arc::as_ref)) {
            return vec![says];
        }
        let unseen = Mark::Unseen(name.into());
        vec![unseen, says, Mark::Node(name.into()), Mark::AllObjects]
    }

    fn renew_facts(&mut self, name: &str, now: Instant) {
        let uptime = self.uptime(now);
        let Some(node) = self.nodes.get("", name) else {
            self.facts.remove(name);
            return;
        };
        let cache = self.caches.get("", name).cloned();
        let before = self.facts.get(name).map(Arc::as_ref);
        let facts = Arc::new(NodeFacts::new(node, cache, before, uptime));
        self.facts.insert(Arc::clone(&facts.name), facts);
    }
}

/// All watches as one. Nodes are pruned to what facts are made of.
pub(super) fn watches(client: &Client, settings: &Settings) -> SelectAll<BoxStream<'static, Seen>> {
    let prune = watch::prune_metadata;
    let objects = watch::watch(Api::<ImageCache>::all(client.clone()), prune);
    let caches = watch::watch(Api::<NodeCache>::all(client.clone()), watch::prune_metadata);
    let nodes = watch::watch(Api::<Node>::all(client.clone()), prune_node);
    let mut all = vec![
        objects.map(Seen::Object).boxed(),
        caches.map(Seen::Cache).boxed(),
        nodes.map(Seen::Node).boxed(),
    ];
    if let Some(Host::Service(name)) = settings.address.as_ref().map(|it| &it.host) {
        let api = Api::<Service>::namespaced(client.clone(), &settings.namespace);
        let service = watch::watch_one(api, name, watch::prune_metadata);
        all.push(service.map(Seen::Service).boxed());
    }
    stream::select_all(all)
}

/// Running pods, pruned to names, labels, node and images.
pub(super) fn watch_pods(client: &Client) -> BoxStream<'static, Seen> {
    let api = Api::<Pod>::all(client.clone());
    let pods = watch::watch_some(api, "status.phase=Running", prune_pod);
    pods.map(Seen::Pod).boxed()
}

fn prune_pod(pod: &mut Pod) {
    watch::prune_metadata(pod);
    pod.metadata.annotations = None;
    pod.metadata.owner_references = None;
    if let Some(spec) = pod.spec.take() {
        let image = |image: String| Container {
            image: Some(image),
            ..Container::default()
        };
        let images: BTreeSet<String> = named(&spec).cloned().collect();
        pod.spec = Some(PodSpec {
            node_name: spec.node_name,
            containers: images.into_iter().map(image).collect(),
            ..PodSpec::default()
        });
    }
    let phase = pod.status.take().and_then(|status| status.phase);
    pod.status = Some(PodStatus {
        phase,
        ..PodStatus::default()
    });
}

fn prune_node(node: &mut Node) {
    watch::prune_metadata(node);
    if let Some(annotations) = &mut node.metadata.annotations {
        annotations.retain(|name, _| name == PAUSED_ANNOTATION);
    }
    if let Some(status) = node.status.take() {
        let mut conditions = status.conditions.unwrap_or_default();
        conditions.retain(|condition| condition.type_ == "Ready");
        node.status = Some(k8s_openapi::api::core::v1::NodeStatus {
            conditions: Some(conditions),
            ..Default::default()
        });
    }
}

pub(super) fn object_key(object: &ImageCache) -> ObjectKey {
    ObjectKey {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

/// Pods that are not known by then are called unreadable: longer than a list of them takes.
const PODS_WITHIN: Duration = Duration::from_secs(30);
