//! One connection: reads requests, waits as long as the distance says, sends answers with their faults.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use http::header;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::Shared;
use super::answer::{Request, answer};
use super::fault::Ending;
use super::record::{Seen, Target};
use super::send::{Next, Sending};
use crate::wire::{malformed, read_head};

/// Serves one client until either side ends it. Errors are the client's business: it sees the end.
pub(super) async fn serve(tcp: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let number = shared.record.connected();
    let port = tcp.local_addr()?.port();
    tcp.set_nodelay(true)?;
    // The handshake of TCP is over before we know of it: its round trip is made up for here.
    shared.travel().await;
    let mut connection = Connection {
        wire: Wire::accept(tcp, &shared).await?,
        buffer: BytesMut::new(),
        line: super::pace::Line::default(),
        sent: 0,
    };
    while let Some(request) = connection.request().await? {
        shared.travel().await;
        if connection.answer(&shared, request, number, port).await? == Next::Close {
            break;
        }
    }
    Ok(())
}

/// What lives as long as the connection.
pub(super) struct Connection {
    pub(super) wire: Wire,
    buffer: BytesMut,
    /// For the limit per connection.
    pub(super) line: super::pace::Line,
    /// Body bytes, for the limit per connection.
    pub(super) sent: u64,
}

impl Connection {
    async fn request(&mut self) -> io::Result<Option<Request>> {
        let Some(head) = read_head(&mut self.wire, &mut self.buffer).await? else {
            return Ok(None);
        };
        let mut words = head.first_line.split(' ');
        let (method, uri) = (words.next(), words.next());
        let (Some(method), Some(uri)) = (method, uri) else {
            return Err(malformed("no request line"));
        };
        let method = method.parse().map_err(|_| malformed("no method"))?;
        self.skip(head.length().unwrap_or(0)).await?;
        let path = uri.split('?').next().unwrap_or_default();
        Ok(Some(Request {
            target: Target::new(method, path, &head.headers),
            uri: uri.to_owned(),
            headers: head.headers,
        }))
    }

    async fn skip(&mut self, mut length: u64) -> io::Result<()> {
        while length > 0 {
            if self.buffer.is_empty() && self.wire.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let here = usize::try_from(length).unwrap_or(usize::MAX);
            let here = here.min(self.buffer.len());
            self.buffer.advance(here);
            length -= here as u64;
        }
        Ok(())
    }

    async fn answer(
        &mut self,
        shared: &Shared,
        request: Request,
        number: u64,
        port: u16,
    ) -> io::Result<Next> {
        let fault = shared.script().next(&request.target);
        super::pause(fault.delay).await;
        let answer = answer(shared, &request, fault.ignore_range);
        let close = request.headers.get(header::CONNECTION);
        let close = close.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        let head_only = request.target.method == http::Method::HEAD;
        let status = fault.ending.is_none();
        let total = shared.record.add(Seen {
            status: status.then_some(fault.status.unwrap_or(answer.status)),
            target: request.target,
            uri: request.uri,
            headers: request.headers,
            connection: number,
            port,
        });
        match fault.ending {
            Some(Ending::Silence) => self.wait_for_end().await,
            Some(Ending::Reset) => self.reset(),
            None => {
                let sending = Sending::new(answer, fault, head_only, close);
                sending.send(self, shared, &total).await
            }
        }
    }

    /// Says nothing until the peer goes.
    pub(super) async fn wait_for_end(&mut self) -> io::Result<Next> {
        let mut ignored = [0; 1024];
        while self.wire.read(&mut ignored).await? > 0 {}
        Ok(Next::Close)
    }

    /// Closes by RST.
    pub(super) fn reset(&self) -> io::Result<Next> {
        self.wire.tcp().set_zero_linger()?;
        Ok(Next::Close)
    }
}

/// A socket with or without TLS.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    async fn accept(tcp: TcpStream, shared: &Shared) -> io::Result<Self> {
        let Some(tls) = &shared.tls else {
            return Ok(Self::Plain(tcp));
        };
        let stream = tls.acceptor.accept(tcp).await?;
        shared.travel().await;
        Ok(Self::Tls(Box::new(stream)))
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}
