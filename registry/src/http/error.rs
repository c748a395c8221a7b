//! The only map from failures to status and OCI error code: the table of registry.md, section 3.1.
//!
//! A mirror request (with `ns`) and any other get different answers where clients act differently: a runtime that walks
//! a list of mirrors must move on, a person who named this cache must learn why. The client's sentence says what to do;
//! the log gets the failure itself, once, with the access-log event.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use coral_schema::oci::ErrorCode;
use coral_schema::oci::error_code::{ErrorBody, ErrorEntry};
use coral_schema::oci::manifest::ManifestError;
use http::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};

use super::RequestKind;
use super::answer::{Answer, Content};
use super::route::RouteError;
use super::upload::{range, set};
use crate::access::AccessError;
use crate::hosted::HostedError;
use crate::pull::{Outcome, PullError};

mod access;
mod hosted;

/// Why a request gets no content.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Failure {
    /// The request makes no sense.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A query parameter makes no sense; what it must be.
    #[error("{0}")]
    Parameter(&'static str),
    /// The caller may not read it, or there is nothing of that name.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// It cannot be had.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// It is not here, or not known to be for this caller, and nobody was to be asked.
    #[error("this cache does not hold it")]
    NotCached,
    /// A chunk that does not begin where its session ends.
    #[error("the session has {received} bytes, and the next chunk begins there")]
    OutOfOrder {
        /// Bytes that it has.
        received: u64,
        /// Where it is; nothing where there is none.
        location: Option<String>,
    },
    /// More `tag` parameters than are accepted.
    #[error(
        "the request names more tags than are accepted at once; push the manifest again with the others"
    )]
    TooManyTags,
    /// It cannot be pushed or deleted.
    #[error(transparent)]
    Hosted(HostedError),
    /// Nothing below gave up in time.
    #[error("no part of this cache answered in time")]
    Deadline,
}

/// What the client sees of a [`Failure`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ErrorAnswer {
    pub(super) status: StatusCode,
    pub(super) code: ErrorCode,
    message: String,
    detail: Option<String>,
    retry_after: Option<Duration>,
    /// For 416: the length of the blob.
    size: Option<u64>,
    /// For 405: the methods that are known.
    allow: &'static str,
    /// For 416 of an upload: what it has, and where it is.
    session: Option<(u64, String)>,
}

impl ErrorAnswer {
    fn new(status: StatusCode, code: ErrorCode, message: impl fmt::Display) -> Self {
        Self {
            status,
            code,
            message: message.to_string(),
            detail: None,
            retry_after: None,
            size: None,
            allow: "GET, HEAD",
            session: None,
        }
    }

    fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The answer with its headers and the JSON envelope.
    pub(super) fn into_answer(self, failure: &Failure) -> Answer {
        let mut answer = Answer::new(self.status, self.outcome(failure));
        answer.error = Some(failure.to_string());
        let body = ErrorBody {
            errors: vec![ErrorEntry {
                code: self.code,
                message: self.message,
                detail: self.detail.map_or(serde_json::Value::Null, Into::into),
            }],
        };
        let headers = &mut answer.headers;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, whole_seconds(wait).into());
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static(self.allow));
        }
        if let Some(size) = self.size {
            let range = HeaderValue::try_from(format!("bytes */{size}"));
            headers.insert(CONTENT_RANGE, range.expect("digits are valid in a header"));
        }
        if let Some((received, location)) = self.session {
            set(headers, RANGE, range(received));
            set(headers, LOCATION, location);
        }
        answer.set_content(Content::Full(Bytes::from(body.to_json())));
        answer
    }

    /// A refusal is an answer; an error is what somebody should look at.
    fn outcome(&self, failure: &Failure) -> Outcome {
        let broken = self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS;
        if broken && !matches!(failure, Failure::NotCached) {
            Outcome::Error
        } else {
            Outcome::Negative
        }
    }
}

/// `Retry-After` knows whole seconds, and 0 would mean "at once".
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0 || wait.is_zero())
}

/// The table. `mirror`: the request came with `ns`.
pub(super) fn error_answer(failure: &Failure, kind: RequestKind, mirror: bool) -> ErrorAnswer {
    match failure {
        Failure::Route(error) => route(error),
        Failure::Parameter(message) => {
            ErrorAnswer::new(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, message)
        }
        Failure::Access(error) => access::access(error, kind, mirror),
        Failure::Pull(error) => pull(error, kind, mirror),
        Failure::NotCached => ErrorAnswer::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Unavailable,
            format!(
                "{failure}, and was told not to ask anybody (only-if-cached); ask without that, or have it prefetched"
            ),
        ),
        Failure::OutOfOrder { received, location } => {
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let mut answer = ErrorAnswer::new(status, ErrorCode::BlobUploadInvalid, failure);
            answer.session = location.clone().map(|location| (*received, location));
            answer
        }
        Failure::TooManyTags => {
            ErrorAnswer::new(StatusCode::URI_TOO_LONG, ErrorCode::Unsupported, failure)
        }
        Failure::Hosted(error) => hosted::hosted(error),
        Failure::Deadline => ErrorAnswer::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Unavailable,
            format!("{failure}; try again"),
        ),
    }
}

fn route(error: &RouteError) -> ErrorAnswer {
    let (status, code) = match error {
        RouteError::Unknown => (StatusCode::NOT_FOUND, ErrorCode::NameUnknown),
        RouteError::Method(known) => {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            let mut answer = ErrorAnswer::new(status, ErrorCode::Unsupported, error);
            answer.allow = known;
            return answer;
        }
        RouteError::Digest(_) => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
        // What cannot exist does not exist: conformance 1.0 and 1.1 ask for such a tag and want 404.
        RouteError::Tag(_) => (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown),
        RouteError::NewTag(_) => (StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid),
    };
    ErrorAnswer::new(status, code, error)
}

fn pull(error: &PullError, kind: RequestKind, mirror: bool) -> ErrorAnswer {
    let manifest_invalid = |status| ErrorAnswer::new(status, ErrorCode::ManifestInvalid, error);
    match error {
        PullError::NotFound(_) => unknown(kind),
        PullError::Refused(detail) => refused(detail, kind, mirror),
        PullError::RateLimited { retry_after } => {
            // containerd repeats a 429 five times at once, and leaves a 503 for the next host at once.
            let status = if mirror {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::TOO_MANY_REQUESTS
            };
            let wait = whole_seconds(*retry_after);
            let message = format!("{error}, and nothing is cached; try again in {wait} s");
            ErrorAnswer::new(status, ErrorCode::TooManyRequests, message).after(*retry_after)
        }
        PullError::Timeout(_) => ErrorAnswer::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Unavailable,
            format!("{error}; try again"),
        ),
        PullError::BadGateway(_) => ErrorAnswer::new(
            StatusCode::BAD_GATEWAY,
            ErrorCode::Unavailable,
            format!("{error}; try again"),
        ),
        PullError::Unavailable {
            reason,
            retry_after,
        } => unavailable(reason, *retry_after),
        PullError::RangeNotSatisfiable { size } => {
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let mut answer = ErrorAnswer::new(status, ErrorCode::SizeInvalid, error);
            answer.size = Some(*size);
            answer
        }
        PullError::Unservable(source) if matches!(**source, ManifestError::Schema1) => {
            ErrorAnswer::new(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, error)
        }
        PullError::Unservable(_) | PullError::TooLarge { .. } => {
            manifest_invalid(StatusCode::BAD_GATEWAY)
        }
    }
}

/// Not there and not to be read look the same, to the letter.
fn unknown(kind: RequestKind) -> ErrorAnswer {
    let (code, what) = match kind {
        RequestKind::Manifest => (ErrorCode::ManifestUnknown, "manifest"),
        RequestKind::Blob => (ErrorCode::BlobUnknown, "blob"),
        RequestKind::Ping
        | RequestKind::Catalog
        | RequestKind::Tags
        | RequestKind::Referrers
        | RequestKind::Upload
        | RequestKind::Token
        | RequestKind::Other => (ErrorCode::NameUnknown, "repository"),
    };
    ErrorAnswer::new(
        StatusCode::NOT_FOUND,
        code,
        format!("this {what} does not exist, or it may not be read here; check its name"),
    )
}

/// A mirror says 404 so that the runtime walks on, without asking its user for a login that would not help.
fn refused(detail: &str, kind: RequestKind, mirror: bool) -> ErrorAnswer {
    let message = "the upstream refuses access with the credential that this cache has for it, if any; ask its \
                   administrator, or pull from the upstream registry";
    let mut answer = if mirror {
        let ErrorAnswer { status, code, .. } = unknown(kind);
        ErrorAnswer::new(status, code, message)
    } else {
        ErrorAnswer::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message)
    };
    answer.detail = Some(detail.to_owned());
    answer
}

fn unavailable(reason: &str, retry_after: Duration) -> ErrorAnswer {
    ErrorAnswer::new(
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Unavailable,
        format!(
            "this cannot be answered now: {reason}; try again in {} s",
            whole_seconds(retry_after)
        ),
    )
    .after(retry_after)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::name::NameError;
    use crate::pull::Kind;

    fn seen(failure: &Failure, kind: RequestKind, mirror: bool) -> (u16, ErrorCode, bool) {
        let answer = error_answer(failure, kind, mirror);
        let retry = answer.retry_after.is_some();
        (answer.status.as_u16(), answer.code, retry)
    }

    fn repo() -> crate::name::RepoKey {
        "ghcr.io/org/app".parse().unwrap()
    }

    fn unavailable_access() -> Failure {
        Failure::Access(AccessError::Unavailable {
            repo: repo(),
            reason: "visibility is unknown".to_owned(),
            retry_after: Duration::from_secs(5),
        })
    }

    fn unavailable_pull() -> Failure {
        Failure::Pull(PullError::Unavailable {
            reason: "the breaker is open".to_owned(),
            retry_after: Duration::from_secs(5),
        })
    }

    fn name(error: NameError) -> Failure {
        Failure::Access(AccessError::Name(error))
    }

    fn malformed() -> Failure {
        let error = "A".parse::<coral_schema::oci::RepositoryName>();
        name(NameError::Malformed(error.unwrap_err()))
    }

    fn unservable(error: ManifestError) -> Failure {
        Failure::Pull(PullError::Unservable(Arc::new(error)))
    }

    /// Section 3.1, a row each: as a mirror, and otherwise.
    #[rstest::rstest]
    #[case(name(NameError::UnknownUpstream("evil.example".into())), (404, ErrorCode::NameUnknown, false), None)]
    #[case(name(NameError::NoUpstream), (404, ErrorCode::NameUnknown, false), None)]
    #[case(malformed(), (400, ErrorCode::NameInvalid, false), None)]
    #[case(AccessError::Denied(repo()).into(), (403, ErrorCode::Denied, false), None)]
    #[case(AccessError::Hidden(repo()).into(), (404, ErrorCode::ManifestUnknown, false), None)]
    #[case(unavailable_access(), (503, ErrorCode::Unavailable, true), None)]
    #[case(PullError::NotFound(Kind::Manifest).into(), (404, ErrorCode::ManifestUnknown, false), None)]
    #[case(PullError::BadGateway("500".into()).into(), (502, ErrorCode::Unavailable, false), None)]
    #[case(PullError::Timeout("2 s".into()).into(), (504, ErrorCode::Unavailable, false), None)]
    #[case(
        PullError::Refused("401".into()).into(),
        (404, ErrorCode::ManifestUnknown, false),
        Some((403, ErrorCode::Denied, false))
    )]
    #[case(
        PullError::RateLimited { retry_after: Duration::from_secs(9) }.into(),
        (503, ErrorCode::TooManyRequests, true),
        Some((429, ErrorCode::TooManyRequests, true))
    )]
    #[case(unavailable_pull(), (503, ErrorCode::Unavailable, true), None)]
    #[case(PullError::RangeNotSatisfiable { size: 7 }.into(), (416, ErrorCode::SizeInvalid, false), None)]
    #[case(unservable(ManifestError::Schema1), (404, ErrorCode::ManifestUnknown, false), None)]
    #[case(unservable(ManifestError::TooDeep), (502, ErrorCode::ManifestInvalid, false), None)]
    #[case(PullError::TooLarge { limit: 8 }.into(), (502, ErrorCode::ManifestInvalid, false), None)]
    #[case(Failure::Deadline, (504, ErrorCode::Unavailable, false), None)]
    #[case(Failure::NotCached, (504, ErrorCode::Unavailable, false), None)]
    #[case(Failure::Parameter("the parameter n must be a number"), (400, ErrorCode::Unsupported, false), None)]
    #[case(RouteError::Unknown.into(), (404, ErrorCode::NameUnknown, false), None)]
    #[case(RouteError::Method("GET, HEAD").into(), (405, ErrorCode::Unsupported, false), None)]
    fn table_3_1(
        #[case] failure: Failure,
        #[case] mirror: (u16, ErrorCode, bool),
        #[case] otherwise: Option<(u16, ErrorCode, bool)>,
    ) {
        assert_eq!(seen(&failure, RequestKind::Manifest, true), mirror);
        assert_eq!(
            seen(&failure, RequestKind::Manifest, false),
            otherwise.unwrap_or(mirror)
        );
        let answer = error_answer(&failure, RequestKind::Manifest, false);
        assert!(answer.message.len() > 20, "a sentence: {}", answer.message);
    }

    #[rstest::rstest]
    #[case(RequestKind::Blob, ErrorCode::BlobUnknown)]
    #[case(RequestKind::Tags, ErrorCode::NameUnknown)]
    fn what_is_unknown_depends_on_the_endpoint(#[case] kind: RequestKind, #[case] code: ErrorCode) {
        let missing = PullError::NotFound(Kind::Blob).into();
        assert_eq!(seen(&missing, kind, false), (404, code, false));
        assert_eq!(
            seen(&PullError::Refused(String::new()).into(), kind, true).1,
            code
        );
    }

    /// H-20: to the letter, for every endpoint.
    #[test]
    fn h20_forbidden_and_unknown_look_the_same() {
        for kind in [RequestKind::Manifest, RequestKind::Blob, RequestKind::Tags] {
            for mirror in [true, false] {
                assert_eq!(
                    error_answer(&AccessError::Hidden(repo()).into(), kind, mirror),
                    error_answer(&PullError::NotFound(Kind::Manifest).into(), kind, mirror)
                );
            }
        }
    }

    #[test]
    fn malformed_references() {
        let bad = |path: &str| {
            let path = format!("/v2/a/{path}");
            let failure = super::super::route::route(&http::Method::GET, &path)
                .unwrap_err()
                .into();
            seen(&failure, RequestKind::Other, false)
        };
        assert_eq!(
            bad("blobs/sha256:baddigeststring"),
            (400, ErrorCode::DigestInvalid, false)
        );
        assert_eq!(
            bad("manifests/sha256:1"),
            (400, ErrorCode::DigestInvalid, false)
        );
        assert_eq!(
            bad("manifests/.bad"),
            (404, ErrorCode::ManifestUnknown, false)
        );
    }

    #[test]
    fn headers_of_an_error() {
        let failure = PullError::RateLimited {
            retry_after: Duration::from_millis(1500),
        }
        .into();
        let answer = error_answer(&failure, RequestKind::Blob, true).into_answer(&failure);
        assert_eq!(answer.headers[RETRY_AFTER], "2");
        assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
        assert_eq!(answer.outcome, Outcome::Error);

        let failure = PullError::RangeNotSatisfiable { size: 7 }.into();
        let answer = error_answer(&failure, RequestKind::Blob, true).into_answer(&failure);
        assert_eq!(answer.headers[CONTENT_RANGE], "bytes */7");
        assert_eq!(answer.outcome, Outcome::Negative);
        assert_eq!(whole_seconds(Duration::ZERO), 1);
    }
}
