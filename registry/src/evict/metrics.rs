//! What the store takes, and what was evicted from it.

use std::fmt::Write as _;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::policy::Reason;
use crate::index::Totals;

#[derive(Debug)]
pub(super) struct Metrics {
    held: Family<ClassLabel, Gauge>,
    evicted: Family<ReasonLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: Class,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Class {
    Blob,
    Manifest,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: Reason,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry, limit: u64, degraded: Gauge) -> Self {
        let held = Family::default();
        registry.register("store_bytes", "Bytes held, by class", held.clone());
        let limit_bytes: Gauge = Gauge::default();
        limit_bytes.set(as_gauge(limit));
        registry.register(
            "store_limit_bytes",
            "Bytes that the store may hold",
            limit_bytes,
        );
        registry.register(
            "store_degraded",
            "1 while the store cannot take what is fetched",
            degraded,
        );
        let evicted: Family<ReasonLabel, Counter> = Family::default();
        registry.register(
            "evicted_bytes",
            "Bytes evicted, by the reason that they had to go",
            evicted.clone(),
        );
        for reason in [Reason::Limit, Reason::Volume] {
            evicted.get_or_create(&ReasonLabel { reason }).inc_by(0);
        }
        Self { held, evicted }
    }

    pub(super) fn set_held(&self, totals: Totals) {
        let classes = [
            (Class::Blob, totals.blobs),
            (Class::Manifest, totals.manifests),
        ];
        for (class, bytes) in classes {
            let gauge = self.held.get_or_create(&ClassLabel { class });
            gauge.set(as_gauge(bytes));
        }
    }

    pub(super) fn evicted(&self, reason: Reason, bytes: u64) {
        let label = ReasonLabel { reason };
        self.evicted.get_or_create(&label).inc_by(bytes);
    }
}

fn as_gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl EncodeLabelValue for Class {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
        })
    }
}

impl EncodeLabelValue for Reason {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Limit => "limit",
            Self::Volume => "volume",
        })
    }
}
