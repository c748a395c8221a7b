//! Alone in its process, since it takes the files away from it.
#![cfg(feature = "process")]

use std::os::fd::AsRawFd as _;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use coral_schema::process::serve::{Drain, Limits, Server};
use coral_schema::process::tasks::Tasks;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn without_free_files_accepting_pauses_and_goes_on_later() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .unwrap();
        clients.push(client);
    }
    let next_free = rustix::io::dup(&listener).unwrap().as_raw_fd();
    let two_more = Rlimit {
        current: Some(u64::try_from(next_free).unwrap() + 2),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, two_more).unwrap();

    let tasks = Tasks::new();
    let server = Server {
        listener,
        router: Router::new().route("/", get(|| async { "hello" })),
        handshake: None,
        limits: Limits::default(),
        drain: Drain {
            linger: Duration::ZERO,
            grace: SOON,
        },
    };
    let owner = tasks.clone();
    tasks.spawn("server", async move {
        server.run(&owner, CancellationToken::new()).await
    });

    let mut byte = [0];
    for client in &mut clients[..2] {
        timeout(SOON, client.read_exact(&mut byte))
            .await
            .unwrap()
            .unwrap();
    }
    let paused = timeout(Duration::from_millis(300), clients[2].read_exact(&mut byte)).await;
    assert!(paused.is_err(), "two files are enough for two clients only");
    let waiting = clients.split_off(2);
    drop(clients);
    for mut client in waiting {
        timeout(SOON, client.read_exact(&mut byte))
            .await
            .unwrap()
            .unwrap();
    }
}
