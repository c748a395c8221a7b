//! Clients that push: to repositories that are hosted beside what is pulled through.

use std::path::PathBuf;

use coral_schema::oci::Digest;
use serde_json::Value;
use tempfile::TempDir;

use crate::clients::{Client, Crane, Skopeo};
use crate::containerd::{Containerd, Kind};
use crate::coral::{Config, Coral, UPSTREAM};
use crate::docker::Docker;
use crate::harness;
use crate::images::Image;
use crate::upstream::{Upstream, seed};

/// A registry before an upstream that also takes pushes, to everything below `own`.
async fn hosting(upstream: &Upstream) -> Coral {
    let hosted = "hosted: [{ prefix: own }]\nanonymousPush: true\n";
    Coral::start(Config::of(upstream).more(hosted)).await
}

/// The digest that a hosted tag means.
async fn digest(coral: &Coral, repository: &str, tag: &str) -> Option<Digest> {
    let answer = coral
        .get(&format!("own/{repository}/manifests/{tag}"))
        .await;
    let bytes = answer.error_for_status().ok()?.bytes().await.unwrap();
    Some(Digest::sha256(&bytes))
}

/// A hosted image is `image`, with all that it names, byte for byte.
async fn assert_is(coral: &Coral, repository: &str, image: &Image) {
    assert_eq!(digest(coral, repository, "1").await, Some(*image.digest()));
    for manifest in &image.manifests {
        let path = format!("own/{repository}/manifests/{}", manifest.digest);
        let bytes = coral.get(&path).await.bytes().await.unwrap();
        assert_eq!(bytes, manifest.bytes);
    }
    for (blob, _) in &image.blobs {
        let path = format!("own/{repository}/blobs/{blob}");
        let bytes = coral.get(&path).await.bytes().await.unwrap();
        assert_eq!(Digest::sha256(&bytes), *blob);
    }
}

#[tokio::test]
async fn the_docker_daemon_pushes_what_it_pulls_again() {
    let upstream = Upstream::plain().await;
    let coral = hosting(&upstream).await;
    let docker = Docker::start(&coral).await;
    let image = &seed().await.twenty;
    docker.pull(image).await.unwrap();
    let name = coral.own("docker:1");
    docker.docker(&["tag", &image.name(), &name]).await.unwrap();
    let id = ["image", "inspect", "--format", "{{.Id}}"];
    let id = async |name: &str| docker.docker(&[&id[..], &[name]].concat()).await.unwrap();
    let before = id(&name).await;
    let said = docker.docker(&["push", &name]).await.unwrap();
    let pushed = digest(&coral, "docker", "1").await.unwrap().to_string();
    assert!(said.contains(&pushed), "{said} instead of {pushed}");
    for name in [&name, &image.name()] {
        docker
            .docker(&["image", "rm", "--force", name])
            .await
            .unwrap();
    }
    docker.docker(&["pull", &name]).await.unwrap();
    assert_eq!(id(&name).await, before);
}

struct Copied(TempDir);

impl Copied {
    fn layout(&self) -> String {
        format!("oci:{}:1", self.0.path().join("layout").display())
    }
}

async fn skopeo(arguments: &[&str]) -> Result<String, String> {
    let mut command = harness::command("skopeo");
    command.arg("--insecure-policy").args(arguments);
    harness::run(command).await.result()
}

async fn skopeo_copy(from: &str, to: &str) {
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let what = ["copy", "--all", "--preserve-digests", from, to];
    skopeo(&[&what[..1], &insecure, &what[1..]].concat())
        .await
        .unwrap();
}

#[tokio::test]
async fn skopeo_copies_lists_and_deletes() {
    let upstream = Upstream::plain().await;
    let coral = hosting(&upstream).await;
    for (image, repository) in [(&seed().await.small, "small"), (&seed().await.big, "big")] {
        let from = format!("docker://{}", coral.pulled_through(image));
        let to = format!("docker://{}", coral.own(&format!("{repository}:1")));
        skopeo_copy(&from, &to).await;
        assert_is(&coral, repository, image).await;
    }
    let image = &seed().await.small;
    let copied = Copied(harness::scratch());
    let (first, again) = (coral.own("small:1"), coral.own("again:1"));
    skopeo_copy(&format!("docker://{first}"), &copied.layout()).await;
    skopeo_copy(&copied.layout(), &format!("docker://{again}")).await;
    assert_is(&coral, "again", image).await;
    let (_target, outcome) = Skopeo::of(&coral).copy("own/again:1").await;
    outcome.result().unwrap();

    let again = format!("docker://{again}");
    skopeo(&["delete", "--tls-verify=false", &again])
        .await
        .unwrap();
    assert_eq!(digest(&coral, "again", "1").await, None);
    assert_is(&coral, "small", image).await;
}

async fn crane(arguments: &[&str]) -> Result<String, String> {
    let mut command = harness::command(harness::tool("CORAL_REAL_CRANE"));
    command.args(arguments);
    harness::run(command).await.result()
}

#[tokio::test]
async fn crane_pushes_copies_indexes_mutates_and_deletes() {
    let upstream = Upstream::plain().await;
    let coral = hosting(&upstream).await;
    let (small, twenty) = (&seed().await.small, &seed().await.twenty);
    let [copy, pushed, changed, index] =
        ["copy:1", "pushed:1", "pushed:2", "index:1"].map(|name| coral.own(name));
    crane(&["copy", &coral.pulled_through(small), &copy])
        .await
        .unwrap();
    assert_is(&coral, "copy", small).await;

    let name = format!("{UPSTREAM}/{}", twenty.name());
    let (folder, outcome) = Crane(&coral).copy(&name).await;
    outcome.result().unwrap();
    let layout = folder.path().join("layout");
    crane(&["push", layout.to_str().unwrap(), &pushed])
        .await
        .unwrap();
    assert_is(&coral, "pushed", twenty).await;

    let label = ["mutate", &pushed, "--label", "colour=coral", "-t", &changed];
    crane(&label).await.unwrap();
    let config = crane(&["config", &changed]).await.unwrap();
    assert!(config.contains("\"colour\":\"coral\""), "{config}");
    crane(&[
        "index", "append", "-m", &pushed, "-m", &changed, "-t", &index,
    ])
    .await
    .unwrap();
    for image in [&copy, &pushed, &changed, &index] {
        // Fast: else it takes every layer for compressed, and these are not.
        crane(&["validate", "--fast", "--remote", image])
            .await
            .unwrap();
    }
    let repository = coral.own("pushed");
    assert_eq!(crane(&["ls", &repository]).await.unwrap(), "1\n2\n");
    let catalog = crane(&["catalog", &coral.address()]).await.unwrap();
    for repository in ["own/copy\n", "own/index\n", "own/pushed\n"] {
        assert!(catalog.contains(repository), "{catalog}");
    }

    crane(&["delete", &changed]).await.unwrap();
    assert_eq!(crane(&["ls", &repository]).await.unwrap(), "1\n");
    crane(&["digest", &changed]).await.unwrap_err();
    let by_digest = format!("{repository}@{}", twenty.digest());
    crane(&["delete", &by_digest]).await.unwrap();
    crane(&["digest", &by_digest]).await.unwrap_err();
    crane(&["digest", &pushed]).await.unwrap_err();
}

#[tokio::test]
async fn containerd_pushes() {
    let upstream = Upstream::plain().await;
    let coral = hosting(&upstream).await;
    let image = &seed().await.twenty;
    for (kind, name) in [(Kind::Current, "current"), (Kind::Old, "old")] {
        let to = coral.own(&format!("{name}:1"));
        let containerd = Containerd::holding(kind, &coral, image, &to).await;
        let push = ["images", "push", "--plain-http", &to];
        containerd.ctr(&push).await.unwrap();
        assert_is(&coral, name, image).await;
    }
}

/// A client of artifacts, and the files that they are made of.
struct Regctl {
    folder: TempDir,
    address: String,
}

impl Regctl {
    fn of(coral: &Coral) -> Self {
        Self {
            folder: harness::scratch(),
            address: coral.address(),
        }
    }

    async fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = harness::command(harness::tool("CORAL_REAL_REGCTL"));
        command
            .env("REGCTL_CONFIG", self.folder.path().join("config.json"))
            .arg(format!("--host=reg={},tls=disabled", self.address))
            .args(arguments);
        harness::run(command).await.result()
    }

    fn file(&self, content: &str) -> PathBuf {
        harness::write(self.folder.path(), "content", content)
    }

    /// An artifact of one file about `subject`.
    async fn attach(&self, subject: &str, kind: &str, content: &str) {
        let file = self.file(content);
        let file = file.to_str().unwrap();
        let put = ["artifact", "put", "--artifact-type", kind];
        let what = ["--subject", subject, "--file", file];
        self.run(&[&put[..], &what].concat()).await.unwrap();
    }

    /// The descriptors of what refers to `subject`.
    async fn referrers(&self, subject: &str, more: &[&str]) -> Vec<Value> {
        let list = [
            "artifact",
            "list",
            subject,
            "--format",
            "{{json .Descriptors}}",
        ];
        let found = self.run(&[&list[..], more].concat()).await.unwrap();
        serde_json::from_str(&found).unwrap()
    }
}

const SBOM: &str = "application/spdx+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

#[tokio::test]
async fn artifacts_signatures_and_their_subjects() {
    let upstream = Upstream::plain().await;
    let coral = hosting(&upstream).await;
    let (regctl, image) = (Regctl::of(&coral), &seed().await.small);
    let (subject, copy) = (coral.own("app:1"), coral.own("copy:1"));
    crane(&["copy", &coral.pulled_through(image), &subject])
        .await
        .unwrap();

    regctl.attach(&subject, SBOM, "a list of parts").await;
    regctl.attach(&subject, BUNDLE, "a signature").await;
    assert_eq!(regctl.referrers(&subject, &[]).await.len(), 2);
    let filtered = regctl
        .referrers(&subject, &["--filter-artifact-type", SBOM])
        .await;
    assert_eq!(filtered.len(), 1, "{filtered:?}");
    assert_eq!(filtered[0]["artifactType"], SBOM);
    let get = [
        "artifact",
        "get",
        "--subject",
        &subject,
        "--filter-artifact-type",
    ];
    let got = regctl.run(&[&get[..], &[BUNDLE]].concat()).await.unwrap();
    assert_eq!(got, "a signature");

    // Signatures as they were before referrers, under a tag made of the digest.
    let signature = format!("sha256-{}.sig", image.digest().hex());
    let file = regctl.file("a simple signature");
    let put = [
        "artifact",
        "put",
        "--config-type",
        "application/vnd.oci.image.config.v1+json",
    ];
    let tag = coral.own(&format!("app:{signature}"));
    let what = [
        "--file-media-type",
        SIMPLE_SIGNING,
        "--file",
        file.to_str().unwrap(),
        &tag,
    ];
    regctl.run(&[&put[..], &what].concat()).await.unwrap();
    // Referrers need no tag of their own: the registry says that it keeps them (`OCI-Subject`).
    let tags = crane(&["ls", &coral.own("app")]).await.unwrap();
    assert_eq!(tags, format!("1\n{signature}\n"));

    let all = [
        "image",
        "copy",
        "--referrers",
        "--digest-tags",
        &subject,
        &copy,
    ];
    regctl.run(&all).await.unwrap();
    assert_is(&coral, "copy", image).await;
    assert_eq!(regctl.referrers(&copy, &[]).await.len(), 2);
    assert!(digest(&coral, "copy", &signature).await.is_some());
}
