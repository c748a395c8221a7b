//! `visibility: auto`: may the anonymous public read a repository upstream? Asked once, remembered, renewed.

use std::sync::Arc;
use std::time::Duration;

use coral_schema::oci::{Digest, ManifestRef, Tag};
use coral_schema::process::tasks::Tasks;
use jiff::Timestamp;
use moka::sync::Cache;

use super::Probe;
use crate::index::{Index, VisibilityRow};
use crate::name::RepoKey;
use crate::upstream::{Call, Identity, Priority, Upstream, UpstreamError, UpstreamErrorKind};

/// What is known of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Everybody may read it.
    Public,
    /// Only our credential may.
    Private,
    /// It could not be found out.
    Unknown {
        /// Why.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Visibility {
    index: Index,
    tasks: Tasks,
    /// Repositories that were asked for lately: a failing upstream is not asked again for each request.
    recent: Cache<RepoKey, ()>,
}

impl Visibility {
    pub(super) fn new(index: Index, tasks: Tasks) -> Self {
        Self {
            index,
            tasks,
            recent: Cache::builder()
                .max_capacity(10_000)
                .time_to_live(ASK_AGAIN)
                .build(),
        }
    }

    /// Is it known to be public, without asking anybody? What is `by_nature` needs no record, and neither outlives the
    /// grace after a refusal.
    pub(super) async fn is_known(
        &self,
        repo: &RepoKey,
        upstream: &Upstream,
        by_nature: bool,
    ) -> bool {
        match self.index.visibility(repo).await {
            Ok(Some(row)) => row.public && !is_over(&row, upstream),
            _ => by_nature,
        }
    }

    /// A repository that we read anonymously is public, unless the upstream has refused it for longer than the grace.
    pub(super) async fn unless_revoked(
        &self,
        repo: &RepoKey,
        upstream: &Arc<Upstream>,
        probe: Probe<'_>,
    ) -> Standing {
        match self.index.visibility(repo).await {
            // What a login that was lent opened is not public because the login is gone.
            Ok(Some(row)) if is_over(&row, upstream) || !row.public => {
                self.again(repo, upstream, probe, &row).await
            }
            _ => Standing::Public,
        }
    }

    /// A repository that our credential opens: who else may read it?
    pub(super) async fn of(
        &self,
        repo: &RepoKey,
        upstream: &Arc<Upstream>,
        probe: Probe<'_>,
    ) -> Standing {
        let row = self.index.visibility(repo).await.ok().flatten();
        let Some(row) = row else {
            return self.first(repo, upstream, probe).await;
        };
        if is_over(&row, upstream) || !row.public {
            return self.again(repo, upstream, probe, &row).await;
        }
        let is_old = age(row.checked) >= RENEW_AFTER;
        if is_old && !self.recent.contains_key(repo) {
            self.renew(repo, upstream, probe, row);
        }
        Standing::Public
    }

    async fn first(&self, repo: &RepoKey, upstream: &Arc<Upstream>, probe: Probe<'_>) -> Standing {
        match ask(repo, upstream, &Subject::of(probe), Priority::Interactive).await {
            Answer::Said(public) => {
                remember(&self.index, repo, public, None).await;
                if public {
                    Standing::Public
                } else {
                    Standing::Private
                }
            }
            Answer::Unknown {
                reason,
                retry_after,
            } => Standing::Unknown {
                reason,
                retry_after,
            },
        }
    }

    /// A refusal is looked at again, but not for each request; until then it holds.
    async fn again(
        &self,
        repo: &RepoKey,
        upstream: &Arc<Upstream>,
        probe: Probe<'_>,
        row: &VisibilityRow,
    ) -> Standing {
        if age(row.checked) < ASK_AGAIN || self.recent.contains_key(repo) {
            return Standing::Private;
        }
        self.recent.insert(repo.clone(), ());
        match ask(repo, upstream, &Subject::of(probe), Priority::Interactive).await {
            Answer::Said(public) => {
                let refused_since = if public { None } else { row.refused_since };
                remember(&self.index, repo, public, refused_since).await;
                if public {
                    Standing::Public
                } else {
                    Standing::Private
                }
            }
            Answer::Unknown { .. } => Standing::Private,
        }
    }

    /// Beside the request. What turns out private is served on until the grace is over.
    fn renew(
        &self,
        repo: &RepoKey,
        upstream: &Arc<Upstream>,
        probe: Probe<'_>,
        row: VisibilityRow,
    ) {
        self.recent.insert(repo.clone(), ());
        let (index, repo, upstream) = (self.index.clone(), repo.clone(), Arc::clone(upstream));
        let subject = Subject::of(probe);
        self.tasks.spawn("visibility", async move {
            if let Answer::Said(public) =
                ask(&repo, &upstream, &subject, Priority::Background).await
            {
                let refused_since = if public {
                    None
                } else {
                    row.refused_since.or(Some(Timestamp::now()))
                };
                remember(&index, &repo, true, refused_since).await;
            }
        });
    }
}

/// What to ask for; an owned [`Probe`].
enum Subject {
    Manifest(ManifestRef),
    Blob(Digest),
}

impl Subject {
    fn of(probe: Probe<'_>) -> Self {
        match probe {
            Probe::Manifest(reference) => Self::Manifest(reference.clone()),
            Probe::Blob(digest) => Self::Blob(*digest),
            Probe::Repository => Self::Manifest(ManifestRef::Tag(Tag::latest())),
        }
    }
}

enum Answer {
    Said(bool),
    Unknown {
        reason: String,
        retry_after: Duration,
    },
}

/// One anonymous HEAD, never GET: at the first endpoint that can say.
async fn ask(repo: &RepoKey, upstream: &Upstream, subject: &Subject, priority: Priority) -> Answer {
    let step = upstream.timeouts.tag_check;
    let call = Call {
        priority,
        identity: Identity::Anonymous,
        step,
        total: step.saturating_mul(2),
    };
    let mut last = None;
    for endpoint in &upstream.endpoints {
        let said = match subject {
            Subject::Manifest(reference) => endpoint
                .head_manifest(call, repo.repository(), reference, None)
                .await
                .map(|_| ()),
            Subject::Blob(digest) => endpoint
                .head_blob(call, repo.repository(), digest)
                .await
                .map(|_| ()),
        };
        match said.map_err(|error| (is_refusal(&error), error)) {
            Ok(()) => return Answer::Said(true),
            Err((true, _)) => return Answer::Said(false),
            Err((false, error)) => last = Some(error),
        }
    }
    let reason = last.map_or_else(|| "no endpoint".to_owned(), |error| error.to_string());
    Answer::Unknown {
        reason,
        retry_after: RETRY,
    }
}

fn is_refusal(error: &UpstreamError) -> bool {
    matches!(
        error.kind,
        UpstreamErrorKind::NotFound | UpstreamErrorKind::Refused { .. }
    )
}

async fn remember(index: &Index, repo: &RepoKey, public: bool, refused_since: Option<Timestamp>) {
    let row = VisibilityRow {
        public,
        checked: Timestamp::now(),
        refused_since,
    };
    if let Err(error) = index.put_visibility(repo, row).await {
        tracing::warn!(%repo, %error, "visibility not remembered; the upstream will be asked again");
    }
}

/// Has the upstream refused it for longer than the grace?
fn is_over(row: &VisibilityRow, upstream: &Upstream) -> bool {
    row.refused_since
        .is_some_and(|since| age(since) >= upstream.policy.revoke_grace)
}

/// Never negative: a clock that went back makes things young, not old.
fn age(since: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default()
}

/// A public repository is checked again after this time.
const RENEW_AFTER: Duration = Duration::from_hours(24);
/// A refusal is checked again after this time.
const ASK_AGAIN: Duration = Duration::from_mins(1);
/// When a client may try again after nobody could say.
const RETRY: Duration = Duration::from_secs(10);
