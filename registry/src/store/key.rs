//! Where things lie in the store: pure text, the same for a folder and a bucket (`v1/…`, always with `/`).
//!
//! A repository's components never start with `_`, so what does is ours; a port's `:` is written `+`. A hosted repository
//! has no host before it: `v1/repos/team/app/…`.

use std::fmt;
use std::str::FromStr;

use coral_schema::oci::{Algorithm, Digest, Tag};

use crate::name::RepoKey;

/// The key of the record that says which format the store has.
pub const FORMAT: &str = "v1/format";

/// Above all records of repositories.
pub const REPOS: &str = "v1/repos";

/// Above all blobs.
pub const BLOBS: &str = "v1/blobs";

/// The key of one record: `v1/repos/<repo>/_repo`, `…/_manifests/<alg>-<hex>`, `…/_tags/<tag>`, `…/_blobs/<alg>-<hex>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// The repository that it belongs to.
    pub repo: RepoKey,
    /// What it says something about.
    pub entry: Entry,
}

/// A record's subject within its repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// The repository itself: [`RepoRecord`](super::record::RepoRecord).
    Repo,
    /// A manifest: [`ManifestRecord`](super::record::ManifestRecord).
    Manifest(Digest),
    /// A tag: [`TagRecord`](super::record::TagRecord).
    Tag(Tag),
    /// A blob that belongs to the repository though no manifest says so; empty.
    Blob(Digest),
}

/// The text is not the key of a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not the key of a record")]
pub struct KeyError;

impl RecordKey {
    /// The key of `entry` in `repo`.
    pub fn new(repo: RepoKey, entry: Entry) -> Self {
        Self { repo, entry }
    }
}

/// The folders that hold a repository's records, all but `_repo`. Repositories may nest, so its own folder holds more.
pub fn folders(repo: &RepoKey) -> [String; 3] {
    let parent = parent(repo);
    [MANIFESTS, TAGS, LOOSE_BLOBS].map(|folder| format!("{parent}/{folder}"))
}

/// `v1/blobs/<alg>/<hh>/<hex>`; `hh` are the first two digits.
pub fn blob(digest: &Digest) -> String {
    let (algorithm, hex) = (digest.algorithm().name(), digest.hex());
    format!("{BLOBS}/{algorithm}/{}/{hex}", &hex[..2])
}

/// `<alg>-<hex>`: a digest as one component.
pub fn flat(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

/// Reads [`flat`] back.
pub fn parse_flat(text: &str) -> Option<Digest> {
    let (algorithm, hex) = text.split_once('-')?;
    parse_hex(algorithm, hex)
}

/// The digest of a blob that is named `hex` in the folder of `algorithm`.
pub fn parse_blob(algorithm: Algorithm, hex: &str) -> Option<Digest> {
    parse_hex(algorithm.name(), hex)
}

fn parse_hex(algorithm: &str, hex: &str) -> Option<Digest> {
    format!("{algorithm}:{hex}").parse().ok()
}

fn parent(repo: &RepoKey) -> String {
    // Only a port can bring a colon.
    format!("{REPOS}/{}", repo.to_string().replace(':', "+"))
}

const REPO: &str = "_repo";
const MANIFESTS: &str = "_manifests";
const TAGS: &str = "_tags";
const LOOSE_BLOBS: &str = "_blobs";

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parent = parent(&self.repo);
        match &self.entry {
            Entry::Repo => write!(f, "{parent}/{REPO}"),
            Entry::Manifest(digest) => write!(f, "{parent}/{MANIFESTS}/{}", flat(digest)),
            Entry::Tag(tag) => write!(f, "{parent}/{TAGS}/{tag}"),
            Entry::Blob(digest) => write!(f, "{parent}/{LOOSE_BLOBS}/{}", flat(digest)),
        }
    }
}

impl FromStr for RecordKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::parse(text)
            .filter(|key| key.to_string() == text)
            .ok_or(KeyError)
    }
}

impl RecordKey {
    /// Accepts more than we print, such as a repository of Docker Hub without `library/`.
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix(REPOS)?.strip_prefix('/')?;
        let (above, last) = text.rsplit_once('/')?;
        let (repo, entry) = if last == REPO {
            (above, Entry::Repo)
        } else {
            let (repo, folder) = above.rsplit_once('/')?;
            let entry = match folder {
                MANIFESTS => Entry::Manifest(parse_flat(last)?),
                TAGS => Entry::Tag(last.parse().ok()?),
                LOOSE_BLOBS => Entry::Blob(parse_flat(last)?),
                _ => return None,
            };
            (repo, entry)
        };
        let repo = match repo.split_once('/') {
            Some((host, repository)) => format!("{}/{repository}", host.replace('+', ":")),
            None => repo.to_owned(),
        };
        Some(Self::new(repo.parse().ok()?, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn repo(text: &str) -> RepoKey {
        text.parse().unwrap()
    }

    #[test]
    fn keys_are_pinned() {
        let digest = Digest::sha256(b"");
        let key = |repo_name: &str, entry| RecordKey::new(repo(repo_name), entry).to_string();
        assert_eq!(
            key("docker.io/library/nginx", Entry::Repo),
            "v1/repos/docker.io/library/nginx/_repo"
        );
        assert_eq!(
            key("registry.internal:5000/a", Entry::Manifest(digest)),
            format!("v1/repos/registry.internal+5000/a/_manifests/sha256-{HEX}")
        );
        assert_eq!(
            key("ghcr.io/a/b", Entry::Tag("v1.2_3-x".parse().unwrap())),
            "v1/repos/ghcr.io/a/b/_tags/v1.2_3-x"
        );
        assert_eq!(
            key("ghcr.io/a/b", Entry::Blob(digest)),
            format!("v1/repos/ghcr.io/a/b/_blobs/sha256-{HEX}")
        );
        assert_eq!(
            key("team/app", Entry::Blob(digest)),
            format!("v1/repos/team/app/_blobs/sha256-{HEX}")
        );
        assert_eq!(key("team", Entry::Repo), "v1/repos/team/_repo");
        assert_eq!(blob(&digest), format!("v1/blobs/sha256/e3/{HEX}"));
    }

    #[rstest::rstest]
    #[case("")]
    #[case("v1/format")]
    #[case("v1/repos/ghcr.io/_repo")]
    #[case("v1/repos/_repo")]
    #[case("v1/repos/team+x/_repo")]
    #[case("v1/repos/ghcr.io/a")]
    #[case("v1/repos/ghcr.io/a/_repo/x")]
    #[case("v1/repos/ghcr.io/a/_tags/")]
    #[case("v1/repos/ghcr.io/a/_tags/x#1")]
    #[case("v1/repos/ghcr.io/a/_later/x")]
    #[case("v1/repos/ghcr.io/../a/_repo")]
    #[case("v1/repos/GHCR.io/a/_repo")]
    #[case("v1/repos/ghcr.io:443/a/_repo")]
    #[case("v1/repos/registry.internal:5000/a/_repo")]
    #[case("v1/repos/docker.io/nginx/_repo")]
    #[case("v1/repos/ghcr.io/a/_manifests/sha256-e3")]
    #[case("v2/repos/ghcr.io/a/_repo")]
    fn refuses(#[case] text: &str) {
        assert_eq!(text.parse::<RecordKey>(), Err(KeyError));
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let digests = (any::<bool>(), any::<[u8; 4]>()).prop_map(|(long, content)| {
            let algorithm = if long {
                Algorithm::Sha512
            } else {
                Algorithm::Sha256
            };
            Digest::of(algorithm, &content)
        });
        prop_oneof![
            Just(Entry::Repo),
            digests.clone().prop_map(Entry::Manifest),
            "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}".prop_map(|tag| Entry::Tag(tag.parse().unwrap())),
            digests.prop_map(Entry::Blob),
        ]
    }

    proptest! {
        #[test]
        fn prints_and_parses(
            host in "[a-z]{1,5}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,5}(/[a-z0-9]{1,5}){0,3}",
            entry in entries(),
        ) {
            let key = RecordKey::new(repo(&format!("{host}/{path}")), entry);
            prop_assert_eq!(key.to_string().parse::<RecordKey>().unwrap(), key);
        }

        #[test]
        fn is_total(text in "(v1/repos/)?[a-z.+]{1,5}/[a-z/_]{0,12}/(_repo|_tags/[a-z#.]{0,3}|.{0,8})") {
            if let Ok(key) = text.parse::<RecordKey>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }

        #[test]
        fn a_flat_digest_parses_back(content in any::<[u8; 4]>()) {
            let digest = Digest::of(Algorithm::Sha512, &content);
            prop_assert_eq!(parse_flat(&flat(&digest)), Some(digest));
            prop_assert_eq!(parse_blob(Algorithm::Sha512, &digest.hex()), Some(digest));
        }
    }
}
