//! Promise 7, never leaking, for what this registry decides itself: who logs in, and who may pull, push and delete what.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "access/changes.rs"]
mod changes;
#[path = "access/logins.rs"]
mod logins;
#[path = "access/rights.rs"]
mod rights;
#[path = "access/secrets.rs"]
mod secrets;
#[path = "access/tokens.rs"]
mod tokens;
#[path = "access/upstreams.rs"]
mod upstreams;

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coral_integration_tests::ask::json;
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::Got;
use coral_integration_tests::push::send;
use coral_schema::oci::Digest;
use http::Method;
use tempfile::TempDir;

const CI: (&str, &str) = ("ci", "sesame-of-ci");
const DEV: (&str, &str) = ("dev", "sesame-of-dev");
const DEPLOY: &str = "deploy-0123456789abcdef";
const READER: &str = "reader-0123456789abcdef";

/// The passwords of [`CI`] and [`DEV`], with the least cost that bcrypt knows.
const HTPASSWD: &str = "\
ci:$2b$04$ANyRcm3w0renMBRfid5Y9uF1Iba/CmiCQZo/QfFq2M0niHTyUHbJ.
dev:$2b$04$PFB7TuO169XDYhqP438hhOr5qixd8GhaK6J2PD.HRZkA6OEChySju
";

/// Below `open` everybody pulls; of `team` somebody different does everything.
const RULES: &str = "\
access:
  - { subjects: [anonymous], repositories: [\"open/**\"], verbs: [pull] }
  - { subjects: [authenticated], repositories: [\"team/shared/*\"], verbs: [pull] }
  - { subjects: [\"user:ci\"], repositories: [\"team/**\", \"open/**\"], verbs: [pull, push] }
  - { subjects: [\"token:deploy\"], repositories: [team/app], verbs: [pull, delete] }
  - { subjects: [\"user:dev\"], repositories: [team/drop], verbs: [push] }
";

/// A registry with users and rules, and images that `ci` has pushed: `team/app:v1`, `team/shared/x:v1` and `open/app:v1`.
struct Scene {
    cache: Cache,
    secrets: TempDir,
    image: Image,
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        Self::with(RULES).await
    }

    /// With this further configuration.
    async fn with(more: &str) -> anyhow::Result<Self> {
        let secrets = tempfile::tempdir()?;
        let tokens = format!(
            "deploy: {DEPLOY}\nreader: {}\n",
            Digest::sha256(READER.as_bytes())
        );
        std::fs::write(secrets.path().join("htpasswd"), HTPASSWD)?;
        std::fs::write(secrets.path().join("tokens.yaml"), tokens)?;
        let cache = Cache::start(&(configuration(secrets.path()) + more)).await?;
        let image = Image::new(1, &[1000]);
        let scene = Self {
            cache,
            secrets,
            image,
        };
        for repository in ["team/app", "team/shared/x", "open/app"] {
            scene.push(repository, &basic(CI)).await;
        }
        Ok(scene)
    }

    async fn ask(&self, method: Method, path: &str, authorization: &str) -> Got {
        let sent = [("authorization", authorization)];
        let headers = if authorization.is_empty() {
            &[][..]
        } else {
            &sent
        };
        send(self.cache.address(), (method, path), headers, b"")
            .await
            .unwrap()
    }

    async fn get(&self, path: &str, authorization: &str) -> Got {
        self.ask(Method::GET, path, authorization).await
    }

    /// Begins an upload.
    async fn begin(&self, repository: &str, authorization: &str) -> Got {
        let path = format!("/v2/{repository}/blobs/uploads/");
        self.ask(Method::POST, &path, authorization).await
    }

    /// Pushes the image; every step has to be accepted.
    async fn push(&self, repository: &str, authorization: &str) {
        let headers = [
            ("authorization", authorization),
            ("content-type", self.image.manifest.media_type.as_str()),
        ];
        for blob in &self.image.blobs {
            let path = format!("/v2/{repository}/blobs/uploads/?digest={}", blob.digest);
            let content = blob.content.read_all();
            let got = send(
                self.cache.address(),
                (Method::POST, &path),
                &headers,
                &content,
            )
            .await;
            assert_eq!(got.unwrap().status, 201);
        }
        let path = format!("/v2/{repository}/manifests/v1");
        let manifest = self.image.manifest.content.read_all();
        let got = send(
            self.cache.address(),
            (Method::PUT, &path),
            &headers,
            &manifest,
        )
        .await;
        assert_eq!(got.unwrap().status, 201);
    }

    /// What `/token` gives for these scopes, as an `Authorization`.
    async fn token(&self, authorization: &str, scopes: &[&str]) -> String {
        let mut path = "/token?service=coral-registry".to_owned();
        for scope in scopes {
            path.extend(["&scope=", scope]);
        }
        bearer(&self.get(&path, authorization).await)
    }

    fn layer(&self) -> Digest {
        self.image.layers()[0].digest
    }
}

fn configuration(secrets: &Path) -> String {
    let path = secrets.display();
    format!(
        "hosted: [{{ prefix: team }}, {{ prefix: open }}]\nusers: {{ htpasswd: {path}/htpasswd, tokens: {path}/tokens.yaml }}\n"
    )
}

fn basic((user, password): (&str, &str)) -> String {
    format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("{user}:{password}"))
    )
}

fn bearer(got: &Got) -> String {
    assert_eq!(got.status, 200, "{:?}", got.body);
    format!("Bearer {}", json(got)["token"].as_str().unwrap())
}
