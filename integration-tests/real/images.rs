//! The images every client pulls: generated content, the same in every test of a run.

use bytes::Bytes;
use coral_schema::oci::digest::Digest;
use serde_json::{Value, json};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI: [&str; 3] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar",
];
const DOCKER: [&str; 3] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar",
];

/// An image with everything a test compares. The bytes of its blobs are gone once it is seeded.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) repository: &'static str,
    /// What the tag resolves to comes last; the children of an index before it.
    pub(crate) manifests: Vec<Manifest>,
    /// Configs and layers with their sizes.
    pub(crate) blobs: Vec<(Digest, u64)>,
}

/// One manifest or index.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Bytes,
}

/// What a daemon on this machine pulls of a multi-platform image.
pub(crate) const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// The tag of every image.
pub(crate) const TAG: &str = "1";

impl Image {
    /// `repository:tag`, as it stands after a host.
    pub(crate) fn name(&self) -> String {
        format!("{}:{TAG}", self.repository)
    }

    /// The digest its tag resolves to.
    pub(crate) fn digest(&self) -> &Digest {
        &self.manifests.last().unwrap().digest
    }

    /// Its largest blob, and that blob's size.
    pub(crate) fn largest(&self) -> &(Digest, u64) {
        self.blobs.iter().max_by_key(|(_, size)| size).unwrap()
    }
}

/// An image being made: the image and the bytes of its blobs.
pub(crate) struct Draft {
    pub(crate) image: Image,
    pub(crate) content: Vec<Bytes>,
}

impl Draft {
    /// Two platforms of two small layers each, under an OCI index.
    pub(crate) fn multi_platform(repository: &'static str) -> Self {
        Self::platforms(repository, &["amd64", "arm64"])
    }

    /// The same of any platforms.
    pub(crate) fn platforms(repository: &'static str, architectures: &[&str]) -> Self {
        let mut draft = Self::empty(repository);
        let mut children = Vec::new();
        for architecture in architectures {
            let layers = noise(repository, architecture, &[40_000, 70_000]);
            let mut child = draft.platform(architecture, OCI, layers, &json!({}));
            child["platform"] = json!({ "os": "linux", "architecture": architecture });
            children.push(child);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children });
        draft.manifest(OCI_INDEX, &index);
        draft
    }

    /// One platform in Docker's older media types.
    pub(crate) fn docker(repository: &'static str, layers: &[usize]) -> Self {
        let mut draft = Self::empty(repository);
        let layers = noise(repository, ARCHITECTURE, layers);
        draft.platform(ARCHITECTURE, DOCKER, layers, &json!({}));
        draft
    }

    /// One platform in OCI media types.
    pub(crate) fn oci(repository: &'static str, layers: &[usize]) -> Self {
        let mut draft = Self::empty(repository);
        let layers = noise(repository, ARCHITECTURE, layers);
        draft.platform(ARCHITECTURE, OCI, layers, &json!({}));
        draft
    }

    /// One platform in OCI media types that runs: a static program, and a layer of so many bytes that no other
    /// repository or revision has.
    pub(crate) fn program(
        repository: &'static str,
        program: &[u8],
        revision: u32,
        size: usize,
    ) -> Self {
        let mut draft = Self::empty(repository);
        let mut layers = noise(repository, &format!("r{revision}"), &[size]);
        let executable = tar("program", 0o755, program.len(), |archive| {
            archive.extend_from_slice(program);
        });
        layers.push(executable);
        let config = json!({ "Entrypoint": ["/program"] });
        draft.platform(ARCHITECTURE, OCI, layers, &config);
        draft
    }

    fn empty(repository: &'static str) -> Self {
        let image = Image {
            repository,
            manifests: Vec::new(),
            blobs: Vec::new(),
        };
        Self {
            image,
            content: Vec::new(),
        }
    }

    fn platform(
        &mut self,
        architecture: &str,
        [manifest, config, layer]: [&'static str; 3],
        layers: Vec<Vec<u8>>,
        run: &Value,
    ) -> Value {
        let layers = layers.into_iter().map(|bytes| self.blob(layer, bytes));
        let layers: Vec<Value> = layers.collect();
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let image = json!({
            "architecture": architecture, "os": "linux", "config": run,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(config, image.to_string().into_bytes());
        let body = json!({ "schemaVersion": 2, "mediaType": manifest, "config": config, "layers": layers });
        self.manifest(manifest, &body)
    }

    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::sha256(&bytes);
        let descriptor =
            json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() });
        self.image.blobs.push((digest, bytes.len() as u64));
        self.content.push(bytes.into());
        descriptor
    }

    fn manifest(&mut self, media_type: &'static str, body: &Value) -> Value {
        let bytes = Bytes::from(body.to_string());
        let digest = Digest::sha256(&bytes);
        let descriptor =
            json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() });
        self.image.manifests.push(Manifest {
            digest,
            media_type,
            bytes,
        });
        descriptor
    }
}

/// Uncompressed layers with one file of noise each: what is unpacked is what was sent, and nothing can be compressed away.
fn noise(repository: &str, variant: &str, sizes: &[usize]) -> Vec<Vec<u8>> {
    let layers = sizes.iter().enumerate().map(|(number, &size)| {
        let seed = format!("{repository} {variant} {number}");
        let name = format!("{}.bin", seed.replace([' ', '/'], "-"));
        tar(&name, 0o644, size, |archive| {
            let end = archive.len() + size;
            let mut noise = Noise::new(&seed);
            while archive.len() < end {
                archive.extend_from_slice(&noise.next().to_le_bytes());
            }
            archive.truncate(end);
        })
    });
    layers.collect()
}

/// A layer with one file, which `fill` appends.
fn tar(name: &str, mode: u32, size: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut field =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    field(0, name);
    field(100, &format!("{mode:07o}"));
    field(108, "0000000");
    field(116, "0000000");
    field(124, &format!("{size:011o}"));
    field(136, "00000000000");
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());

    let end = size.next_multiple_of(512);
    let mut archive = Vec::with_capacity(512 + end + 1024);
    archive.extend_from_slice(&header);
    fill(&mut archive);
    archive.resize(512 + end + 1024, 0);
    archive
}

/// xorshift64*: fast noise, the same for the same seed.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: &str) -> Self {
        let start = Digest::sha256(seed.as_bytes());
        Self(u64::from_le_bytes(start.bytes()[..8].try_into().unwrap()) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
