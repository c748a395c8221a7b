//! Pure: what the failures of an upstream mean for a client.

use std::time::Duration;

use super::{Kind, PullError};
use crate::transfer::TransferError;
use crate::upstream::failover::Failure;
use crate::upstream::{UpstreamError, UpstreamErrorKind};

/// The answer for what the endpoints said.
pub(super) fn pull_error(failure: &Failure, kind: Kind) -> PullError {
    translate(&failure.telling, kind)
}

/// The answer for a transfer that failed.
pub(super) fn transfer_error(error: &TransferError, kind: Kind) -> PullError {
    match error {
        TransferError::Upstream(errors) => {
            let failure = Failure::of(errors.iter().cloned().enumerate().collect());
            let poisoned = || {
                PullError::BadGateway(
                    "every source of this blob sent wrong bytes lately".to_owned(),
                )
            };
            failure.map_or_else(poisoned, |failure| pull_error(&failure, kind))
        }
        TransferError::WrongBytes => {
            PullError::BadGateway("it sent bytes that do not match the digest".to_owned())
        }
        TransferError::Abandoned | TransferError::Interrupted => PullError::Unavailable {
            reason: error.to_string(),
            retry_after: SOON,
        },
    }
}

fn translate(error: &UpstreamError, kind: Kind) -> PullError {
    match &error.kind {
        UpstreamErrorKind::NotFound => PullError::NotFound(kind),
        UpstreamErrorKind::Refused { .. } => PullError::Refused(error.to_string()),
        UpstreamErrorKind::RateLimited { retry_after } => PullError::RateLimited {
            retry_after: retry_after.unwrap_or(A_MINUTE),
        },
        UpstreamErrorKind::Timeout(_) => PullError::Timeout(error.to_string()),
        UpstreamErrorKind::BreakerOpen { retry_after }
        | UpstreamErrorKind::QueueFull { retry_after } => PullError::Unavailable {
            reason: error.to_string(),
            retry_after: *retry_after,
        },
        UpstreamErrorKind::TooLarge(limit) => PullError::TooLarge { limit: *limit },
        UpstreamErrorKind::Connection(_)
        | UpstreamErrorKind::Status(_)
        | UpstreamErrorKind::Protocol(_) => PullError::BadGateway(error.to_string()),
    }
}

/// The answer for a task that died.
pub(super) fn interrupted() -> PullError {
    PullError::Unavailable {
        reason: "the request was interrupted".to_owned(),
        retry_after: SOON,
    }
}

const SOON: Duration = Duration::from_secs(1);
/// For a 429 that does not say how long.
const A_MINUTE: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kinds: &[UpstreamErrorKind]) -> PullError {
        let error = |kind: &UpstreamErrorKind| UpstreamError {
            endpoint: "https://r.example".into(),
            kind: kind.clone(),
        };
        transfer_error(
            &TransferError::Upstream(kinds.iter().map(error).collect()),
            Kind::Blob,
        )
    }

    #[test]
    fn never_a_false_404() {
        let not_found = UpstreamErrorKind::NotFound;
        assert!(matches!(
            failed(&[not_found.clone(), not_found.clone()]),
            PullError::NotFound(Kind::Blob)
        ));
        let silent = UpstreamErrorKind::Timeout("headers");
        assert!(matches!(
            failed(&[not_found.clone(), silent]),
            PullError::Timeout(_)
        ));
        assert!(matches!(
            failed(&[UpstreamErrorKind::Status(500), not_found]),
            PullError::BadGateway(_)
        ));
    }

    #[test]
    fn a_limit_tells_the_client_when_to_come_back() {
        let wait = Duration::from_secs(7);
        let limited = failed(&[
            UpstreamErrorKind::RateLimited {
                retry_after: Some(wait),
            },
            UpstreamErrorKind::NotFound,
        ]);
        assert!(matches!(limited, PullError::RateLimited { retry_after } if retry_after == wait));
    }

    #[test]
    fn sources_that_sent_wrong_bytes_are_no_404() {
        assert!(matches!(failed(&[]), PullError::BadGateway(_)));
    }
}
