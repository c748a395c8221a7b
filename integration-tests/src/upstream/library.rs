//! The images that the upstream has.

use std::collections::{BTreeMap, VecDeque};

use coral_schema::oci::{Digest, Manifest};
use serde_json::json;

use crate::images::{Blob, Image};

/// All repositories by name.
#[derive(Debug, Default)]
pub(super) struct Library {
    repositories: BTreeMap<String, Repository>,
}

/// One repository. Keys are digests and tags as clients write them.
#[derive(Debug, Default)]
pub(super) struct Repository {
    pub(super) blobs: BTreeMap<String, Blob>,
    manifests: BTreeMap<String, Blob>,
    /// Each request for a tag is answered with its first digest, which then goes to the end.
    tags: BTreeMap<String, VecDeque<Digest>>,
}

impl Library {
    pub(super) fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub(super) fn existing(&mut self, name: &str) -> Option<&mut Repository> {
        self.repositories.get_mut(name)
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.repositories.remove(name);
    }
}

impl Repository {
    /// Adds manifests and blobs, children included.
    pub(super) fn add(&mut self, image: &Image) {
        let manifest = &image.manifest;
        self.manifests
            .insert(manifest.digest.to_string(), manifest.clone());
        for blob in &image.blobs {
            self.blobs.insert(blob.digest.to_string(), blob.clone());
        }
        image.children.iter().for_each(|child| self.add(child));
    }

    pub(super) fn tag(&mut self, tag: &str, digests: VecDeque<Digest>) {
        self.tags.insert(tag.to_owned(), digests);
    }

    /// Forgets a tag, a manifest or a blob.
    pub(super) fn remove(&mut self, reference: &str) {
        self.tags.remove(reference);
        self.manifests.remove(reference);
        self.blobs.remove(reference);
    }

    /// The manifest that a tag or digest stands for at this moment.
    pub(super) fn manifest(&mut self, reference: &str) -> Option<Blob> {
        if let Some(digests) = self.tags.get_mut(reference) {
            let now = *digests.front()?;
            digests.rotate_left(1);
            return self.manifests.get(&now.to_string()).cloned();
        }
        self.manifests.get(reference).cloned()
    }

    /// At most `limit` tags behind `last`, and whether there are more.
    pub(super) fn tags(&self, last: &str, limit: usize) -> (Vec<&str>, bool) {
        let mut behind = self.tags.keys().map(String::as_str).filter(|t| *t > last);
        let page = behind.by_ref().take(limit).collect();
        (page, behind.next().is_some())
    }

    /// An index of everything whose subject is `digest`.
    pub(super) fn referrers(&self, digest: &str, artifact_type: Option<&str>) -> String {
        let descriptors: Vec<_> = self
            .manifests
            .values()
            .filter_map(|blob| {
                let manifest = Manifest::parse(&blob.content.read_all(), None).ok()?;
                let refers = manifest.subject.is_some_and(|s| s.to_string() == digest);
                let wanted =
                    artifact_type.is_none() || artifact_type == manifest.artifact_type.as_deref();
                (refers && wanted).then(|| {
                    json!({
                        "mediaType": blob.media_type, "digest": blob.digest, "size": blob.size(),
                        "artifactType": manifest.artifact_type, "annotations": manifest.annotations,
                    })
                })
            })
            .collect();
        let media_type = coral_schema::oci::media_type::OCI_INDEX;
        json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": descriptors }).to_string()
    }
}
