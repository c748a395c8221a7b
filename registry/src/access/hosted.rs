//! Which repositories are hosted, and what holds for each. Pure.

use std::sync::Arc;
use std::time::Duration;

use coral_schema::oci::{RepositoryName, Tag};

use crate::name::RepoKey;
use crate::upstream::Glob;

/// What the configuration says of the repositories below one prefix. Equal values mean that nothing changed.
#[derive(Debug, Clone, PartialEq)]
pub struct HostedConfig {
    /// The repository itself, and all below it.
    pub prefix: RepositoryName,
    /// May manifests name what the repository does not have?
    pub sparse: bool,
    /// Tags that never move once they were pushed; here `*` matches everything.
    pub immutable_tags: Vec<Glob>,
    /// How long a manifest without a tag stays; `None`: for ever.
    pub delete_untagged_after: Option<Duration>,
}

impl HostedConfig {
    /// Must this tag stay what it is?
    pub fn is_immutable(&self, tag: &Tag) -> bool {
        let mut globs = self.immutable_tags.iter();
        globs.any(|glob| glob.matches(tag.as_str()))
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct HostedRules {
    /// The longest prefix first: it decides.
    prefixes: Vec<Arc<HostedConfig>>,
}

impl HostedRules {
    /// Rules of these prefixes.
    pub fn new(prefixes: &[HostedConfig]) -> Self {
        let mut prefixes: Vec<_> = prefixes.iter().cloned().map(Arc::new).collect();
        prefixes.sort_by_key(|config| std::cmp::Reverse(config.prefix.as_str().len()));
        Self { prefixes }
    }

    /// What holds for `repo`; `None` when it is not hosted (any more).
    pub fn of(&self, repo: &RepoKey) -> Option<&Arc<HostedConfig>> {
        let mut prefixes = self.prefixes.iter().filter(|_| repo.is_hosted());
        prefixes.find(|config| repo.repository().is_below(&config.prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(prefix: &str, sparse: bool) -> HostedConfig {
        HostedConfig {
            prefix: prefix.parse().unwrap(),
            sparse,
            immutable_tags: vec![Glob::new("v*", false).unwrap()],
            delete_untagged_after: None,
        }
    }

    #[test]
    fn the_longest_prefix_decides() {
        let rules = HostedRules::new(&[config("a", true), config("a/b", false)]);
        let sparse = |repo: &str| {
            let repo = repo.parse().unwrap();
            rules.of(&repo).map(|config| config.sparse)
        };
        assert_eq!(sparse("a"), Some(true));
        assert_eq!(sparse("a/c/b"), Some(true));
        assert_eq!(sparse("a/b/c"), Some(false));
        assert_eq!(sparse("ab"), None);
        assert_eq!(sparse("docker.io/a/b"), None);
    }

    #[test]
    fn immutable_tags_match_as_a_whole() {
        let config = config("a", true);
        let is_immutable = |tag: &str| config.is_immutable(&tag.parse().unwrap());
        assert!(is_immutable("v1.2"));
        assert!(!is_immutable("rev1") && !is_immutable("latest"));
    }
}
