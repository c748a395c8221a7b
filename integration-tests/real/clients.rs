//! Clients that copy images without a daemon, and the promises every client is held to.

use std::path::Path;

use coral_schema::mirror_config::{Registry, crio};
use coral_schema::oci::Digest;
use tempfile::TempDir;

use crate::coral::{Coral, UPSTREAM};
use crate::docker::Docker;
use crate::harness::{self, Outcome};
use crate::images::Image;
use crate::upstream::{Upstream, seed};

/// A client that pulls through one registry of ours.
pub(crate) trait Client {
    /// Pulls into an empty place and compares every digest it shows. The error is what the client printed.
    async fn pull(&self, image: &Image) -> Result<(), String>;
}

/// `skopeo copy` into a folder of raw blobs, through the registry at an address.
pub(crate) struct Skopeo(String);

impl Skopeo {
    pub(crate) fn of(coral: &Coral) -> Self {
        Self(coral.address())
    }

    /// Copies any reference into a new folder.
    pub(crate) async fn copy(&self, reference: &str) -> (TempDir, Outcome) {
        let target = harness::scratch();
        let mut command = harness::command("skopeo");
        command.args([
            "--insecure-policy",
            "copy",
            "--all",
            "--preserve-digests",
            "--src-tls-verify=false",
        ]);
        command.arg(format!("docker://{}/{reference}", self.0));
        command.arg(format!("dir:{}", target.path().join("image").display()));
        let outcome = harness::run(command).await;
        (target, outcome)
    }
}

impl Client for Skopeo {
    async fn pull(&self, image: &Image) -> Result<(), String> {
        let (target, outcome) = self.copy(&format!("{UPSTREAM}/{}", image.name())).await;
        outcome.result()?;
        let folder = target.path().join("image");
        assert_file(&folder.join("manifest.json"), image.digest());
        for child in &image.manifests[..image.manifests.len() - 1] {
            let name = format!("{}.manifest.json", child.digest.hex());
            assert_file(&folder.join(name), &child.digest);
        }
        assert_blobs(&folder, image);
        Ok(())
    }
}

/// `skopeo copy` of an image's own name, as the drop-in for CRI-O leads it: the library that reads it is CRI-O's.
struct Mirrored(String);

impl Mirrored {
    /// The registry's own name answers nobody here: only the cache can.
    fn of(coral: &Coral) -> Self {
        let cache = format!("http://{}", coral.address());
        let registry = Registry {
            host: UPSTREAM.parse().expect("a host"),
            aliases: Vec::new(),
            plain_http: false,
        };
        Self(crio(&cache.parse().expect("a URL"), &[registry]).content)
    }
}

impl Client for Mirrored {
    async fn pull(&self, image: &Image) -> Result<(), String> {
        let target = harness::scratch();
        let configuration = target.path().join("registries.conf");
        std::fs::write(&configuration, &self.0).expect("a file in a new folder");
        let mut command = harness::command("skopeo");
        command
            .arg("--registries-conf")
            .arg(configuration)
            .args(["--insecure-policy", "copy", "--all", "--preserve-digests"])
            .arg(format!("docker://{UPSTREAM}/{}", image.name()))
            .arg(format!("dir:{}", target.path().join("image").display()));
        harness::run(command).await.result()?;
        let folder = target.path().join("image");
        assert_file(&folder.join("manifest.json"), image.digest());
        assert_blobs(&folder, image);
        Ok(())
    }
}

/// `crane pull` into an OCI layout.
pub(crate) struct Crane<'a>(pub(crate) &'a Coral);

impl Crane<'_> {
    /// Pulls any reference into a new folder.
    pub(crate) async fn copy(&self, reference: &str) -> (TempDir, Outcome) {
        let target = harness::scratch();
        let mut command = harness::command(harness::tool("CORAL_REAL_CRANE"));
        command
            .args(["pull", "--format=oci"])
            .arg(format!("{}/{reference}", self.0.address()));
        command.arg(target.path().join("layout"));
        let outcome = harness::run(command).await;
        (target, outcome)
    }
}

impl Client for Crane<'_> {
    async fn pull(&self, image: &Image) -> Result<(), String> {
        let (target, outcome) = self.copy(&format!("{UPSTREAM}/{}", image.name())).await;
        outcome.result()?;
        let folder = target.path().join("layout/blobs/sha256");
        for manifest in &image.manifests {
            assert_file(&folder.join(manifest.digest.hex()), &manifest.digest);
        }
        assert_blobs(&folder, image);
        Ok(())
    }
}

fn assert_blobs(folder: &Path, image: &Image) {
    for (digest, _) in &image.blobs {
        assert_file(&folder.join(digest.hex()), digest);
    }
}

fn assert_file(path: &Path, digest: &Digest) {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(&Digest::sha256(&bytes), digest, "{}", path.display());
}

/// What every client is promised: each image cold, then warm without a request for a blob, then without its upstream.
pub(crate) async fn assert_cold_warm_and_cut_off(client: &impl Client, mut upstream: Upstream) {
    for image in seed().await.pulled() {
        client.pull(image).await.unwrap();
        client.pull(image).await.unwrap();
    }
    upstream.stop().await;
    for image in seed().await.pulled() {
        for (digest, size) in &image.blobs {
            let fetches = upstream.fetches(digest);
            let once = fetches.is_empty() || fetches == [(200, *size)];
            assert!(
                once,
                "fetches of {digest} of {}: {fetches:?}",
                image.repository
            );
        }
        client.pull(image).await.unwrap();
    }
}

#[tokio::test]
async fn skopeo_pulls_cold_warm_and_cut_off() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    assert_cold_warm_and_cut_off(&Skopeo::of(&coral), upstream).await;
}

#[tokio::test]
async fn the_drop_in_for_crio_leads_to_the_cache() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    assert_cold_warm_and_cut_off(&Mirrored::of(&coral), upstream).await;
}

#[tokio::test]
async fn crane_pulls_cold_warm_and_cut_off() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    assert_cold_warm_and_cut_off(&Crane(&coral), upstream).await;
}

#[tokio::test]
async fn the_docker_daemon_pulls_cold_warm_and_cut_off() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    let docker = Docker::start(&coral).await;
    assert_cold_warm_and_cut_off(&docker, upstream).await;
}

#[tokio::test]
async fn fifty_cold_pulls_at_once_fetch_each_blob_once() {
    let mut upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    let image = &seed().await.twenty;
    let crane = Crane(&coral);
    let pulls = futures::future::join_all((0..50).map(|_| crane.pull(image))).await;
    for pull in pulls {
        pull.unwrap();
    }
    upstream.stop().await;
    upstream.assert_each_blob_once(image);
}
