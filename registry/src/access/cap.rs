//! The proof that a caller may read a repository, or write to it.

use std::net::IpAddr;
use std::sync::Arc;

use super::hosted::HostedConfig;
use crate::name::RepoKey;
use crate::upstream::{Priority, Upstream};

/// A caller may read this repository. Only `access` makes one.
#[derive(Debug, Clone)]
pub struct ReadCap {
    repo: RepoKey,
    upstream: Arc<Upstream>,
    public: bool,
    client: Option<IpAddr>,
    priority: Priority,
}

impl ReadCap {
    pub(in crate::access) fn new(repo: RepoKey, upstream: Arc<Upstream>, public: bool) -> Self {
        Self {
            repo,
            upstream,
            public,
            client: None,
            priority: Priority::Interactive,
        }
    }

    /// The same, used by a client at this address: tells clients apart where several asking matters.
    #[must_use]
    pub fn with_client(self, client: IpAddr) -> Self {
        Self {
            client: Some(client),
            ..self
        }
    }

    /// The same for work that no client waits for.
    #[must_use]
    pub fn in_background(self) -> Self {
        Self {
            priority: Priority::Background,
            ..self
        }
    }

    /// Who waits for what it is used for.
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Where the client is, as far as known.
    pub fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// The repository.
    pub fn repo(&self) -> &RepoKey {
        &self.repo
    }

    /// Where it comes from.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// May the anonymous public read it upstream? Then what its manifests name proves membership.
    pub fn is_public(&self) -> bool {
        self.public
    }
}

/// A caller may read this hosted repository. Only `access` makes one.
#[derive(Debug, Clone)]
pub struct HostedCap(RepoKey);

impl HostedCap {
    pub(in crate::access) fn new(repo: RepoKey) -> Self {
        Self(repo)
    }

    /// The repository.
    pub fn repo(&self) -> &RepoKey {
        &self.0
    }
}

/// A caller may change this hosted repository in the way that was asked for. Only `access` makes one.
#[derive(Debug, Clone)]
pub struct WriteCap {
    read: HostedCap,
    config: Arc<HostedConfig>,
}

impl WriteCap {
    pub(in crate::access) fn new(read: HostedCap, config: Arc<HostedConfig>) -> Self {
        Self { read, config }
    }

    /// The repository.
    pub fn repo(&self) -> &RepoKey {
        self.read.repo()
    }

    /// What holds for it.
    pub fn config(&self) -> &HostedConfig {
        &self.config
    }
}
