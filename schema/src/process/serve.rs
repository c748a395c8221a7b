//! The accept loop: HTTP/1.1 and HTTP/2 for any [`Router`], with a bound on everything that a client can use up.
//!
//! | What a client may do | Bound |
//! |---|---|
//! | open connections | [`Limits::connections`]; beyond it, and without free files, accepting pauses and never ends |
//! | connect and say nothing, or half a request, or half a TLS greeting | [`Limits::header`] |
//! | keep an idle connection | [`Limits::header`] over HTTP/1.1, [`Limits::quiet`] over HTTP/2 |
//! | stop reading | [`Limits::stall`] (see [`Socket`]) |
//! | send nothing more of a body, or leave an HTTP/2 stream unread | twice [`Limits::quiet`] |
//! | stay when we stop | [`Drain`] |
//!
//! Handlers find the client's address as the extension [`Peer`], and with [`FileSender`] they may hand files to the kernel. A connection that breaks is no event: clients drop
//! them all the time, so it is logged at DEBUG only.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::{Request, Version, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

pub use self::sendfile::FileSender;
pub use self::socket::Socket;
use super::tasks::Tasks;
/// Named here for programs that only pass it on.
pub use axum::Router;

mod sendfile;
mod socket;

/// The address of the client, as seen by the socket: an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// What a client may use up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// From accepting a connection to its first request, and for the headers of each later one. An idle HTTP/1.1
    /// connection waits for headers, too.
    pub header: Duration,
    /// How long a write may wait without the client taking a byte.
    pub stall: Duration,
    /// After this time with nothing but keep-alive traffic a connection is asked to end, after twice this time it is
    /// cut. Longer than the patience of any client: containerd gives up after 5 minutes without a byte.
    pub quiet: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            header: Duration::from_secs(15),
            stall: Duration::from_mins(1),
            quiet: Duration::from_mins(5),
        }
    }
}

/// How to stop. Both times start at the stop signal.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// New connections are accepted for this long, since whoever sends clients here hears of the stop later than we do.
    pub linger: Duration,
    /// Running responses may take this long, then they are cut.
    pub grace: Duration,
}

/// A connection as hyper sees it: plain, or decrypted.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What happens to a connection before HTTP: TLS. It is given the time of [`Limits::header`].
pub trait Handshake: fmt::Debug + Send + Sync {
    /// Greets the client.
    fn accept(&self, socket: Socket) -> BoxFuture<'_, io::Result<Box<dyn Io>>>;
}

/// One listener and what it serves.
#[derive(Debug)]
pub struct Server {
    /// Bound already, so that a port in use is known before anything starts.
    pub listener: TcpListener,
    /// Answers requests.
    pub router: Router,
    /// TLS, if any.
    pub handshake: Option<Arc<dyn Handshake>>,
    /// What clients may use up.
    pub limits: Limits,
    /// How to stop.
    pub drain: Drain,
}

impl Server {
    /// Serves until `stop`, then drains. Did all responses end by themselves?
    ///
    /// Connections are cut at once when the process stops its `tasks`.
    pub async fn run(self, tasks: &Tasks, stop: CancellationToken) -> bool {
        let Self {
            listener,
            router,
            handshake,
            limits,
            drain,
        } = self;
        let shared = Arc::new(Shared {
            http: http(tasks, limits.header),
            router,
            handshake,
            limits,
            slots: Arc::new(Semaphore::new(limits.connections)),
            close: CancellationToken::new(),
            cut: tasks.stopping().child_token(),
        });
        let stopped = async {
            stop.cancelled().await;
            let since = Instant::now();
            sleep(drain.linger).await;
            since
        };
        let since = tokio::select! {
            since = stopped => since,
            never = accept_all(&listener, &shared, tasks) => match never {},
        };
        drop(listener);
        shared.drain(since + drain.grace).await
    }
}

/// The protocols. `max_buf_size` bounds what hyper reads ahead (and so the headers of a request), and how much of a
/// response it holds before it asks the body for more. With bodies in chunks of 256 KiB any size up to that means one
/// chunk in flight per connection. Measured on loopback, CPU seconds per GiB with 8 clients on two busy cores, ±20 %:
/// 0.33 at 16, 64 and 256 KiB alike; 0.29 at 512 KiB, which is not worth twice the memory for each slow client.
fn http(tasks: &Tasks, header: Duration) -> auto::Builder<Streams> {
    const BUFFER: usize = 64 * 1024;
    let mut http = auto::Builder::new(Streams(tasks.clone()));
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header)
        .max_buf_size(BUFFER);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .max_concurrent_streams(64)
        .max_send_buf_size(BUFFER);
    http
}

/// Runs HTTP/2 streams as tasks with an owner.
#[derive(Debug, Clone)]
struct Streams(Tasks);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn("stream", stream);
    }
}

/// Accepts for ever. Running out of something (files, memory) is waited out: connections that end give it back.
async fn accept_all(listener: &TcpListener, shared: &Arc<Shared>, tasks: &Tasks) -> Infallible {
    const PAUSE: Duration = Duration::from_millis(100);
    let mut pausing = false;
    loop {
        let slot = Arc::clone(&shared.slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                pausing = false;
                let shared = Arc::clone(shared);
                tasks.spawn("connection", async move {
                    shared.serve(stream, peer, slot).await;
                });
            }
            Err(error) if gone_already(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut pausing, true) {
                    tracing::warn!(%error, "accepting connections pauses");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// Did only this one client leave before it was accepted?
fn gone_already(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

/// What handlers may know of a connection.
struct Client {
    peer: SocketAddr,
    /// Where its bytes go out as they are.
    files: Option<FileSender>,
}

impl Client {
    fn introduce(&self, request: &mut Request<Incoming>) {
        // HTTP/2 puts frames around what bodies yield, and mixes the streams of a connection.
        let is_plain = request.version() < Version::HTTP_2;
        let extensions = request.extensions_mut();
        extensions.insert(Peer(self.peer));
        if let Some(files) = self.files.as_ref().filter(|_| is_plain) {
            extensions.insert(files.clone());
        }
    }
}

/// What all connections of a listener share.
struct Shared {
    http: auto::Builder<Streams>,
    router: Router,
    handshake: Option<Arc<dyn Handshake>>,
    limits: Limits,
    slots: Arc<Semaphore>,
    /// Connections end with their running response.
    close: CancellationToken,
    /// Connections end now.
    cut: CancellationToken,
}

impl Shared {
    /// Lets running responses finish until `deadline`.
    async fn drain(&self, deadline: Instant) -> bool {
        self.close.cancel();
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        let finished = timeout_at(deadline, self.slots.acquire_many(all))
            .await
            .is_ok();
        if !finished {
            let connections = self.limits.connections - self.slots.available_permits();
            tracing::warn!(connections, "cutting responses that did not end in time");
            self.cut.cancel();
            let _ = self.slots.acquire_many(all).await;
        }
        finished
    }

    /// One connection, from its first byte to its last.
    async fn serve(&self, stream: TcpStream, peer: SocketAddr, _slot: OwnedSemaphorePermit) {
        let deadline = Instant::now() + self.limits.header;
        // Costs latency only, if it fails.
        let _ = stream.set_nodelay(true);
        let socket = Socket::new(stream, self.limits.stall);
        let traffic = socket.traffic();
        let files = self.handshake.is_none().then(|| socket.files());
        let greeted = tokio::select! {
            greeted = timeout_at(deadline, self.greet(socket)) => greeted,
            () = self.close.cancelled() => return,
            () = self.cut.cancelled() => return,
        };
        match greeted {
            Ok(Ok(io)) => {
                let client = Client { peer, files };
                self.converse(io, &client, deadline, &traffic).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS with this client"),
            Err(_) => tracing::debug!(%peer, "the TLS greeting took too long"),
        }
    }

    async fn greet(&self, socket: Socket) -> io::Result<Box<dyn Io>> {
        match &self.handshake {
            None => Ok(Box::new(socket)),
            Some(handshake) => handshake.accept(socket).await,
        }
    }

    /// HTTP on a connection whose first request must come before `deadline`.
    async fn converse(
        &self,
        io: Box<dyn Io>,
        client: &Client,
        deadline: Instant,
        traffic: &AtomicU64,
    ) {
        let spoke = AtomicBool::new(false);
        let service = service_fn(|mut request: Request<Incoming>| {
            spoke.store(true, Ordering::Relaxed);
            client.introduce(&mut request);
            self.router.clone().call(request)
        });
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(io), service));
        let first_request = async {
            sleep_until(deadline).await;
            if spoke.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let mut ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = first_request => return,
            () = self.cut.cancelled() => return,
            () = self.close.cancelled() => None,
            () = self.quiet(traffic) => None,
        };
        if ended.is_none() {
            connection.as_mut().graceful_shutdown();
            ended = tokio::select! {
                ended = connection => Some(ended),
                () = self.cut.cancelled() => None,
                () = self.quiet(traffic) => None,
            };
        }
        if let Some(Err(error)) = ended {
            tracing::debug!(peer = %client.peer, error, "a connection broke");
        }
    }

    /// Ends when nothing but keep-alive traffic passed for as long as the limit says.
    async fn quiet(&self, traffic: &AtomicU64) {
        /// More than the pings of both sides, with TLS, in 5 minutes; less than any body.
        const KEEP_ALIVE: u64 = 4096;
        let mut before = traffic.load(Ordering::Relaxed);
        loop {
            sleep(self.limits.quiet).await;
            let now = traffic.load(Ordering::Relaxed);
            if now - before < KEEP_ALIVE {
                return;
            }
            before = now;
        }
    }
}
