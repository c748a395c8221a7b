//! Collecting what hosted repositories do not need.

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

/// The answer to `POST /api/v1/gc`: what a pass did, or with `?dryRun=true` would do now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// How many blobs and manifests were removed from their repositories.
    pub removed: u64,
    /// How many were found for the first time, or again after they were used.
    pub marked: u64,
    /// How many were marked before, and wait.
    pub waiting: u64,
    /// Bytes of the store that are free now, because nobody else had or named what was removed. Not known before.
    pub freed_bytes: u64,
    /// Each of them, by repository; not all when there are very many.
    pub items: Vec<GcItem>,
    /// Are there more than the items?
    pub more: bool,
}

/// Something that its repository does not need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcItem {
    /// From here.
    pub repository: String,
    /// What it is there.
    pub kind: GcKind,
    /// What.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// What becomes of it.
    pub state: GcState,
    /// When it may go, if nobody uses it before that; absent for what goes now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// What something is to its repository, which says why it is not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GcKind {
    /// No manifest of the repository names it.
    Blob,
    /// It has no tag, and belongs to nothing that has one.
    Manifest,
}

/// What becomes of something that is not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GcState {
    /// It was removed, or would be.
    Removed,
    /// It was marked, or would be.
    Marked,
    /// It was marked by an earlier pass, not long enough ago.
    Waiting,
}
