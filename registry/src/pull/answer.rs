//! What a pull answers, and why there is none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coral_schema::oci::Digest;
use coral_schema::oci::manifest::ManifestError;
use coral_schema::process::serve::FileSender;
use futures::stream::BoxStream;

use super::stored::StoredPart;
use crate::transfer::reader::Follower;

/// Where an answer came from: the `result` label of the metrics, and a field of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// From what is held, without asking anybody.
    Hit,
    /// From the upstream.
    Miss,
    /// From a transfer that somebody else started.
    Join,
    /// From what is held, though it could not be checked.
    Stale,
    /// Passed through without storing.
    Bypass,
    /// A remembered refusal.
    Negative,
    /// No answer.
    Error,
}

/// Headers only, or the bytes, too? HEAD never causes an upstream GET.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A HEAD.
    Head,
    /// A GET.
    Body,
}

/// A manifest.
#[derive(Debug, Clone)]
pub struct ManifestAnswer {
    /// Its digest.
    pub digest: Digest,
    /// As the upstream sent it.
    pub media_type: String,
    /// Length, bytes.
    pub size: u64,
    /// The raw bytes; `None` for [`Want::Head`].
    pub body: Option<Bytes>,
    /// Where it came from.
    pub outcome: Outcome,
    /// A sentence for a `Warning: 299` header.
    pub warning: Option<String>,
    /// What the tag means upstream by the last that was heard, where this answer is something else.
    pub moved_to: Option<Digest>,
}

/// What a client asked of a blob (RFC 9110, section 14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeSpec {
    /// `bytes=a-`
    From(u64),
    /// `bytes=a-b`, inclusive
    Bounded(u64, u64),
    /// `bytes=-n`
    Suffix(u64),
}

/// A blob without its bytes.
#[derive(Debug, Clone, Copy)]
pub struct BlobHead {
    /// Length, bytes.
    pub size: u64,
    /// Where the answer came from.
    pub outcome: Outcome,
}

/// A blob, or a part of it.
#[derive(Debug)]
pub struct BlobAnswer {
    /// Length of the whole blob; `None` when the upstream did not say it (then ranges are ignored).
    pub size: Option<u64>,
    /// First and last byte of a partial answer (206); `None` for the whole (200).
    pub range: Option<(u64, u64)>,
    /// The bytes.
    pub body: BlobBody,
    /// Where they come from.
    pub outcome: Outcome,
}

/// The bytes of a blob.
pub enum BlobBody {
    /// As they arrive.
    Arriving(BoxStream<'static, Result<Bytes, BodyError>>),
    /// All here.
    Stored(StoredPart),
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arriving(_) => "Arriving",
            Self::Stored(_) => "Stored",
        })
    }
}

impl BlobBody {
    /// For a response on the connection that `sender` belongs to, if it can send files. An error means: abort the
    /// connection, never end it cleanly.
    pub fn into_stream(
        self,
        sender: Option<FileSender>,
    ) -> BoxStream<'static, Result<Bytes, BodyError>> {
        match self {
            Self::Arriving(stream) => stream,
            Self::Stored(part) => part.into_stream(sender),
        }
    }
}

impl RangeSpec {
    /// First and last byte of a blob of `size` bytes; `None` when the range lies outside.
    pub fn resolve(self, size: u64) -> Option<(u64, u64)> {
        let last = size.checked_sub(1)?;
        match self {
            Self::From(start) if start <= last => Some((start, last)),
            Self::Bounded(start, end) if start <= last && start <= end => {
                Some((start, end.min(last)))
            }
            Self::Suffix(length) if length > 0 => Some((size.saturating_sub(length), last)),
            _ => None,
        }
    }
}

/// A body that cannot be finished; the text is for the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(pub String);

/// Is a blob here?
#[derive(Debug)]
pub enum Ensure {
    /// Yes.
    Held,
    /// It is on its way.
    Running(Follower),
}

/// One page of tags.
#[derive(Debug, Clone)]
pub struct TagsAnswer {
    /// In the order of the upstream.
    pub tags: Vec<String>,
    /// More follow after the last one.
    pub more: bool,
    /// A sentence for a `Warning: 299` header.
    pub warning: Option<String>,
    /// Where it came from.
    pub outcome: Outcome,
}

/// The referrers of a digest.
#[derive(Debug, Clone)]
pub struct ReferrersAnswer {
    /// Descriptors as JSON, filtered by `artifactType` if one was asked for.
    pub manifests: Vec<serde_json::Value>,
    /// Are there more behind these?
    pub more: bool,
    /// A sentence for a `Warning: 299` header.
    pub warning: Option<String>,
    /// Where it came from.
    pub outcome: Outcome,
}

/// What was asked for, in errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A manifest.
    Manifest,
    /// A blob.
    Blob,
}

/// Why there is no answer. Each variant is a row of the status table (registry.md 3.1).
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// Every endpoint says that it does not exist, or this repository does not have it.
    #[error("the upstream does not have it")]
    NotFound(Kind),
    /// The upstream refuses our credential.
    #[error("the upstream refuses access: {0}")]
    Refused(String),
    /// The upstream says 429, and nothing is cached.
    #[error("the upstream limits requests")]
    RateLimited {
        /// How long it asked us to wait.
        retry_after: Duration,
    },
    /// The upstream was silent for too long.
    #[error("the upstream did not answer in time: {0}")]
    Timeout(String),
    /// The upstream failed.
    #[error("the upstream failed: {0}")]
    BadGateway(String),
    /// Breaker open, queue full, or visibility unknown.
    #[error("the upstream cannot be asked now: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The range starts behind the end.
    #[error("the range lies outside the blob of {size} bytes")]
    RangeNotSatisfiable {
        /// Length of the blob, bytes.
        size: u64,
    },
    /// The upstream's manifest cannot be served.
    #[error(transparent)]
    Unservable(#[from] Arc<ManifestError>),
    /// Longer than `manifest.maxBytes`.
    #[error("the manifest is longer than {limit} bytes, the limit set by manifest.maxBytes")]
    TooLarge {
        /// The limit, bytes.
        limit: u64,
    },
}
