//! Repository names (distribution specification, "Pulling manifests").

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A repository name without a host: lower-case components joined by `/`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(Arc<str>);

/// The text is not a repository name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a repository name has lower-case components of letters and digits, separated by '.', '_', '__' or '-', joined \
     by '/', {} characters at most",
    RepositoryName::MAX_LEN
)]
pub struct RepositoryNameError;

impl RepositoryName {
    /// Longest name, bytes: the customary limit.
    pub const MAX_LEN: usize = 255;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts between the slashes; at least one.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Is it `prefix`, or below it, by whole components?
    pub fn is_below(&self, prefix: &Self) -> bool {
        let rest = self.0.strip_prefix(prefix.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for RepositoryName {
    type Err = RepositoryNameError;

    fn from_str(text: &str) -> Result<Self, RepositoryNameError> {
        if text.len() <= Self::MAX_LEN && text.split('/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(RepositoryNameError)
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends_well = |byte: Option<&u8>| byte.is_some_and(|byte| alphanumeric(*byte));
    if !ends_well(bytes.first()) || !ends_well(bytes.last()) {
        return false;
    }
    bytes.split(|byte| alphanumeric(*byte)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for RepositoryName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RepositoryName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("library/alpine")]
    #[case("a")]
    #[case("a.b/c_d/e__f/g-h/i--j/0")]
    fn accepts(#[case] text: &str) {
        assert_eq!(text.parse::<RepositoryName>().unwrap().as_str(), text);
    }

    #[rstest::rstest]
    #[case("")]
    #[case("/a")]
    #[case("a/")]
    #[case("a//b")]
    #[case("A")]
    #[case("a..b")]
    #[case("a___b")]
    #[case("a._b")]
    #[case("-a")]
    #[case("a-")]
    #[case("_a")]
    #[case("a/../b")]
    #[case("a%2Fb")]
    #[case("ä")]
    fn refuses(#[case] text: &str) {
        assert_eq!(text.parse::<RepositoryName>(), Err(RepositoryNameError));
    }

    #[test]
    fn is_bounded() {
        assert!("a".repeat(255).parse::<RepositoryName>().is_ok());
        assert!("a".repeat(256).parse::<RepositoryName>().is_err());
    }
}
