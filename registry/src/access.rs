//! Who may read what: decided in one place, before any content is touched.
//!
//! A [`ReadCap`] says that a caller may read one repository of an upstream; a [`HostedCap`] the same of a hosted one, and
//! a [`WriteCap`] that it may be pushed to. Only [`Access`] makes them. They name what was configured when the request
//! came, so a request sees one configuration from its start to its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use coral_schema::oci::reference::DOCKER_HUB;
use coral_schema::oci::{Digest, ManifestRef};
use coral_schema::process::tasks::Tasks;

pub use self::cap::{HostedCap, ReadCap, WriteCap};
use self::visibility::{Standing, Visibility};
use crate::index::{Index, VisibilityRow};
use crate::name::{NameError, NameRules, RepoKey, UpstreamName};
use crate::upstream::{Upstream, VisibilityMode};

pub mod cap;
mod hosted;
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
}

/// The only maker of [`ReadCap`]s.
#[derive(Debug)]
pub struct Access {
    snapshot: ArcSwap<Snapshot>,
    visibility: Visibility,
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
    /// Nobody may push without a login, and there are no logins yet.
    #[error("pushes to {0} need a credential, and this registry knows none")]
    PushDenied(RepoKey),
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
    pub fn new(snapshot: Snapshot, index: Index, tasks: Tasks) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            visibility: Visibility::new(index, tasks),
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

    /// May anybody who can reach us read `repo`?
    pub async fn read(&self, repo: RepoKey, probe: Probe<'_>) -> Result<ReadCap, AccessError> {
        let upstream = self.allowed(&repo)?;
        let public = self.is_public(&repo, &upstream, probe).await?;
        Ok(ReadCap::new(repo, upstream, public))
    }

    /// May this repository be listed for everybody: is it known to be public, without asking anybody?
    pub async fn may_list(&self, repo: &RepoKey) -> bool {
        if repo.is_hosted() {
            return self.read_hosted(repo.clone()).is_ok();
        }
        matches!(self.read_if_known(repo.clone()).await, Ok(Some(_)))
    }

    /// As [`Access::read`], but asks no upstream: `None` when it is not known that everybody may read the repository.
    pub async fn read_if_known(&self, repo: RepoKey) -> Result<Option<ReadCap>, AccessError> {
        let upstream = self.allowed(&repo)?;
        let by_nature = is_public_by_nature(&upstream, &repo);
        let public = match upstream.policy.visibility {
            VisibilityMode::Public => true,
            VisibilityMode::Shared => by_nature,
            VisibilityMode::Auto if self.visibility.is_known(&repo, &upstream, by_nature).await => {
                true
            }
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

    /// May the caller read this hosted repository? Whoever reaches us may, as long as nobody can push without wanting it.
    pub fn read_hosted(&self, repo: RepoKey) -> Result<HostedCap, AccessError> {
        let snapshot = self.snapshot.load();
        match snapshot.hosted.of(&repo) {
            Some(_) => Ok(HostedCap::new(repo)),
            None => Err(AccessError::Hidden(repo)),
        }
    }

    /// May the caller push to this repository, and delete from it?
    pub fn write(&self, repo: RepoKey) -> Result<WriteCap, AccessError> {
        if !repo.is_hosted() {
            return Err(AccessError::Proxied(repo));
        }
        let snapshot = self.snapshot.load();
        let Some(config) = snapshot.hosted.of(&repo) else {
            return Err(AccessError::Hidden(repo));
        };
        if !snapshot.hosted.anonymous_push {
            return Err(AccessError::PushDenied(repo));
        }
        Ok(WriteCap::new(HostedCap::new(repo), Arc::clone(config)))
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
