//! What a client on a real socket sees of an answer, and what the metrics say afterwards.

use std::net::SocketAddr;

use bytes::Bytes;
use coral_schema::oci::Digest;
use coral_schema::process::tasks::Tasks;
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::pull::BodyError;

struct Server {
    address: SocketAddr,
    registry: Registry,
    _tasks: Tasks,
}

impl Server {
    /// Answers every request with what `make` makes.
    async fn start(make: impl Fn() -> Answer + Send + Sync + 'static) -> Self {
        let mut registry = Registry::default();
        let log = Arc::new(AccessLog::new(&mut registry));
        let make = Arc::new(make);
        let answer = async move |request: Request| {
            let entry = Entry::new(Arc::clone(&log), request.method().clone());
            let asked = Asked {
                files: None,
                caller: Caller::anonymous(),
                client: None,
                method: request.method(),
                body: Mutex::default(),
                headers: request.headers(),
                query: Query(""),
                ns: None,
                entry,
            };
            respond(make(), asked)
        };
        let answer = Arc::new(answer);
        let app = Router::new().fallback(move |request: Request| {
            let answer = Arc::clone(&answer);
            async move { answer(request).await }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        let serve = axum::serve(listener, app);
        tasks.spawn("test server", async move { serve.await });
        Self {
            address,
            registry,
            _tasks: tasks,
        }
    }

    async fn send(&self, method: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request =
            format!("{method} /v2/a/blobs/b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn ask(&self, method: &str) -> String {
        let mut stream = self.send(method).await;
        let mut text = Vec::new();
        // A reset after the bytes is one way of aborting.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

fn stream(length: Option<u64>, chunks: Vec<Result<Bytes, BodyError>>) -> Answer {
    let mut answer = Answer::new(StatusCode::OK, Outcome::Miss);
    if let Some(length) = length {
        answer.set_length(length);
    }
    answer.set_content(Content::Stream(futures::stream::iter(chunks).boxed()));
    answer
}

#[tokio::test]
async fn h38_head_has_the_headers_of_get_and_no_body() {
    let server = Server::start(|| {
        let mut answer = Answer::json("application/json", Outcome::Hit, b"[1]".to_vec());
        answer.set_digest(&answer::EntityTag::of(&Digest::sha256(b"[1]")), true);
        answer
    })
    .await;
    let get = server.ask("GET").await;
    let head = server.ask("HEAD").await;
    assert!(get.ends_with("\r\n\r\n[1]"), "{get}");
    assert!(head.contains("content-length: 3\r\n"), "{head}");
    assert!(head.contains("docker-distribution-api-version: registry/2.0\r\n"));
    assert_eq!(head, get.strip_suffix("[1]").unwrap());
}

#[tokio::test]
async fn a_stream_of_known_length() {
    let server = Server::start(|| stream(Some(6), vec![Ok("abc".into()), Ok("def".into())])).await;
    let get = server.ask("GET").await;
    assert!(
        get.contains("content-length: 6\r\n") && get.ends_with("\r\n\r\nabcdef"),
        "{get}"
    );
    let metrics = server.metrics();
    assert!(
        metrics.contains(r#"requests_total{kind="other",upstream="none",result="miss"} 1"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"sent_bytes_total{source="transfer"} 6"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"first_byte_seconds_count{result="miss"} 1"#),
        "{metrics}"
    );
    assert!(metrics.contains("request_seconds_count 1"), "{metrics}");
}

/// A server whose body is what the sender sends.
async fn scripted(length: Option<u64>) -> (Server, mpsc::Sender<Result<Bytes, BodyError>>) {
    let (sender, receiver) = mpsc::channel(1);
    let receiver = Mutex::new(Some(receiver));
    let server = Server::start(move || {
        let mut receiver = receiver.lock().unwrap().take().unwrap();
        let mut answer = stream(length, Vec::new());
        let chunks = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        answer.set_content(Content::Stream(chunks.boxed()));
        answer
    })
    .await;
    (server, sender)
}

/// With and without a length, failing and ending too early.
#[rstest::rstest]
#[case(None, true)]
#[case(Some(6), true)]
#[case(Some(6), false)]
#[tokio::test]
async fn a_body_that_cannot_be_finished_never_ends_cleanly(
    #[case] length: Option<u64>,
    #[case] fails: bool,
) {
    let (server, sender) = scripted(length).await;
    let mut client = server.send("GET").await;
    sender.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(3).any(|window| window == b"abc") {
        assert_ne!(client.read_buf(&mut seen).await.unwrap(), 0);
    }
    if fails {
        let broken = BodyError("the upstream broke".to_owned());
        sender.send(Err(broken)).await.unwrap();
    }
    drop(sender);
    // A reset is one way of aborting, a connection that closes too early the other.
    while client
        .read_buf(&mut seen)
        .await
        .is_ok_and(|length| length > 0)
    {}
    let seen = String::from_utf8(seen).unwrap();
    assert!(
        !seen.contains("\r\n0\r\n"),
        "the last chunk is a clean end: {seen}"
    );
    assert_eq!(seen.contains("content-length: 6\r\n"), length.is_some());
    let result = if fails { "error" } else { "miss" };
    let expected = format!(r#"result="{result}"}} 1"#);
    let metrics = server.metrics();
    assert!(metrics.contains(&expected), "{metrics}");
}

/// H-24: a client that leaves is no error.
#[tokio::test]
async fn h24_a_client_that_leaves_is_counted_by_what_it_got() {
    let (server, sender) = scripted(Some(1 << 30)).await;
    let mut client = server.send("GET").await;
    sender.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
    let mut seen = [0; 64];
    client.read_exact(&mut seen).await.unwrap();
    drop(client);
    sender.closed().await;
    let metrics = server.metrics();
    assert!(
        metrics.contains(r#"upstream="none",result="miss"} 1"#),
        "{metrics}"
    );
    assert!(
        !metrics.contains(r#"upstream="none",result="error"} 1"#),
        "{metrics}"
    );
}
