//! The client against a small scripted upstream on a real socket.

mod auth;
pub(crate) mod fake;
mod faults;
mod order;
mod redirects;

use std::sync::Arc;
use std::time::Duration;

use coral_schema::oci::{Digest, ManifestRef, RepositoryName};
use coral_schema::process::tasks::Tasks;
use futures::TryStreamExt as _;
use prometheus_client::registry::Registry;

use super::lent::Lent;
use super::*;

/// The silence that is accepted in tests that do not wait for it.
const LONG: Duration = Duration::from_secs(20);

fn config(endpoint: &str) -> UpstreamConfig {
    UpstreamConfig {
        name: "registry.example".parse().unwrap(),
        aliases: Vec::new(),
        endpoints: vec![endpoint.parse().unwrap()],
        token_realms: Vec::new(),
        credentials: Vec::new(),
        policy: Policy {
            allow: Vec::new(),
            deny: Vec::new(),
            tags: Vec::new(),
            stale_if_error: LONG,
            on_missing: OnMissing::Serve,
            revoke_grace: LONG,
            visibility: VisibilityMode::Auto,
        },
        limits: Limits {
            concurrent_transfers: 8,
            requests_per_minute: None,
            bandwidth: None,
            reserve: 20,
        },
        timeouts: Timeouts {
            connect: LONG,
            headers: LONG,
            tag_check: LONG,
            stall: LONG,
            min_rate: 1,
        },
        tls: TlsConfig::default(),
        proxy: None,
        http2: false,
        plain_http: true,
    }
}

/// An upstream with this one endpoint.
pub(crate) fn upstream(endpoint: &str) -> Upstream {
    built(&config(endpoint))
}

fn built(config: &UpstreamConfig) -> Upstream {
    let metrics = UpstreamMetrics::register(&mut Registry::default());
    build(config, &Lent::default(), &metrics, &Tasks::new()).unwrap()
}

fn endpoint(config: &UpstreamConfig) -> Arc<dyn Endpoint> {
    Arc::clone(&built(config).endpoints[0])
}

fn call() -> Call {
    Call {
        priority: Priority::Interactive,
        identity: Identity::Configured,
        step: LONG,
        total: LONG,
    }
}

fn blob_call() -> BlobCall {
    BlobCall {
        priority: watch::channel(Priority::Interactive).1,
        step: LONG,
        total: LONG,
    }
}

fn repository(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

fn tag() -> ManifestRef {
    "latest".parse().unwrap()
}

fn digest() -> Digest {
    Digest::sha256(b"content")
}

async fn manifest(
    endpoint: &dyn Endpoint,
    name: &str,
) -> Result<FetchedManifest, UpstreamErrorKind> {
    endpoint
        .manifest(call(), &repository(name), &tag(), 1000)
        .await
        .map_err(|error| error.kind)
}

async fn blob(
    endpoint: &dyn Endpoint,
    range: Option<ByteRange>,
) -> Result<BlobStream, UpstreamErrorKind> {
    endpoint
        .blob(blob_call(), &repository("a"), &digest(), range)
        .await
        .map_err(|error| error.kind)
}

async fn bytes(stream: BlobStream) -> Result<Vec<u8>, UpstreamErrorKind> {
    let chunks: Vec<_> = stream
        .body
        .try_collect()
        .await
        .map_err(|error: UpstreamError| error.kind)?;
    Ok(chunks.concat())
}
