//! Fetches a manifest from the upstream, verifies it, and makes it and its tag known.

use std::sync::Arc;

use bytes::Bytes;
use coral_schema::oci::manifest::ManifestError;
use coral_schema::oci::{Digest, Manifest, ManifestRef, Tag};

use super::failure::{interrupted, pull_error};
use super::manifests::call;
use super::recorder::{Fact, NewManifest};
use super::{Kind, MANIFEST_TOTAL, PullError, ROOM_MIB, Shared, known};
use crate::access::cap::ReadCap;
use crate::index::{ManifestRow, TagRow};
use crate::store::VerifiedManifest;
use crate::upstream::{
    Endpoint, FetchedManifest, ManifestHead, UpstreamError, UpstreamErrorKind, failover,
};

/// A manifest that was fetched, verified and noted.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    pub(super) digest: Digest,
    pub(super) row: Arc<ManifestRow>,
    pub(super) bytes: Bytes,
}

/// A tag that a HEAD told us, waiting for its manifest.
#[derive(Debug)]
pub(super) struct PendingTag {
    pub(super) tag: Tag,
    pub(super) etag: Option<String>,
    pub(super) origin: Arc<str>,
}

pub(super) async fn fetch(
    shared: Arc<Shared>,
    cap: ReadCap,
    reference: ManifestRef,
) -> Result<Fetched, PullError> {
    let limit = shared.config.load().manifest_max_bytes;
    let mebibytes = u32::try_from(limit.div_ceil(1 << 20))
        .unwrap_or(u32::MAX)
        .min(ROOM_MIB);
    let room = tokio::time::timeout(MANIFEST_TOTAL, shared.room.acquire_many(mebibytes));
    let _room = room
        .await
        .map_err(|_| interrupted())?
        .map_err(|_| interrupted())?;
    let (call, repository, wanted) = (call(&cap), cap.repo().repository(), &reference);
    let asked = failover::first(cap.upstream(), false, |endpoint| async move {
        let fetched = endpoint.manifest(call, repository, wanted, limit).await?;
        verify(&**endpoint, wanted, fetched)
    });
    let answer = asked
        .await
        .map_err(|failure| pull_error(&failure, Kind::Manifest))?;
    let (head, manifest) = answer.value;
    let facts = Manifest::parse(manifest.bytes(), Some(&head.media_type)).map_err(unservable)?;
    let origin = cap.upstream().endpoints[answer.endpoint].url();
    Ok(note(
        &shared,
        &cap,
        &reference,
        Arrived {
            head,
            manifest,
            facts,
            origin,
        },
    )
    .await)
}

struct Arrived<'a> {
    head: ManifestHead,
    manifest: VerifiedManifest,
    facts: Manifest,
    origin: &'a str,
}

/// The digest is computed from the body; a header or a request that says otherwise means wrong bytes.
fn verify(
    endpoint: &dyn Endpoint,
    reference: &ManifestRef,
    fetched: FetchedManifest,
) -> Result<(ManifestHead, VerifiedManifest), UpstreamError> {
    let FetchedManifest { head, body } = fetched;
    let expected = match (reference, head.digest) {
        (ManifestRef::Digest(digest), _) => *digest,
        (ManifestRef::Tag(_), Some(digest)) => digest,
        (ManifestRef::Tag(_), None) => Digest::sha256(&body),
    };
    match VerifiedManifest::check(body.clone(), &expected) {
        Ok(manifest) => Ok((head, manifest)),
        // Its digest is that of another text (H-42). It is not served under any: this way the client learns why.
        Err(_) if is_schema_1(&head, &body) => {
            let own = Digest::sha256(&body);
            let manifest = VerifiedManifest::check(body, &own);
            Ok((head, manifest.expect("this is the digest of these bytes")))
        }
        Err(mismatch) => {
            let kind = UpstreamErrorKind::Protocol(format!("wrong bytes: {mismatch}").into());
            Err(UpstreamError {
                endpoint: endpoint.url().into(),
                kind,
            })
        }
    }
}

fn is_schema_1(head: &ManifestHead, body: &[u8]) -> bool {
    let parsed = Manifest::parse(body, Some(&head.media_type));
    matches!(parsed, Err(ManifestError::Schema1))
}

fn unservable(error: ManifestError) -> PullError {
    match error {
        ManifestError::Json(error) => {
            PullError::BadGateway(format!("its manifest is not valid JSON: {error}"))
        }
        error => PullError::Unservable(Arc::new(error)),
    }
}

/// Makes the manifest known: to this process at once, to the store behind the answer.
async fn note(
    shared: &Shared,
    cap: &ReadCap,
    reference: &ManifestRef,
    arrived: Arrived<'_>,
) -> Fetched {
    let Arrived {
        head,
        manifest,
        facts,
        origin,
    } = arrived;
    let (repo, digest, bytes) = (cap.repo(), *manifest.digest(), manifest.bytes().clone());
    let row = Arc::new(ManifestRow::new(
        &facts,
        bytes.len() as u64,
        shared.clock.now(),
    ));
    shared.manifests.insert(digest, bytes.clone());
    if let Err(error) = shared
        .index
        .put_manifest(repo, &digest, Arc::clone(&row))
        .await
    {
        tracing::warn!(%repo, %digest, %error, "the index did not take a manifest");
    }
    let fact = Fact::Manifest(NewManifest {
        repo: repo.clone(),
        manifest,
        row: Arc::clone(&row),
        origin: origin.into(),
        public: cap.is_public(),
    });
    shared.recorder.note(fact).await;
    match reference {
        ManifestRef::Tag(tag) => {
            let pending = PendingTag {
                tag: tag.clone(),
                etag: head.etag,
                origin: origin.into(),
            };
            move_tag(shared, cap, digest, &pending).await;
        }
        ManifestRef::Digest(_) => {
            if let Some(pending) = shared.pending.remove(&(repo.clone(), digest)) {
                move_tag(shared, cap, digest, &pending).await;
            }
        }
    }
    Fetched { digest, row, bytes }
}

/// The tag means `digest` from now on; its manifest is held.
pub(super) async fn move_tag(shared: &Shared, cap: &ReadCap, digest: Digest, told: &PendingTag) {
    let (repo, tag, now) = (cap.repo(), &told.tag, shared.clock.now());
    let before = known(shared.index.tag(repo, tag).await);
    let moved = before.as_ref().is_some_and(|row| row.digest != digest);
    let previous = match &before {
        Some(row) if moved => Some(row.digest),
        Some(row) => row.previous,
        None => None,
    };
    let row = TagRow {
        digest,
        previous,
        etag: told.etag.clone(),
        updated: before.filter(|_| !moved).map_or(now, |row| row.updated),
        checked: now,
        missing_since: None,
        origin: Arc::clone(&told.origin),
    };
    shared.put_tag(cap, tag, Arc::new(row)).await;
}

impl Shared {
    /// To the index at once; to the store behind, when it means something else than before, or once an hour.
    pub(super) async fn put_tag(&self, cap: &ReadCap, tag: &Tag, row: Arc<TagRow>) {
        let repo = cap.repo();
        let before = known(self.index.tag(repo, tag).await);
        if let Err(error) = self.index.put_tag(repo, tag, Arc::clone(&row)).await {
            tracing::warn!(%repo, %tag, %error, "the index did not take a tag");
        }
        if before.is_some_and(|before| !is_worth_a_record(&before, &row)) {
            return;
        }
        if let Some(manifest) = known(self.index.manifest(repo, &row.digest).await) {
            self.recorder
                .note(Fact::Tag {
                    repo: repo.clone(),
                    tag: tag.clone(),
                    row,
                    manifest,
                })
                .await;
        }
    }
}

/// Did the meaning change, or does the confirmation fall into another hour?
fn is_worth_a_record(before: &TagRow, now: &TagRow) -> bool {
    let hour = |row: &TagRow| row.checked.as_second().div_euclid(3600);
    before.digest != now.digest || before.previous != now.previous || hour(before) != hour(now)
}
