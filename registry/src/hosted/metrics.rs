//! What collecting counts.

use std::fmt::Write as _;

use coral_schema::admin::GcReport;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Metric families of this module; clones share them.
#[derive(Debug, Clone, Default)]
pub struct HostedMetrics {
    passes: Family<ResultLabel, Counter>,
    removed: Counter,
    freed: Counter,
    marked: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: PassResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum PassResult {
    Ok,
    Failed,
}

impl HostedMetrics {
    /// Registers the families under their names without the common prefix.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for result in [PassResult::Ok, PassResult::Failed] {
            metrics
                .passes
                .get_or_create(&ResultLabel { result })
                .inc_by(0);
        }
        registry.register(
            "gc_passes",
            "Passes over hosted repositories, by how they ended",
            metrics.passes.clone(),
        );
        registry.register(
            "gc_removed",
            "Blobs and manifests removed from hosted repositories that did not need them",
            metrics.removed.clone(),
        );
        registry.register_with_unit(
            "gc_freed",
            "Bytes of these that nobody else had or named",
            Unit::Bytes,
            metrics.freed.clone(),
        );
        registry.register(
            "gc_marked",
            "Blobs and manifests that wait for being removed, after the last whole pass",
            metrics.marked.clone(),
        );
        metrics
    }

    pub(super) fn passed(&self, report: &GcReport, whole: bool) {
        let result = if whole {
            let waiting = report.marked + report.waiting;
            self.marked.set(i64::try_from(waiting).unwrap_or(i64::MAX));
            PassResult::Ok
        } else {
            PassResult::Failed
        };
        self.passes.get_or_create(&ResultLabel { result }).inc();
        self.removed.inc_by(report.removed);
        self.freed.inc_by(report.freed_bytes);
    }
}

impl EncodeLabelValue for PassResult {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
        })
    }
}
