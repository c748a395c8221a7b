//! Which repository does a request mean? One total function decides it for every door: `ns`, host path, hosted prefix,
//! default.
//!
//! A [`RepoKey`] is the only source of store keys, and [`NameRules::resolve`] and [`RepoKey::from_str`] (for keys read
//! back from the store) are the only ways to one. Nothing ever falls through from one upstream to another, from hosted
//! to an upstream, or back. A key's text says which of both it is: the first component of an upstream's looks like a
//! host, that of a hosted repository never does.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use coral_schema::oci::RepositoryName;
use coral_schema::oci::reference::{DOCKER_HUB, looks_like_host};

/// The canonical name of a configured upstream: a lower-case host, with its port unless that is 443.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamName(Arc<str>);

impl UpstreamName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UpstreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not a host with an optional port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an upstream is named by its host, with a port if that is not 443, like ghcr.io or registry.internal:5000"
)]
pub struct UpstreamNameError;

impl FromStr for UpstreamName {
    type Err = UpstreamNameError;

    fn from_str(text: &str) -> Result<Self, UpstreamNameError> {
        let text = text.to_ascii_lowercase();
        let text = text.strip_suffix(":443").unwrap_or(&text);
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let label = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let port_is_valid =
            port.is_none_or(|port| !port.starts_with('0') && port.parse::<u16>().is_ok());
        if text.len() <= 255 && host.split('.').all(label) && port_is_valid {
            Ok(Self(text.into()))
        } else {
            Err(UpstreamNameError)
        }
    }
}

/// One repository of one upstream, or a hosted one. Prints as `docker.io/library/nginx` or `team/app`, which parse back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoKey {
    /// `None`: hosted.
    upstream: Option<UpstreamName>,
    repository: RepositoryName,
}

/// Why a request means no repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The host is none of the configured upstreams.
    #[error("{0} is not a configured upstream of this cache")]
    UnknownUpstream(String),
    /// Neither `ns` nor host, and no default.
    #[error(
        "the request names no upstream, and no defaultUpstream is configured; use /v2/<upstream host>/<repository>"
    )]
    NoUpstream,
    /// It is asked of ourselves, and is none of ours.
    #[error("{0} is not below any of the hosted prefixes of this registry")]
    NotHosted(RepositoryName),
    /// Malformed.
    #[error(transparent)]
    Malformed(#[from] coral_schema::oci::repository::RepositoryNameError),
}

impl RepoKey {
    /// The upstream; `None` for a hosted repository.
    pub fn upstream(&self) -> Option<&UpstreamName> {
        self.upstream.as_ref()
    }

    /// Is it ours: pushed to, and not fetched from anybody?
    pub fn is_hosted(&self) -> bool {
        self.upstream.is_none()
    }

    /// The repository as the upstream knows it, or as it was pushed.
    pub fn repository(&self) -> &RepositoryName {
        &self.repository
    }

    /// `None` where the first component would be taken for a host.
    fn hosted(repository: RepositoryName) -> Option<Self> {
        let first = repository.components().next().unwrap_or_default();
        (!looks_like_host(first)).then_some(Self {
            upstream: None,
            repository,
        })
    }

    fn new(upstream: UpstreamName, path: &str) -> Result<Self, NameError> {
        let repository = if upstream.as_str() == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}").parse()?
        } else {
            path.parse()?
        };
        Ok(Self {
            upstream: Some(upstream),
            repository,
        })
    }
}

impl fmt::Display for RepoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.upstream {
            Some(host) if looks_like_host(host.as_str()) => write!(f, "{host}/")?,
            // So that it is not taken for a hosted repository's first component.
            Some(host) => write!(f, "{host}:443/")?,
            None => {}
        }
        self.repository.fmt(f)
    }
}

impl FromStr for RepoKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((host, path)) if looks_like_host(host) => {
                let upstream = host
                    .parse()
                    .map_err(|UpstreamNameError| NameError::UnknownUpstream(host.to_owned()))?;
                Self::new(upstream, path)
            }
            _ => Self::hosted(text.parse()?).ok_or(NameError::NoUpstream),
        }
    }
}

/// The configured names, as one snapshot.
#[derive(Debug, Default)]
pub struct NameRules {
    upstreams: HashMap<String, UpstreamName>,
    default_upstream: Option<UpstreamName>,
    /// What is below one of these is hosted.
    hosted: Vec<RepositoryName>,
    /// What clients call us.
    own: Option<UpstreamName>,
}

impl NameRules {
    /// Rules for these upstreams, each with its aliases. Docker Hub's other two names always mean Docker Hub.
    pub fn new<'a>(
        upstreams: impl IntoIterator<Item = (&'a UpstreamName, &'a [UpstreamName])>,
        default_upstream: Option<UpstreamName>,
    ) -> Self {
        let mut names = HashMap::new();
        for (name, aliases) in upstreams {
            names.insert(name.as_str().to_owned(), name.clone());
            names.extend(
                aliases
                    .iter()
                    .map(|alias| (alias.as_str().to_owned(), name.clone())),
            );
            if name.as_str() == DOCKER_HUB {
                names.extend(
                    ["index.docker.io", "registry-1.docker.io"]
                        .map(|alias| (alias.to_owned(), name.clone())),
                );
            }
        }
        Self {
            upstreams: names,
            default_upstream,
            hosted: Vec::new(),
            own: None,
        }
    }

    /// The same, with hosted repositories below these prefixes; `own` is what clients call us in `ns`.
    #[must_use]
    pub fn with_hosted(self, hosted: Vec<RepositoryName>, own: Option<UpstreamName>) -> Self {
        Self {
            hosted,
            own,
            ..self
        }
    }

    /// The repository that `path` (between `/v2/` and the last keyword, not percent-decoded) means, with the value of
    /// the `ns` query parameter, percent-decoded, if there is one.
    pub fn resolve(&self, ns: Option<&str>, path: &str) -> Result<RepoKey, NameError> {
        if let Some(ns) = ns {
            if self.own.is_some() && ns.parse().ok() == self.own {
                let name: RepositoryName = path.parse()?;
                return self.hosted(&name).ok_or(NameError::NotHosted(name));
            }
            return RepoKey::new(self.upstream(ns)?, path);
        }
        match path.split_once('/') {
            Some((host, rest)) if looks_like_host(host) => RepoKey::new(self.upstream(host)?, rest),
            _ => {
                let hosted = path.parse().ok().and_then(|name| self.hosted(&name));
                let default = || self.default_upstream.clone().ok_or(NameError::NoUpstream);
                hosted.map_or_else(|| RepoKey::new(default()?, path), Ok)
            }
        }
    }

    /// The hosted repository of this name, if it is below one of the prefixes.
    fn hosted(&self, name: &RepositoryName) -> Option<RepoKey> {
        let is_hosted = self.hosted.iter().any(|prefix| name.is_below(prefix));
        is_hosted.then(|| RepoKey::hosted(name.clone())).flatten()
    }

    fn upstream(&self, host: &str) -> Result<UpstreamName, NameError> {
        let canonical = host.parse::<UpstreamName>().ok();
        canonical
            .and_then(|name| self.upstreams.get(name.as_str()).cloned())
            .ok_or_else(|| NameError::UnknownUpstream(host.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules() -> NameRules {
        let name = |text: &str| text.parse::<UpstreamName>().unwrap();
        let hub = name("docker.io");
        let internal = name("registry.internal:5000");
        let alias = [name("internal.example")];
        NameRules::new(
            [(&hub, [].as_slice()), (&internal, &alias)],
            Some(hub.clone()),
        )
        .with_hosted(
            ["own", "deep/er"]
                .map(|prefix| prefix.parse().unwrap())
                .into(),
            Some(name("cache.example:5000")),
        )
    }

    /// H-23: one table for all doors.
    #[rstest::rstest]
    #[case(Some("docker.io"), "library/nginx", "docker.io/library/nginx")]
    #[case(Some("DOCKER.IO"), "nginx", "docker.io/library/nginx")]
    #[case(Some("registry-1.docker.io:443"), "nginx", "docker.io/library/nginx")]
    #[case(None, "docker.io/nginx", "docker.io/library/nginx")]
    #[case(None, "index.docker.io/a/b", "docker.io/a/b")]
    #[case(None, "nginx", "docker.io/library/nginx")]
    #[case(None, "team/app", "docker.io/team/app")]
    #[case(None, "internal.example/team/app", "registry.internal:5000/team/app")]
    #[case(Some("internal.example"), "app", "registry.internal:5000/app")]
    #[case(Some("registry.internal:5000"), "app", "registry.internal:5000/app")]
    #[case(None, "own", "own")]
    #[case(None, "own/app/x", "own/app/x")]
    #[case(None, "ownership/app", "docker.io/ownership/app")]
    #[case(None, "deep/er/app", "deep/er/app")]
    #[case(None, "deep/app", "docker.io/deep/app")]
    #[case(Some("Cache.example:5000"), "own/app", "own/app")]
    #[case(Some("docker.io"), "own/app", "docker.io/own/app")]
    fn h23_resolves(#[case] ns: Option<&str>, #[case] path: &str, #[case] key: &str) {
        assert_eq!(rules().resolve(ns, path).unwrap().to_string(), key);
    }

    /// H-23: nothing falls through to another upstream.
    #[rstest::rstest]
    #[case(Some("evil.example"), "library/nginx")]
    #[case(Some(""), "library/nginx")]
    #[case(None, "evil.example/library/nginx")]
    #[case(None, "localhost/nginx")]
    #[case(None, "docker.io:5000/nginx")]
    #[case(None, "docker.io/../nginx")]
    #[case(None, "docker.io/a%2Fb")]
    #[case(None, "docker.io/")]
    #[case(None, "Nginx")]
    #[case(Some("cache.example:5000"), "team/app")]
    #[case(Some("cache.example:5000"), "docker.io/nginx")]
    #[case(None, "own/App")]
    fn h23_refuses(#[case] ns: Option<&str>, #[case] path: &str) {
        assert!(rules().resolve(ns, path).is_err());
    }

    #[test]
    fn h23_an_upstream_without_a_dot_is_no_hosted_repository() {
        let name: UpstreamName = "harbor".parse().unwrap();
        let rules = NameRules::new([(&name, [].as_slice())], None);
        let key = rules.resolve(Some("harbor"), "team/app").unwrap();
        assert_eq!(key.to_string(), "harbor:443/team/app");
        assert_eq!(key.to_string().parse::<RepoKey>().unwrap(), key);
        assert_ne!("harbor/team/app".parse::<RepoKey>().unwrap(), key);
    }

    proptest! {
        /// H-23: total, and what it answers prints and parses to itself.
        #[test]
        fn h23_total_and_canonical(ns in proptest::option::of(".{0,40}"), path in ".{0,80}") {
            if let Ok(key) = rules().resolve(ns.as_deref(), &path) {
                prop_assert_eq!(key.to_string().parse::<RepoKey>().unwrap(), key);
            }
        }

        #[test]
        fn h23_likely_paths(path in "(docker\\.io|internal\\.example|a|b\\.c)(/[a-z._-]{1,5}){0,3}") {
            if let Ok(key) = rules().resolve(None, &path) {
                let upstream = key.upstream().map(UpstreamName::as_str);
                prop_assert!([Some("docker.io"), Some("registry.internal:5000")].contains(&upstream));
                prop_assert_eq!(key.to_string().parse::<RepoKey>().unwrap(), key);
            }
        }
    }
}
