//! Where a transfer stands, and why it ended.

use std::sync::Arc;

use coral_schema::admin::TransferState;
use coral_schema::oci::Hasher;

use crate::upstream::UpstreamError;

/// Why a transfer ended without its blob.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransferError {
    /// No origin delivered; the last error of each.
    #[error("{}", .0.last().map_or_else(|| "no upstream to ask".to_owned(), ToString::to_string))]
    Upstream(Arc<[UpstreamError]>),
    /// What arrived is not what the digest names.
    #[error("the upstream sent bytes that do not match the digest")]
    WrongBytes,
    /// Nobody waited any more, and the configuration says not to go on.
    #[error("nobody waited for it any more")]
    Abandoned,
    /// The process stops, or the task of the transfer died.
    #[error("the transfer was interrupted")]
    Interrupted,
}

/// Where a transfer stands.
#[derive(Debug, Clone)]
pub enum Phase {
    /// No origin has answered yet.
    Connecting,
    /// Bytes arrive.
    Running,
    /// All bytes are there; the digest is compared.
    Verifying,
    /// The digest is right, and readers may finish. The blob is on its way into store and index: who needs it there
    /// waits for the next phase.
    Verified,
    /// The blob is in the store.
    Published,
    /// The digest is right, and readers may finish, but the store did not take the blob.
    Unpublished,
    /// The store failed: each reader goes on by itself.
    Detached(Arc<Detached>),
    /// No blob.
    Failed(TransferError),
}

impl Phase {
    /// As the admin API calls it.
    pub fn state(&self) -> TransferState {
        match self {
            Self::Connecting => TransferState::Connecting,
            Self::Running => TransferState::Running,
            Self::Verifying | Self::Verified => TransferState::Verifying,
            Self::Published => TransferState::Published,
            Self::Unpublished | Self::Detached(_) | Self::Failed(_) => TransferState::Failed,
        }
    }

    /// May readers have the last byte?
    pub(super) fn is_verified(&self) -> bool {
        matches!(self, Self::Verified | Self::Published | Self::Unpublished)
    }
}

/// What a reader needs to go on without the store.
#[derive(Debug)]
pub struct Detached {
    /// Bytes that are in the spool file, which is unlinked but still open.
    pub offset: u64,
    /// The hash state at `offset`.
    pub hasher: Hasher,
}

/// What readers and the status API watch.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Where it stands.
    pub phase: Phase,
    /// Bytes on disk.
    pub watermark: u64,
    /// Bytes in all, when an origin said so.
    pub size: Option<u64>,
}
