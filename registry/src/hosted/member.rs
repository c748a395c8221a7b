//! Which blobs a repository has: those that were uploaded to it, and those that were mounted.

use coral_schema::oci::Digest;

use super::{Hosted, HostedError, Shared};
use crate::access::cap::{HostedCap, WriteCap};
use crate::index::BlobState;
use crate::name::RepoKey;
use crate::store::VerifiedUpload;
use crate::store::key::Entry;

impl Hosted {
    /// Mounts a blob from a repository that the caller may read. `false`: that one does not have it.
    pub async fn mount(
        &self,
        cap: &WriteCap,
        digest: Digest,
        from: HostedCap,
    ) -> Result<bool, HostedError> {
        let (shared, cap) = (self.0.clone(), cap.clone());
        let work = async move { shared.mount(cap.repo(), digest, from.repo()).await };
        self.finish_in_any_case(work).await
    }

    /// Hosted repositories that have a blob, some of them; who may read them is another question.
    pub async fn hosts_of(&self, digest: &Digest) -> Result<Vec<RepoKey>, HostedError> {
        Ok(self.0.parts.index.hosts_of(digest).await?)
    }

    /// The repository does not have this blob any more.
    pub async fn delete_blob(&self, cap: &WriteCap, digest: Digest) -> Result<(), HostedError> {
        let (shared, cap) = (self.0.clone(), cap.clone());
        let work = async move {
            let repo = cap.repo();
            shared.may_delete().await?;
            let _turn = shared.turn(repo).await;
            if !shared.parts.index.is_member(repo, &digest).await? {
                return Err(HostedError::UnknownBlob);
            }
            shared.remove(repo, Entry::Blob(digest)).await?;
            Ok(shared.parts.index.remove_member(repo, &digest).await?)
        };
        self.finish_in_any_case(work).await
    }
}

impl Shared {
    /// Makes a checked upload a blob of the repository.
    pub(super) async fn accept(
        &self,
        repo: &RepoKey,
        upload: VerifiedUpload,
    ) -> Result<(), HostedError> {
        let (digest, size) = (*upload.digest(), upload.size());
        self.recall(repo).await?;
        let _publishing = self.parts.index.publishing(&digest).await?;
        let accepted = self.parts.uploads.accept(upload).await;
        accepted.inspect_err(|error| self.room().failed(error))?;
        self.room().works();
        let index = &self.parts.index;
        index.put_blob(&digest, size, false, false).await?;
        // Only now: syncing much takes long, and others push to the repository, too.
        let _turn = self.turn(repo).await;
        self.enrol(repo, &digest).await
    }

    async fn mount(
        &self,
        repo: &RepoKey,
        digest: Digest,
        from: &RepoKey,
    ) -> Result<bool, HostedError> {
        self.recall(from).await?;
        self.recall(repo).await?;
        let index = &self.parts.index;
        let _turn = self.turn(repo).await;
        // From here until the repository has it, nobody deletes the bytes (H-02).
        let _publishing = index.publishing(&digest).await?;
        if !index.is_member(from, &digest).await? {
            return Ok(false);
        }
        let row = index.blob(&digest).await?;
        let stored = self.parts.blobs.open(&digest).await?;
        let is_there = row.is_some_and(|row| row.state == BlobState::Present) && stored.is_some();
        if is_there {
            index.touch(&digest);
            self.enrol(repo, &digest).await?;
        }
        Ok(is_there)
    }

    /// The repository has this blob from now on, whatever happens.
    async fn enrol(&self, repo: &RepoKey, digest: &Digest) -> Result<(), HostedError> {
        let index = &self.parts.index;
        self.active.note(repo);
        if index.is_member(repo, digest).await? {
            return Ok(index.renew(repo, digest).await?);
        }
        self.introduce(repo).await?;
        self.put(repo, Entry::Blob(*digest), bytes::Bytes::new())
            .await?;
        Ok(index.accept_member(repo, digest).await?)
    }
}
