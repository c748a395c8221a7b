//! The registry behind ours: distribution, seeded once per run, with its own log as the witness of what was asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coral_schema::oci::Digest;
use reqwest::header::{CONTENT_TYPE, LOCATION};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::clients::{Client, Crane};
use crate::cluster::namespaces::Namespaces;
use crate::coral::{Config, Coral};
use crate::harness::{self, Process};
use crate::images::{Draft, Image, TAG};
use crate::token::{self, TokenService};

mod certificates;

pub(crate) use self::certificates::Certificates;

/// What every upstream of this run holds.
pub(crate) struct Seed {
    storage: PathBuf,
    /// Two platforms under an index.
    pub(crate) small: Image,
    /// Twenty layers, in Docker's media types.
    pub(crate) twenty: Image,
    /// One layer of 256 MiB.
    pub(crate) big: Image,
    /// One layer of 100 MiB.
    pub(crate) hundred: Image,
    /// Anonymous callers of an upstream with a token service may not have it.
    pub(crate) private: Image,
}

impl Seed {
    /// The images that every client pulls.
    pub(crate) fn pulled(&self) -> [&Image; 3] {
        [&self.small, &self.twenty, &self.big]
    }
}

/// The images, made and pushed when first asked for.
pub(crate) async fn seed() -> &'static Seed {
    static SEED: OnceCell<Seed> = OnceCell::const_new();
    SEED.get_or_init(push_all).await
}

async fn push_all() -> Seed {
    let storage = harness::scratch().keep();
    let upstream = Upstream::of(&storage).await;
    Seed {
        small: upstream.push(Draft::multi_platform("team/small")).await,
        twenty: upstream
            .push(Draft::docker("team/twenty", &[512 << 10; 20]))
            .await,
        big: upstream.push(Draft::oci("team/big", &[256 << 20])).await,
        hundred: upstream
            .push(Draft::oci("team/hundred", &[100 << 20]))
            .await,
        private: upstream
            .push(Draft::oci("private/small", &[30_000, 50_000]))
            .await,
        storage,
    }
}

/// A running distribution.
pub(crate) struct Upstream {
    process: Process,
    scheme: &'static str,
    host: &'static str,
    port: u16,
    tokens: Option<TokenService>,
    _folder: TempDir,
}

/// How one distribution differs from another; sections of its configuration are YAML.
struct Shape {
    folder: TempDir,
    scheme: &'static str,
    maintenance: &'static str,
    tls: String,
    auth: String,
    tokens: Option<TokenService>,
    host: &'static str,
    port: u16,
    /// The network that `host` is in, if not this machine's own.
    network: Option<Namespaces>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            folder: harness::scratch(),
            scheme: "http",
            // Many upstreams of a run serve one folder.
            maintenance: "  maintenance: { readonly: { enabled: true } }\n",
            tls: String::new(),
            auth: String::new(),
            tokens: None,
            host: "127.0.0.1",
            port: harness::free_port(),
            network: None,
        }
    }
}

impl Shape {
    /// Over TLS, in another network.
    fn within(network: Namespaces, host: &'static str, certificate: &(PathBuf, PathBuf)) -> Self {
        Self {
            scheme: "https",
            tls: tls(&certificate.0, &certificate.1),
            host,
            port: 443,
            network: Some(network),
            ..Self::default()
        }
    }
}

impl Upstream {
    /// Open to everybody, over plain HTTP.
    pub(crate) async fn plain() -> Self {
        Self::start(&seed().await.storage, Shape::default()).await
    }

    /// Asks for bearer tokens of a token service on another port.
    pub(crate) async fn with_tokens() -> Self {
        let mut shape = Shape::default();
        let (tokens, auth) = TokenService::start(shape.folder.path()).await;
        (shape.tokens, shape.auth) = (Some(tokens), auth);
        Self::start(&seed().await.storage, shape).await
    }

    /// Over TLS; returns the file with the private CA that signed its certificate.
    pub(crate) async fn with_tls() -> (Self, PathBuf) {
        let mut shape = Shape {
            scheme: "https",
            ..Shape::default()
        };
        let of = Certificates::create(shape.folder.path(), &["localhost", "127.0.0.1"]);
        shape.tls = tls(&of.certificate, &of.key);
        (
            Self::start(&seed().await.storage, shape).await,
            of.authority,
        )
    }

    /// Over plain HTTP, of a folder of the test's own; takes pushes.
    pub(crate) async fn of(storage: &Path) -> Self {
        let shape = Shape {
            maintenance: "",
            ..Shape::default()
        };
        Self::start(storage, shape).await
    }

    /// Of the same folder, at port 443 of an address in another network, with this certificate and key.
    pub(crate) async fn within(
        network: Namespaces,
        host: &'static str,
        storage: &Path,
        certificate: &(PathBuf, PathBuf),
    ) -> Self {
        let shape = Shape::within(network, host, certificate);
        Self::start(storage, shape).await
    }

    /// The same at port 8443, for nobody but the accounts in a file as `htpasswd` writes it, whatever is in it by then.
    pub(crate) async fn guarded(
        network: Namespaces,
        host: &'static str,
        storage: &Path,
        certificate: &(PathBuf, PathBuf),
        accounts: &Path,
    ) -> Self {
        let accounts = accounts.display();
        let shape = Shape {
            port: 8443,
            auth: format!("auth: {{ htpasswd: {{ realm: team, path: {accounts} }} }}\n"),
            ..Shape::within(network, host, certificate)
        };
        Self::start(storage, shape).await
    }

    async fn start(storage: &Path, shape: Shape) -> Self {
        let Shape {
            folder,
            scheme,
            maintenance,
            tls,
            auth,
            tokens,
            host,
            port,
            network,
        } = shape;
        let config = format!(
            "version: 0.1\nlog: {{ level: warn, accesslog: {{ disabled: false }} }}\n\
             storage:\n  filesystem: {{ rootdirectory: {} }}\n{maintenance}\
             http:\n  addr: {host}:{port}\n  secret: tests\n  draintimeout: 10s\n{tls}{auth}",
            storage.display()
        );
        let config = harness::write(folder.path(), "config.yml", &config);
        let mut command = harness::command(harness::tool("CORAL_REAL_DISTRIBUTION"));
        command
            .arg("serve")
            .arg(config)
            .env("OTEL_TRACES_EXPORTER", "none");
        if let Some(network) = network {
            command = network.enter(&command);
        }
        let process = Process::spawn("distribution", command, &folder.path().join("log"));
        let process = process
            .ready(async || match network {
                Some(network) => network.listens(port).await,
                None => TcpStream::connect((host, port)).await.is_ok(),
            })
            .await;
        Self {
            process,
            scheme,
            host,
            port,
            tokens,
            _folder: folder,
        }
    }

    /// Its value in the `upstreams` of our configuration; `more` are further keys, each ending with a comma.
    pub(crate) fn configured(&self, more: &str) -> String {
        let tokens = self.tokens.as_ref();
        let realm = tokens.map_or(String::new(), |tokens| {
            format!("tokenRealms: [\"127.0.0.1:{}\"], ", tokens.port)
        });
        let plain = if self.scheme == "http" {
            "plainHttp: true, "
        } else {
            ""
        };
        format!("{{ {more} {realm}{plain}endpoints: [\"{}\"] }}", self.url())
    }

    /// Its address, without a path.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}:{}", self.scheme, self.host, self.port)
    }

    /// Stops it in mid-body, as a network that goes silent.
    pub(crate) fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Ends it after it has logged what it was doing.
    pub(crate) async fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.ended(Duration::from_secs(30)).await;
    }

    /// Answered GETs of a blob: status and bytes sent of each, in the order they ended.
    pub(crate) fn fetches(&self, digest: &Digest) -> Vec<(u16, u64)> {
        let path = format!("/blobs/{digest} HTTP/");
        let log = self.process.log();
        let answered = log.lines().filter(|line| line.contains("\"GET /v2/"));
        let answered = answered.filter_map(|line| status_and_bytes(line.split_once(&path)?.1));
        answered.filter(|(status, _)| *status < 300).collect()
    }

    /// All requests it has answered so far.
    pub(crate) fn requests(&self) -> usize {
        self.process.log().matches(" /v2/").count()
    }

    /// Asserts that each blob of the image was fetched whole, once, whoever asked for it.
    pub(crate) fn assert_each_blob_once(&self, image: &Image) {
        for (digest, size) in &image.blobs {
            let fetches = self.fetches(digest);
            assert_eq!(
                fetches,
                [(200, *size)],
                "fetches of {digest} of {}",
                image.repository
            );
        }
    }

    /// Makes an image its content, under its tag.
    pub(crate) async fn push(&self, draft: Draft) -> Image {
        let client = reqwest::Client::new();
        let repository = format!("{}/v2/{}", self.url(), draft.image.repository);
        for ((digest, _), content) in draft.image.blobs.iter().zip(draft.content) {
            let begun = client
                .post(format!("{repository}/blobs/uploads/"))
                .send()
                .await
                .unwrap();
            let upload = begun.error_for_status().unwrap().headers()[LOCATION]
                .to_str()
                .unwrap()
                .to_owned();
            let put = client
                .put(format!("{upload}&digest={digest}"))
                .body(content)
                .send()
                .await
                .unwrap();
            put.error_for_status().unwrap();
        }
        let last = draft.image.manifests.len() - 1;
        for (number, manifest) in draft.image.manifests.iter().enumerate() {
            let name = if number == last {
                TAG.to_owned()
            } else {
                manifest.digest.to_string()
            };
            let put = client
                .put(format!("{repository}/manifests/{name}"))
                .header(CONTENT_TYPE, manifest.media_type);
            put.body(manifest.bytes.clone())
                .send()
                .await
                .unwrap()
                .error_for_status()
                .unwrap();
        }
        draft.image
    }
}

/// What stands after the request in a line of the combined log format: `1.1" 200 1234 "" "agent"`.
fn status_and_bytes(rest: &str) -> Option<(u16, u64)> {
    let mut words = rest.split(' ').skip(1);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

fn tls(certificate: &Path, key: &Path) -> String {
    format!(
        "  tls: {{ certificate: {}, key: {} }}\n",
        certificate.display(),
        key.display()
    )
}

#[tokio::test]
async fn a_token_service_is_asked_anonymously_for_what_is_public() {
    let upstream = Upstream::with_tokens().await;
    let coral = Coral::start(Config::new("upstream.test", &upstream.configured(""))).await;
    Crane(&coral).pull(&seed().await.small).await.unwrap();
}

#[tokio::test]
async fn our_credential_opens_a_private_repository_only_when_it_is_shared() {
    let upstream = Upstream::with_tokens().await;
    let folder = harness::scratch();
    let password = harness::write(folder.path(), "password", token::PASSWORD);
    let credentials = format!(
        "credentials: [{{ prefix: \"private\", username: {}, passwordFile: {} }}],",
        token::USER,
        password.display()
    );
    let private = &seed().await.private;

    let closed = Coral::start(Config::new(
        "upstream.test",
        &upstream.configured(&credentials),
    ))
    .await;
    let refused = Crane(&closed).pull(private).await.unwrap_err();
    assert!(!refused.contains(token::PASSWORD), "{refused}");

    let shared = upstream.configured(&format!("{credentials} visibility: shared,"));
    let shared = Coral::start(Config::new("upstream.test", &shared)).await;
    Crane(&shared).pull(private).await.unwrap();
    assert!(
        !shared.log().contains(token::PASSWORD),
        "the log holds the password"
    );
}

#[tokio::test]
async fn a_private_ca_is_trusted_when_it_is_configured() {
    let (upstream, ca) = Upstream::with_tls().await;
    let trusting = upstream.configured(&format!("tls: {{ ca: {} }},", ca.display()));
    let coral = Coral::start(Config::new("upstream.test", &trusting)).await;
    Crane(&coral).pull(&seed().await.small).await.unwrap();
}
