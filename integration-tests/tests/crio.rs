//! CRI-O's requests (those of containers/image, as skopeo 1.9 and the sources of 5.36 send them) against the registry: the
//! registry's name stands in the path, nothing says `ns`, tags are fetched without a HEAD before.

use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::{Connection, Reply};
use coral_integration_tests::images::Image;
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::{Upstream, When};
use coral_schema::mirror_config::{self, Registry, crio};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// In one header each.
const ACCEPTED: [&str; 6] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
];

const ALWAYS: [(&str, &str); 3] = [
    ("User-Agent", "cri-o/1.34.1 go/go1.24.6 os/linux arch/amd64"),
    ("Docker-Distribution-Api-Version", "registry/2.0"),
    ("Accept-Encoding", "gzip"),
];

/// Each on a connection of its own.
async fn get(cache: &Cache, path: &str, more: &[(&str, &str)]) -> anyhow::Result<(Reply, Vec<u8>)> {
    let mut connection = Connection::open(cache.address()).await?;
    let headers = [&ALWAYS[..], more].concat();
    let mut reply = connection.get(path, &headers).await?;
    let body = connection.read_all(&mut reply).await?;
    Ok((reply, body.to_vec()))
}

/// Where the drop-in leads for an image of the upstream, without the cache's address.
fn location(cache: &Cache) -> anyhow::Result<String> {
    let registry = Registry {
        host: UPSTREAM_NAME.parse()?,
        aliases: Vec::new(),
        plain_http: false,
    };
    let mirror: mirror_config::Cache = format!("http://{}", cache.address()).parse()?;
    let text = crio(&mirror, &[registry]).content;
    let location = text.lines().find_map(|line| {
        let location = line.strip_prefix("location = \"")?.strip_suffix('"')?;
        location.strip_prefix(&format!("{}/", cache.address()))
    });
    Ok(location.expect("a location at the cache").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_crio_goes_through_the_cache() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::new(1, &[300_000, 5]);
    upstream.publish("team/app", "v1", &image);
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    // An insecure mirror is asked by TLS first. What matters is that this is over at once.
    let mut hello = TcpStream::connect(cache.address()).await?;
    hello
        .write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        .await?;
    let mut answer = Vec::new();
    hello.read_to_end(&mut answer).await?;
    assert!(!answer.starts_with(b"\x16"), "no TLS here");
    let (ping, _) = get(&cache, "/v2/", &[]).await?;
    assert_eq!(ping.status, 200);

    let base = format!("/v2/{}/team/app", location(&cache)?);
    let accept = ACCEPTED.map(|kind| ("Accept", kind));
    for _ in 0..2 {
        let (reply, manifest) = get(&cache, &format!("{base}/manifests/v1"), &accept).await?;
        assert_eq!(reply.status, 200);
        let digest = image.manifest.digest.to_string();
        assert_eq!(reply.header("docker-content-digest"), digest);
        assert_eq!(manifest, image.manifest.content.read_all());
        let by_digest = format!("{base}/manifests/{digest}");
        assert_eq!(get(&cache, &by_digest, &accept).await?.1, manifest);
        for blob in &image.blobs {
            let (reply, bytes) = get(&cache, &format!("{base}/blobs/{}", blob.digest), &[]).await?;
            assert_eq!(
                reply.header("content-encoding"),
                "",
                "gzip is accepted, not wanted"
            );
            assert_eq!(bytes, blob.content.read_all());
        }
    }
    let asked = upstream.requests(&When::any());
    assert_eq!(
        asked,
        1 + image.blobs.len() as u64,
        "the second pull needs nobody"
    );
    Ok(())
}

/// A broken download goes on at its offset; partial pulls of zstd:chunked layers ask for several ranges at once, and take
/// the whole for an answer; a signature that nobody made is not there.
#[tokio::test(flavor = "multi_thread")]
async fn the_rarer_requests_of_crio() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::new(1, &[300_000]);
    upstream.publish("team/app", "v1", &image);
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    let base = format!("/v2/{}/team/app", location(&cache)?);
    get(&cache, &format!("{base}/manifests/v1"), &[]).await?;
    let layer = &image.layers()[0];
    let (blob, content) = (
        format!("{base}/blobs/{}", layer.digest),
        layer.content.read_all(),
    );
    let (rest, bytes) = get(&cache, &blob, &[("Range", "bytes=200000-")]).await?;
    assert_eq!((rest.status, bytes), (206, content[200_000..].to_vec()));
    let (_, whole) = get(&cache, &blob, &[]).await?;
    assert!(whole == content);
    let (several, bytes) = get(&cache, &blob, &[("Range", "bytes=0-9,299000-299999")]).await?;
    assert_eq!(several.status, 206);
    let last = content[299_000..].to_vec();
    assert!(bytes.windows(last.len()).any(|window| window == last));
    let tag = image.manifest.digest.to_string().replace(':', "-");
    let (signature, _) = get(&cache, &format!("{base}/manifests/{tag}.sig"), &[]).await?;
    assert_eq!(signature.status, 404);
    Ok(())
}
