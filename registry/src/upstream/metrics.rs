//! The metric families of the upstream client (registry.md, section 9).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::name::UpstreamName;

/// What a request was for: the `kind` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    HeadManifest,
    Manifest,
    HeadBlob,
    Blob,
    Tags,
    Referrers,
    Token,
    Probe,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::HeadManifest => "head_manifest",
            Self::Manifest => "manifest",
            Self::HeadBlob => "head_blob",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Token => "token",
            Self::Probe => "probe",
        }
    }
}

/// The families; clones share them.
#[derive(Debug, Clone)]
pub struct UpstreamMetrics {
    requests: Family<RequestLabels, Counter>,
    bytes: Family<UpstreamLabel, Counter>,
    remaining: Family<UpstreamLabel, Gauge>,
    breaker_open: Family<UpstreamLabel, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    upstream: String,
    kind: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: String,
}

impl UpstreamMetrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            bytes: Family::default(),
            remaining: Family::default(),
            breaker_open: Family::default(),
        };
        registry.register(
            "upstream_requests",
            "Requests sent to upstreams, their token services and storage; code is a status or why there is none",
            metrics.requests.clone(),
        );
        registry.register(
            "upstream_bytes",
            "Bytes of manifests and blobs received from upstreams",
            metrics.bytes.clone(),
        );
        registry.register(
            "upstream_ratelimit_remaining",
            "What the upstream last said remains of its request budget",
            metrics.remaining.clone(),
        );
        registry.register(
            "breaker_open",
            "Endpoints of the upstream that are left alone now",
            metrics.breaker_open.clone(),
        );
        metrics
    }
}

/// The families for one upstream.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    metrics: UpstreamMetrics,
    upstream: String,
    bytes: Counter,
    remaining: Gauge,
    breaker_open: Gauge,
}

impl Meter {
    pub(super) fn new(metrics: &UpstreamMetrics, upstream: &UpstreamName) -> Self {
        let label = UpstreamLabel {
            upstream: upstream.to_string(),
        };
        Self {
            metrics: metrics.clone(),
            bytes: metrics.bytes.get_or_create(&label).clone(),
            remaining: metrics.remaining.get_or_create(&label).clone(),
            breaker_open: metrics.breaker_open.get_or_create(&label).clone(),
            upstream: label.upstream,
        }
    }

    /// A request was answered (`status`), or not (`None`).
    pub(super) fn request(&self, kind: Kind, status: Option<u16>) {
        let labels = RequestLabels {
            upstream: self.upstream.clone(),
            kind: kind.label(),
            code: code(status),
        };
        self.metrics.requests.get_or_create(&labels).inc();
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes.inc_by(bytes as u64);
    }

    pub(super) fn remaining(&self, remaining: u64) {
        self.remaining
            .set(i64::try_from(remaining).unwrap_or(i64::MAX));
    }

    pub(super) fn breaker(&self, opened: bool) {
        if opened {
            self.breaker_open.inc();
        } else {
            self.breaker_open.dec();
        }
    }
}

/// A closed set, whatever an upstream answers.
fn code(status: Option<u16>) -> &'static str {
    match status {
        None => "none",
        Some(200) => "200",
        Some(206) => "206",
        Some(304) => "304",
        Some(307) => "307",
        Some(400) => "400",
        Some(401) => "401",
        Some(403) => "403",
        Some(404) => "404",
        Some(416) => "416",
        Some(429) => "429",
        Some(500) => "500",
        Some(502) => "502",
        Some(503) => "503",
        Some(504) => "504",
        Some(200..300) => "2xx",
        Some(300..400) => "3xx",
        Some(400..500) => "4xx",
        Some(_) => "5xx",
    }
}
