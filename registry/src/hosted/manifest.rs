//! Manifests and tags of hosted repositories: put, and deleted.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use coral_schema::oci::manifest::ChildKind;
use coral_schema::oci::{Digest, Manifest, Tag, media_type};
use jiff::Timestamp;

use super::fill::arriving;
use super::tag::{Condition, may_change};
use super::{Body, Hosted, HostedError, Shared};
use crate::access::cap::WriteCap;
use crate::index::{ManifestRow, TagRow};
use crate::name::RepoKey;
use crate::rebuild::records::{manifest_record, tag_record};
use crate::store::VerifiedManifest;
use crate::store::key::Entry;
use crate::store::record;

/// A manifest that a client wants to put.
#[derive(Debug)]
pub struct Pushed {
    /// Its digest, if the client named it so; else that of SHA-256.
    pub digest: Option<Digest>,
    /// What it is to be called.
    pub tags: Vec<Tag>,
    /// What must hold for each of the tags.
    pub condition: Condition,
    /// As the client says.
    pub content_type: Option<String>,
    /// The bytes; they are kept as they are.
    pub bytes: Bytes,
}

/// A manifest that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Its digest.
    pub digest: Digest,
    /// What it refers to.
    pub subject: Option<Digest>,
}

impl Hosted {
    /// Reads the body of a manifest, of `length` bytes if that was said.
    pub async fn read_manifest(
        &self,
        length: Option<u64>,
        mut body: Body,
    ) -> Result<Bytes, HostedError> {
        let limit = self.0.settings.load().manifest_max_bytes;
        let most = length.unwrap_or(limit);
        if most > limit {
            return Err(HostedError::TooLarge { limit });
        }
        let permits = u32::try_from(most.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let _room = self.0.manifest_room.acquire_many(permits).await;
        let mut bytes = BytesMut::new();
        loop {
            match arriving(&mut body).await? {
                None => return Ok(bytes.freeze()),
                Some(chunk) if (bytes.len() + chunk.len()) as u64 > limit => {
                    return Err(HostedError::TooLarge { limit });
                }
                Some(chunk) => bytes.extend_from_slice(&chunk),
            }
        }
    }

    /// Puts a manifest and its tags.
    pub async fn put_manifest(
        &self,
        cap: &WriteCap,
        pushed: Pushed,
    ) -> Result<Accepted, HostedError> {
        let (shared, cap) = (self.0.clone(), cap.clone());
        let work = async move { shared.put_manifest(&cap, pushed).await };
        self.finish_in_any_case(work).await
    }

    /// Deletes a manifest with all tags that mean it.
    pub async fn delete_manifest(&self, cap: &WriteCap, digest: Digest) -> Result<(), HostedError> {
        let (shared, cap) = (self.0.clone(), cap.clone());
        let work = async move {
            let (repo, index) = (cap.repo(), &shared.parts.index);
            shared.may_delete().await?;
            let _turn = shared.turn(repo).await;
            let found = index.manifest(repo, &digest).await?;
            found.ok_or(HostedError::UnknownManifest)?;
            let tags = index.tags_of(repo, &digest).await?;
            for tag in &tags {
                may_change(cap.config(), tag, Some(&digest), None)?;
            }
            for tag in &tags {
                shared.remove(repo, Entry::Tag(tag.clone())).await?;
            }
            shared.remove(repo, Entry::Manifest(digest)).await?;
            Ok(index.remove_manifest(repo, Some(digest), tags).await?)
        };
        self.finish_in_any_case(work).await
    }

    /// Deletes a tag, and nothing else.
    pub async fn delete_tag(
        &self,
        cap: &WriteCap,
        tag: Tag,
        condition: Condition,
    ) -> Result<(), HostedError> {
        let (shared, cap) = (self.0.clone(), cap.clone());
        let work = async move {
            let (repo, index) = (cap.repo(), &shared.parts.index);
            shared.may_delete().await?;
            let _turn = shared.turn(repo).await;
            let row = index.tag(repo, &tag).await?;
            let row = row.ok_or(HostedError::UnknownManifest)?;
            condition.check(Some(&row.digest))?;
            may_change(cap.config(), &tag, Some(&row.digest), None)?;
            shared.remove(repo, Entry::Tag(tag.clone())).await?;
            Ok(index.remove_manifest(repo, None, vec![tag]).await?)
        };
        self.finish_in_any_case(work).await
    }
}

impl Shared {
    async fn put_manifest(&self, cap: &WriteCap, pushed: Pushed) -> Result<Accepted, HostedError> {
        let Pushed {
            digest,
            tags,
            condition,
            content_type,
            bytes,
        } = pushed;
        let digest = digest.unwrap_or_else(|| Digest::sha256(&bytes));
        let verified = VerifiedManifest::check(bytes, &digest)?;
        let manifest = Manifest::parse(verified.bytes(), content_type.as_deref());
        let manifest = manifest.map_err(|error| HostedError::Invalid(Arc::new(error)))?;
        let repo = cap.repo();
        self.recall(repo).await?;
        self.need_room().await?;
        let _turn = self.turn(repo).await;
        self.active.note(repo);
        let now = Timestamp::now();
        let tags = self.tags(cap, tags, &condition, (digest, now)).await?;
        // From here until its row is there, nobody deletes the bytes.
        let _publishing = self.parts.index.publishing(&digest).await?;
        self.check_children(cap, &manifest).await?;
        let row = ManifestRow::new(&manifest, verified.bytes().len() as u64, now);
        self.store(repo, &verified, &row).await?;
        for (tag, tag_row) in &tags {
            let record = record::encode(&tag_record(tag_row, &row, None));
            self.put(repo, Entry::Tag(tag.clone()), record).await?;
        }
        let index = &self.parts.index;
        index
            .accept_manifest(repo, &digest, Arc::new(row), tags)
            .await?;
        Ok(Accepted {
            digest,
            subject: manifest.subject,
        })
    }

    /// The rows of tags that are to mean `digest` from `now` on, if they may.
    async fn tags(
        &self,
        cap: &WriteCap,
        tags: Vec<Tag>,
        condition: &Condition,
        (digest, now): (Digest, Timestamp),
    ) -> Result<Vec<(Tag, TagRow)>, HostedError> {
        let mut rows = Vec::with_capacity(tags.len());
        for tag in tags {
            let present = self.parts.index.tag(cap.repo(), &tag).await?;
            let means = present.as_ref().map(|row| row.digest);
            condition.check(means.as_ref())?;
            may_change(cap.config(), &tag, means.as_ref(), Some(&digest))?;
            let unchanged = present.filter(|row| row.digest == digest);
            let row = unchanged.map_or_else(
                || tag_row(digest, means, now),
                |row| TagRow {
                    checked: now,
                    ..TagRow::clone(&row)
                },
            );
            rows.push((tag, row));
        }
        Ok(rows)
    }

    /// Does the repository have what the manifest names? Layers that may be absent everywhere, and a missing subject, are
    /// accepted in any case.
    async fn check_children(&self, cap: &WriteCap, manifest: &Manifest) -> Result<(), HostedError> {
        let index = &self.parts.index;
        for child in &manifest.children {
            if media_type::is_non_distributable(&child.media_type) {
                continue;
            }
            let (repo, digest) = (cap.repo(), &child.digest);
            let has_it = match child.kind {
                ChildKind::Manifest => index.manifest(repo, digest).await?.is_some(),
                ChildKind::Config | ChildKind::Layer => index.is_member(repo, digest).await?,
            };
            if has_it {
                index.touch(digest);
            } else if !cap.config().sparse {
                return Err(HostedError::MissingChild(*digest));
            }
        }
        Ok(())
    }

    /// The bytes and the record of a manifest.
    async fn store(
        &self,
        repo: &RepoKey,
        manifest: &VerifiedManifest,
        row: &ManifestRow,
    ) -> Result<(), HostedError> {
        let stored = self.parts.uploads.accept_manifest(manifest).await;
        stored.inspect_err(|error| self.room().failed(error))?;
        self.room().works();
        let index = &self.parts.index;
        index
            .put_blob(manifest.digest(), row.size, false, true)
            .await?;
        self.introduce(repo).await?;
        let record = record::encode(&manifest_record(row, None));
        self.put(repo, Entry::Manifest(*manifest.digest()), record)
            .await
    }
}

fn tag_row(digest: Digest, previous: Option<Digest>, now: Timestamp) -> TagRow {
    TagRow {
        digest,
        previous,
        etag: None,
        updated: now,
        checked: now,
        missing_since: None,
        origin: "".into(),
    }
}
