//! The accept loop over real sockets: what a client may use up, and how it stops.
#![cfg(feature = "process")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Extension;
use axum::routing::{get, post};
use coral_schema::process::serve::{Drain, Limits, Peer, Server};
use coral_schema::process::tasks::Tasks;
use futures::StreamExt as _;
use rstest::rstest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(30);
/// Short enough to wait for, when nothing is expected to happen.
const A_MOMENT: Duration = Duration::from_millis(300);
const AT_ONCE: Drain = Drain {
    linger: Duration::ZERO,
    grace: SOON,
};

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    ended: JoinHandle<bool>,
}

async fn start(router: Router, limits: Limits, drain: Drain) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = Server {
        listener,
        router,
        handshake: None,
        limits,
        drain,
    };
    let tasks = Tasks::new();
    let ended = tasks.spawn("server", {
        let (tasks, stop) = (tasks.clone(), stop.clone());
        async move { server.run(&tasks, stop).await }
    });
    Running {
        address,
        stop,
        ended,
    }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request for `path` on a connection of its own.
    async fn ask(&self, path: &str) -> TcpStream {
        let mut client = self.connect().await;
        send(&mut client, path).await;
        client
    }

    async fn refuses(&self) {
        let refused = async {
            while TcpStream::connect(self.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, refused).await.unwrap();
    }
}

async fn send(client: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
}

/// Reads until `end` was read.
async fn read_until(client: &mut TcpStream, end: &str) -> String {
    let reading = async {
        let mut all = Vec::new();
        while !all.ends_with(end.as_bytes()) {
            let byte = client.read_u8().await.unwrap();
            all.push(byte);
        }
        String::from_utf8(all).unwrap()
    };
    timeout(SOON, reading).await.unwrap()
}

/// Reads to the end of the connection, clean or not.
async fn read_to_end(client: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = timeout(SOON, client.read_to_end(&mut all)).await.unwrap();
    all
}

/// `/` answers at once, `/wait` when told, `/endless` never stops and tells when it was dropped.
fn router(go: &Arc<Notify>, dropped: &CancellationToken) -> Router {
    let go = Arc::clone(go);
    let dropped = dropped.clone();
    Router::new()
        .route(
            "/",
            get(|Extension(Peer(peer))| async move { peer.to_string() }),
        )
        .route(
            "/wait",
            get(move || async move {
                go.notified().await;
                "waited"
            }),
        )
        .route(
            "/endless",
            get(move || async move { endless(dropped.clone().drop_guard()) }),
        )
        .route("/refuse", post(|| async { "refused" }))
}

fn endless(guard: DropGuard) -> Body {
    let chunk = Bytes::from(vec![0; 256 * 1024]);
    Body::from_stream(futures::stream::repeat(chunk).map(move |chunk| {
        let _held = &guard;
        Ok::<_, Infallible>(chunk)
    }))
}

fn simple() -> Router {
    router(&Arc::default(), &CancellationToken::new())
}

fn header(limit: Duration) -> Limits {
    Limits {
        header: limit,
        ..Limits::default()
    }
}

#[tokio::test]
async fn handlers_know_the_client_and_connections_are_kept() {
    let server = start(simple(), Limits::default(), AT_ONCE).await;
    let mut client = server.connect().await;
    let me = client.local_addr().unwrap().to_string();
    for _ in 0..2 {
        send(&mut client, "/").await;
        assert!(
            read_until(&mut client, &me)
                .await
                .starts_with("HTTP/1.1 200")
        );
    }
}

#[rstest]
#[case::silent("")]
#[case::half_a_request("GET / HTTP/1.1\r\nhost:")]
#[case::half_a_preface("PRI * HTTP/2.0\r\n")]
#[case::http2_without_a_request("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")]
#[tokio::test]
async fn whoever_makes_no_request_is_closed(#[case] sent: &str) {
    let server = start(simple(), header(A_MOMENT), AT_ONCE).await;
    let mut client = server.connect().await;
    client.write_all(sent.as_bytes()).await.unwrap();
    read_to_end(&mut client).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let go = Arc::new(Notify::new());
    let limit = A_MOMENT;
    let router = router(&go, &CancellationToken::new());
    let server = start(router, header(limit), AT_ONCE).await;
    let mut client = server.ask("/wait").await;
    assert!(timeout(2 * limit, client.read_u8()).await.is_err());
    go.notify_one();
    read_until(&mut client, "waited").await;
    assert!(read_to_end(&mut client).await.is_empty());
}

#[tokio::test]
async fn h25_a_client_that_stops_reading_is_closed() {
    let dropped = CancellationToken::new();
    let limits = Limits {
        stall: A_MOMENT,
        ..Limits::default()
    };
    let server = start(router(&Arc::default(), &dropped), limits, AT_ONCE).await;
    let mut client = server.ask("/endless").await;
    read_until(&mut client, "\r\n\r\n").await;
    timeout(SOON, dropped.cancelled()).await.unwrap();
}

#[tokio::test]
async fn h24_a_client_that_leaves_frees_its_place() {
    let dropped = CancellationToken::new();
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let server = start(router(&Arc::default(), &dropped), limits, AT_ONCE).await;
    let mut leaving = server.ask("/endless").await;
    read_until(&mut leaving, "\r\n\r\n").await;
    let mut waiting = server.ask("/").await;
    assert!(timeout(A_MOMENT, waiting.read_u8()).await.is_err());
    drop(leaving);
    timeout(SOON, dropped.cancelled()).await.unwrap();
    read_until(&mut waiting, "\r\n\r\n").await;
}

#[tokio::test]
async fn h40_a_stop_finishes_responses_and_then_refuses() {
    let go = Arc::new(Notify::new());
    let drain = Drain {
        linger: Duration::from_secs(5),
        grace: Duration::from_hours(1),
    };
    let router = router(&go, &CancellationToken::new());
    let server = start(router, Limits::default(), drain).await;
    let mut running = server.ask("/wait").await;
    let mut idle = server.connect().await;
    let me = idle.local_addr().unwrap().to_string();
    send(&mut idle, "/").await;
    read_until(&mut idle, &me).await;

    server.stop.cancel();
    let mut late = server.ask("/").await;
    read_until(&mut late, "\r\n\r\n").await;
    // From here on waiting is over as soon as nothing else happens.
    tokio::time::pause();
    assert!(read_to_end(&mut idle).await.is_empty());
    server.refuses().await;
    assert!(!server.ended.is_finished());
    go.notify_one();
    assert!(read_to_end(&mut running).await.ends_with(b"waited"));
    drop((idle, late, running));
    assert!(timeout(SOON, server.ended).await.unwrap().unwrap());
}

#[tokio::test]
async fn h40_responses_that_do_not_end_are_cut_after_the_grace() {
    let dropped = CancellationToken::new();
    let drain = Drain {
        linger: Duration::ZERO,
        grace: A_MOMENT,
    };
    let server = start(router(&Arc::default(), &dropped), Limits::default(), drain).await;
    let mut client = server.ask("/endless").await;
    read_until(&mut client, "\r\n\r\n").await;
    server.stop.cancel();
    assert!(!timeout(SOON, server.ended).await.unwrap().unwrap());
    timeout(SOON, dropped.cancelled()).await.unwrap();
}

#[tokio::test]
async fn a_refused_upload_still_gets_its_answer() {
    let server = start(simple(), Limits::default(), AT_ONCE).await;
    let mut client = server.connect().await;
    let head = "POST /refuse HTTP/1.1\r\nhost: test\r\ncontent-length: 67108864\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let part = vec![0; 1024 * 1024];
    client.write_all(&part).await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, client.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.ends_with(b"refused"));
    // Not reset, which could overtake the answer.
    client.write_all(&part).await.unwrap();
    client.write_all(&part).await.unwrap();
}

/// Frames by hand (RFC 9113): preface, empty SETTINGS, HEADERS that also ends headers and stream, for `GET /`.
const HTTP2_GET: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
    \0\0\x09\x01\x05\0\0\0\x01\x82\x86\x84\x41\x04test";

#[tokio::test]
async fn http2_by_prior_knowledge_and_its_idle_connections_end() {
    let limits = Limits {
        quiet: A_MOMENT,
        ..Limits::default()
    };
    let server = start(simple(), limits, AT_ONCE).await;
    let mut client = server.connect().await;
    let me = client.local_addr().unwrap().to_string();
    client.write_all(HTTP2_GET).await.unwrap();
    // A client that answers nothing is cut, since it does not even confirm the end.
    let answer = read_to_end(&mut client).await;
    let contains = |part: &[u8]| answer.windows(part.len()).any(|window| window == part);
    assert!(contains(me.as_bytes()), "{answer:?}");
    // GOAWAY: type 7 on stream 0.
    assert!(contains(b"\x07\0\0\0\0\0"), "{answer:?}");
}
