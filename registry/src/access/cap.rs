//! The proof that a caller may read a repository.

use std::sync::Arc;

use crate::name::RepoKey;
use crate::upstream::Upstream;

/// A caller may read this repository. Only `access` makes one.
#[derive(Debug, Clone)]
pub struct ReadCap {
    repo: RepoKey,
    upstream: Arc<Upstream>,
    public: bool,
}

impl ReadCap {
    pub(in crate::access) fn new(repo: RepoKey, upstream: Arc<Upstream>, public: bool) -> Self {
        Self {
            repo,
            upstream,
            public,
        }
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
