//! What is wrong is refused with the status and the code of the specification, and nothing of it stays.

use std::time::Duration;

use coral_integration_tests::ask::{code, head, json};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::pull::{Got, eventually, get};
use coral_integration_tests::push::{begin, send, stream};
use coral_schema::oci::Digest;
use http::Method;

use super::registry;

const REPO: &str = "team/app";

async fn put(cache: &Cache, location: &str, digest: &Digest, body: &[u8]) -> anyhow::Result<Got> {
    let path = format!("{location}?digest={digest}");
    Ok(send(cache.address(), (Method::PUT, &path), &[], body).await?)
}

fn assert_refused(got: &Got, status: u16, expected: &str) {
    assert_eq!((got.status, code(got).as_str()), (status, expected));
    let message = json(got)["errors"][0]["message"].to_string();
    assert!(message.len() > 20, "a sentence that helps: {message}");
}

/// The session is as it was before, and can be ended well.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_digests_in_each_style() -> anyhow::Result<()> {
    let cache = registry().await?;
    let wrong = Digest::sha256(b"other");
    let path = format!("/v2/{REPO}/blobs/uploads/?digest={wrong}");
    let got = send(cache.address(), (Method::POST, &path), &[], b"content").await?;
    assert_refused(&got, 400, "DIGEST_INVALID");

    let location = begin(cache.address(), REPO).await?;
    let got = put(&cache, &location, &wrong, b"content").await?;
    assert_refused(&got, 400, "DIGEST_INVALID");
    let got = send(cache.address(), (Method::PATCH, &location), &[], b"con").await?;
    assert_eq!(got.header("range"), "0-2");
    let got = put(&cache, &location, &wrong, b"tent").await?;
    assert_refused(&got, 400, "DIGEST_INVALID");
    let got = put(&cache, &location, &wrong, b"").await?;
    assert_refused(&got, 400, "DIGEST_INVALID");
    assert!(cache.stored().is_empty());

    let got = get(cache.address(), &location, &[]).await?;
    assert_eq!((got.status, got.header("range")), (204, "0-2"));
    let got = put(&cache, &location, &Digest::sha256(b"content"), b"tent").await?;
    assert_eq!(got.status, 201);
    let at = format!("/v2/{REPO}/blobs/{wrong}");
    assert_eq!(head(cache.address(), &at, &[]).await?.status, 404);
    cache.assert_sound();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_out_of_order() -> anyhow::Result<()> {
    let cache = registry().await?;
    let location = begin(cache.address(), REPO).await?;
    for (range, received) in [
        ("5-9", "0-0"),
        ("0-4", "0-4"),
        ("0-4", "0-4"),
        ("6-10", "0-4"),
    ] {
        let headers = [("content-range", range)];
        let got = send(
            cache.address(),
            (Method::PATCH, &location),
            &headers,
            b"12345",
        )
        .await?;
        if range == "0-4" && got.status == 202 {
            continue;
        }
        assert_refused(&got, 416, "BLOB_UPLOAD_INVALID");
        assert_eq!(
            (got.header("range"), got.header("location")),
            (received, location.as_str())
        );
    }
    let digest = Digest::sha256(b"1234512345");
    let path = format!("{location}?digest={digest}");
    let headers = [("content-range", "4-8")];
    let got = send(cache.address(), (Method::PUT, &path), &headers, b"12345").await?;
    assert_refused(&got, 416, "BLOB_UPLOAD_INVALID");
    let headers = [("content-range", "5-9")];
    let got = send(cache.address(), (Method::PUT, &path), &headers, b"12345").await?;
    assert_eq!(got.status, 201);
    Ok(())
}

/// Where there is no session, none is named; where somebody writes to one, it is.
#[tokio::test(flavor = "multi_thread")]
async fn h32_a_location_is_named_where_there_is_one() -> anyhow::Result<()> {
    let cache = registry().await?;
    let digest = Digest::sha256(b"12345");
    let path = format!("/v2/{REPO}/blobs/uploads/?digest={digest}");
    let headers = [("content-range", "5-9")];
    let got = send(cache.address(), (Method::POST, &path), &headers, b"12345").await?;
    assert_refused(&got, 416, "BLOB_UPLOAD_INVALID");
    assert!(!got.headers.contains_key("location") && !got.headers.contains_key("range"));

    let location = begin(cache.address(), REPO).await?;
    let mut connection = Connection::open(cache.address()).await?;
    let headers = [("content-length", "100")];
    connection
        .begin(&Method::PATCH, &location, &headers)
        .await?;
    connection.write(b"12345").await?;
    eventually("somebody writes to the session", async || {
        let got = get(cache.address(), &location, &[]).await;
        got.is_ok_and(|got| got.header("range") == "0-4")
    })
    .await;
    let got = send(cache.address(), (Method::DELETE, &location), &[], b"").await?;
    assert_refused(&got, 416, "BLOB_UPLOAD_INVALID");
    assert_eq!(
        (got.header("location"), got.header("range")),
        (location.as_str(), "0-4")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_not_as_long_as_it_says() -> anyhow::Result<()> {
    let cache = registry().await?;
    let location = begin(cache.address(), REPO).await?;
    let session = (Method::PATCH, location.as_str());
    for range in ["0-9", "0-3"] {
        let headers = [("content-range", range)];
        let got = send(cache.address(), session.clone(), &headers, b"12345").await?;
        assert_refused(&got, 400, "SIZE_INVALID");
        let got = stream(cache.address(), session.clone(), &headers, b"12345").await?;
        assert_refused(&got, 400, "SIZE_INVALID");
    }
    for range in ["5-", "x", "9-0"] {
        let headers = [("content-range", range)];
        let got = send(cache.address(), session.clone(), &headers, b"12345").await?;
        assert_eq!(got.status, 400);
    }
    let got = put(&cache, &location, &Digest::sha256(b""), b"").await?;
    assert_eq!(got.status, 201, "nothing of them stayed");
    Ok(())
}

/// A `Content-Length` that lies, or a client that dies: the session has what came, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops() -> anyhow::Result<()> {
    let cache = registry().await?;
    let location = begin(cache.address(), REPO).await?;
    let mut connection = Connection::open(cache.address()).await?;
    let headers = [("content-length", "100"), ("content-range", "0-99")];
    connection
        .begin(&Method::PATCH, &location, &headers)
        .await?;
    connection.write(b"12345").await?;
    drop(connection);
    // By looking: whoever writes meanwhile would have the session, and the chunk would be refused.
    eventually("the session has what came", async || {
        let got = send(cache.address(), (Method::GET, &location), &[], b"").await;
        got.is_ok_and(|got| got.header("range") == "0-4")
    })
    .await;
    eventually("the session is free", async || {
        let headers = [("content-range", "5-6")];
        let got = send(cache.address(), (Method::PATCH, &location), &headers, b"67").await;
        got.is_ok_and(|got| got.status == 202)
    })
    .await;
    let got = put(&cache, &location, &Digest::sha256(b"1234567"), b"").await?;
    assert_eq!(got.status, 201);

    let digest = Digest::sha256(b"whole");
    let path = format!("/v2/{REPO}/blobs/uploads/?digest={digest}");
    let mut connection = Connection::open(cache.address()).await?;
    let headers = [("content-length", "100")];
    connection.begin(&Method::POST, &path, &headers).await?;
    connection.write(b"whole").await?;
    drop(connection);
    let uploads = cache.data().join("store/uploads");
    let is_empty = async || std::fs::read_dir(&uploads).is_ok_and(|mut left| left.next().is_none());
    eventually("nothing of it stays", is_empty).await;
    assert!(!cache.stored().contains_key(&digest));
    Ok(())
}

#[rstest::rstest]
#[case(
    "POST",
    "/v2/team/app/blobs/uploads/?digest=sha256:short",
    400,
    "DIGEST_INVALID"
)]
#[case(
    "POST",
    "/v2/team/app/blobs/uploads/?digest=md5:d41d8cd98f00b204e9800998ecf8427e",
    400,
    "DIGEST_INVALID"
)]
#[case(
    "POST",
    "/v2/team/app/blobs/uploads/?digest-algorithm=md5",
    400,
    "DIGEST_INVALID"
)]
#[case(
    "POST",
    "/v2/team/app/blobs/uploads/?mount=sha256:short",
    400,
    "DIGEST_INVALID"
)]
#[case("POST", "/v2/team/App/blobs/uploads/", 400, "NAME_INVALID")]
#[case("POST", "/v2/team/a..b/blobs/uploads/", 400, "NAME_INVALID")]
#[case("PUT", "/v2/team/app/manifests/-bad", 400, "MANIFEST_INVALID")]
#[case(
    "PUT",
    "/v2/team/app/manifests/sha256:baddigeststring",
    400,
    "DIGEST_INVALID"
)]
#[case("PUT", "/v2/team/app/manifests/v1", 400, "MANIFEST_INVALID")]
#[case(
    "GET",
    "/v2/team/app/blobs/uploads/0123456789abcdef0123456789abcdef",
    404,
    "BLOB_UPLOAD_UNKNOWN"
)]
#[case(
    "PATCH",
    "/v2/team/app/blobs/uploads/0123456789abcdef0123456789abcdef",
    404,
    "BLOB_UPLOAD_UNKNOWN"
)]
#[case(
    "PATCH",
    "/v2/team/app/blobs/uploads/..%2f..",
    404,
    "BLOB_UPLOAD_UNKNOWN"
)]
#[case(
    "PUT",
    "/v2/team/app/blobs/uploads/x?digest=sha256:0",
    404,
    "BLOB_UPLOAD_UNKNOWN"
)]
#[case("DELETE", "/v2/team/app/manifests/none", 404, "MANIFEST_UNKNOWN")]
#[case("GET", "/v2/team/app/manifests/none", 404, "MANIFEST_UNKNOWN")]
#[case("GET", "/v2/team/app/tags/list", 404, "NAME_UNKNOWN")]
#[case("PATCH", "/v2/team/app/manifests/v1", 405, "UNSUPPORTED")]
#[case("PUT", "/v2/team/app/blobs/uploads/", 405, "UNSUPPORTED")]
#[tokio::test(flavor = "multi_thread")]
async fn requests(
    #[case] method: Method,
    #[case] path: &str,
    #[case] status: u16,
    #[case] expected: &str,
) -> anyhow::Result<()> {
    let cache = registry().await?;
    let got = send(cache.address(), (method, path), &[], b"body").await?;
    assert_refused(&got, status, expected);
    assert!(cache.stored().is_empty());
    Ok(())
}

/// A session of one repository is none of another's.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_other_repositories_are_unknown() -> anyhow::Result<()> {
    let cache = registry().await?;
    let location = begin(cache.address(), REPO).await?;
    let other = location.replace("team/app", "team/other");
    let got = get(cache.address(), &other, &[]).await?;
    assert_refused(&got, 404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(get(cache.address(), &location, &[]).await?.status, 204);
    Ok(())
}

/// A client that waits to be told to send is answered at once, and not told so.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_does_not_wait_for_the_body() -> anyhow::Result<()> {
    let cache = registry().await?;
    let mut connection = Connection::open(cache.address()).await?;
    let headers = [("content-length", "1000000000"), ("expect", "100-continue")];
    let path = "/v2/docker.io/library/x/manifests/v1";
    connection.begin(&Method::PUT, path, &headers).await?;
    let reply = connection.reply(&Method::PUT);
    let reply = tokio::time::timeout(Duration::from_secs(10), reply).await??;
    assert_eq!(reply.status, 405);
    Ok(())
}
