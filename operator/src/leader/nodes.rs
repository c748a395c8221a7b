//! One node: what all objects wish for there, merged and written when it differs from what is stored.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::Reason;
use coral_schema::crd::node_cache::{Mirror, NodeCacheSpec, PurgeOutcome, PurgeResult};
use coral_schema::oci::ImageReference;
use futures::FutureExt as _;
use jiff::Timestamp;
use kube::ResourceExt as _;
use tokio::time::Instant;

use super::calls::Answered;
use super::{Leader, MOST_CALLS, Writing};
use crate::address::Host;
use crate::node_cache::apply;
use crate::node_cache::merge::{Circumstances, Cluster, Merged, merge};
use crate::node_cache::stored::StoredSpec;
use crate::node_cache::wishes::{ObjectKey, Owner};

impl Leader {
    /// As many as there is room for.
    pub(super) fn write_nodes(&mut self, now: Instant) {
        while self.calls.len() < MOST_CALLS && self.pace.is_free(now) {
            let Some(node) = self.due.nodes.take(now) else {
                return;
            };
            if self.writing.contains(&Writing::Node(Arc::clone(&node))) {
                self.due.nodes.mark_at(&node, now + AGAIN);
            } else {
                self.write_node(&node, None);
            }
        }
    }

    /// Writes what a node should hold, if that is something else than what is stored. What pods name is asked for when
    /// an image would be purged.
    pub(super) fn write_node(&mut self, node: &Arc<str>, pods: Option<&HashSet<ImageReference>>) {
        let wanted = self.world.facts.get(node).filter(|facts| facts.is_linux());
        let stored = self.world.caches.get("", node);
        let Some(facts) = wanted else {
            self.purging.retain(|(other, _), _| other != node);
            if let Some(stored) = stored {
                let (client, name, uid) = (self.client.clone(), Arc::clone(node), stored.uid());
                let call = async move {
                    let deleted = apply::delete(&client, &name, uid).await;
                    Answered::Node(name, deleted.map(|()| None))
                };
                self.pace.start(Instant::now());
                self.writing.insert(Writing::Node(Arc::clone(node)));
                self.calls.push(call.boxed());
            }
            return;
        };
        let cluster = Cluster {
            nodes: self.world.facts.len(),
            mirror: self.mirror(stored.map(|stored| &stored.spec)),
        };
        let around = Circumstances {
            uid: &facts.uid,
            paused: facts.paused,
            stored: stored.map(Arc::as_ref),
            pods,
            cluster: &cluster,
            now: Timestamp::now(),
        };
        let merged = merge(node, &self.wishes, &around);
        let same = stored.is_some_and(|stored| stored.spec.says(&merged.spec));
        self.act(node, merged, same, pods.is_some());
    }

    fn act(&mut self, node: &Arc<str>, merged: Merged, same: bool, asked: bool) {
        let Merged {
            spec,
            verdicts,
            undecided,
            in_use,
        } = merged;
        let now = Instant::now();
        for key in self.wishes.record(node, verdicts) {
            self.due.objects.mark(&key, now);
        }
        for (reference, objects) in in_use {
            self.tell_in_use(node, &reference, &objects);
        }
        if !undecided.is_empty() && !asked {
            let (client, name) = (self.client.clone(), Arc::clone(node));
            let call = async move {
                let pods = apply::images_of_pods(&client, &name).await;
                Answered::Pods(name, pods)
            };
            self.writing.insert(Writing::Node(Arc::clone(node)));
            self.calls.push(call.boxed());
        } else if !same {
            self.write_spec(node, spec);
        }
    }

    fn write_spec(&mut self, node: &Arc<str>, spec: NodeCacheSpec) {
        self.remember_purges(node, &spec);
        self.metrics.node_writes.inc();
        self.pace.start(Instant::now());
        let (client, name) = (self.client.clone(), Arc::clone(node));
        let call = async move {
            let written = apply::apply(&client, &name, spec).await;
            Answered::Node(name, written.map(Some))
        };
        self.writing.insert(Writing::Node(Arc::clone(node)));
        self.calls.push(call.boxed());
    }

    /// Who asked for a removal stands in the list that the image leaves, and nowhere later.
    fn remember_purges(&mut self, node: &Arc<str>, spec: &NodeCacheSpec) {
        let open: HashSet<&String> = spec.purge.iter().map(|wish| &wish.reference).collect();
        self.purging
            .retain(|(other, reference), _| other != node || open.contains(reference));
        let stored = self.world.caches.get("", node);
        for image in stored.into_iter().flat_map(|stored| &stored.spec.images) {
            if open.contains(&image.reference) {
                let owners = image.owners.iter().filter_map(|owner| owner.parse().ok());
                let owners = owners.map(|owner: Owner| owner.object).collect();
                let key = (Arc::clone(node), image.reference.clone());
                self.purging.insert(key, owners);
            }
        }
    }

    /// An image that stays deserves an event.
    pub(super) fn tell_outcome(&mut self, node: &Arc<str>, outcome: &PurgeOutcome) {
        let key = (Arc::clone(node), outcome.reference.clone());
        let objects = self.purging.remove(&key).unwrap_or_default();
        let reason = match outcome.result {
            PurgeResult::InUse => Reason::StillInUse,
            PurgeResult::NotOurs => Reason::NotOurs,
            PurgeResult::Purged | PurgeResult::Unknown => return,
        };
        let told = format!("{} stays on {node}; {}", outcome.reference, reason.remedy());
        for key in objects {
            self.tell(&key, reason, told.clone());
        }
    }

    fn tell_in_use(&mut self, node: &str, reference: &str, objects: &[ObjectKey]) {
        let told = format!(
            "{reference} stays on {node}, where a pod names it; {}",
            Reason::StillInUse.remedy()
        );
        for key in objects {
            self.tell(key, Reason::StillInUse, told.clone());
        }
    }

    /// The cache, as nodes reach it. Before the registry or its Service said anything, nodes keep what they have.
    fn mirror(&self, stored: Option<&StoredSpec>) -> Option<Mirror> {
        let address = self.settings.address.as_ref()?;
        let Some(registries) = self.cache.registries() else {
            return stored.and_then(|stored| stored.mirror.as_deref().cloned());
        };
        let url = match &address.host {
            Host::Fixed(host) => address.url(host),
            Host::Service(_) => address.url_of(self.world.service()?)?,
        };
        let mut registries = registries.names();
        registries.truncate(MOST_REGISTRIES);
        Some(Mirror {
            url,
            ca_bundle: self.settings.ca.clone().filter(|_| address.tls),
            registries,
        })
    }
}

/// What `spec.mirror.registries` takes.
const MOST_REGISTRIES: usize = 256;
/// While a node is being written.
const AGAIN: Duration = Duration::from_millis(500);
