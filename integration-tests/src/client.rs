//! A raw HTTP/1.1 client that sees exactly how a reply ended, and that costs next to nothing.
//!
//! A body that ends as its head promised ends with `None`; any other end is an error. Tests about wrong bytes need
//! this difference, which ordinary clients hide behind their own words.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use coral_schema::oci::{Algorithm, Digest, Hasher};
use http::{HeaderMap, Method, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;

use crate::wire::{malformed, read_head};

/// One keep-alive connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    host: SocketAddr,
    buffer: BytesMut,
    /// Where the kernel is told to put what it throws away; never written.
    nowhere: Vec<u8>,
}

/// The head of a reply, and how much of its body is still to come.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    left: Left,
}

/// What is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// So many bytes.
    Bytes(u64),
    /// The rest of a chunk, then more chunks. `None`: the next thing is a chunk's head.
    Chunk(Option<u64>),
    /// Until the connection ends.
    Everything,
}

impl Reply {
    /// A header's text; the empty text when it is absent.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

impl Connection {
    /// Connects.
    pub async fn open(host: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            host,
            buffer: BytesMut::new(),
            nowhere: Vec::new(),
        })
    }

    /// GETs a path.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> io::Result<Reply> {
        self.request(Method::GET, path, headers).await
    }

    /// Sends a request without a body and reads the head of the reply. The body has to be read, or the connection
    /// dropped, before the next request.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<Reply> {
        self.begin(&method, path, headers).await?;
        self.reply(&method).await
    }

    /// Sends the head of a request. The headers say how long its body is.
    pub async fn begin(
        &mut self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<()> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.host);
        for (name, value) in headers {
            request.extend([name, ": ", value, "\r\n"]);
        }
        request.push_str("\r\n");
        self.stream.write_all(request.as_bytes()).await
    }

    /// Sends bytes of the body of a request, as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads the head of the reply to a request with this method.
    pub async fn reply(&mut self, method: &Method) -> io::Result<Reply> {
        let head = read_head(&mut self.stream, &mut self.buffer).await?;
        let head = head.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.first_line.split(' ').nth(1);
        let status = status.and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| malformed("no status line"))?;
        let chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
        let left = match head.length() {
            _ if method == Method::HEAD || status == 204 || status == 304 => Left::Bytes(0),
            _ if chunked => Left::Chunk(None),
            Some(length) => Left::Bytes(length),
            None => Left::Everything,
        };
        Ok(Reply {
            status,
            headers: head.headers,
            left,
        })
    }

    /// The next bytes of the body; `None` at its clean end.
    pub async fn chunk(&mut self, reply: &mut Reply) -> io::Result<Option<Bytes>> {
        if reply.left == Left::Chunk(None) {
            let length = self.chunk_head().await?;
            reply.left = match length {
                0 => Left::Bytes(0),
                length => Left::Chunk(Some(length)),
            };
        }
        let most = match reply.left {
            Left::Bytes(0) => return Ok(None),
            Left::Bytes(left) | Left::Chunk(Some(left)) => left,
            Left::Everything | Left::Chunk(None) => u64::MAX,
        };
        if self.buffer.is_empty() {
            self.buffer.reserve(READ_BUFFER);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return match reply.left {
                    Left::Everything => Ok(None),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
        let here = usize::try_from(most).unwrap_or(usize::MAX);
        let bytes = self.buffer.split_to(here.min(self.buffer.len())).freeze();
        self.took(reply, bytes.len() as u64).await?;
        Ok(Some(bytes))
    }

    /// Waits until more of a body is there, or the connection has ended.
    pub async fn ready(&self) -> io::Result<()> {
        if self.buffer.is_empty() {
            self.stream.peek(&mut [0]).await?;
        }
        Ok(())
    }

    /// The whole body in memory.
    pub async fn read_all(&mut self, reply: &mut Reply) -> io::Result<Bytes> {
        let mut all = BytesMut::new();
        while let Some(chunk) = self.chunk(reply).await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }

    /// The SHA-256 digest of the rest of the body, which is not kept.
    pub async fn hash(&mut self, reply: &mut Reply) -> io::Result<Digest> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        while let Some(chunk) = self.chunk(reply).await? {
            hasher.update(&chunk);
        }
        Ok(hasher.finish())
    }

    /// Throws the rest of the body away, in the kernel where that is possible. Returns its length.
    pub async fn discard(&mut self, reply: &mut Reply) -> io::Result<u64> {
        let mut discarded = 0;
        loop {
            discarded += match reply.left {
                Left::Bytes(left) if left > 0 && self.buffer.is_empty() => {
                    let count = self.discard_some(left).await?;
                    reply.left = Left::Bytes(left - count);
                    count
                }
                _ => match self.chunk(reply).await? {
                    Some(chunk) => chunk.len() as u64,
                    None => return Ok(discarded),
                },
            };
        }
    }

    /// `MSG_TRUNC`: tcp(7) says that the bytes are thrown away and not copied.
    async fn discard_some(&mut self, most: u64) -> io::Result<u64> {
        self.nowhere.resize(DISCARDED_AT_ONCE, 0);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let nowhere = &mut self.nowhere[..most.min(DISCARDED_AT_ONCE)];
        let stream = &self.stream;
        let receive = || {
            let flags = rustix::net::RecvFlags::TRUNC;
            let (_, count) = rustix::net::recv(stream, &mut *nowhere, flags)?;
            Ok(count)
        };
        match stream.async_io(Interest::READABLE, receive).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count as u64),
        }
    }

    async fn took(&mut self, reply: &mut Reply, count: u64) -> io::Result<()> {
        match &mut reply.left {
            Left::Bytes(left) => *left -= count,
            Left::Chunk(Some(left)) if *left > count => *left -= count,
            Left::Chunk(left) => {
                *left = None;
                self.line().await?;
            }
            Left::Everything => {}
        }
        Ok(())
    }

    async fn chunk_head(&mut self) -> io::Result<u64> {
        let line = self.line().await?;
        let length = line.split(';').next().unwrap_or_default();
        let length = u64::from_str_radix(length.trim(), 16);
        let length = length.map_err(|_| malformed("the chunk has no length"))?;
        if length == 0 {
            while !self.line().await?.is_empty() {}
        }
        Ok(length)
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = self.buffer.split_to(end + 2);
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

const READ_BUFFER: usize = 256 << 10;
const DISCARDED_AT_ONCE: usize = 1 << 20;
