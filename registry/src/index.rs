//! What is known without touching the store: a SQLite file that may be deleted at any time.
//!
//! One thread writes, a few read; answers that requests need again and again (tags, membership, visibility, manifest
//! and blob rows) stay in bounded memory caches, which the writer keeps true: a hit waits for no thread. Everything in
//! it can be rebuilt from the store, lazily per repository and as a whole.
//!
//! A row is the lock between publishing and deleting: a blob row in state [`BlobState::Deleting`] is never served, and
//! publishing such a digest waits until the row is gone.

use std::sync::Arc;

use coral_schema::oci::manifest::ChildKind;
use coral_schema::oci::{Digest, Platform};
use jiff::Timestamp;

use crate::name::RepoKey;

/// Is a blob there to be served?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobState {
    /// Its bytes are in the store.
    Present,
    /// Eviction has claimed it; its bytes may be gone.
    Deleting,
}

/// A blob (a manifest's bytes are one, too).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    /// Length, bytes.
    pub size: u64,
    /// Is it there?
    pub state: BlobState,
    /// Did its bytes come from, or were they confirmed by, a public repository?
    pub public: bool,
    /// Is it a manifest?
    pub manifest: bool,
    /// Known to be on disk even after a power loss.
    pub durable: bool,
    /// Last time it was served, to within some seconds.
    pub last_use: Timestamp,
}

/// A manifest of a repository: what its record in the store says, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRow {
    /// As served.
    pub media_type: String,
    /// Length, bytes.
    pub size: u64,
    /// The manifest that it refers to.
    pub subject: Option<Digest>,
    /// What it is, for referrers.
    pub artifact_type: Option<String>,
    /// Its annotations, for referrers.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// What it names.
    pub children: Vec<ChildRow>,
    /// When it was first stored.
    pub stored: Timestamp,
}

/// A descriptor of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildRow {
    /// What it names.
    pub digest: Digest,
    /// Its place in the manifest.
    pub kind: ChildKind,
    /// Its length as the manifest says, bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// What it runs on, for children of an index.
    pub platform: Option<Platform>,
}

/// A tag of a proxied repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRow {
    /// What it means.
    pub digest: Digest,
    /// What it meant before.
    pub previous: Option<Digest>,
    /// The upstream's `ETag`, as received.
    pub etag: Option<String>,
    /// When `digest` last changed.
    pub updated: Timestamp,
    /// When the upstream last confirmed it.
    pub checked: Timestamp,
    /// Since when the upstream says that it does not exist.
    pub missing_since: Option<Timestamp>,
    /// Which endpoint said so, without credentials.
    pub origin: Arc<str>,
}

/// Who may read a repository that `visibility: auto` decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisibilityRow {
    /// Could anonymous callers read it upstream?
    pub public: bool,
    /// When this was found out.
    pub checked: Timestamp,
    /// Since when the upstream refuses it, while it is still served within `revokeGrace`.
    pub refused_since: Option<Timestamp>,
}

/// A repository with what is stored of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoSummary {
    /// Which.
    pub repo: RepoKey,
    /// Its tags.
    pub tags: u64,
    /// Its manifests.
    pub manifests: u64,
}
