//! The socket under every connection: it notices a client that stops taking bytes, and closes without losing the last
//! ones.
//!
//! hyper and tower have nothing that sees a stalled write. The kernel itself reports a full socket as writable only
//! after about a third of its buffer has drained, which takes a slow client minutes. So a waiting write is tried again
//! from time to time: whatever the kernel accepts then is progress.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::sendfile::{FileSender, Next, Part};

/// How often a waiting write is tried within the time that it may wait.
const TRIES: u32 = 8;
/// How long a closed connection may go on delivering what was written last (RFC 9112, section 9.6). Closing at once
/// resets the connection when the client is still sending, so that a refused upload may lose its answer; and when a
/// process ends together with its network, undelivered bytes are lost. Ends early when the client closes its side, as
/// nearly all do at once.
const LINGER: Duration = Duration::from_secs(5);

/// A TCP connection whose writes fail with `TimedOut` when the client takes nothing for too long.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    stall: Duration,
    /// Since when a write waits without progress.
    stalled_since: Option<Instant>,
    last_write: Instant,
    /// Wakes a waiting write, or ends the lingering of a close.
    timer: Pin<Box<Sleep>>,
    lingering: bool,
    traffic: Arc<AtomicU64>,
    files: FileSender,
}

impl Socket {
    /// Wraps a connection whose writes may wait for `stall`.
    pub(super) fn new(stream: TcpStream, stall: Duration) -> Self {
        let now = Instant::now();
        Self {
            stream,
            stall,
            stalled_since: None,
            last_write: now,
            timer: Box::pin(tokio::time::sleep_until(now)),
            lingering: false,
            traffic: Arc::default(),
            files: FileSender::default(),
        }
    }

    /// Puts files in the place of their stand-ins among the bytes that are written here.
    pub(super) fn files(&self) -> FileSender {
        self.files.clone()
    }

    /// Bytes that passed in both directions so far.
    pub(super) fn traffic(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.traffic)
    }

    fn count(&self, bytes: usize) {
        self.traffic.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn wrote(&mut self, result: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let Ok(bytes) = result {
            self.stalled_since = None;
            self.last_write = Instant::now();
            self.count(bytes);
        }
        Poll::Ready(result)
    }

    /// The kernel takes nothing now: waits for it, at most `stall`.
    fn poll_stalled(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let since = if let Some(since) = self.stalled_since {
            since
        } else {
            let now = Instant::now();
            self.timer.as_mut().reset(now + self.stall / TRIES);
            *self.stalled_since.insert(now)
        };
        while self.timer.as_mut().poll(cx).is_ready() {
            match write(&self.stream) {
                Err(error) if is_full(&error) => {
                    let now = Instant::now();
                    if now.duration_since(since) >= self.stall {
                        return Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the client takes no bytes",
                        )));
                    }
                    self.timer.as_mut().reset(now + self.stall / TRIES);
                }
                result => return self.wrote(result),
            }
        }
        Poll::Pending
    }

    fn poll_buffers(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write_vectored(cx, buffers) {
            Poll::Ready(result) => self.wrote(result),
            Poll::Pending => {
                let write = |stream: &_| Ok(rustix::io::writev(stream, buffers)?);
                self.poll_stalled(cx, write)
            }
        }
    }

    fn poll_part(&mut self, cx: &mut Context<'_>, part: &Part) -> Poll<io::Result<usize>> {
        let sent = loop {
            if self.stream.poll_write_ready(cx)?.is_pending() {
                break ready!(self.poll_stalled(cx, |stream| part.send(stream)));
            }
            let send = || part.send(&self.stream);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if is_full(&error) => {}
                result => break ready!(self.wrote(result)),
            }
        };
        if let Ok(sent) = sent {
            self.files.advance(sent);
        }
        Poll::Ready(sent)
    }
}

/// Does the kernel take nothing now?
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted)
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut this.stream).poll_read(cx, buffer));
        this.count(buffer.filled().len() - before);
        Poll::Ready(result)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buffer)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.files.next(buffers)? {
            Next::Buffers(count) => this.poll_buffers(cx, &buffers[..count]),
            Next::Part(part) => this.poll_part(cx, &part),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.lingering {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.lingering = true;
            this.timer.as_mut().reset(this.last_write + LINGER);
        }
        let mut scratch = [0; 4096];
        while this.timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use futures::future::poll_fn;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    const STALL: Duration = Duration::from_mins(1);

    /// A socket that takes nothing more, and its client.
    async fn full() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpSocket::new_v4().unwrap();
        client.set_recv_buffer_size(32 * 1024).unwrap();
        let client = client.connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let mut socket = Socket::new(accepted.unwrap().0, STALL);
        // A single failure may be the runtime asking for a break.
        while write(&mut socket).await.is_some() || write(&mut socket).await.is_some() {
            tokio::task::yield_now().await;
        }
        (socket, client.unwrap())
    }

    /// Tries once.
    async fn write(socket: &mut Socket) -> Option<io::Result<usize>> {
        poll_fn(|cx| {
            let tried = Pin::new(&mut *socket).poll_write(cx, &[0; 16 * 1024]);
            Poll::Ready(match tried {
                Poll::Ready(result) => Some(result),
                Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_runs_out_of_time() {
        let (mut socket, _client) = full().await;
        tokio::time::pause();
        let mut last = Instant::now();
        let error = loop {
            tokio::time::advance(STALL / 4).await;
            match write(&mut socket).await {
                None => {}
                // The kernel still found some room.
                Some(Ok(_)) => last = Instant::now(),
                Some(Err(error)) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(last.elapsed() >= STALL);
    }

    /// It drains less than the third of the kernel's buffer after which the kernel says that it may be written to.
    #[tokio::test]
    async fn h25_a_slow_client_is_not_a_stuck_one() {
        let (mut socket, client) = full().await;
        tokio::time::pause();
        // Blocks instead of waiting: a paused clock would run ahead meanwhile.
        let mut client = client.into_std().unwrap();
        client.set_nonblocking(false).unwrap();
        let mut buffer = vec![0; 128 * 1024];
        let mut progress = 0;
        for _ in 0..5 {
            client.read_exact(&mut buffer).unwrap();
            tokio::time::advance(STALL / 2).await;
            if let Some(written) = write(&mut socket).await {
                progress += written.unwrap();
            }
        }
        assert!(progress > 0);
    }
}
