//! The cache, as a node asks it: does it answer, and does it hold an image?
//!
//! A question is what the pull would ask, with `Cache-Control: only-if-cached`: 200 means stored or on its way, anything
//! else that a pull through the cache would wait or fail.

use std::time::Duration;

use coral_schema::crd::node_cache::Mirror;
use coral_schema::oci::manifest::{Child, ChildKind, Manifest};
use coral_schema::oci::{Digest, ImageReference, ManifestRef, Platform, media_type};
use futures::{StreamExt as _, stream};
use reqwest::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use reqwest::{Certificate, Client, ClientBuilder, Method, Response, StatusCode, redirect};
use url::Url;

use crate::execute::{CacheUnreachable, Held};

/// On the cluster's network a cache that works connects in milliseconds.
const CONNECT: Duration = Duration::from_secs(2);
/// One answer, body included: manifests are small, and nothing is fetched from an upstream.
const ANSWER: Duration = Duration::from_secs(5);
/// A probe is due every 5 s.
const PROBE: Duration = Duration::from_secs(3);
/// All questions for one image.
const WALK: Duration = Duration::from_secs(30);
/// Questions at once for the blobs of one image.
const AT_ONCE: usize = 8;
/// The registry's own limit of a manifest, bytes.
const LONGEST_MANIFEST: usize = 8 << 20;
/// An index, its images, and whatever somebody nested below; more is hostile.
const MOST_MANIFESTS: usize = 16;

/// A client of the cache that a spec names.
#[derive(Debug)]
pub struct Cache {
    client: Client,
    base: Url,
    platform: Platform,
}

/// The spec's address or certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadMirror {
    /// Not a URL of scheme, host and port.
    #[error("spec.mirror.url is no URL: {0}")]
    Url(#[from] url::ParseError),
    /// No PEM certificates, or none that a client takes.
    #[error("spec.mirror.caBundle cannot be used: {0}")]
    Authority(#[from] reqwest::Error),
}

impl Cache {
    /// Touches no network.
    pub fn new(mirror: &Mirror) -> Result<Self, BadMirror> {
        let authorities = match &mirror.ca_bundle {
            Some(bundle) => Certificate::from_pem_bundle(bundle.as_bytes())?,
            None => Vec::new(),
        };
        Ok(Self {
            client: client(&authorities)?,
            base: mirror.url.parse()?,
            platform: own_platform(),
        })
    }

    /// Does it answer? Unauthorized is an answer.
    pub async fn is_alive(&self) -> bool {
        let mut url = self.base.clone();
        url.set_path("/v2/");
        let answer = self.client.get(url).timeout(PROBE).send().await;
        answer.is_ok_and(|answer| {
            matches!(answer.status(), StatusCode::OK | StatusCode::UNAUTHORIZED)
        })
    }

    /// Does it hold what this node would pull, or does it fetch that right now?
    pub async fn holds(&self, image: &ImageReference) -> Result<Held, CacheUnreachable> {
        let walk = tokio::time::timeout(WALK, self.walk(image));
        match walk.await {
            Ok(Ok(())) => Ok(Held::Complete),
            Ok(Err(Missing::NotHeld)) => Ok(Held::Absent),
            Ok(Err(Missing::NoAnswer(cause))) => Err(CacheUnreachable(cause)),
            Err(_) => Err(CacheUnreachable(format!(
                "not all answers within {} s",
                WALK.as_secs()
            ))),
        }
    }

    /// The manifest, of an index those for this platform, then config and layers.
    async fn walk(&self, image: &ImageReference) -> Result<(), Missing> {
        let mut blobs: Vec<Digest> = Vec::new();
        let mut waiting = vec![image.manifest_ref()];
        let mut seen = Vec::new();
        while let Some(reference) = waiting.pop() {
            if seen.contains(&reference) {
                continue;
            }
            if seen.len() == MOST_MANIFESTS {
                return Err(Missing::NoAnswer(
                    "the index names too many manifests".to_owned(),
                ));
            }
            let manifest = self.manifest(image, &reference).await?;
            seen.push(reference);
            let (below, own) = self.wanted(manifest.children);
            if below.is_empty() && own.is_empty() {
                return Err(Missing::NotHeld);
            }
            waiting.extend(below.iter().map(|child| ManifestRef::Digest(child.digest)));
            blobs.extend(own.into_iter().map(|child| child.digest));
        }
        let heads = blobs.into_iter().map(|blob| self.blob(image, blob));
        let mut heads = stream::iter(heads).buffer_unordered(AT_ONCE);
        while let Some(held) = heads.next().await {
            held?;
        }
        Ok(())
    }

    /// Manifests for this platform, and blobs. A manifest without a platform may be for any.
    fn wanted(&self, children: Vec<Child>) -> (Vec<Child>, Vec<Child>) {
        let (manifests, blobs): (Vec<_>, Vec<_>) = children
            .into_iter()
            .partition(|child| child.kind == ChildKind::Manifest);
        let for_us = |child: &Child| {
            let platform = child.platform.as_ref();
            platform.is_none_or(|platform| self.platform.accepts(platform))
        };
        (manifests.into_iter().filter(for_us).collect(), blobs)
    }

    async fn manifest(
        &self,
        image: &ImageReference,
        reference: &ManifestRef,
    ) -> Result<Manifest, Missing> {
        let answer = self
            .ask(Method::GET, image, &format!("manifests/{reference}"))
            .await?;
        let content_type = answer.headers().get(CONTENT_TYPE);
        let content_type = content_type
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let body = bounded(answer).await?;
        Manifest::parse(&body, content_type.as_deref())
            .map_err(|error| Missing::NoAnswer(error.to_string()))
    }

    async fn blob(&self, image: &ImageReference, blob: Digest) -> Result<(), Missing> {
        let path = format!("blobs/{blob}");
        self.ask(Method::HEAD, image, &path).await.map(|_| ())
    }

    /// As containerd asks a mirror: the registry stands in `ns`.
    async fn ask(
        &self,
        method: Method,
        image: &ImageReference,
        path: &str,
    ) -> Result<Response, Missing> {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{}/{path}", image.repository));
        url.query_pairs_mut().append_pair("ns", &image.host);
        let request = self
            .client
            .request(method, url)
            .header(CACHE_CONTROL, "only-if-cached")
            .header(ACCEPT, media_type::ACCEPT_MANIFESTS);
        let answer = request.send().await.map_err(|error| no_answer(&error))?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::GATEWAY_TIMEOUT => Err(Missing::NotHeld),
            StatusCode::NOT_FOUND => Err(Missing::NoAnswer(format!(
                "it says that it does not serve {}/{}",
                image.host, image.repository
            ))),
            status => Err(Missing::NoAnswer(format!("it says {status}"))),
        }
    }
}

enum Missing {
    NotHeld,
    NoAnswer(String),
}

/// Without the address: it is the cache's, and the cause says more.
fn no_answer(error: &reqwest::Error) -> Missing {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Missing::NoAnswer(cause.to_string())
}

async fn bounded(mut answer: Response) -> Result<Vec<u8>, Missing> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| no_answer(&error))? {
        if body.len() + chunk.len() > LONGEST_MANIFEST {
            return Err(Missing::NoAnswer("a manifest is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Any variant: the runtime chooses among those that the cache holds.
fn own_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: None,
    }
}

/// A machine without certificate authorities (a scratch image) makes even plain HTTP fail to build: then those that come
/// with us are used.
fn client(authorities: &[Certificate]) -> reqwest::Result<Client> {
    let configured = builder().tls_certs_merge(authorities.iter().cloned());
    if let Ok(client) = configured.build() {
        return Ok(client);
    }
    let own = webpki_root_certs::TLS_SERVER_ROOT_CERTS
        .iter()
        .filter_map(|der| Certificate::from_der(der).ok());
    builder()
        .tls_certs_only(own.chain(authorities.iter().cloned()))
        .build()
}

fn builder() -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("coral-warmer/", env!("CARGO_PKG_VERSION")))
        // The runtime goes to the cache without a proxy, too.
        .no_proxy()
        .redirect(redirect::Policy::none())
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .connect_timeout(CONNECT)
        .timeout(ANSWER)
        .http1_only()
}
