//! Promise 1, one download, and promise 2, first pull as fast as direct: the client has bytes while the upstream still
//! holds the rest back.

use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::Image;
use coral_integration_tests::registry::configuration;
use coral_integration_tests::upstream::{Fault, Gate, Kind, Upstream, When};
use coral_schema::oci::Digest;

async fn pull(cache: &Cache, repository: &str, reference: &str) -> anyhow::Result<Vec<Digest>> {
    let mut connection = Connection::open(cache.address()).await?;
    let path = format!("/v2/{repository}/manifests/{reference}");
    let mut reply = connection.get(&path, &[]).await?;
    anyhow::ensure!(reply.status == 200, "manifest: {}", reply.status);
    let manifest = connection.read_all(&mut reply).await?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let mut pulled = Vec::new();
    let layers = manifest["layers"].as_array().into_iter().flatten();
    for descriptor in std::iter::once(&manifest["config"]).chain(layers) {
        let digest: Digest = serde_json::from_value(descriptor["digest"].clone())?;
        let mut reply = connection
            .get(&format!("/v2/{repository}/blobs/{digest}"), &[])
            .await?;
        anyhow::ensure!(reply.status == 200, "blob: {}", reply.status);
        anyhow::ensure!(connection.hash(&mut reply).await? == digest, "wrong bytes");
        pulled.push(digest);
    }
    Ok(pulled)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pull_needs_no_upstream() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::new(1, &[300_000, 5]);
    upstream.publish("team/app", "v1", &image);
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    let first = pull(&cache, "team/app", "v1").await?;
    let asked = upstream.requests(&When::any());
    assert_eq!(
        asked,
        1 + first.len() as u64,
        "one GET for each piece, and nothing else"
    );
    assert_eq!(pull(&cache, "team/app", "v1").await?, first);
    assert_eq!(
        upstream.requests(&When::any()),
        asked,
        "everything came from the cache"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_has_bytes_while_the_upstream_holds_the_rest_back() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::new(2, &[3 << 20]);
    upstream.publish("team/app", "v1", &image);
    let layer = &image.layers()[0];
    let gate = Gate::new();
    upstream.always(When::blob(&layer.digest), Fault::new().hold(&gate, 1 << 20));
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    let mut connection = Connection::open(cache.address()).await?;
    let mut reply = connection.get("/v2/team/app/manifests/v1", &[]).await?;
    connection.read_all(&mut reply).await?;
    let mut reply = connection
        .get(&format!("/v2/team/app/blobs/{}", layer.digest), &[])
        .await?;
    let mut received = 0;
    while received < 1 << 20 {
        received += connection.chunk(&mut reply).await?.expect("more").len();
    }
    gate.open();
    let rest = connection.discard(&mut reply).await?;
    assert_eq!(received as u64 + rest, layer.size());
    assert_eq!(upstream.requests(&When::kind(Kind::Blob)), 1);
    Ok(())
}
