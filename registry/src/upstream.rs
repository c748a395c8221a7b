//! The seam to upstream registries: what can be asked of one endpoint, and how it can fail.
//!
//! An [`Upstream`] is a configured registry with one or more endpoints that hold the same content. An [`Endpoint`] is
//! one of them, with its HTTP clients, credentials, token cache, limiter and breaker. Callers above say how urgent a
//! call is and how long it may take; everything below (tokens, redirects, 429, circuit breaking) is decided here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coral_schema::oci::{Digest, ManifestRef, RepositoryName};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::watch;

use crate::name::UpstreamName;

mod answer;
mod authorize;
mod breaker;
mod build;
pub mod challenge;
mod client;
mod config;
mod credentials;
mod exchange;
pub mod failover;
mod gate;
pub mod lent;
mod limit;
mod metrics;
mod redirect;
mod resolver;
mod retry;
mod shared;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod token;
mod transport;

pub use build::{BuildError, build};
pub use config::{
    CredentialRule, CredentialSource, Glob, Limits, OnMissing, Policy, RepositoryPattern, TagRule,
    Timeouts, TlsConfig, UpstreamConfig, VisibilityMode,
};
pub use metrics::UpstreamMetrics;
pub use tls::{certificates, public_authorities};

/// Who is waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Nobody yet: prefetch, renewals.
    Background,
    /// A client.
    Interactive,
}

/// As whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// With our configured credential, if one matches the repository.
    Configured,
    /// Without any credential, to learn what the public may see.
    Anonymous,
}

/// How to make a call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Who is waiting.
    pub priority: Priority,
    /// As whom.
    pub identity: Identity,
    /// Longest silence of a single step: connecting, a token, response headers of one hop, between body reads.
    pub step: Duration,
    /// Longest time until the answer is complete (for blobs: until its headers are there).
    pub total: Duration,
}

/// How to ask for a blob. It may wait long for a place, and a client may come meanwhile who waits for it.
#[derive(Debug, Clone)]
pub struct BlobCall {
    /// Who is waiting, now and later.
    pub priority: watch::Receiver<Priority>,
    /// See [`Call::step`].
    pub step: Duration,
    /// See [`Call::total`].
    pub total: Duration,
}

impl BlobCall {
    /// As things are now, with our configured credential.
    pub fn now(&self) -> Call {
        Call {
            priority: *self.priority.borrow(),
            identity: Identity::Configured,
            step: self.step,
            total: self.total,
        }
    }
}

/// Names a credential without revealing it: equal ids mean the same login. `anonymous` when there is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialId(pub Arc<str>);

/// A manifest's headers.
#[derive(Debug, Clone)]
pub struct ManifestHead {
    /// `Docker-Content-Digest`, when the upstream sent a valid one.
    pub digest: Option<Digest>,
    /// `Content-Type`, essence only.
    pub media_type: String,
    /// `Content-Length`, bytes.
    pub size: Option<u64>,
    /// `ETag`, as received.
    pub etag: Option<String>,
}

/// The answer to a conditional question.
#[derive(Debug, Clone)]
pub enum Checked {
    /// 304.
    NotModified,
    /// 200.
    Head(ManifestHead),
}

/// A manifest with its body, not verified yet.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// Its headers.
    pub head: ManifestHead,
    /// Its bytes, at most the limit that was asked for.
    pub body: Bytes,
}

/// An inclusive byte range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// Last byte; `None` to the end.
    pub end: Option<u64>,
}

/// A blob's body as it arrives.
pub struct BlobStream {
    /// Offset of the first byte of `body`: what a 206 said, 0 for a 200.
    pub start: u64,
    /// Length of the whole blob, when the upstream said it.
    pub total: Option<u64>,
    /// The bytes. Ends with an error unless exactly the announced length came.
    pub body: BoxStream<'static, Result<Bytes, UpstreamError>>,
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream")
            .field("start", &self.start)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

/// One page of a list (tags or referrers), parsed leniently.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Is there more? For tags the last entry is where the next page starts.
    pub more: bool,
}

/// One endpoint of an upstream. Implemented over HTTP by `client`, and by scripted fakes in tests.
pub trait Endpoint: fmt::Debug + Send + Sync {
    /// Scheme, host and port, without credentials: for logs, metrics and origin records.
    fn url(&self) -> &str;

    /// The credential that [`Identity::Configured`] means for this repository.
    fn credential_id(&self, repository: &RepositoryName) -> CredentialId;

    /// May it be asked now? `Err` holds how long until it may be tried again.
    fn available(&self) -> Result<(), Duration>;

    /// No timeout since the last answer? Who holds a stale answer does not wait for an endpoint that is not; asking
    /// this makes it be checked in the background. An endpoint that does not count timeouts says what `available` says.
    fn responsive(&self) -> bool {
        self.available().is_ok()
    }

    /// State for the status API.
    fn status(&self) -> EndpointStatus;

    /// HEAD of a manifest, conditional when `etag` is given.
    fn head_manifest<'a>(
        &'a self,
        call: Call,
        repository: &'a RepositoryName,
        reference: &'a ManifestRef,
        etag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Checked, UpstreamError>>;

    /// GET of a manifest of at most `limit` bytes.
    fn manifest<'a>(
        &'a self,
        call: Call,
        repository: &'a RepositoryName,
        reference: &'a ManifestRef,
        limit: u64,
    ) -> BoxFuture<'a, Result<FetchedManifest, UpstreamError>>;

    /// HEAD of a blob: its length, when the upstream says it.
    fn head_blob<'a>(
        &'a self,
        call: Call,
        repository: &'a RepositoryName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<u64>, UpstreamError>>;

    /// GET of a blob, from `range` on. An upstream that ignores the range answers with `start` 0.
    fn blob<'a>(
        &'a self,
        call: BlobCall,
        repository: &'a RepositoryName,
        digest: &'a Digest,
        range: Option<ByteRange>,
    ) -> BoxFuture<'a, Result<BlobStream, UpstreamError>>;

    /// One page of the tag list, at most `n` entries after `last`.
    fn tags<'a>(
        &'a self,
        call: Call,
        repository: &'a RepositoryName,
        n: Option<usize>,
        last: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Page<String>, UpstreamError>>;

    /// The referrers of a digest by the referrers API (all pages, at most `limit` bytes each); the descriptors are
    /// kept as raw JSON.
    fn referrers<'a>(
        &'a self,
        call: Call,
        repository: &'a RepositoryName,
        digest: &'a Digest,
        limit: u64,
    ) -> BoxFuture<'a, Result<Page<serde_json::Value>, UpstreamError>>;
}

/// What the status API shows of an endpoint.
#[derive(Debug, Clone)]
pub struct EndpointStatus {
    /// Scheme, host, port.
    pub url: String,
    /// Is the breaker open?
    pub breaker_open: bool,
    /// Requests that hold a place now.
    pub in_flight: usize,
    /// What the upstream said remains of its own budget.
    pub ratelimit_remaining: Option<u64>,
    /// Why the last failed call failed, in words without secrets.
    pub last_error: Option<String>,
}

/// A configured upstream: endpoints in order of preference, and its policy.
#[derive(Debug)]
pub struct Upstream {
    /// Its canonical name.
    pub name: UpstreamName,
    /// At least one.
    pub endpoints: Vec<Arc<dyn Endpoint>>,
    /// Time limits for callers.
    pub timeouts: Timeouts,
    /// How its content is treated.
    pub policy: Policy,
}

/// Why an upstream did not give what was asked. Each kind is something that a caller does next.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{endpoint}: {kind}")]
pub struct UpstreamError {
    /// Which endpoint (no credentials, no query).
    pub endpoint: Arc<str>,
    /// What happened.
    pub kind: UpstreamErrorKind,
}

/// See [`UpstreamError`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamErrorKind {
    /// 404, or 400 for a name that it cannot have.
    #[error("it says that this does not exist")]
    NotFound,
    /// 401 or 403 after everything that we may try. `status` tells which.
    #[error("it refuses access ({status})")]
    Refused {
        /// 401 or 403.
        status: u16,
    },
    /// 429.
    #[error("it says: too many requests")]
    RateLimited {
        /// From `Retry-After`, bounded.
        retry_after: Option<Duration>,
    },
    /// Silent for longer than the call allowed.
    #[error("it did not answer in time ({0})")]
    Timeout(&'static str),
    /// No connection, or it broke.
    #[error("the connection failed: {0}")]
    Connection(Arc<str>),
    /// 5xx, or a status that makes no sense here.
    #[error("it answered with status {0}")]
    Status(u16),
    /// An answer that cannot be right: HTML, a coded body, wrong length, a forbidden redirect.
    #[error("its answer is unusable: {0}")]
    Protocol(Arc<str>),
    /// Longer than the limit.
    #[error("its answer is longer than {0} bytes")]
    TooLarge(u64),
    /// It failed too often; it is left alone for now.
    #[error("it failed too often and is left alone for {} s more", .retry_after.as_secs())]
    BreakerOpen {
        /// Until the next try.
        retry_after: Duration,
    },
    /// Our own queue for it is full.
    #[error("too many requests wait for it already")]
    QueueFull {
        /// A guess.
        retry_after: Duration,
    },
}
