//! Every way to bring a blob (end-4, end-5, end-6, end-11, end-13, end-14).

use coral_integration_tests::ask::{code, head};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::Content;
use coral_integration_tests::pull::{eventually, get};
use coral_integration_tests::push::{begin, blob, send, stream};
use coral_schema::oci::{Algorithm, Digest};
use http::Method;

use super::registry;

const REPO: &str = "team/app";

async fn assert_held(cache: &Cache, digest: &Digest, content: &[u8]) -> anyhow::Result<()> {
    let path = format!("/v2/{REPO}/blobs/{digest}");
    let got = get(cache.address(), &path, &[]).await?;
    assert_eq!((got.status, got.clean), (200, true));
    assert_eq!(got.header("docker-content-digest"), digest.to_string());
    assert_eq!(got.header("content-length"), content.len().to_string());
    assert!(got.body == content);
    Ok(())
}

/// Every accepted blob leaves no session behind.
fn sessions(cache: &Cache) -> usize {
    std::fs::read_dir(cache.data().join("store/uploads")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request() -> anyhow::Result<()> {
    let cache = registry().await?;
    for content in [
        b"".as_slice(),
        b"{}",
        &Content::generated(1, 3 << 20).read_all(),
    ] {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, content);
            let path = format!("/v2/{REPO}/blobs/uploads/?digest={digest}");
            let got = send(cache.address(), (Method::POST, &path), &[], content).await?;
            assert_eq!(got.status, 201);
            let location = format!("/v2/{REPO}/blobs/{digest}");
            assert_eq!(got.header("location"), location);
            assert_eq!(got.header("docker-content-digest"), digest.to_string());
            assert_held(&cache, &digest, content).await?;
        }
    }
    assert_eq!(sessions(&cache), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_with_all_of_it() -> anyhow::Result<()> {
    let cache = registry().await?;
    let path = format!("/v2/{REPO}/blobs/uploads/");
    let got = send(cache.address(), (Method::POST, &path), &[], b"").await?;
    assert_eq!(got.status, 202);
    assert_eq!(got.header("range"), "0-0");
    let location = got.header("location");
    let content = Content::generated(2, 100_000).read_all();
    let digest = Digest::sha256(&content);
    let ending = format!("{location}?digest={digest}");
    let got = send(cache.address(), (Method::PUT, &ending), &[], &content).await?;
    assert_eq!(got.status, 201);
    assert_held(&cache, &digest, &content).await?;
    let got = get(cache.address(), location, &[]).await?;
    assert_eq!(
        (got.status, code(&got).as_str()),
        (404, "BLOB_UPLOAD_UNKNOWN")
    );
    assert_eq!(sessions(&cache), 0);
    Ok(())
}

/// The algorithm is named at the beginning, or only by the digest at the end.
#[rstest::rstest]
#[case("", Algorithm::Sha256)]
#[case("", Algorithm::Sha512)]
#[case("?digest-algorithm=sha512", Algorithm::Sha512)]
#[case("?digest-algorithm=sha512", Algorithm::Sha256)]
#[tokio::test(flavor = "multi_thread")]
async fn chunks(#[case] query: &str, #[case] algorithm: Algorithm) -> anyhow::Result<()> {
    let cache = registry().await?;
    let content = Content::generated(3, 10_000).read_all();
    let digest = Digest::of(algorithm, &content);
    let path = format!("/v2/{REPO}/blobs/uploads/{query}");
    let got = send(cache.address(), (Method::POST, &path), &[], b"").await?;
    assert_eq!(got.status, 202);
    let location = got.header("location").to_owned();
    for (first, last) in [(0, 3999), (4000, 6999)] {
        let range = format!("{first}-{last}");
        let headers = [("content-range", range.as_str())];
        let chunk = &content[first..=last];
        let got = send(cache.address(), (Method::PATCH, &location), &headers, chunk).await?;
        assert_eq!(got.status, 202);
        assert_eq!(got.header("range"), format!("0-{last}"));
        assert_eq!(got.header("location"), location);
        let got = get(cache.address(), &location, &[]).await?;
        assert_eq!(got.status, 204);
        assert_eq!(got.header("range"), format!("0-{last}"));
        assert_eq!(got.header("location"), location);
    }
    let ending = format!("{location}?digest={digest}");
    let headers = [("content-range", "7000-9999")];
    let got = send(
        cache.address(),
        (Method::PUT, &ending),
        &headers,
        &content[7000..],
    )
    .await?;
    assert_eq!(got.status, 201);
    assert_held(&cache, &digest, &content).await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_without_a_range_or_a_length() -> anyhow::Result<()> {
    let cache = registry().await?;
    let content = Content::generated(4, 3 << 20).read_all();
    let digest = Digest::sha256(&content);
    let location = begin(cache.address(), REPO).await?;
    let half = content.len() / 2;
    for part in [&content[..half], &content[half..]] {
        let got = stream(cache.address(), (Method::PATCH, &location), &[], part).await?;
        assert_eq!(got.status, 202);
    }
    let ending = format!("{location}?digest={digest}");
    let got = send(cache.address(), (Method::PUT, &ending), &[], b"").await?;
    assert_eq!(got.status, 201);
    assert_held(&cache, &digest, &content).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_can_be_cancelled() -> anyhow::Result<()> {
    let cache = registry().await?;
    let location = begin(cache.address(), REPO).await?;
    assert_eq!(sessions(&cache), 1);
    let got = send(cache.address(), (Method::DELETE, &location), &[], b"").await?;
    assert_eq!((got.status, got.body.len()), (204, 0));
    assert_eq!(sessions(&cache), 0);
    for method in [Method::DELETE, Method::GET, Method::PATCH] {
        let got = send(cache.address(), (method, &location), &[], b"").await?;
        assert_eq!(
            (got.status, code(&got).as_str()),
            (404, "BLOB_UPLOAD_UNKNOWN")
        );
    }
    Ok(())
}

/// H-32: who comes second is told how far the first one is; nothing of his gets in between.
#[tokio::test(flavor = "multi_thread")]
async fn h32_one_writer_at_a_time() -> anyhow::Result<()> {
    let cache = registry().await?;
    let location = begin(cache.address(), REPO).await?;
    let mut first = Connection::open(cache.address()).await?;
    let headers = [("content-length", "10")];
    first.begin(&Method::PATCH, &location, &headers).await?;
    first.write(b"first").await?;
    let second = async |range: &str| {
        let headers = [("content-range", range)];
        let got = send(
            cache.address(),
            (Method::PATCH, &location),
            &headers,
            b"second",
        );
        got.await.expect("an answer")
    };
    eventually("the first bytes are counted", async || {
        let status = get(cache.address(), &location, &[]).await;
        status.is_ok_and(|status| status.header("range") == "0-4")
    })
    .await;
    let got = second("5-10").await;
    assert_eq!(
        (got.status, code(&got).as_str()),
        (416, "BLOB_UPLOAD_INVALID")
    );
    assert_eq!(got.header("range"), "0-4");
    assert_eq!(got.header("location"), location);
    let status = get(cache.address(), &location, &[]).await?;
    assert_eq!((status.status, status.header("range")), (204, "0-4"));
    first.write(b" one!").await?;
    let reply = first.reply(&Method::PATCH).await?;
    assert_eq!((reply.status, reply.header("range")), (202, "0-9"));
    let digest = Digest::sha256(b"first one!");
    let ending = format!("{location}?digest={digest}");
    let got = send(cache.address(), (Method::PUT, &ending), &[], b"").await?;
    assert_eq!(got.status, 201);
    assert_held(&cache, &digest, b"first one!").await
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts() -> anyhow::Result<()> {
    let cache = registry().await?;
    let digest = blob(cache.address(), "team/source", b"shared").await?;
    for (repo, from) in [("team/a", "&from=team/source"), ("team/b", "")] {
        let at = format!("/v2/{repo}/blobs/{digest}");
        assert_eq!(head(cache.address(), &at, &[]).await?.status, 404);
        let path = format!("/v2/{repo}/blobs/uploads/?mount={digest}{from}");
        let got = send(cache.address(), (Method::POST, &path), &[], b"").await?;
        assert_eq!((got.status, got.header("location")), (201, at.as_str()));
        assert_eq!(got.header("docker-content-digest"), digest.to_string());
        assert_eq!(get(cache.address(), &at, &[]).await?.body, "shared");
    }
    Ok(())
}

/// What is not there, not in the source, or not ours, is uploaded instead.
#[rstest::rstest]
#[case("team/source", b"elsewhere")]
#[case("team/none", b"shared")]
#[case("docker.io/library/alpine", b"shared")]
#[case("Not A Name", b"shared")]
#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_cannot_be_is_a_session(
    #[case] from: &str,
    #[case] content: &[u8],
) -> anyhow::Result<()> {
    let cache = registry().await?;
    blob(cache.address(), "team/source", b"shared").await?;
    blob(cache.address(), "team/other", b"elsewhere").await?;
    let digest = Digest::sha256(content);
    let from = from.replace(' ', "%20");
    let path = format!("/v2/{REPO}/blobs/uploads/?mount={digest}&from={from}");
    let got = send(cache.address(), (Method::POST, &path), &[], b"").await?;
    assert_eq!(got.status, 202);
    let ending = format!("{}?digest={digest}", got.header("location"));
    let got = send(cache.address(), (Method::PUT, &ending), &[], content).await?;
    assert_eq!(got.status, 201);
    assert_held(&cache, &digest, content).await
}
