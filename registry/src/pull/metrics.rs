//! What pulls count, besides what the HTTP layer counts per request.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Metric families of this module; clones share them.
#[derive(Debug, Clone, Default)]
pub struct PullMetrics {
    tag_checks: Family<CheckLabel, Counter>,
    stale_served: Family<StaleLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StaleLabel {
    reason: &'static str,
}

/// How a tag check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckResult {
    Confirmed,
    Moved,
    Missing,
    Refused,
    Failed,
}

/// Why something stale was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StaleReason {
    Missing,
    Refused,
    Unreachable,
}

impl CheckResult {
    fn label(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Moved => "moved",
            Self::Missing => "missing",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl StaleReason {
    fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
        }
    }
}

impl PullMetrics {
    /// Registers the families under their names without the common prefix.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "tag_checks",
            "Tags compared with the upstream",
            metrics.tag_checks.clone(),
        );
        registry.register(
            "stale_served",
            "Answers that could not be checked",
            metrics.stale_served.clone(),
        );
        metrics
    }

    pub(super) fn checked(&self, result: CheckResult) {
        let result = result.label();
        self.tag_checks.get_or_create(&CheckLabel { result }).inc();
    }

    pub(super) fn stale(&self, reason: StaleReason) {
        let reason = reason.label();
        self.stale_served
            .get_or_create(&StaleLabel { reason })
            .inc();
    }
}
