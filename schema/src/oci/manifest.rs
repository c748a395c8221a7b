//! What a cache needs to know of a manifest: its kind, children and subject, read from the raw bytes.
//!
//! The bytes themselves are kept and served as received; nothing here writes a manifest back. A shape that is not
//! known is opaque, not an error: it has no children and is served like any other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Digest, Platform, media_type};

/// The facts of one manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The `mediaType` field, else what the sender's `Content-Type` said.
    pub media_type: String,
    /// Everything that it names, in order: config, layers, or manifests.
    pub children: Vec<Child>,
    /// The manifest that this one refers to.
    pub subject: Option<Digest>,
    /// What it is, for referrers: its `artifactType`, else the media type of its config.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What a child is to its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChildKind {
    /// A manifest of an index.
    Manifest,
    /// The config of an image.
    Config,
    /// A layer of an image, or a blob of an artifact.
    Layer,
}

/// A descriptor that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its place.
    pub kind: ChildKind,
    /// Its content.
    pub digest: Digest,
    /// Its length as the manifest says, bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// For manifests of an index: what they run on.
    pub platform: Option<Platform>,
}

/// Why bytes are not a manifest that can be served.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, nested too deeply, or a field of the wrong shape.
    #[error("the manifest is not valid JSON of a known shape")]
    Json(#[from] serde_json::Error),
    /// Deeper than any real manifest.
    #[error("the manifest nests more than {max} levels deep", max = Manifest::MAX_DEPTH)]
    TooDeep,
    /// Docker schema 1, whose digest is not the hash of its bytes.
    #[error(
        "the manifest has the obsolete Docker schema 1 format; push the image again with a current client"
    )]
    Schema1,
    /// The field and the header contradict each other.
    #[error("the manifest says it is {field}, the Content-Type says {header}")]
    MediaType {
        /// What the bytes say.
        field: String,
        /// What the header says.
        header: String,
    },
    /// More children than any real image has.
    #[error("the manifest names {0} children; at most {max} are accepted", max = Manifest::MAX_CHILDREN)]
    TooManyChildren(usize),
}

impl Manifest {
    /// Most descriptors in one manifest: an order of magnitude above real images (H-35).
    pub const MAX_CHILDREN: usize = 10_000;

    /// Deepest nesting of objects and lists, whatever the field (H-35): clients' parsers have limits too.
    pub const MAX_DEPTH: usize = 128;

    /// Reads the facts.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let header = content_type
            .map(media_type::essence)
            .filter(|header| !is_generic(header));
        if let Some(media_type::DOCKER_SCHEMA1 | media_type::DOCKER_SCHEMA1_SIGNED) =
            header.as_deref()
        {
            return Err(ManifestError::Schema1);
        }
        if depth(bytes) > Self::MAX_DEPTH {
            return Err(ManifestError::TooDeep);
        }
        let raw: Raw =
            serde_json::from_slice(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))?;
        if raw.schema_version == Some(1) {
            return Err(ManifestError::Schema1);
        }
        let media_type = match (&raw.media_type, header) {
            (Some(field), Some(header)) if *field != header => {
                return Err(ManifestError::MediaType {
                    field: field.clone(),
                    header,
                });
            }
            (Some(field), _) => field.clone(),
            (None, Some(header)) => header,
            (None, None) => raw.guessed_media_type().to_owned(),
        };
        let artifact_type = raw
            .artifact_type
            .clone()
            .or_else(|| raw.config.as_ref().map(|config| config.media_type.clone()));
        let children = raw.children();
        if children.len() > Self::MAX_CHILDREN {
            return Err(ManifestError::TooManyChildren(children.len()));
        }
        Ok(Self {
            media_type,
            children,
            subject: raw.subject.map(|subject| subject.digest),
            artifact_type,
            annotations: raw.annotations.unwrap_or_default(),
        })
    }

    /// Is it an index, whose children are manifests?
    pub fn is_index(&self) -> bool {
        media_type::is_index(&self.media_type)
    }
}

/// Types that say nothing about which manifest it is.
fn is_generic(essence: &str) -> bool {
    matches!(
        essence,
        "" | "application/json" | "text/plain" | media_type::OCTET_STREAM
    )
}

/// How deep brackets nest outside of strings. The parser skips unknown fields at any depth, so it does not tell.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    /// Of the retired OCI artifact manifest.
    blobs: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

impl Raw {
    fn guessed_media_type(&self) -> &'static str {
        if self.manifests.is_some() {
            media_type::OCI_INDEX
        } else if self.config.is_some() || self.layers.is_some() {
            media_type::OCI_MANIFEST
        } else {
            "application/json"
        }
    }

    fn children(&self) -> Vec<Child> {
        let list = |kind, descriptors: &[RawDescriptor]| -> Vec<Child> {
            descriptors
                .iter()
                .map(|descriptor| descriptor.to_child(kind))
                .collect()
        };
        let mut children = list(
            ChildKind::Manifest,
            self.manifests.as_deref().unwrap_or_default(),
        );
        children.extend(
            self.config
                .iter()
                .map(|config| config.to_child(ChildKind::Config)),
        );
        children.extend(list(
            ChildKind::Layer,
            self.layers.as_deref().unwrap_or_default(),
        ));
        children.extend(list(
            ChildKind::Layer,
            self.blobs.as_deref().unwrap_or_default(),
        ));
        children
    }
}

impl RawDescriptor {
    fn to_child(&self, kind: ChildKind) -> Child {
        Child {
            kind,
            digest: self.digest,
            size: self.size,
            media_type: self.media_type.clone(),
            platform: self.platform.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn image() -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{LAYER}","size":2}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{LAYER}","size":0,"unknown":[1]}}]}}"#
        )
    }

    #[test]
    fn reads_an_image() {
        let manifest = Manifest::parse(
            image().as_bytes(),
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
        )
        .unwrap();
        assert_eq!(manifest.media_type, media_type::OCI_MANIFEST);
        let kinds: Vec<_> = manifest.children.iter().map(|child| child.kind).collect();
        assert_eq!(kinds, [ChildKind::Config, ChildKind::Layer]);
        assert_eq!(
            manifest.artifact_type.as_deref(),
            Some("application/vnd.oci.image.config.v1+json")
        );
    }

    #[test]
    fn reads_an_index_with_platforms_and_a_subject() {
        let text = format!(
            r#"{{"mediaType":"{}","manifests":[{{"digest":"{LAYER}","size":7,"platform":{{"os":"linux","architecture":"arm64"}}}}],
            "subject":{{"digest":"{LAYER}"}}}}"#,
            media_type::OCI_INDEX
        );
        let manifest = Manifest::parse(text.as_bytes(), None).unwrap();
        assert!(manifest.is_index());
        assert_eq!(
            manifest.children[0].platform.as_ref().unwrap().to_string(),
            "linux/arm64"
        );
        assert_eq!(manifest.subject, Some(LAYER.parse().unwrap()));
        assert_eq!(manifest.artifact_type, None);
    }

    #[test]
    fn an_unknown_shape_is_opaque() {
        let manifest = Manifest::parse(
            br#"{"hello":"world"}"#,
            Some("application/vnd.example+json"),
        )
        .unwrap();
        assert!(manifest.children.is_empty());
        assert_eq!(manifest.media_type, "application/vnd.example+json");
    }

    /// H-16: odd but legal JSON is served, so it must be read.
    #[rstest::rstest]
    #[case("\u{feff}{\"mediaType\":\"a/b\"}\n")]
    #[case(" { \"mediaType\" : \"a/b\" } ")]
    fn h16_reads_odd_json(#[case] text: &str) {
        assert_eq!(
            Manifest::parse(text.as_bytes(), None).unwrap().media_type,
            "a/b"
        );
    }

    /// H-35: depth and width are bounded.
    #[test]
    fn h35_refuses_bombs() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let deep = format!(r#"{{"annotations":null,"x":{deep}}}"#);
        assert!(matches!(
            Manifest::parse(deep.as_bytes(), None),
            Err(ManifestError::TooDeep)
        ));
        let brackets_in_text = format!(r#"{{"mediaType":"a/b","x":"\"{}"}}"#, "[".repeat(1000));
        assert!(Manifest::parse(brackets_in_text.as_bytes(), None).is_ok());
        let layer = format!(r#"{{"digest":"{LAYER}"}}"#);
        let wide = format!(
            r#"{{"layers":[{}]}}"#,
            vec![layer; Manifest::MAX_CHILDREN + 1].join(",")
        );
        assert!(matches!(
            Manifest::parse(wide.as_bytes(), None),
            Err(ManifestError::TooManyChildren(_))
        ));
    }

    /// H-42: schema 1 is recognised by header and by body.
    #[test]
    fn h42_knows_schema_1() {
        assert!(matches!(
            Manifest::parse(b"{}", Some(media_type::DOCKER_SCHEMA1_SIGNED)),
            Err(ManifestError::Schema1)
        ));
        assert!(matches!(
            Manifest::parse(br#"{"schemaVersion":1}"#, None),
            Err(ManifestError::Schema1)
        ));
    }

    proptest::proptest! {
        /// H-35: total, whatever an upstream sends.
        #[test]
        fn h35_total_on_bytes(bytes: Vec<u8>, header in proptest::option::of(".{0,60}")) {
            let _ = Manifest::parse(&bytes, header.as_deref());
        }

        #[test]
        fn h35_total_on_near_manifests(
            text in r#"(\{|\[|"layers":|"config":|"digest":|"sha256:[a-f0-9]{64}"|"size":|-?[0-9]{1,20}|null|,|\}|\]|"[a-z]{0,4}"){0,40}"#,
        ) {
            let _ = Manifest::parse(text.as_bytes(), None);
        }
    }

    #[rstest::rstest]
    #[case(b"".as_slice())]
    #[case(b"<html>")]
    #[case(b"[]")]
    #[case(br#"{"layers":[{"digest":"sha256:1"}]}"#)]
    fn refuses(#[case] bytes: &[u8]) {
        assert!(matches!(
            Manifest::parse(bytes, None),
            Err(ManifestError::Json(_))
        ));
    }

    #[test]
    fn a_contradicting_header_is_refused() {
        let error = Manifest::parse(br#"{"mediaType":"a/b"}"#, Some("c/d")).unwrap_err();
        assert!(matches!(error, ManifestError::MediaType { .. }));
    }
}
