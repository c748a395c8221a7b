//! Pulls like a node: a manifest, of an index the entry for one platform, then config and layers, each checked.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use coral_schema::oci::{Digest, media_type};
use http::HeaderMap;
use serde_json::Value;

use crate::client::Connection;

/// Pulls an image for linux/amd64 (or the first entry of an index without it) and checks the digest of every piece.
/// Answers the digests of the blobs, config first.
pub async fn pull(
    address: SocketAddr,
    repository: &str,
    reference: &str,
) -> anyhow::Result<Vec<Digest>> {
    let mut connection = Connection::open(address).await?;
    let mut manifest = manifest(&mut connection, repository, reference).await?;
    if let Some(children) = manifest["manifests"].as_array() {
        let child = children
            .iter()
            .find(|child| child["platform"]["architecture"] == "amd64")
            .or(children.first())
            .context("an index without entries")?;
        let digest = child["digest"].as_str().context("an entry has a digest")?;
        manifest = self::manifest(&mut connection, repository, digest).await?;
    }
    let mut pulled = Vec::new();
    let layers = manifest["layers"].as_array().into_iter().flatten();
    for descriptor in std::iter::once(&manifest["config"]).chain(layers) {
        let digest: Digest = serde_json::from_value(descriptor["digest"].clone())?;
        pull_blob(&mut connection, repository, &digest).await?;
        pulled.push(digest);
    }
    Ok(pulled)
}

/// A manifest whose bytes are what its digest says.
async fn manifest(
    connection: &mut Connection,
    repository: &str,
    reference: &str,
) -> anyhow::Result<Value> {
    let path = format!("/v2/{repository}/manifests/{reference}");
    let accept = [("accept", media_type::ACCEPT_MANIFESTS)];
    let mut reply = connection.get(&path, &accept).await?;
    anyhow::ensure!(reply.status == 200, "{reference}: {}", reply.status);
    let bytes = connection.read_all(&mut reply).await?;
    let said = reply.header("docker-content-digest");
    let computed = Digest::sha256(&bytes).to_string();
    anyhow::ensure!(said == computed, "{reference}: {said}, but {computed}");
    if reference.contains(':') {
        anyhow::ensure!(reference == computed, "{reference}: other bytes");
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// GETs a whole blob and checks its digest.
pub async fn pull_blob(
    connection: &mut Connection,
    repository: &str,
    digest: &Digest,
) -> anyhow::Result<()> {
    let path = format!("/v2/{repository}/blobs/{digest}");
    let mut reply = connection.get(&path, &[]).await?;
    anyhow::ensure!(reply.status == 200, "{digest}: {}", reply.status);
    let computed = connection.hash(&mut reply).await;
    let computed = computed.with_context(|| format!("reading {digest}"))?;
    anyhow::ensure!(computed == *digest, "{digest}: the bytes are {computed}");
    Ok(())
}

/// What a client got for one request.
#[derive(Debug)]
pub struct Got {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, or what came of it.
    pub body: Bytes,
    /// Did the body end as its head had promised?
    pub clean: bool,
}

impl Got {
    /// A header's text; the empty text when it is absent.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Is it what a client must never believe to be a blob: anything but 200 with a clean end?
    pub fn is_refusal(&self) -> bool {
        self.status != 200 || !self.clean
    }
}

/// One GET on a connection of its own, read to its end. Fails only when not even a head came.
pub async fn get(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<Got> {
    let mut connection = Connection::open(address).await?;
    let mut reply = connection.get(path, headers).await?;
    let mut body = BytesMut::new();
    let clean = loop {
        match connection.chunk(&mut reply).await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    Ok(Got {
        status: reply.status,
        headers: reply.headers,
        body: body.freeze(),
        clean,
    })
}

/// Waits until `condition` holds; fails, naming `what`, when it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let reached = tokio::time::timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(LOOK).await;
        }
    });
    assert!(reached.await.is_ok(), "never: {what}");
}

/// Far beyond what a loaded machine needs; only failing tests wait for it.
pub const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);
