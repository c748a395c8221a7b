//! Many small requests, by a generator that is cheap enough not to be the limit: one thread, keep-alive connections,
//! no allocation per request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::pull::ACCEPT;

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    pub(crate) elapsed: Duration,
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
}

impl Load {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 requests")]
    pub(crate) fn per_second(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }
}

/// GETs one path again and again, on a thread of its own.
pub(crate) async fn get(
    address: SocketAddr,
    path: String,
    lasts: Duration,
) -> anyhow::Result<Load> {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(generate(address, &path, lasts))
    };
    tokio::task::spawn_blocking(run).await?
}

async fn generate(address: SocketAddr, path: &str, lasts: Duration) -> anyhow::Result<Load> {
    let (name, value) = ACCEPT;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n{name}: {value}\r\n\r\n");
    let start = Instant::now();
    let mut connections: FuturesUnordered<_> = (0..CONNECTIONS)
        .map(|_| connection(address, request.as_bytes(), start + lasts))
        .collect();
    let mut times = Vec::new();
    while let Some(part) = connections.next().await {
        times.extend(part?);
    }
    let elapsed = start.elapsed();
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied();
    Ok(Load {
        requests: times.len() as u64,
        elapsed,
        median: at(50).context("no requests")?,
        p99: at(99).context("no requests")?,
    })
}

async fn connection(
    address: SocketAddr,
    request: &[u8],
    until: Instant,
) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut times = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut body = None;
    let mut sent = Instant::now();
    while sent < until {
        stream.write_all(request).await?;
        read_reply(&mut stream, &mut buffer, &mut body).await?;
        let now = Instant::now();
        times.push(now - sent);
        sent = now;
    }
    Ok(times)
}

/// All replies have the same body: its length is read once.
async fn read_reply(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    body: &mut Option<usize>,
) -> anyhow::Result<()> {
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).await?;
        ensure!(count > 0, "the connection ended");
        filled += count;
        let reply = &buffer[..filled];
        let Some(head) = reply.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        ensure!(reply.starts_with(b"HTTP/1.1 200"), "not 200");
        let length = match *body {
            Some(length) => length,
            None => *body.insert(content_length(&reply[..head])?),
        };
        if filled >= head + 4 + length {
            return Ok(());
        }
    }
}

fn content_length(head: &[u8]) -> anyhow::Result<usize> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    Ok(line.context("no Content-Length")?.trim().parse()?)
}

/// Enough to keep a server busy while others wait, few enough for one thread.
const CONNECTIONS: usize = 16;
