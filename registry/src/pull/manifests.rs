//! Manifests by digest and by tag: from memory, from the store, or fetched once for everybody who asks.

use std::sync::Arc;

use bytes::Bytes;
use coral_schema::oci::{Digest, ManifestRef, Tag};

use super::failure::{interrupted, pull_error};
use super::fetch::{Fetched, PendingTag, fetch, move_tag};
use super::freshness::{Freshness, freshness};
use super::metrics::StaleReason;
use super::{Kind, MANIFEST_TOTAL, ManifestAnswer, Outcome, PullError, Puller, Want, known};
use crate::access::cap::ReadCap;
use crate::index::{BlobState, ChildRow, ManifestRow};
use crate::store::{StoredBlob, VerifiedManifest};
use crate::upstream::{Call, Checked, Identity, ManifestHead, OnMissing, Priority, failover};

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
        if let Some(frozen) = self.0.index.frozen(cap.repo(), tag) {
            return self.by_digest(cap, &frozen, want).await;
        }
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
        let held = self.found(cap, digest).await?;
        self.0.index.touch(digest);
        Some(answer(*digest, &held.row, held.bytes, want, Outcome::Hit))
    }

    async fn found(&self, cap: &ReadCap, digest: &Digest) -> Option<Fetched> {
        let row = known(self.0.index.manifest(cap.repo(), digest).await)?;
        let bytes = self.bytes(digest, row.size).await?;
        Some(Fetched {
            digest: *digest,
            row,
            bytes,
        })
    }

    /// What a fetch that ended just now brought: whoever found nothing before it may ask for it after it.
    async fn just_fetched(&self, cap: &ReadCap, reference: &ManifestRef) -> Option<Fetched> {
        match reference {
            ManifestRef::Digest(digest) => self.found(cap, digest).await,
            ManifestRef::Tag(tag) => {
                let row = known(self.0.index.tag(cap.repo(), tag).await)?;
                self.found(cap, &row.digest).await
            }
        }
    }

    pub(super) async fn bytes(&self, digest: &Digest, size: u64) -> Option<Bytes> {
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
            moved_to: None,
        })
    }

    /// Fetches what was not held, once for everybody who asks for the same now.
    pub(super) async fn fetch(
        &self,
        cap: &ReadCap,
        reference: &ManifestRef,
    ) -> Result<ManifestAnswer, PullError> {
        let ask = || {
            let (puller, cap, reference) = (self.clone(), cap.clone(), reference.clone());
            async move {
                match puller.just_fetched(&cap, &reference).await {
                    Some(fetched) => Ok(fetched),
                    None => fetch(puller.0, cap, reference).await,
                }
            }
        };
        self.board(cap, reference, ask).await
    }

    /// Fetches whatever is held, once for everybody who asks for the same now.
    pub(super) async fn fetch_anew(
        &self,
        cap: &ReadCap,
        reference: &ManifestRef,
    ) -> Result<ManifestAnswer, PullError> {
        let ask = || fetch(Arc::clone(&self.0), cap.clone(), reference.clone());
        self.board(cap, reference, ask).await
    }

    async fn board<F>(
        &self,
        cap: &ReadCap,
        reference: &ManifestRef,
        ask: impl Fn() -> F,
    ) -> Result<ManifestAnswer, PullError>
    where
        F: Future<Output = Result<Fetched, PullError>> + Send + 'static,
    {
        let key = (cap.repo().clone(), reference.clone());
        let join = || self.0.fetches.join(&key, &ask);
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
pub(super) fn call(cap: &ReadCap) -> Call {
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

pub(super) fn answer(
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
        moved_to: None,
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
        moved_to: None,
    }
}
