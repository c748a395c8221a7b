//! A scripted server: a function from request to reply, and a log of what was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use coral_schema::process::tasks::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::upstream::limit::lock;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }

    /// The server's own URL, as the client wrote it.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.header("host").unwrap())
    }

    pub(crate) fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }
}

/// What to do with a request.
pub(crate) enum Reply {
    /// Write this, wait for the next request.
    Bytes(Vec<u8>),
    /// Write this and close.
    Close(Vec<u8>),
    /// Write this and say nothing more.
    Stall(Vec<u8>),
}

/// A reply with a status, headers and a body with its length.
pub(crate) fn reply(status: u16, headers: &[(&str, &str)], body: &str) -> Reply {
    let length = body.len().to_string();
    let announced = [("content-length", length.as_str())];
    let announced = if status == 304 {
        &[][..]
    } else {
        &announced[..]
    };
    Reply::Bytes(head(status, &[headers, announced].concat(), body))
}

/// The same, without a length of its own.
pub(crate) fn head(status: u16, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let lines: Vec<_> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("HTTP/1.1 {status} x\r\n{}\r\n{body}", lines.concat()).into_bytes()
}

pub(crate) struct Fake {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, script, tasks) = (Arc::clone(&seen), Arc::new(script), Tasks::new());
        tasks.clone().spawn("fake upstream", async move {
            while let Ok((socket, _)) = listener.accept().await {
                tasks.spawn(
                    "fake connection",
                    serve(socket, Arc::clone(&script), Arc::clone(&log)),
                );
            }
        });
        Self { address, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same server under another host name.
    pub(crate) fn other_url(&self) -> String {
        format!("http://localhost:{}", self.address.port())
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }

    pub(crate) fn count(&self, target: &str) -> usize {
        self.seen()
            .iter()
            .filter(|seen| seen.target.starts_with(target))
            .count()
    }
}

async fn serve(
    mut socket: TcpStream,
    script: Arc<impl Fn(&Seen) -> Reply>,
    log: Arc<Mutex<Vec<Seen>>>,
) {
    while let Some(seen) = read(&mut socket).await {
        lock(&log).push(seen.clone());
        let (bytes, close) = match script(&seen) {
            Reply::Bytes(bytes) => (bytes, false),
            Reply::Close(bytes) => (bytes, true),
            Reply::Stall(bytes) => {
                let _ = socket.write_all(&bytes).await;
                // Until the other side gives up.
                let _ = socket.read(&mut [0]).await;
                return;
            }
        };
        let end = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .map(|at| at + 4);
        let bytes = if seen.method == "HEAD" {
            &bytes[..end.unwrap_or(bytes.len())]
        } else {
            &bytes[..]
        };
        if socket.write_all(bytes).await.is_err() || close {
            return;
        }
    }
}

async fn read(socket: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(socket.read_u8().await.ok()?);
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut lines = text.split("\r\n");
    let mut start = lines.next()?.split(' ');
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.ok()?;
    Some(Seen {
        method: start.next()?.to_owned(),
        target: start.next()?.to_owned(),
        headers,
        body: String::from_utf8(body).unwrap(),
    })
}
