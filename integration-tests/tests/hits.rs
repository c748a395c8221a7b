//! What is held, over every kind of connection: over plain HTTP/1.1 the kernel sends it from the files themselves, and
//! nobody may see a difference.

use std::fs::File;

use bytes::Bytes;
use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::Blob;
use coral_integration_tests::pull::{eventually, get};
use coral_integration_tests::registry::configuration;
use coral_integration_tests::upstream::Upstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const REPOSITORY: &str = "team/app";
/// Several times what is sent at once, and an odd rest.
const SIZE: u64 = (5 << 20) + 4711;

/// A cache that holds one blob.
struct Scene {
    cache: Cache,
    path: String,
    content: Bytes,
    blob: Blob,
    _upstream: Upstream,
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        let upstream = Upstream::start().await?;
        let blob = Blob::layer(7, SIZE);
        upstream.add_blob(REPOSITORY, &blob);
        let cache = Cache::start(&configuration(&upstream, "")).await?;
        let path = format!("/v2/{REPOSITORY}/blobs/{}", blob.digest);
        let got = get(cache.address(), &path, &[]).await?;
        assert!(got.clean);
        eventually("it is stored", async || {
            cache.stored().contains_key(&blob.digest)
        })
        .await;
        Ok(Self {
            content: blob.content.read_all(),
            cache,
            path,
            blob,
            _upstream: upstream,
        })
    }

    fn url(&self) -> String {
        format!("http://{}{}", self.cache.address(), self.path)
    }
}

#[tokio::test]
async fn wholes_and_parts_follow_each_other_on_one_connection() {
    let scene = Scene::new().await.unwrap();
    let mut connection = Connection::open(scene.cache.address()).await.unwrap();
    let last = SIZE - 1;
    for (range, first, end) in [
        ("", 0, SIZE),
        ("bytes=1-", 1, SIZE),
        ("bytes=0-1048575", 0, 1 << 20),
        ("bytes=1048575-3145729", (1 << 20) - 1, (3 << 20) + 2),
        ("bytes=5-9", 5, 10),
        ("bytes=-262144", SIZE - (256 << 10), SIZE),
        ("bytes=-262145", SIZE - (256 << 10) - 1, SIZE),
        (&format!("bytes={last}-"), last, SIZE),
        ("", 0, SIZE),
    ] {
        let headers = [("range", range)];
        let headers = &headers[usize::from(range.is_empty())..];
        let mut reply = connection.get(&scene.path, headers).await.unwrap();
        assert_eq!(reply.status, if range.is_empty() { 200 } else { 206 });
        let body = connection.read_all(&mut reply).await.unwrap();
        let expected =
            &scene.content[usize::try_from(first).unwrap()..usize::try_from(end).unwrap()];
        assert!(body == expected, "{range:?}: other bytes");
        // What is not sent from a file stands between them.
        let mut reply = connection.get("/v2/", &[]).await.unwrap();
        assert_eq!(connection.read_all(&mut reply).await.unwrap(), "{}");
    }
}

#[tokio::test]
async fn requests_that_do_not_wait_for_each_other_are_answered_in_order() {
    let scene = Scene::new().await.unwrap();
    let mut stream = TcpStream::connect(scene.cache.address()).await.unwrap();
    let request = |more: &str| {
        format!(
            "GET {} HTTP/1.1\r\nhost: localhost\r\n{more}\r\n",
            scene.path
        )
    };
    let requests = [
        request(""),
        request("range: bytes=1000000-\r\n"),
        request("connection: close\r\n"),
    ];
    stream
        .write_all(requests.concat().as_bytes())
        .await
        .unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    let mut rest = received.as_slice();
    for expected in [
        &scene.content[..],
        &scene.content[1_000_000..],
        &scene.content[..],
    ] {
        let head = rest
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap()
            + 4;
        assert!(rest[head..].starts_with(expected), "other bytes");
        rest = &rest[head + expected.len()..];
    }
    assert!(rest.is_empty());
}

/// Streams of one connection are mixed, in frames: nothing can be put in their place below them.
#[tokio::test]
async fn http2_gets_the_same() {
    let scene = Scene::new().await.unwrap();
    let client = reqwest::Client::builder().http2_prior_knowledge();
    let client = client.build().unwrap();
    let pull = async || {
        let response = client.get(scene.url()).send().await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        response.bytes().await.unwrap()
    };
    let (one, two) = tokio::join!(pull(), pull());
    assert!(one == scene.content && two == scene.content);
}

/// H-43: a file that got shorter ends the connection; nothing is put in the place of what it lacks.
#[tokio::test]
async fn h43_a_file_that_shrinks_while_it_is_sent_breaks_the_answer() {
    let scene = Scene::new().await.unwrap();
    let mut connection = Connection::open(scene.cache.address()).await.unwrap();
    let mut reply = connection.get(&scene.path, &[]).await.unwrap();
    let first = connection.chunk(&mut reply).await.unwrap().unwrap();
    let stored = scene.cache.stored();
    let file = File::options()
        .write(true)
        .open(&stored[&scene.blob.digest]);
    // A page that is cut in two is cleared at once, also where it waits to be sent; so nothing here writes into files.
    file.unwrap().set_len(64 << 10).unwrap();
    let mut read = first.to_vec();
    let end = loop {
        match connection.chunk(&mut reply).await {
            Ok(Some(chunk)) => read.extend_from_slice(&chunk),
            end => break end,
        }
    };
    // What was in the socket already is right; there may be all of it.
    assert!(scene.content.starts_with(&read), "other bytes");
    assert!(end.is_err() || read.len() as u64 == SIZE);
}
