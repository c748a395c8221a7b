//! References: what follows `/manifests/` in a request, and whole image references as people write them.

use std::fmt;
use std::str::FromStr;

use super::{Digest, RepositoryName, Tag};

/// A manifest within a repository: by tag or by digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ManifestRef {
    /// By a mutable name.
    Tag(Tag),
    /// By content.
    Digest(Digest),
}

/// The text is neither a tag nor a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestRefError {
    /// It has a colon, so it was meant as a digest.
    #[error(transparent)]
    Digest(#[from] super::digest::DigestError),
    /// Anything else.
    #[error(transparent)]
    Tag(#[from] super::tag::TagError),
}

impl FromStr for ManifestRef {
    type Err = ManifestRefError;

    fn from_str(text: &str) -> Result<Self, ManifestRefError> {
        if text.contains(':') {
            Ok(Self::Digest(text.parse()?))
        } else {
            Ok(Self::Tag(text.parse()?))
        }
    }
}

impl fmt::Display for ManifestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// The registry that a name without a host means.
pub const DOCKER_HUB: &str = "docker.io";

/// An image reference as people write it, with Docker Hub's short names written out: `nginx` is
/// `docker.io/library/nginx:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageReference {
    /// Registry host, lower case, with its port if it has one.
    pub host: String,
    /// Repository within that registry.
    pub repository: RepositoryName,
    /// The tag; `latest` if neither tag nor digest is given.
    pub tag: Option<Tag>,
    /// The digest, which wins over the tag.
    pub digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageReferenceError {
    /// Nothing before the tag or digest.
    #[error("the reference names no image")]
    Empty,
    /// The host has other characters than letters, digits, `.`, `-` and a port.
    #[error("the registry host is malformed")]
    Host,
    /// The repository is malformed.
    #[error(transparent)]
    Repository(#[from] super::repository::RepositoryNameError),
    /// The tag is malformed.
    #[error(transparent)]
    Tag(#[from] super::tag::TagError),
    /// The digest is malformed.
    #[error(transparent)]
    Digest(#[from] super::digest::DigestError),
}

impl ImageReference {
    /// Host and repository, like `ghcr.io/team/app`: what pull secrets and repositories of a cache go by.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// What to ask the registry for: the digest if there is one, else the tag.
    pub fn manifest_ref(&self) -> ManifestRef {
        match (self.digest, &self.tag) {
            (Some(digest), _) => ManifestRef::Digest(digest),
            (None, Some(tag)) => ManifestRef::Tag(tag.clone()),
            (None, None) => ManifestRef::Tag(Tag::latest()),
        }
    }
}

/// Does the first component of a name mean a host? As the Docker reference grammar decides it.
pub fn looks_like_host(component: &str) -> bool {
    component == "localhost" || component.contains(['.', ':'])
}

impl FromStr for ImageReference {
    type Err = ImageReferenceError;

    fn from_str(text: &str) -> Result<Self, ImageReferenceError> {
        let (text, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse()?)),
            None => (text, None),
        };
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.parse()?)),
            _ => (text, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if looks_like_host(host) => (host.to_ascii_lowercase(), path),
            _ => (DOCKER_HUB.to_owned(), name),
        };
        if path.is_empty() {
            return Err(ImageReferenceError::Empty);
        }
        if !host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte))
        {
            return Err(ImageReferenceError::Host);
        }
        let host = if host == "index.docker.io" || host == "registry-1.docker.io" {
            DOCKER_HUB.to_owned()
        } else {
            host
        };
        let repository = if host == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}").parse()?
        } else {
            path.parse()?
        };
        let tag = if tag.is_none() && digest.is_none() {
            Some(Tag::latest())
        } else {
            tag
        };
        Ok(Self {
            host,
            repository,
            tag,
            digest,
        })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest
            .iter()
            .try_for_each(|digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("nginx", "docker.io/library/nginx:latest")]
    #[case("nginx:1.27", "docker.io/library/nginx:1.27")]
    #[case("team/app", "docker.io/team/app:latest")]
    #[case("index.docker.io/nginx", "docker.io/library/nginx:latest")]
    #[case("localhost/a", "localhost/a:latest")]
    #[case("localhost:5000/a:b", "localhost:5000/a:b")]
    #[case("GHCR.io/x/y:z", "ghcr.io/x/y:z")]
    fn normalises(#[case] text: &str, #[case] written_out: &str) {
        let parsed: ImageReference = text.parse().unwrap();
        assert_eq!(parsed.to_string(), written_out);
        assert_eq!(
            written_out.parse::<ImageReference>().unwrap(),
            parsed,
            "printing and parsing agree"
        );
    }

    #[test]
    fn a_digest_wins() {
        let digest = Digest::sha256(b"x");
        let parsed: ImageReference = format!("quay.io/a/b:c@{digest}").parse().unwrap();
        assert_eq!(parsed.manifest_ref(), ManifestRef::Digest(digest));
        let bare: ImageReference = format!("quay.io/a/b@{digest}").parse().unwrap();
        assert_eq!(bare.tag, None);
    }

    #[rstest::rstest]
    #[case("")]
    #[case(":tag")]
    #[case("quay.io/")]
    #[case("quay.io/A/b")]
    #[case("a b.c/d")]
    #[case("quay.io/a@sha256:1")]
    #[case("quay.io/a:..")]
    fn refuses(#[case] text: &str) {
        assert!(text.parse::<ImageReference>().is_err());
    }
}
