//! What the store says about repositories, manifests and tags: small JSON that a person can read.
//!
//! Each record carries a `version`. A field that we do not know is ignored, so a release may add some; what an older
//! release would misread needs a higher version, which it refuses instead of guessing.

use std::collections::BTreeMap;

use bytes::Bytes;
use coral_schema::oci::manifest::ChildKind;
use coral_schema::oci::{Digest, Platform};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The highest version of records that we read, and the one that we write.
pub const VERSION: u32 = 1;

/// A kind of record. Sealed by being implemented here only.
pub trait Record: Serialize + DeserializeOwned {}

impl Record for RepoRecord {}
impl Record for ManifestRecord {}
impl Record for TagRecord {}

/// `_repo`: what holds for the whole repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepoRecord {
    /// Where its content comes from; never derived from today's configuration.
    pub kind: RepoKind,
    /// Who may read it, once that was found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<Visibility>,
    /// Since when the upstream says that it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<Timestamp>,
}

/// Where a repository's content comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepoKind {
    /// Pushed to us: nobody else has it.
    Hosted,
    /// Pulled through: can be fetched again.
    Proxied,
}

/// Who may read a proxied repository upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Visibility {
    /// Anonymous callers, too?
    pub public: bool,
    /// When this was found out.
    pub checked: Timestamp,
    /// Since when the upstream refuses anonymous callers, while `revokeGrace` lets them go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_since: Option<Timestamp>,
}

/// `_manifests/<alg>-<hex>`: the facts of a manifest, so that the index is rebuilt without parsing its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestRecord {
    /// As served.
    pub media_type: String,
    /// Length, bytes.
    pub size: u64,
    /// What it is, for referrers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifest that it refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// Its annotations, for referrers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What it names, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<ChildRecord>,
    /// Which endpoint it came from, without credentials; none for a push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// When it was stored.
    pub stored: Timestamp,
}

/// A descriptor in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChildRecord {
    /// Its place in the manifest.
    pub kind: ChildKind,
    /// What it names.
    pub digest: Digest,
    /// Its length as the manifest says, bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// What it runs on, for children of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// `_tags/<tag>`: what a tag means. Its digest always has a [`ManifestRecord`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagRecord {
    /// What it means.
    pub digest: Digest,
    /// What it meant before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
    /// The manifest's media type, as served.
    pub media_type: String,
    /// The manifest's length, bytes.
    pub size: u64,
    /// When `digest` last changed.
    pub updated: Timestamp,
    /// When the upstream last confirmed it; written at most hourly.
    pub checked: Timestamp,
    /// Which endpoint said so, without credentials; none for a push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

/// Why bytes are not a record that we understand.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A later release wrote it.
    #[error("the record has version {found}, this release knows versions up to {VERSION}")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// Not JSON, or not of this kind.
    #[error("the record is malformed")]
    Malformed(#[from] serde_json::Error),
}

/// The record as it is stored.
pub fn encode<R: Record>(record: &R) -> Bytes {
    let versioned = Versioned {
        version: VERSION,
        record,
    };
    let mut text = serde_json::to_vec(&versioned).expect("records have string keys only");
    text.push(b'\n');
    text.into()
}

/// Reads a stored record.
pub fn decode<R: Record>(stored: &[u8]) -> Result<R, RecordError> {
    // The version first: a newer record may have lost a field that we would miss.
    let Version { version } = serde_json::from_slice(stored)?;
    if version > VERSION {
        return Err(RecordError::Newer { found: version });
    }
    Ok(serde_json::from_slice(stored)?)
}

#[derive(Serialize)]
struct Versioned<'a, R> {
    version: u32,
    #[serde(flatten)]
    record: &'a R,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn tag() -> TagRecord {
        TagRecord {
            digest: Digest::sha256(b""),
            previous: None,
            media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
            size: 7,
            updated: time("2026-11-20T10:00:00Z"),
            checked: time("2026-11-20T11:00:00Z"),
            origin: Some("https://registry-1.docker.io".to_owned()),
        }
    }

    const TAG: &str = r#"{"version":1,"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","mediaType":"application/vnd.oci.image.index.v1+json","size":7,"updated":"2026-11-20T10:00:00Z","checked":"2026-11-20T11:00:00Z","origin":"https://registry-1.docker.io"}
"#;

    /// Stores in the field hold these bytes: a change needs a new version or a default for what is new.
    #[test]
    fn the_written_form_is_pinned() {
        assert_eq!(encode(&tag()), TAG);
        assert_eq!(decode::<TagRecord>(TAG.as_bytes()).unwrap(), tag());
        let repo = RepoRecord {
            kind: RepoKind::Proxied,
            visibility: Some(Visibility {
                public: true,
                checked: time("2026-11-20T10:00:00Z"),
                refused_since: None,
            }),
            missing_since: None,
        };
        let text = r#"{"version":1,"kind":"proxied","visibility":{"public":true,"checked":"2026-11-20T10:00:00Z"}}"#;
        assert_eq!(encode(&repo), format!("{text}\n"));
        assert_eq!(decode::<RepoRecord>(text.as_bytes()).unwrap(), repo);
    }

    #[test]
    fn a_manifest_record_comes_back() {
        let record = ManifestRecord {
            media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
            size: 512,
            artifact_type: Some("application/vnd.example".to_owned()),
            subject: Some(Digest::sha256(b"subject")),
            annotations: BTreeMap::from([("version".to_owned(), "not ours".to_owned())]),
            children: vec![ChildRecord {
                kind: ChildKind::Manifest,
                digest: Digest::sha256(b"child"),
                size: u64::MAX,
                media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
                platform: Some("linux/arm/v7".parse().unwrap()),
            }],
            origin: None,
            stored: time("2026-11-20T10:00:00Z"),
        };
        assert_eq!(decode::<ManifestRecord>(&encode(&record)).unwrap(), record);
    }

    #[test]
    fn unknown_fields_are_ignored_and_newer_versions_refused() {
        let with_more = TAG.replace("\"size\":7", "\"size\":7,\"later\":{\"x\":[1]}");
        assert_eq!(decode::<TagRecord>(with_more.as_bytes()).unwrap(), tag());
        let newer = decode::<TagRecord>(br#"{"version":2,"digests":[]}"#).unwrap_err();
        assert!(matches!(newer, RecordError::Newer { found: 2 }));
        assert!(newer.to_string().contains("version 2"));
    }

    #[rstest::rstest]
    #[case(b"".as_slice())]
    #[case(b"{}")]
    #[case(b"\0\0\0\0")]
    #[case(br#"{"version":1}"#)]
    #[case(br#"{"version":"1"}"#)]
    fn refuses(#[case] stored: &[u8]) {
        assert!(matches!(
            decode::<TagRecord>(stored),
            Err(RecordError::Malformed(_))
        ));
    }
}
