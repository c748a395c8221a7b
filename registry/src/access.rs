//! Who may read what: decided in one place, before any content is touched.
//!
//! A [`ReadCap`] says that a caller may read one repository of an upstream; a [`HostedCap`] the same of a hosted one, and
//! a [`WriteCap`] that it may be changed. Only [`Access`] makes them. They name what was configured when the request
//! came, so a request sees one configuration from its start to its end.
//!
//! Everybody may read what the anonymous public may read upstream. Everything else needs a rule ([`rules`]) that allows it
//! to whoever calls ([`identity`]), and who that is was proved ([`authenticate`]). Who may not learns nothing: a repository
//! that is there and one that is not get the same answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use coral_schema::oci::reference::DOCKER_HUB;
use coral_schema::oci::{Digest, ManifestRef};
use coral_schema::process::tasks::Tasks;

pub use self::cap::{HostedCap, ReadCap, WriteCap};
pub use self::identity::{Caller, Scopes, Subject};
pub use self::key::Key;
use self::logins::Logins;
pub use self::metrics::AccessMetrics;
pub use self::rules::{Repositories, Rule, Rules, Verb, Who};
pub use self::users::{Users, UsersConfig};
use self::visibility::{Standing, Visibility};
use crate::index::{Index, VisibilityRow};
use crate::name::{NameError, NameRules, RepoKey, UpstreamName};
use crate::upstream::{Upstream, VisibilityMode};

mod authenticate;
pub mod cap;
mod hosted;
mod identity;
mod key;
mod logins;
mod metrics;
mod rules;
pub mod token;
pub mod users;
mod visibility;

pub use self::hosted::{HostedConfig, HostedRules};

/// One configuration: the names, and what they mean.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Which repository a request means.
    pub rules: NameRules,
    /// The upstreams by name.
    pub upstreams: HashMap<UpstreamName, Arc<Upstream>>,
    /// What may be pushed to.
    pub hosted: HostedRules,
    /// Who may do more than read what is public.
    pub grants: Rules,
    /// Who may log in; `None`: nobody, and logins mean nothing.
    pub users: Option<Arc<Users>>,
}

/// The only maker of [`ReadCap`]s.
#[derive(Debug)]
pub struct Access {
    snapshot: ArcSwap<Snapshot>,
    visibility: Visibility,
    logins: Logins,
    key: Key,
    metrics: AccessMetrics,
}

/// What a caller wants to read: something to ask the upstream for when it is not known who may read the repository.
#[derive(Debug, Clone, Copy)]
pub enum Probe<'a> {
    /// A manifest.
    Manifest(&'a ManifestRef),
    /// A blob.
    Blob(&'a Digest),
    /// A list.
    Repository,
}

/// Why a caller may not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// No such repository can be meant.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The administrator does not allow it.
    #[error("the configuration of this cache does not allow {0}")]
    Denied(RepoKey),
    /// Private upstream, or unknown: both look the same.
    #[error("{0} does not exist, or is private")]
    Hidden(RepoKey),
    /// It is pulled through, and nobody can push to it here.
    #[error("{0} is a repository of an upstream")]
    Proxied(RepoKey),
    /// No rule allows the caller to change it.
    #[error("no access rule allows the caller to change {0}")]
    PushDenied(RepoKey),
    /// The caller may not, and somebody who logs in may: to do what, where it is about a repository.
    #[error("a login is needed{}", for_what(.0.as_ref()))]
    LoginNeeded(Option<(RepoKey, Verb)>),
    /// The caller may, but the token that was shown was made for something else.
    #[error("the token of the request is not for {verb} of {repo}", verb = .verb.name())]
    Scope {
        /// Of what.
        repo: RepoKey,
        /// What.
        verb: Verb,
    },
    /// No such user, or not the password of that user.
    #[error("the login of the request is wrong")]
    WrongLogin,
    /// A token that is unknown, or not good any more.
    #[error("the token of the request is unknown, or not good any more")]
    WrongToken,
    /// Too many passwords are being checked.
    #[error("too many passwords are being checked")]
    Busy,
    /// It is not known who may read it, and the upstream cannot be asked.
    #[error("who may read {repo} cannot be found out now: {reason}")]
    Unavailable {
        /// Which.
        repo: RepoKey,
        /// Why.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
}

impl Access {
    /// Access rules over the first configuration.
    pub fn new(
        snapshot: Snapshot,
        key: Key,
        index: Index,
        tasks: Tasks,
        metrics: AccessMetrics,
    ) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            visibility: Visibility::new(index, tasks),
            logins: Logins::new(key.clone()),
            key,
            metrics,
        }
    }

    /// Takes over a changed configuration: an upstream that is gone stops being served at once.
    pub fn replace(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    /// The configuration of this moment.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Which repository a request means (see [`NameRules::resolve`]).
    pub fn resolve(&self, ns: Option<&str>, path: &str) -> Result<RepoKey, AccessError> {
        Ok(self.snapshot.load().rules.resolve(ns, path)?)
    }

    /// May the caller read `repo`? What the anonymous public may read upstream, everybody may; what only our credential
    /// can, whom a rule allows it.
    pub async fn read(
        &self,
        caller: &Caller,
        repo: RepoKey,
        probe: Probe<'_>,
    ) -> Result<ReadCap, AccessError> {
        let upstream = self.allowed(&repo)?;
        match self.is_public(&repo, &upstream, probe).await {
            Ok(public) => Ok(ReadCap::new(repo, upstream, public)),
            Err(_) if self.may(caller, &repo, Verb::Pull) => {
                Ok(ReadCap::new(repo, upstream, false))
            }
            Err(refusal) => Err(self.refusal(caller, repo, Verb::Pull, refusal)),
        }
    }

    /// May this repository be listed for the caller, as far as that is known without asking anybody?
    pub async fn may_list(&self, caller: &Caller, repo: &RepoKey) -> bool {
        let is_granted = {
            let snapshot = self.snapshot.load();
            let is_meant = caller.covers_catalog();
            is_meant && snapshot.grants.allow(caller.subject(), repo, Verb::Pull)
        };
        if repo.is_hosted() {
            let is_there = self.snapshot.load().hosted.of(repo).is_some();
            return is_there && (is_granted || self.may(caller, repo, Verb::Pull));
        }
        let known = self.read_if_known(caller, repo.clone()).await;
        known.is_ok_and(|known| is_granted || known.is_some())
    }

    /// As [`Access::read`], but asks no upstream: `None` when it is not known that the caller may read the repository.
    pub async fn read_if_known(
        &self,
        caller: &Caller,
        repo: RepoKey,
    ) -> Result<Option<ReadCap>, AccessError> {
        let upstream = self.allowed(&repo)?;
        let by_nature = is_public_by_nature(&upstream, &repo);
        let public = match upstream.policy.visibility {
            VisibilityMode::Public => true,
            VisibilityMode::Shared => by_nature,
            VisibilityMode::Auto if self.visibility.is_known(&repo, &upstream, by_nature).await => {
                true
            }
            VisibilityMode::Auto if self.may(caller, &repo, Verb::Pull) => false,
            VisibilityMode::Auto => return Ok(None),
        };
        Ok(Some(ReadCap::new(repo, upstream, public)))
    }

    /// Is a repository public, as far as its record and the configuration say? For rebuilding the index.
    pub fn is_public_on_record(&self, repo: &RepoKey, row: Option<VisibilityRow>) -> bool {
        let Some(upstream) = self.upstream_of(repo) else {
            return false;
        };
        match upstream.policy.visibility {
            VisibilityMode::Public => true,
            VisibilityMode::Shared => is_public_by_nature(&upstream, repo),
            VisibilityMode::Auto => match row {
                Some(row) => row.public,
                None => is_public_by_nature(&upstream, repo),
            },
        }
    }

    fn upstream_of(&self, repo: &RepoKey) -> Option<Arc<Upstream>> {
        let upstreams = &self.snapshot.load().upstreams;
        upstreams.get(repo.upstream()?).cloned()
    }

    /// The upstream of `repo`, if the administrator allows the repository.
    fn allowed(&self, repo: &RepoKey) -> Result<Arc<Upstream>, AccessError> {
        let upstream = self.upstream_of(repo);
        let upstream = upstream.ok_or_else(|| NameError::UnknownUpstream(repo.to_string()))?;
        if !is_allowed(&upstream, repo) {
            return Err(AccessError::Denied(repo.clone()));
        }
        Ok(upstream)
    }

    /// May the caller read this hosted repository?
    pub fn read_hosted(&self, caller: &Caller, repo: RepoKey) -> Result<HostedCap, AccessError> {
        if self.snapshot.load().hosted.of(&repo).is_none() {
            return Err(AccessError::Hidden(repo));
        }
        if self.may(caller, &repo, Verb::Pull) {
            return Ok(HostedCap::new(repo));
        }
        let hidden = AccessError::Hidden(repo.clone());
        Err(self.refusal(caller, repo, Verb::Pull, hidden))
    }

    /// May the caller change this repository: push to it, or delete from it?
    pub fn write(
        &self,
        caller: &Caller,
        repo: RepoKey,
        verb: Verb,
    ) -> Result<WriteCap, AccessError> {
        if !repo.is_hosted() {
            return Err(AccessError::Proxied(repo));
        }
        let snapshot = self.snapshot.load();
        let Some(config) = snapshot.hosted.of(&repo) else {
            return Err(AccessError::Hidden(repo));
        };
        if self.may(caller, &repo, verb) {
            return Ok(WriteCap::new(HostedCap::new(repo), Arc::clone(config)));
        }
        let denied = AccessError::PushDenied(repo.clone());
        Err(self.refusal(caller, repo, verb, denied))
    }

    /// Does a rule allow it, to whoever calls and with what was shown? What everybody may needs nothing to be shown.
    fn may(&self, caller: &Caller, repo: &RepoKey, verb: Verb) -> bool {
        let snapshot = self.snapshot.load();
        let allow = |subject| snapshot.grants.allow(subject, repo, verb);
        allow(&Subject::Anonymous) || (caller.covers(repo, verb) && allow(caller.subject()))
    }

    /// What a caller who may not is told: how to be one who may, where that can help, else `refusal`.
    fn refusal(
        &self,
        caller: &Caller,
        repo: RepoKey,
        verb: Verb,
        refusal: AccessError,
    ) -> AccessError {
        let snapshot = self.snapshot.load();
        if snapshot.grants.allow(caller.subject(), &repo, verb) {
            return AccessError::Scope { repo, verb };
        }
        // While nobody can say who may read it, a login would be asked for without need.
        let is_known = !matches!(refusal, AccessError::Unavailable { .. });
        if is_known && caller.is_anonymous() && snapshot.grants.want_login(&repo) {
            return AccessError::LoginNeeded(Some((repo, verb)));
        }
        refusal
    }

    async fn is_public(
        &self,
        repo: &RepoKey,
        upstream: &Arc<Upstream>,
        probe: Probe<'_>,
    ) -> Result<bool, AccessError> {
        match upstream.policy.visibility {
            VisibilityMode::Public => return Ok(true),
            VisibilityMode::Shared => return Ok(is_public_by_nature(upstream, repo)),
            VisibilityMode::Auto => {}
        }
        let standing = if is_public_by_nature(upstream, repo) {
            self.visibility.unless_revoked(repo, upstream, probe).await
        } else {
            self.visibility.of(repo, upstream, probe).await
        };
        match standing {
            Standing::Public => Ok(true),
            Standing::Private => Err(AccessError::Hidden(repo.clone())),
            Standing::Unknown {
                reason,
                retry_after,
            } => Err(AccessError::Unavailable {
                repo: repo.clone(),
                reason,
                retry_after,
            }),
        }
    }
}

fn is_allowed(upstream: &Upstream, repo: &RepoKey) -> bool {
    let policy = &upstream.policy;
    let name = repo.repository().as_str();
    let listed =
        policy.allow.is_empty() || policy.allow.iter().any(|pattern| pattern.0.matches(name));
    listed && !policy.deny.iter().any(|pattern| pattern.0.matches(name))
}

/// What we read without a credential of our own, everybody may read; and Docker Hub's official images are public.
fn is_public_by_nature(upstream: &Upstream, repo: &RepoKey) -> bool {
    let official = repo.upstream().map(UpstreamName::as_str) == Some(DOCKER_HUB)
        && repo.repository().as_str().starts_with("library/");
    let anonymous = || {
        upstream
            .endpoints
            .iter()
            .all(|endpoint| endpoint.credential_id(repo.repository()).is_anonymous())
    };
    official || anonymous()
}

fn for_what(wanted: Option<&(RepoKey, Verb)>) -> String {
    let text = |(repo, verb): &(RepoKey, Verb)| format!(" for {} of {repo}", verb.name());
    wanted.map(text).unwrap_or_default()
}
