//! One event and one sample per request, when its body has ended, however it ended.
//!
//! An [`Entry`] accompanies a request from its first byte to the last of its answer; dropping it is what writes the
//! event, so a client that leaves is logged like any other and nothing is logged twice.

use std::fmt;
use std::sync::Arc;

use coral_schema::oci::ManifestRef;
use http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use super::RequestKind;
use crate::access::Subject;
use crate::name::{RepoKey, UpstreamName};
use crate::pull::{BodyError, Outcome};

/// The metrics of the OCI listener. Each request does one look-up; everything else is resolved at start.
#[derive(Debug)]
pub(super) struct AccessLog {
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
    first_byte_seconds: ByOutcome<Histogram>,
    sent_bytes: ByOutcome<Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RequestLabels {
    kind: RequestKind,
    /// `None` while, or because, the request means no configured upstream.
    upstream: Option<UpstreamName>,
    result: Outcome,
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let upstream = self.upstream.as_ref().map_or("none", UpstreamName::as_str);
        ("kind", self.kind.name()).encode(encoder.encode_label())?;
        ("upstream", upstream).encode(encoder.encode_label())?;
        ("result", result_name(self.result)).encode(encoder.encode_label())
    }
}

/// The `result` label.
fn result_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Hit => "hit",
        Outcome::Miss => "miss",
        Outcome::Join => "join",
        Outcome::Stale => "stale",
        Outcome::Bypass => "bypass",
        Outcome::Negative => "negative",
        Outcome::Error => "error",
    }
}

/// Where sent bytes came from: the `source` label.
fn source_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Hit | Outcome::Stale => "store",
        Outcome::Miss | Outcome::Join => "transfer",
        Outcome::Bypass => "upstream",
        Outcome::Negative | Outcome::Error => "none",
    }
}

/// A handle per outcome, at its place.
type ByOutcome<T> = [T; OUTCOMES.len()];

/// In the order of their declaration.
const OUTCOMES: [Outcome; 7] = [
    Outcome::Hit,
    Outcome::Miss,
    Outcome::Join,
    Outcome::Stale,
    Outcome::Bypass,
    Outcome::Negative,
    Outcome::Error,
];

impl AccessLog {
    /// Registers the metrics; the caller adds the prefix.
    pub(super) fn new(registry: &mut Registry) -> Self {
        let requests = Family::default();
        // 0.1 ms to 7 min: hits are below a millisecond, a big layer on a slow line takes minutes.
        let histogram = || Histogram::new(exponential_buckets(0.0001, 3.0, 15));
        let request_seconds = histogram();
        let first_byte: Family<[(&'static str, &'static str); 1], Histogram, _> =
            Family::new_with_constructor(histogram as fn() -> Histogram);
        let sent: Family<[(&'static str, &'static str); 1], Counter> = Family::default();
        registry.register("requests", "Requests answered", requests.clone());
        registry.register_with_unit(
            "request",
            "From the request to the end of the answer",
            Unit::Seconds,
            request_seconds.clone(),
        );
        registry.register_with_unit(
            "first_byte",
            "From the request to the first byte of the body",
            Unit::Seconds,
            first_byte.clone(),
        );
        registry.register(
            "sent_bytes",
            "Bytes of bodies sent to clients",
            sent.clone(),
        );
        Self {
            requests,
            request_seconds,
            first_byte_seconds: OUTCOMES
                .map(|outcome| first_byte.get_or_create_owned(&[("result", result_name(outcome))])),
            sent_bytes: OUTCOMES
                .map(|outcome| sent.get_or_create_owned(&[("source", source_name(outcome))])),
        }
    }

    fn record(&self, entry: &Entry) {
        let seconds = entry.started.elapsed().as_secs_f64();
        let labels = RequestLabels {
            kind: entry.kind,
            upstream: entry
                .repo
                .as_ref()
                .and_then(|repo| repo.upstream().cloned()),
            result: entry.outcome,
        };
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.observe(seconds);
        entry.write_event(seconds);
    }
}

/// What is known of a request so far.
#[derive(Debug)]
pub(super) struct Entry {
    log: Arc<AccessLog>,
    started: Instant,
    method: Method,
    pub(super) kind: RequestKind,
    /// Who sent it, once that was proved.
    pub(super) caller: Option<Subject>,
    pub(super) repo: Option<RepoKey>,
    pub(super) reference: Option<ManifestRef>,
    /// `None` until there is an answer.
    pub(super) status: Option<StatusCode>,
    /// A client that leaves before there is an answer waited for the upstream: a hit does not keep it waiting.
    pub(super) outcome: Outcome,
    pub(super) error: Option<String>,
    sent: u64,
    complete: bool,
}

impl Entry {
    /// A request has arrived.
    pub(super) fn new(log: Arc<AccessLog>, method: Method) -> Self {
        Self {
            log,
            started: Instant::now(),
            method,
            kind: RequestKind::Other,
            caller: None,
            repo: None,
            reference: None,
            status: None,
            outcome: Outcome::Miss,
            error: None,
            sent: 0,
            complete: false,
        }
    }

    /// `bytes` more of the body were handed on; is that all of `length`?
    pub(super) fn count(&mut self, bytes: u64, length: Option<u64>) {
        let place = self.outcome as usize;
        if self.sent == 0 {
            let seconds = self.started.elapsed().as_secs_f64();
            self.log.first_byte_seconds[place].observe(seconds);
        }
        self.sent += bytes;
        self.log.sent_bytes[place].inc_by(bytes);
        self.complete = Some(self.sent) == length;
    }

    /// The body has ended cleanly, but perhaps before `length`.
    pub(super) fn end(&mut self, length: Option<u64>) {
        self.complete = length.is_none_or(|length| length == self.sent);
    }

    /// The body cannot be finished.
    pub(super) fn fail(&mut self, error: &BodyError) {
        self.outcome = Outcome::Error;
        self.error = Some(error.to_string());
    }

    fn write_event(&self, seconds: f64) {
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    method = %self.method,
                    caller = self.caller.as_ref().map(tracing::field::display),
                    repository = self.repo.as_ref().map(tracing::field::display),
                    reference = self.reference.as_ref().map(tracing::field::display),
                    result = result_name(self.outcome),
                    upstream = self.repo.as_ref().and_then(RepoKey::upstream).map(UpstreamName::as_str),
                    status = self.status.map(|status| status.as_u16()),
                    bytes = self.sent,
                    complete = self.complete,
                    seconds,
                    error = self.error.as_deref(),
                    "{}", if self.complete { "answered" } else { "ended early" }
                )
            };
        }
        let is_read = matches!(self.method, Method::GET | Method::HEAD);
        if self.outcome == Outcome::Hit && is_read {
            event!(debug);
        } else {
            event!(info);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let log = Arc::clone(&self.log);
        log.record(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_per_outcome_at_its_place() {
        for (place, outcome) in OUTCOMES.into_iter().enumerate() {
            assert_eq!(outcome as usize, place);
        }
    }
}
