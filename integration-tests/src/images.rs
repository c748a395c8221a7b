//! Images for tests: small manifests with layers of any size, whose bytes are computed where they are needed.

mod content;

use std::sync::Arc;

use bytes::Bytes;
use coral_schema::oci::{Digest, media_type};
use serde_json::json;

pub use content::{Content, mix};

/// Bytes with a digest and a type: a manifest, a config or a layer.
#[derive(Debug, Clone)]
pub struct Blob {
    /// The digest of the content.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// The bytes.
    pub content: Content,
}

impl Blob {
    /// A blob of these bytes.
    pub fn new(media_type: &str, content: Content) -> Self {
        Self {
            digest: content.digest(),
            media_type: media_type.to_owned(),
            content,
        }
    }

    /// A layer of `length` bytes; the same seed and length give the same bytes.
    pub fn layer(seed: u64, length: u64) -> Self {
        Self::new(LAYER, Content::generated(seed, length))
    }

    /// Its length, bytes.
    pub fn size(&self) -> u64 {
        self.content.len()
    }

    fn descriptor(&self) -> serde_json::Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.size() })
    }
}

/// A manifest with everything that it names. An index has children, an image has blobs.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest or index itself.
    pub manifest: Blob,
    /// Config first, then the layers in order.
    pub blobs: Vec<Blob>,
    /// The manifests of an index.
    pub children: Vec<Arc<Image>>,
}

impl Image {
    /// An image for linux/amd64 with one layer for each of `sizes`, bytes.
    pub fn new(seed: u64, sizes: &[u64]) -> Self {
        Self::for_platform(seed, "linux/amd64", sizes)
    }

    /// An image for a platform like `linux/arm64`.
    pub fn for_platform(seed: u64, platform: &str, sizes: &[u64]) -> Self {
        let layers = sizes
            .iter()
            .enumerate()
            .map(|(number, &size)| Blob::layer(seed.wrapping_mul(1000) + number as u64, size))
            .collect();
        Self::with_layers(platform, layers)
    }

    /// An image of these layers.
    pub fn with_layers(platform: &str, layers: Vec<Blob>) -> Self {
        let (os, architecture) = platform.split_once('/').unwrap_or(("linux", platform));
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest).collect();
        let config = json!({
            "os": os, "architecture": architecture, "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = Blob::new(CONFIG, Content::of(config.to_string()));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let mut blobs = vec![config];
        blobs.extend(layers);
        Self {
            manifest: Blob::new(media_type::OCI_MANIFEST, Content::of(manifest.to_string())),
            blobs,
            children: Vec::new(),
        }
    }

    /// An index with one image for each platform, every one with layers of its own of these sizes.
    pub fn multi_platform(seed: u64, platforms: &[&str], sizes: &[u64]) -> Self {
        let children: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(number, platform)| {
                let seed = seed.wrapping_mul(100) + number as u64;
                Arc::new(Self::for_platform(seed, platform, sizes))
            })
            .collect();
        let manifests: Vec<_> = platforms
            .iter()
            .zip(&children)
            .map(|(platform, child)| {
                let (os, architecture) = platform.split_once('/').unwrap_or(("linux", platform));
                let mut descriptor = child.manifest.descriptor();
                descriptor["platform"] = json!({ "os": os, "architecture": architecture });
                descriptor
            })
            .collect();
        let index = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests,
        });
        Self {
            manifest: Blob::new(media_type::OCI_INDEX, Content::of(index.to_string())),
            blobs: Vec::new(),
            children,
        }
    }

    /// An artifact that refers to `subject`, with one small layer.
    pub fn referrer(seed: u64, subject: &Blob, artifact_type: &str) -> Self {
        let config = Blob::new("application/vnd.oci.empty.v1+json", Content::of("{}"));
        let layer = Blob::new(artifact_type, Content::generated(seed, 128));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": artifact_type,
            "config": config.descriptor(), "layers": [layer.descriptor()],
            "subject": subject.descriptor(), "annotations": { "seed": seed.to_string() },
        });
        Self {
            manifest: Blob::new(media_type::OCI_MANIFEST, Content::of(manifest.to_string())),
            blobs: vec![config, layer],
            children: Vec::new(),
        }
    }

    /// A manifest of exactly these bytes, well formed or not, that brings no blobs of its own.
    pub fn raw(media_type: &str, manifest: impl Into<Bytes>) -> Self {
        Self {
            manifest: Blob::new(media_type, Content::of(manifest)),
            blobs: Vec::new(),
            children: Vec::new(),
        }
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> Digest {
        self.manifest.digest
    }

    /// The layers, in order.
    pub fn layers(&self) -> &[Blob] {
        self.blobs.get(1..).unwrap_or_default()
    }

    /// Bytes of the manifest, its children and all blobs.
    pub fn size(&self) -> u64 {
        let blobs: u64 = self.blobs.iter().map(Blob::size).sum();
        let children: u64 = self.children.iter().map(|child| child.size()).sum();
        self.manifest.size() + blobs + children
    }
}

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Uncompressed, so that no client tries to decode what is only random.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[cfg(test)]
mod tests {
    use coral_schema::oci::Manifest;

    use super::*;

    #[test]
    fn an_image_names_its_blobs_and_an_index_its_images() {
        let index = Image::multi_platform(7, &["linux/amd64", "linux/arm64"], &[10, 3 << 20]);
        let parsed = Manifest::parse(&index.manifest.content.read_all(), None).unwrap();
        assert_eq!(parsed.children.len(), 2);
        let image = &index.children[1];
        let parsed = Manifest::parse(&image.manifest.content.read_all(), None).unwrap();
        let named: Vec<_> = parsed.children.iter().map(|child| child.digest).collect();
        let held: Vec<_> = image.blobs.iter().map(|blob| blob.digest).collect();
        assert_eq!(named, held);
        assert_ne!(
            index.children[0].layers()[0].digest,
            image.layers()[0].digest
        );
    }
}
