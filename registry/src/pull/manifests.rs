//! Manifests by digest and by tag: from memory, from the store, or fetched once for everybody who asks.

use std::sync::Arc;

use bytes::Bytes;
use coral_schema::oci::manifest::ManifestError;
use coral_schema::oci::{Digest, Manifest, ManifestRef, Tag};

use super::failure::{interrupted, pull_error};
use super::freshness::{Freshness, freshness};
use super::metrics::StaleReason;
use super::recorder::{Fact, NewManifest};
use super::{
    Kind, MANIFEST_TOTAL, ManifestAnswer, Outcome, PullError, Puller, ROOM_MIB, Shared, Want, known,
};
use crate::access::cap::ReadCap;
use crate::index::{BlobState, ChildRow, ManifestRow, TagRow};
use crate::store::{StoredBlob, VerifiedManifest};
use crate::upstream::{
    Call, Checked, Endpoint, FetchedManifest, Identity, ManifestHead, OnMissing, Priority,
    UpstreamError, UpstreamErrorKind, failover,
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
    tag: Tag,
    etag: Option<String>,
    origin: Arc<str>,
}

impl Puller {
    /// A manifest of a repository.
    pub async fn manifest(
        &self,
        cap: &ReadCap,
        reference: &ManifestRef,
        want: Want,
    ) -> Result<ManifestAnswer, PullError> {
        self.0.remember(cap.repo()).await;
        match reference {
            ManifestRef::Digest(digest) => self.by_digest(cap, digest, want).await,
            ManifestRef::Tag(tag) => self.by_tag(cap, tag, want).await,
        }
    }

    pub(super) async fn by_digest(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        want: Want,
    ) -> Result<ManifestAnswer, PullError> {
        if let Some(answer) = self.held(cap, digest, want).await {
            return Ok(answer);
        }
        if want == Want::Head
            && let Some(child) = known(self.0.index.child(cap.repo(), digest).await)
            && !child.media_type.is_empty()
        {
            return Ok(from_descriptor(&child));
        }
        self.ask(cap, &ManifestRef::Digest(*digest), want).await
    }

    async fn by_tag(
        &self,
        cap: &ReadCap,
        tag: &Tag,
        want: Want,
    ) -> Result<ManifestAnswer, PullError> {
        let Some(row) = known(self.0.index.tag(cap.repo(), tag).await) else {
            return self.ask(cap, &ManifestRef::Tag(tag.clone()), want).await;
        };
        let policy = &cap.upstream().policy;
        let refuses_missing = row.missing_since.is_some() && policy.on_missing == OnMissing::Refuse;
        let fresh =
            freshness(cap.repo(), tag, &row, policy, self.0.clock.now()) == Freshness::Fresh;
        if !fresh || refuses_missing {
            return self.revalidated(cap, tag, row, want).await;
        }
        let unreachable = || {
            cap.upstream()
                .endpoints
                .iter()
                .all(|endpoint| endpoint.available().is_err())
        };
        if row.previous.is_some() && unreachable() {
            self.0.metrics.stale(StaleReason::Unreachable);
            return self
                .stale(cap, &row, want, "the upstream cannot be reached")
                .await;
        }
        self.by_digest(cap, &row.digest, want).await
    }

    /// The manifest if this repository has it and its bytes are here.
    pub(super) async fn held(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        want: Want,
    ) -> Option<ManifestAnswer> {
        let row = known(self.0.index.manifest(cap.repo(), digest).await)?;
        let bytes = self.bytes(digest, row.size).await?;
        self.0.index.touch(digest);
        Some(answer(*digest, &row, bytes, want, Outcome::Hit))
    }

    async fn bytes(&self, digest: &Digest, size: u64) -> Option<Bytes> {
        if let Some(bytes) = self.0.manifests.get(digest) {
            return Some(bytes);
        }
        let blob = known(self.0.index.blob(digest).await);
        if blob
            .as_ref()
            .is_some_and(|blob| blob.state == BlobState::Deleting)
        {
            return None;
        }
        let stored = self.open(digest, size).await?;
        let bytes = read_whole(&stored).await?;
        // Manifests are small: checking again costs microseconds and keeps damaged files from clients (H-09, H-37).
        let Ok(verified) = VerifiedManifest::check(bytes, digest) else {
            self.discard(digest, "its bytes do not match its digest")
                .await;
            return None;
        };
        self.0.manifests.insert(*digest, verified.bytes().clone());
        Some(verified.bytes().clone())
    }

    /// Asks the upstream for what is not held.
    async fn ask(
        &self,
        cap: &ReadCap,
        reference: &ManifestRef,
        want: Want,
    ) -> Result<ManifestAnswer, PullError> {
        let text = reference.to_string();
        if let Some(error) = self
            .0
            .negative
            .check(cap, &text, self.0.config.load().negative_ttl)
        {
            return Err(error);
        }
        let answered = match want {
            Want::Body => self.fetch(cap, reference).await,
            Want::Head => self.head(cap, reference).await,
        };
        if let Err(error) = &answered {
            self.0.negative.note(cap, &text, error);
        }
        answered
    }

    async fn head(
        &self,
        cap: &ReadCap,
        reference: &ManifestRef,
    ) -> Result<ManifestAnswer, PullError> {
        let call = call(cap);
        let repository = cap.repo().repository();
        let asked = failover::first(cap.upstream(), false, |endpoint| async move {
            endpoint
                .head_manifest(call, repository, reference, None)
                .await
        });
        let answer = asked
            .await
            .map_err(|failure| pull_error(&failure, Kind::Manifest))?;
        let Checked::Head(head) = answer.value else {
            return Err(PullError::BadGateway(
                "it answered 304 to an unconditional request".to_owned(),
            ));
        };
        let origin = cap.upstream().endpoints[answer.endpoint].url();
        match self.answer_of_head(cap, reference, &head, origin).await {
            Some(answer) => Ok(answer),
            // An upstream that does not say digest or length in a HEAD has to be asked for the bytes.
            None => self
                .fetch(cap, reference)
                .await
                .map(|answer| ManifestAnswer {
                    body: None,
                    ..answer
                }),
        }
    }

    /// The answer that an upstream's HEAD allows, and a note of what its tag means.
    pub(super) async fn answer_of_head(
        &self,
        cap: &ReadCap,
        reference: &ManifestRef,
        head: &ManifestHead,
        origin: &str,
    ) -> Option<ManifestAnswer> {
        let (digest, size) = match reference {
            ManifestRef::Digest(digest) => (*digest, head.size?),
            ManifestRef::Tag(_) => (head.digest?, head.size?),
        };
        if let ManifestRef::Tag(tag) = reference {
            let pending = PendingTag {
                tag: tag.clone(),
                etag: head.etag.clone(),
                origin: origin.into(),
            };
            if known(self.0.index.manifest(cap.repo(), &digest).await).is_some() {
                move_tag(&self.0, cap, digest, &pending).await;
            } else {
                self.0
                    .pending
                    .insert((cap.repo().clone(), digest), Arc::new(pending));
            }
        }
        let media_type = head.media_type.clone();
        Some(ManifestAnswer {
            digest,
            media_type,
            size,
            body: None,
            outcome: Outcome::Miss,
            warning: None,
        })
    }

    /// Fetches once for everybody who asks for the same now.
    pub(super) async fn fetch(
        &self,
        cap: &ReadCap,
        reference: &ManifestRef,
    ) -> Result<ManifestAnswer, PullError> {
        let key = (cap.repo().clone(), reference.clone());
        let join = || {
            let ask = || fetch(Arc::clone(&self.0), cap.clone(), reference.clone());
            self.0.fetches.join(&key, ask)
        };
        let mut flight = join();
        let outcome = if flight.leads {
            Outcome::Miss
        } else {
            Outcome::Join
        };
        let mut fetched = flight.answer.await;
        // Background work may be told to wait where a client is not.
        let told_to_wait = matches!(fetched, Some(Err(PullError::Unavailable { .. })));
        if told_to_wait && !flight.leads && cap.priority() == Priority::Interactive {
            flight = join();
            fetched = flight.answer.await;
        }
        let fetched = fetched.unwrap_or_else(|| Err(interrupted()))?;
        Ok(answer(
            fetched.digest,
            &fetched.row,
            fetched.bytes,
            Want::Body,
            outcome,
        ))
    }
}

async fn fetch(
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
    let row = Arc::new(manifest_row(shared, &facts, bytes.len()));
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
async fn move_tag(shared: &Shared, cap: &ReadCap, digest: Digest, told: &PendingTag) {
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

fn manifest_row(shared: &Shared, facts: &Manifest, size: usize) -> ManifestRow {
    let children = facts.children.iter().map(|child| ChildRow {
        digest: child.digest,
        kind: child.kind,
        size: child.size,
        media_type: child.media_type.clone(),
        platform: child.platform.clone(),
    });
    ManifestRow {
        media_type: facts.media_type.clone(),
        size: size as u64,
        subject: facts.subject,
        artifact_type: facts.artifact_type.clone(),
        annotations: facts.annotations.clone(),
        children: children.collect(),
        stored: shared.clock.now(),
    }
}

fn call(cap: &ReadCap) -> Call {
    let step = cap.upstream().timeouts.tag_check;
    Call {
        priority: cap.priority(),
        identity: Identity::Configured,
        step,
        total: MANIFEST_TOTAL,
    }
}

async fn read_whole(stored: &StoredBlob) -> Option<Bytes> {
    let mut whole = Vec::with_capacity(usize::try_from(stored.size()).ok()?);
    while (whole.len() as u64) < stored.size() {
        let offset = whole.len() as u64;
        whole.extend_from_slice(&stored.read(offset, usize::MAX).await.ok()?);
    }
    Some(whole.into())
}

fn answer(
    digest: Digest,
    row: &ManifestRow,
    bytes: Bytes,
    want: Want,
    outcome: Outcome,
) -> ManifestAnswer {
    ManifestAnswer {
        digest,
        media_type: row.media_type.clone(),
        size: bytes.len() as u64,
        body: (want == Want::Body).then_some(bytes),
        outcome,
        warning: None,
    }
}

fn from_descriptor(child: &ChildRow) -> ManifestAnswer {
    ManifestAnswer {
        digest: child.digest,
        media_type: child.media_type.clone(),
        size: child.size,
        body: None,
        outcome: Outcome::Hit,
        warning: None,
    }
}
