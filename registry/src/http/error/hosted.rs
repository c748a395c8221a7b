//! What a push, or a deletion, that was not done looks like.

use std::time::Duration;

use coral_schema::oci::ErrorCode;
use http::StatusCode;

use super::{ErrorAnswer, unavailable};
use crate::hosted::HostedError;

pub(super) fn hosted(error: &HostedError) -> ErrorAnswer {
    let (status, code) = match error {
        HostedError::UnknownUpload => (StatusCode::NOT_FOUND, ErrorCode::BlobUploadUnknown),
        HostedError::OutOfOrder { .. } => (
            StatusCode::RANGE_NOT_SATISFIABLE,
            ErrorCode::BlobUploadInvalid,
        ),
        HostedError::Length { .. } => (StatusCode::BAD_REQUEST, ErrorCode::SizeInvalid),
        HostedError::Broken(_) => (StatusCode::BAD_REQUEST, ErrorCode::BlobUploadInvalid),
        HostedError::WrongDigest(_) => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
        HostedError::UnknownManifest => (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown),
        HostedError::UnknownBlob => (StatusCode::NOT_FOUND, ErrorCode::BlobUnknown),
        HostedError::Invalid(_) => (StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid),
        HostedError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::ManifestInvalid),
        HostedError::MissingChild(_) => (StatusCode::NOT_FOUND, ErrorCode::ManifestBlobUnknown),
        HostedError::Immutable(_) => (StatusCode::CONFLICT, ErrorCode::Denied),
        HostedError::Precondition => (StatusCode::PRECONDITION_FAILED, ErrorCode::Denied),
        HostedError::Unavailable(reason) => return unavailable(reason, SOON),
    };
    let mut answer = ErrorAnswer::new(status, code, error);
    if let HostedError::MissingChild(digest) = error {
        answer.detail = Some(digest.to_string());
    }
    answer
}

/// When to try again where nobody says it.
const SOON: Duration = Duration::from_secs(5);
