//! The metric families of the node's images (kubernetes.md, section 4).

use std::time::Duration;

use coral_schema::crd::node_cache::{ImageState, NodeRegistryPolicy};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::NodeState;
use crate::presence::Cause;

/// The families; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    pulls: Family<PullLabels, Histogram>,
    images: Family<StateLabel, Gauge>,
    evictions: Family<CauseLabel, Counter>,
    suppressed: Counter,
    pinned: Gauge,
    used: Gauge<f64, std::sync::atomic::AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PullLabels {
    result: &'static str,
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

const STATES: [(ImageState, &str); 6] = [
    (ImageState::Waiting, "Waiting"),
    (ImageState::Pulling, "Pulling"),
    (ImageState::Ready, "Ready"),
    (ImageState::Failed, "Failed"),
    (ImageState::Evicted, "Evicted"),
    (ImageState::Unknown, "Unknown"),
];

impl Metrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            // From a small image next to its cache to 20 GB through a slow link.
            pulls: Family::new_with_constructor(|| {
                Histogram::new([
                    0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
                ])
            }),
            images: Family::default(),
            evictions: Family::default(),
            suppressed: Counter::default(),
            pinned: Gauge::default(),
            used: Gauge::default(),
        };
        registry.register(
            "pull_seconds",
            "Length of pulls by their result; source is MirrorOnly for those that the cache had to hold",
            metrics.pulls.clone(),
        );
        registry.register(
            "images",
            "Images of the spec by state",
            metrics.images.clone(),
        );
        registry.register(
            "evictions",
            "Images that the node removed, by the likely cause",
            metrics.evictions.clone(),
        );
        registry.register(
            "repull_suppressed",
            "Times that an image was left away because the node removed it again and again",
            metrics.suppressed.clone(),
        );
        registry.register(
            "pinned_names",
            "Names of images that are pinned because a NodeCache asks for it",
            metrics.pinned.clone(),
        );
        registry.register(
            "imagefs_used_ratio",
            "Share of the image file system that is in use",
            metrics.used.clone(),
        );
        metrics
    }

    pub(super) fn pulled(&self, result: &'static str, policy: NodeRegistryPolicy, took: Duration) {
        let source = match policy {
            NodeRegistryPolicy::Default => "Default",
            NodeRegistryPolicy::MirrorOnly | NodeRegistryPolicy::Unknown => "MirrorOnly",
        };
        self.pulls
            .get_or_create(&PullLabels { result, source })
            .observe(took.as_secs_f64());
    }

    pub(super) fn evicted(&self, cause: Cause, left_away: bool) {
        let cause = cause.as_str();
        self.evictions.get_or_create(&CauseLabel { cause }).inc();
        if left_away {
            self.suppressed.inc();
        }
    }

    pub(super) fn pinned(&self, names: usize) {
        self.pinned.set(i64::try_from(names).unwrap_or(i64::MAX));
    }

    pub(super) fn state(&self, node: &NodeState) {
        for (state, name) in STATES {
            let count = node
                .images
                .iter()
                .filter(|image| image.state == state)
                .count();
            self.images
                .get_or_create(&StateLabel { state: name })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let used = node
            .space
            .map_or(0.0, |space| f64::from(space.used_percent()) / 100.0);
        self.used.set(used);
    }
}
