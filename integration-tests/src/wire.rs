//! HTTP/1.1 heads, as both the scripted upstream and the raw client read them.

use std::io;

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A first line and its headers.
#[derive(Debug)]
pub(crate) struct Head {
    /// The request line or the status line.
    pub(crate) first_line: String,
    pub(crate) headers: HeaderMap,
}

impl Head {
    /// `Content-Length`, when it is a number.
    pub(crate) fn length(&self) -> Option<u64> {
        self.headers
            .get(http::header::CONTENT_LENGTH)?
            .to_str()
            .ok()?
            .parse()
            .ok()
    }
}

/// Reads up to the empty line; what came after it stays in `buffer`. `None`: the peer closed before a first byte.
pub(crate) async fn read_head<R: AsyncRead + Unpin>(
    reader: &mut R,
    buffer: &mut BytesMut,
) -> io::Result<Option<Head>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = parse(&buffer[..end])?;
            buffer.advance(end + 4);
            return Ok(Some(head));
        }
        if buffer.len() > MAX_HEAD {
            return Err(malformed("the head is too long"));
        }
        if reader.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
    }
}

fn parse(head: &[u8]) -> io::Result<Head> {
    let text = std::str::from_utf8(head).map_err(|_| malformed("the head is not UTF-8"))?;
    let mut lines = text.split("\r\n");
    let first_line = lines.next().unwrap_or_default().to_owned();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| malformed("a header has no colon"))?;
        let name: HeaderName = name
            .parse()
            .map_err(|_| malformed("a header's name is malformed"))?;
        let value: HeaderValue = value
            .trim()
            .parse()
            .map_err(|_| malformed("a header's value is malformed"))?;
        headers.append(name, value);
    }
    Ok(Head {
        first_line,
        headers,
    })
}

pub(crate) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Longer heads are refused, bytes.
const MAX_HEAD: usize = 64 << 10;
