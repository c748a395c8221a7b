//! What the leader counts.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::api::Category;

/// Counters and gauges of all terms of this process.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) reconciles: Counter,
    pub(super) node_writes: Counter,
    pub(super) status_writes: Counter,
    pub(super) grants: Counter,
    errors: Family<ErrorLabels, Counter>,
    images: Family<StateLabel, Gauge>,
    pub(super) registry_reachable: Gauge,
    pub(super) time_to_warm: Histogram,
    pub(super) reconcile: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    step: Step,
    category: Category,
}

/// Where an error happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Step {
    WriteNodeCache,
    ListPods,
    WriteStatus,
    WriteFinalizer,
    WriteEvent,
    ReadSecret,
    WriteNode,
    WriteCopies,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum State {
    Wanted,
    Cached,
    Ready,
    Failed,
    Drifted,
}

/// Images of one object, or of all: an image on a node counts once per node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Images {
    /// In specs.
    pub(super) wanted: i64,
    /// Of these, in the cluster's cache.
    pub(super) cached: i64,
    /// On nodes.
    pub(super) ready: i64,
    /// On nodes, not held since a pull failed.
    pub(super) failed: i64,
    /// On nodes, with other content than the name means.
    pub(super) drifted: i64,
}

impl Metrics {
    /// Registers all families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reconciles: Counter::default(),
            node_writes: Counter::default(),
            status_writes: Counter::default(),
            grants: Counter::default(),
            errors: Family::default(),
            images: Family::default(),
            registry_reachable: Gauge::default(),
            // A second to an hour: a fresh node with nothing but small images, and with 20 GB ones.
            time_to_warm: Histogram::new([
                1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0,
            ]),
            // A handful of nodes to thousands; a look blocks all others.
            reconcile: Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0]),
        };
        let m = &metrics;
        registry.register("reconciles", "Looks at an ImageCache", m.reconciles.clone());
        registry.register(
            "node_cache_writes",
            "Specs of NodeCaches written",
            m.node_writes.clone(),
        );
        registry.register(
            "status_writes",
            "Statuses of ImageCaches written",
            m.status_writes.clone(),
        );
        registry.register("grants", "Images granted to a node", m.grants.clone());
        registry.register(
            "errors",
            "Calls of the API server that failed, by step and category",
            m.errors.clone(),
        );
        registry.register(
            "images",
            "Images of all ImageCaches: wanted and cached ones, and on nodes, per node, ready, failed and drifted ones",
            m.images.clone(),
        );
        registry.register(
            "registry_reachable",
            "1 while the registry's admin listener answers the leader",
            m.registry_reachable.clone(),
        );
        registry.register(
            "time_to_warm_seconds",
            "From a node being Ready to its holding every image for the first time",
            m.time_to_warm.clone(),
        );
        registry.register(
            "reconcile_seconds",
            "How long a look at an ImageCache and all its nodes takes",
            m.reconcile.clone(),
        );
        metrics
    }

    pub(super) fn failed(&self, step: Step, category: Category) {
        self.errors
            .get_or_create(&ErrorLabels { step, category })
            .inc();
    }

    pub(super) fn set_images(&self, all: impl Iterator<Item = Images>) {
        let sum = all.fold(Images::default(), |sum, it| Images {
            wanted: sum.wanted + it.wanted,
            cached: sum.cached + it.cached,
            ready: sum.ready + it.ready,
            failed: sum.failed + it.failed,
            drifted: sum.drifted + it.drifted,
        });
        for (state, count) in [
            (State::Wanted, sum.wanted),
            (State::Cached, sum.cached),
            (State::Ready, sum.ready),
            (State::Failed, sum.failed),
            (State::Drifted, sum.drifted),
        ] {
            self.images.get_or_create(&StateLabel { state }).set(count);
        }
    }
}
