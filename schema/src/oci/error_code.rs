//! Error codes and their JSON envelope (distribution specification, "Error Codes").

use serde::{Deserialize, Serialize};

/// The codes of the specification, plus the two that registries commonly add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The blob is unknown to the repository.
    BlobUnknown,
    /// A blob upload is invalid.
    BlobUploadInvalid,
    /// The upload session is unknown.
    BlobUploadUnknown,
    /// The digest is malformed, unsupported, or does not match the content.
    DigestInvalid,
    /// A manifest names a blob that the repository does not have.
    ManifestBlobUnknown,
    /// The manifest is invalid.
    ManifestInvalid,
    /// The manifest is unknown to the repository.
    ManifestUnknown,
    /// The repository name is malformed.
    NameInvalid,
    /// The repository is unknown.
    NameUnknown,
    /// The length does not match the content.
    SizeInvalid,
    /// Authentication is required.
    Unauthorized,
    /// Access is refused.
    Denied,
    /// The operation is not supported.
    Unsupported,
    /// Too many requests.
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    /// The registry cannot answer now.
    Unavailable,
    /// Anything else; also what unknown codes of other registries are read as.
    #[serde(other)]
    Unknown,
}

/// One error of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEntry {
    /// The code.
    pub code: ErrorCode,
    /// A sentence for the person who reads the client's output.
    #[serde(default)]
    pub message: String,
    /// More, if there is more.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
}

/// The body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// At least one.
    pub errors: Vec<ErrorEntry>,
}

impl ErrorBody {
    /// A body with one error.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            errors: vec![ErrorEntry {
                code,
                message: message.into(),
                detail: serde_json::Value::Null,
            }],
        }
    }

    /// The JSON text.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data serialises")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_names() {
        let text = String::from_utf8(ErrorBody::new(ErrorCode::TooManyRequests, "wait").to_json())
            .unwrap();
        assert_eq!(
            text,
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"wait"}]}"#
        );
        let foreign: ErrorBody =
            serde_json::from_str(r#"{"errors":[{"code":"SOMETHING_NEW","detail":{"a":1}}]}"#)
                .unwrap();
        assert_eq!(foreign.errors[0].code, ErrorCode::Unknown);
    }
}
