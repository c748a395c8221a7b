//! Tags (distribution specification, "Pulling manifests").

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Arc<str>);

/// The text is not a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tag has 1 to 128 letters, digits, '.', '_' or '-', and does not start with '.' or '-'")]
pub struct TagError;

impl Tag {
    /// The tag that an image reference without one means.
    pub fn latest() -> Self {
        Self("latest".into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let bytes = text.as_bytes();
        let valid = bytes.len() <= 128
            && bytes.first().is_some_and(|byte| word(*byte))
            && bytes
                .iter()
                .all(|byte| word(*byte) || matches!(byte, b'.' | b'-'));
        valid.then(|| Self(text.into())).ok_or(TagError)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Tag {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("latest", true)]
    #[case("V1.2-rc_3", true)]
    #[case("_x", true)]
    #[case("", false)]
    #[case(".x", false)]
    #[case("-x", false)]
    #[case("a/b", false)]
    #[case("a:b", false)]
    fn grammar(#[case] text: &str, #[case] valid: bool) {
        assert_eq!(text.parse::<Tag>().is_ok(), valid);
    }

    #[test]
    fn is_bounded() {
        assert!("a".repeat(128).parse::<Tag>().is_ok());
        assert!("a".repeat(129).parse::<Tag>().is_err());
    }
}
