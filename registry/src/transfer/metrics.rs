//! What transfers count.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::name::UpstreamName;

/// Metric families of this module; clones share them.
#[derive(Debug, Clone, Default)]
pub struct TransferMetrics {
    running: Gauge,
    readers: Gauge,
    resumes: Counter,
    unverified_range_bytes: Counter,
    verify_failures: Family<UpstreamLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: String,
}

/// Counts one as long as it lives.
#[derive(Debug)]
pub(super) struct Counted(Gauge);

impl TransferMetrics {
    /// Registers the families under their names without the common prefix.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "transfers_running",
            "Downloads that run now",
            metrics.running.clone(),
        );
        registry.register(
            "transfer_readers",
            "Clients that read from running downloads",
            metrics.readers.clone(),
        );
        registry.register(
            "upstream_resumes",
            "Downloads continued after a break",
            metrics.resumes.clone(),
        );
        registry.register_with_unit(
            "unverified_range",
            "Parts of blobs served before the whole was verified",
            Unit::Bytes,
            metrics.unverified_range_bytes.clone(),
        );
        registry.register(
            "verify_failures",
            "Downloads whose bytes did not match their digest",
            metrics.verify_failures.clone(),
        );
        metrics
    }

    pub(super) fn running(&self) -> Counted {
        Counted::new(&self.running)
    }

    pub(super) fn reader(&self) -> Counted {
        Counted::new(&self.readers)
    }

    pub(super) fn resumed(&self) {
        self.resumes.inc();
    }

    pub(super) fn unverified(&self, bytes: u64) {
        self.unverified_range_bytes.inc_by(bytes);
    }

    pub(super) fn verify_failed(&self, upstream: &UpstreamName) {
        self.verify_failures
            .get_or_create(&UpstreamLabel {
                upstream: upstream.to_string(),
            })
            .inc();
    }
}

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
