//! One conditional check per tag at a time, with a deadline; what is answered when it fails.

use std::sync::Arc;

use coral_schema::oci::{Digest, ManifestRef, Tag};
use futures::FutureExt as _;

use super::failure::{interrupted, pull_error};
use super::freshness::{age, may_serve_stale};
use super::metrics::{CheckResult, StaleReason};
use super::{Kind, ManifestAnswer, Outcome, PullError, Puller, Shared, Want, known};
use crate::access::cap::ReadCap;
use crate::index::{BlobState, TagRow, VisibilityRow};
use crate::upstream::{Call, Checked, Identity, ManifestHead, OnMissing, Priority, failover};

/// What the upstream says of a tag that is held.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// It means what it meant.
    Confirmed,
    /// It means something else now.
    Moved {
        head: ManifestHead,
        origin: Arc<str>,
    },
    /// It does not exist any more.
    Missing,
    /// We may not read it any more.
    Refused(PullError),
    /// Nobody can say.
    Unknown(PullError),
}

/// A tag that is held, and what the client wants of it.
#[derive(Debug, Clone, Copy)]
struct Held<'a> {
    tag: &'a Tag,
    row: &'a TagRow,
    want: Want,
}

impl Puller {
    /// A tag as the upstream has it now, however fresh it is here; what is held when the upstream cannot be asked.
    pub async fn refreshed(&self, cap: &ReadCap, tag: &Tag) -> Result<ManifestAnswer, PullError> {
        self.0.remember(cap.repo()).await;
        if let Some(frozen) = self.0.index.frozen(cap.repo(), tag) {
            return self.frozen(cap, tag, frozen).await;
        }
        match known(self.0.index.tag(cap.repo(), tag).await) {
            Some(row) => self.revalidated(cap, tag, row, Want::Body).await,
            None => self.fetch(cap, &ManifestRef::Tag(tag.clone())).await,
        }
    }

    /// What a pin holds the tag at, and what it means upstream, if that is something else. The tag does not move.
    async fn frozen(
        &self,
        cap: &ReadCap,
        tag: &Tag,
        at: Digest,
    ) -> Result<ManifestAnswer, PullError> {
        let mut answer = self.by_digest(cap, &at, Want::Body).await?;
        let Some(row) = known(self.0.index.tag(cap.repo(), tag).await) else {
            return Ok(answer);
        };
        let means = match self.check(cap, tag, &row).await {
            Verdict::Confirmed => Some(row.digest),
            Verdict::Moved { head, .. } => head.digest,
            Verdict::Missing => None,
            Verdict::Refused(error) | Verdict::Unknown(error) => {
                answer.warning = Some(format!("the upstream could not be asked: {error}"));
                None
            }
        };
        answer.moved_to = means.filter(|digest| *digest != at);
        Ok(answer)
    }

    /// Answers a tag that is held but not fresh.
    pub(super) async fn revalidated(
        &self,
        cap: &ReadCap,
        tag: &Tag,
        row: Arc<TagRow>,
        want: Want,
    ) -> Result<ManifestAnswer, PullError> {
        let held = Held {
            tag,
            row: &row,
            want,
        };
        match self.check(cap, tag, &row).await {
            Verdict::Confirmed => self.by_digest(cap, &row.digest, want).await,
            Verdict::Moved { head, origin } => self.moved(cap, held, &head, &origin).await,
            Verdict::Missing if cap.upstream().policy.on_missing == OnMissing::Refuse => {
                Err(PullError::NotFound(Kind::Manifest))
            }
            Verdict::Missing => {
                self.0.metrics.stale(StaleReason::Missing);
                let text = "the upstream does not have this tag any more";
                self.stale(cap, &row, want, text).await
            }
            Verdict::Refused(error) => {
                let why = (StaleReason::Refused, "the upstream refuses access");
                self.stale_or(cap, held, why, error).await
            }
            Verdict::Unknown(error) => {
                let why = (StaleReason::Unreachable, "the upstream could not be asked");
                self.stale_or(cap, held, why, error).await
            }
        }
    }

    /// Asks, at most for as long as a client with a stale answer in hand may wait. Endpoints that were silent the last
    /// time are passed over for one that was not; if all were, they are asked without anybody waiting for it.
    async fn check(&self, cap: &ReadCap, tag: &Tag, row: &Arc<TagRow>) -> Verdict {
        let key = (cap.repo().clone(), tag.clone());
        let stale_is_there = may_serve_stale(row, &cap.upstream().policy, self.0.clock.now());
        let silent = cap
            .upstream()
            .endpoints
            .iter()
            .all(|endpoint| !endpoint.responsive());
        let only_ready = stale_is_there && !silent;
        let (shared, row) = (Arc::clone(&self.0), Arc::clone(row));
        let ask = || ask(shared, cap.clone(), tag.clone(), row, only_ready);
        let flight = self.0.checks.join(&key, ask);
        let late =
            || Verdict::Unknown(PullError::Timeout("the tag check took too long".to_owned()));
        let answer = if silent && stale_is_there {
            // A timer would take a millisecond; what is not there now does not count.
            flight.answer.now_or_never()
        } else {
            let patience = cap.upstream().timeouts.tag_check;
            tokio::time::timeout(patience, flight.answer).await.ok()
        };
        answer.map_or_else(late, |answer| {
            answer.unwrap_or_else(|| Verdict::Unknown(interrupted()))
        })
    }

    /// A HEAD is answered with what the upstream's HEAD said: a GET costs there. A GET fetches the new manifest, and
    /// only then does the tag move.
    async fn moved(
        &self,
        cap: &ReadCap,
        asked: Held<'_>,
        head: &ManifestHead,
        origin: &str,
    ) -> Result<ManifestAnswer, PullError> {
        let Held { tag, want, .. } = asked;
        let by_tag = ManifestRef::Tag(tag.clone());
        if let Some(answer) = self.answer_of_head(cap, &by_tag, head, origin).await
            && want == Want::Head
        {
            return Ok(answer);
        }
        let reference = head.digest.map_or(by_tag, ManifestRef::Digest);
        let fetched = match head.digest {
            Some(digest) => match self.held(cap, &digest, want).await {
                Some(answer) => Ok(answer),
                None => self.fetch(cap, &reference).await,
            },
            None => self.fetch_anew(cap, &reference).await,
        };
        match fetched {
            Ok(answer) => Ok(trim(answer, want)),
            Err(error) => {
                let text = "the tag has moved, but its new manifest could not be fetched";
                let why = (StaleReason::Unreachable, text);
                let answer = self.stale_or(cap, asked, why, error).await?;
                let moved_to = head.digest.or(answer.moved_to);
                let moved_to = moved_to.filter(|digest| *digest != answer.digest);
                Ok(ManifestAnswer { moved_to, ..answer })
            }
        }
    }

    async fn stale_or(
        &self,
        cap: &ReadCap,
        Held { row, want, .. }: Held<'_>,
        (reason, text): (StaleReason, &str),
        error: PullError,
    ) -> Result<ManifestAnswer, PullError> {
        if !may_serve_stale(row, &cap.upstream().policy, self.0.clock.now()) {
            return Err(error);
        }
        let answer = self.stale(cap, row, want, text).await.map_err(|_| error)?;
        self.0.metrics.stale(reason);
        Ok(answer)
    }

    /// What is held, with a warning. A tag that moved just before an outage must not replace a complete image by a
    /// name: where nothing that the new manifest names is here, the previous one is answered.
    pub(super) async fn stale(
        &self,
        cap: &ReadCap,
        row: &TagRow,
        want: Want,
        text: &str,
    ) -> Result<ManifestAnswer, PullError> {
        let mut candidates = vec![row.digest];
        if let Some(previous) = row.previous
            && !self.is_usable(cap, row).await
        {
            candidates.insert(0, previous);
        }
        for digest in candidates {
            if let Some(answer) = self.held(cap, &digest, want).await {
                let minutes =
                    age(row.checked, self.0.clock.now()).map_or(0, |age| age.as_secs() / 60);
                let warning = format!("{text}; this answer was last confirmed {minutes} min ago");
                return Ok(ManifestAnswer {
                    outcome: Outcome::Stale,
                    warning: Some(warning),
                    moved_to: (digest != row.digest).then_some(row.digest),
                    ..answer
                });
            }
        }
        Err(PullError::NotFound(Kind::Manifest))
    }

    /// Is anything here of what the tag's manifest names?
    async fn is_usable(&self, cap: &ReadCap, row: &TagRow) -> bool {
        let Some(manifest) = known(self.0.index.manifest(cap.repo(), &row.digest).await) else {
            return false;
        };
        for child in &manifest.children {
            let blob = known(self.0.index.blob(&child.digest).await);
            if blob.is_some_and(|blob| blob.state == BlobState::Present) {
                return true;
            }
        }
        manifest.children.is_empty()
    }
}

fn trim(answer: ManifestAnswer, want: Want) -> ManifestAnswer {
    if want == Want::Body {
        answer
    } else {
        ManifestAnswer {
            body: None,
            ..answer
        }
    }
}

/// The check itself: outlives the client that caused it, and notes what it learns.
async fn ask(
    shared: Arc<Shared>,
    cap: ReadCap,
    tag: Tag,
    row: Arc<TagRow>,
    only_ready: bool,
) -> Verdict {
    let verdict = question(&cap, &tag, &row, only_ready).await;
    let now = shared.clock.now();
    let result = match &verdict {
        Verdict::Confirmed => {
            let row = TagRow {
                checked: now,
                missing_since: None,
                ..(*row).clone()
            };
            shared.put_tag(&cap, &tag, Arc::new(row)).await;
            shared.set_refused(&cap, false).await;
            CheckResult::Confirmed
        }
        Verdict::Moved { .. } => CheckResult::Moved,
        Verdict::Missing => {
            // A 404 is an answer: it is not asked for again before its time.
            let missing_since = row.missing_since.or(Some(now));
            shared
                .put_tag(
                    &cap,
                    &tag,
                    Arc::new(TagRow {
                        checked: now,
                        missing_since,
                        ..(*row).clone()
                    }),
                )
                .await;
            CheckResult::Missing
        }
        Verdict::Refused(error) => {
            tracing::warn!(repo = %cap.repo(), %error, "the upstream refuses what it served before");
            shared.set_refused(&cap, true).await;
            CheckResult::Refused
        }
        Verdict::Unknown(_) => CheckResult::Failed,
    };
    shared.metrics.checked(result);
    verdict
}

async fn question(cap: &ReadCap, tag: &Tag, row: &TagRow, only_ready: bool) -> Verdict {
    let total = cap.upstream().timeouts.tag_check;
    let call = Call {
        priority: Priority::Interactive,
        identity: Identity::Configured,
        step: total,
        total,
    };
    let (repository, reference) = (cap.repo().repository(), ManifestRef::Tag(tag.clone()));
    let (reference, etag) = (&reference, row.etag.as_deref());
    let asked = failover::first(cap.upstream(), only_ready, |endpoint| async move {
        endpoint
            .head_manifest(call, repository, reference, etag)
            .await
    });
    let answer = match asked.await {
        Ok(answer) => answer,
        Err(failure) => {
            return match pull_error(&failure, Kind::Manifest) {
                PullError::NotFound(_) => Verdict::Missing,
                error @ PullError::Refused(_) => Verdict::Refused(error),
                error => Verdict::Unknown(error),
            };
        }
    };
    let origin = cap.upstream().endpoints[answer.endpoint].url();
    match answer.value {
        Checked::NotModified => Verdict::Confirmed,
        Checked::Head(head) if head.digest == Some(row.digest) => Verdict::Confirmed,
        Checked::Head(_) if !answer.first_healthy => Verdict::Unknown(PullError::BadGateway(
            "only a mirror could be asked, which may lag behind".to_owned(),
        )),
        Checked::Head(head) => Verdict::Moved {
            head,
            origin: origin.into(),
        },
    }
}

impl Shared {
    /// Notes that a repository which we read anonymously was made private, or is readable again. The grace period is
    /// the business of `access`. A refused credential of our own says nothing about the public.
    async fn set_refused(&self, cap: &ReadCap, refused: bool) {
        let repo = cap.repo();
        let ours = cap
            .upstream()
            .endpoints
            .iter()
            .any(|one| !one.credential_id(repo.repository()).is_anonymous());
        if ours {
            return;
        }
        let now = self.clock.now();
        let before = known(self.index.visibility(repo).await);
        let since = before.as_ref().and_then(|row| row.refused_since);
        if refused == since.is_some() {
            return;
        }
        let row = VisibilityRow {
            public: true,
            checked: now,
            refused_since: refused.then_some(now),
        };
        if let Err(error) = self.index.put_visibility(repo, row).await {
            tracing::warn!(%repo, %error, "the index did not take a repository's visibility");
        }
    }
}
