//! What was pushed here: answered from the index and the store, and from nobody else.
//!
//! A hosted repository has a blob if it was uploaded or mounted to it, and a manifest if it was pushed to it; that one of
//! its manifests names a digest proves nothing. An index that cannot be read is no 404, since there is nobody to ask.

use std::time::Duration;

use coral_schema::oci::{Digest, ManifestRef, Tag};

use super::lists::{LONGEST_PAGE, describe};
use super::manifests::answer;
use super::stored::from_store;
use super::{
    BlobAnswer, BlobHead, Kind, ManifestAnswer, Outcome, PullError, Puller, RangeSpec,
    ReferrersAnswer, TagsAnswer, Want,
};
use crate::access::cap::HostedCap;
use crate::index::{BlobRow, IndexError};
use crate::name::RepoKey;

impl Puller {
    /// A manifest of a hosted repository.
    pub async fn hosted_manifest(
        &self,
        cap: &HostedCap,
        reference: &ManifestRef,
        want: Want,
    ) -> Result<ManifestAnswer, PullError> {
        let repo = cap.repo();
        self.recall(repo).await?;
        let index = &self.0.index;
        let missing = PullError::NotFound(Kind::Manifest);
        let digest = match reference {
            ManifestRef::Digest(digest) => *digest,
            ManifestRef::Tag(tag) => {
                let row = said(index.tag(repo, tag).await)?;
                row.ok_or_else(|| missing.clone())?.digest
            }
        };
        self.renew(repo, &digest, want).await?;
        let row = said(index.manifest(repo, &digest).await)?.ok_or(missing)?;
        let bytes = self.bytes(&digest, row.size).await;
        let bytes = bytes.ok_or_else(|| lost(repo, &digest, Kind::Manifest))?;
        index.touch(&digest);
        Ok(answer(digest, &row, bytes, want, Outcome::Hit))
    }

    /// The length of a blob of a hosted repository.
    pub async fn head_hosted_blob(
        &self,
        cap: &HostedCap,
        digest: &Digest,
    ) -> Result<BlobHead, PullError> {
        let row = self.hosted_row(cap, digest, Want::Head).await?;
        self.0.index.touch(digest);
        Ok(BlobHead {
            size: row.size,
            outcome: Outcome::Hit,
        })
    }

    /// A blob of a hosted repository, or a part of it.
    pub async fn hosted_blob(
        &self,
        cap: &HostedCap,
        digest: &Digest,
        range: Option<RangeSpec>,
    ) -> Result<BlobAnswer, PullError> {
        let row = self.hosted_row(cap, digest, Want::Body).await?;
        let stored = self.open_checked(digest, &row).await;
        let stored = stored.ok_or_else(|| lost(cap.repo(), digest, Kind::Blob))?;
        self.0.index.touch(digest);
        from_store(stored, range)
    }

    /// One page of the tags of a hosted repository.
    pub async fn hosted_tags(
        &self,
        cap: &HostedCap,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<TagsAnswer, PullError> {
        let repo = cap.repo();
        self.recall(repo).await?;
        let index = &self.0.index;
        let limit = n.unwrap_or(LONGEST_PAGE).min(LONGEST_PAGE);
        let after = last.and_then(|last| last.parse::<Tag>().ok());
        let tags = said(index.tags(repo, after.as_ref(), limit + 1).await)?;
        if tags.is_empty() && !said(index.has_repository(repo).await)? {
            return Err(PullError::NotFound(Kind::Manifest));
        }
        Ok(TagsAnswer {
            more: tags.len() > limit,
            tags: tags.iter().take(limit).map(ToString::to_string).collect(),
            warning: None,
            outcome: Outcome::Hit,
        })
    }

    /// What was pushed to this repository and refers to a digest, whether that is here or not: one page of it, behind
    /// `after`.
    pub async fn hosted_referrers(
        &self,
        cap: &HostedCap,
        digest: &Digest,
        artifact_type: Option<&str>,
        after: Option<Digest>,
    ) -> Result<ReferrersAnswer, PullError> {
        let repo = cap.repo();
        self.recall(repo).await?;
        let page = (after, LONGEST_PAGE + 1);
        let rows = said(
            self.0
                .index
                .referrers(repo, digest, artifact_type, page)
                .await,
        )?;
        Ok(ReferrersAnswer {
            more: rows.len() > LONGEST_PAGE,
            manifests: rows.iter().take(LONGEST_PAGE).map(describe).collect(),
            warning: None,
            outcome: Outcome::Hit,
        })
    }

    async fn hosted_row(
        &self,
        cap: &HostedCap,
        digest: &Digest,
        want: Want,
    ) -> Result<BlobRow, PullError> {
        self.recall(cap.repo()).await?;
        self.renew(cap.repo(), digest, want).await?;
        if !said(self.0.index.is_member(cap.repo(), digest).await)? {
            return Err(PullError::NotFound(Kind::Blob));
        }
        let row = self.present(digest).await;
        row.ok_or_else(|| lost(cap.repo(), digest, Kind::Blob))
    }

    /// Whoever sees that it is there does not push it again, so it stays for a while (H-02). Before the question whether it
    /// is there. Who only reads it does not depend on that.
    async fn renew(&self, repo: &RepoKey, digest: &Digest, want: Want) -> Result<(), PullError> {
        match (self.0.index.renew(repo, digest).await, want) {
            (Err(error), Want::Head) => Err(unavailable(&error)),
            _ => Ok(()),
        }
    }

    /// A lost index gets back what the store says of this repository, or there is no answer yet.
    async fn recall(&self, repo: &RepoKey) -> Result<(), PullError> {
        let recalled = self.0.rebuild.repository(repo).await;
        recalled.map_err(|error| unavailable(&error))
    }
}

fn said<T>(answer: Result<T, IndexError>) -> Result<T, PullError> {
    answer.map_err(|error| unavailable(&error))
}

fn unavailable(error: &dyn std::error::Error) -> PullError {
    PullError::Unavailable {
        reason: error.to_string(),
        retry_after: Duration::from_secs(1),
    }
}

/// Pushed, but not readable any more: saying that it is not there lets a client push it again.
fn lost(repo: &RepoKey, digest: &Digest, kind: Kind) -> PullError {
    tracing::error!(%repo, %digest, "what was pushed cannot be read any more; push it again");
    PullError::NotFound(kind)
}
