//! Platforms: `os/architecture[/variant]`, as users write them and manifests list them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a manifest of an index runs on (image specification, image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, as Go names it.
    pub os: String,
    /// CPU architecture, as Go names it.
    pub architecture: String,
    /// CPU variant, such as `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// The text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a platform looks like linux/amd64 or linux/arm/v7")]
pub struct PlatformError;

impl Platform {
    /// Does a wish for `self` accept content for `other`? A wish without a variant accepts any.
    pub fn accepts(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || self.variant == other.variant)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let word = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| word(part)) {
            return Err(PlatformError);
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(PlatformError),
        };
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .iter()
            .try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_matches() {
        let wish: Platform = "linux/arm".parse().unwrap();
        let v7: Platform = "linux/arm/v7".parse().unwrap();
        assert!(wish.accepts(&v7) && !v7.accepts(&wish));
        assert_eq!(v7.to_string(), "linux/arm/v7");
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/am d64"] {
            assert_eq!(bad.parse::<Platform>(), Err(PlatformError), "{bad}");
        }
    }
}
