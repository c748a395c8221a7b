//! Does this repository hold this digest? Asked before store or transfer is touched (H-20, H-21).
//!
//! A digest that exists somewhere in the store proves nothing. A repository has it if one of these holds:
//!
//! - the repository is public, a manifest *fetched from its upstream* names the digest, and the bytes came from, or
//!   were confirmed by, a public repository;
//! - its own upstream said so once, to a HEAD with the repository's credential, or by delivering the blob.

use std::sync::Arc;

use coral_schema::oci::Digest;

use super::failure::{interrupted, pull_error};
use super::recorder::Fact;
use super::{Kind, MANIFEST_TOTAL, PullError, Puller, Shared, known};
use crate::access::cap::ReadCap;
use crate::transfer::Transfer;
use crate::upstream::{Call, Identity, Priority, failover};

impl Puller {
    /// May stored bytes be served for this repository without asking its upstream?
    pub(super) async fn is_proven(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        bytes_are_public: bool,
    ) -> bool {
        let index = &self.0.index;
        if cap.is_public()
            && bytes_are_public
            && known(index.child(cap.repo(), digest).await).is_some()
        {
            return true;
        }
        index.is_member(cap.repo(), digest).await.unwrap_or(false)
    }

    /// May this repository join a transfer that somebody else started? Decided before anything of it can be seen.
    pub(super) async fn may_join(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        transfer: &Transfer,
    ) -> bool {
        transfer.comes_from(cap.repo()) || self.is_proven(cap, digest, transfer.is_public()).await
    }

    /// Asks the repository's own upstream whether it has the digest, and remembers a yes. Gives the length if said.
    pub(super) async fn prove(
        &self,
        cap: &ReadCap,
        digest: &Digest,
    ) -> Result<Option<u64>, PullError> {
        let text = digest.to_string();
        let ttl = self.0.config.load().negative_ttl;
        if let Some(error) = self.0.negative.check(cap, &text, ttl) {
            return Err(error);
        }
        let key = (cap.repo().clone(), *digest);
        let ask = || head(Arc::clone(&self.0), cap.clone(), *digest);
        let answer = self
            .0
            .proofs
            .join(&key, ask)
            .answer
            .await
            .unwrap_or_else(|| Err(interrupted()));
        match answer {
            // Unknown and forbidden look the same (H-20).
            Err(PullError::Refused(_)) if !cap.is_public() => Err(PullError::NotFound(Kind::Blob)),
            other => other,
        }
    }
}

async fn head(shared: Arc<Shared>, cap: ReadCap, digest: Digest) -> Result<Option<u64>, PullError> {
    let timeouts = &cap.upstream().timeouts;
    let call = Call {
        priority: Priority::Interactive,
        identity: Identity::Configured,
        step: timeouts.tag_check,
        total: MANIFEST_TOTAL.min(timeouts.headers),
    };
    let repository = cap.repo().repository();
    let answer = failover::first(cap.upstream(), false, |endpoint| async move {
        endpoint.head_blob(call, repository, &digest).await
    });
    match answer.await {
        Ok(answer) => {
            remember(&shared, &cap, &digest).await;
            Ok(answer.value)
        }
        Err(failure) => {
            let error = pull_error(&failure, Kind::Blob);
            shared.negative.note(&cap, &digest.to_string(), &error);
            Err(error)
        }
    }
}

async fn remember(shared: &Shared, cap: &ReadCap, digest: &Digest) {
    let repo = cap.repo();
    if let Err(error) = shared.index.put_member(repo, digest).await {
        tracing::warn!(%repo, %digest, %error, "membership not remembered; the upstream will be asked again");
    }
    // Stored bytes that a public repository has, too, may be served to everybody from now on.
    if cap.is_public()
        && let Some(row) = known(shared.index.blob(digest).await)
        && !row.public
        && row.state == crate::index::BlobState::Present
    {
        let _ = shared
            .index
            .put_blob(digest, row.size, true, row.manifest)
            .await;
    }
    shared
        .recorder
        .note(Fact::Member {
            repo: repo.clone(),
            digest: *digest,
        })
        .await;
}
