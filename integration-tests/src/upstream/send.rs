//! Sends one answer, with what the fault does to its head and to its body.

use std::fmt::Write as _;
use std::io;

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use super::Shared;
use super::answer::Answer;
use super::connection::Connection;
use super::fault::{Fault, Length};
use super::gzip::gzip;
use super::pace::chunk_size;
use super::record::Total;
use crate::images::Content;

/// May the connection carry another request?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    KeepAlive,
    Close,
}

/// An answer that is ready to go.
pub(super) struct Sending {
    answer: Answer,
    fault: Fault,
    head_only: bool,
    close: bool,
}

impl Sending {
    pub(super) fn new(answer: Answer, fault: Fault, head_only: bool, close: bool) -> Self {
        let mut answer = match fault.status {
            Some(status) if status != answer.status || fault.body.is_some() => {
                Answer::error(status)
            }
            _ => answer,
        };
        if let Some(body) = &fault.body {
            answer.body = Content::of(body.clone());
            answer.range = 0..answer.body.len();
        }
        if fault.gzip {
            let coded = gzip(&answer.body.read_all());
            answer.body = Content::of(coded);
            answer.range = 0..answer.body.len();
            answer = answer.with("content-encoding", "gzip");
        }
        let endless = matches!(fault.length, Length::Absent | Length::Says(_));
        Self {
            answer,
            head_only,
            close: close || (endless && !head_only),
            fault,
        }
    }

    pub(super) async fn send(
        mut self,
        connection: &mut Connection,
        shared: &Shared,
        total: &Total,
    ) -> io::Result<Next> {
        connection.wire.write_all(self.head().as_bytes()).await?;
        connection.wire.flush().await?;
        let next = if self.close {
            Next::Close
        } else {
            Next::KeepAlive
        };
        if self.head_only || self.answer.status == 304 {
            return Ok(next);
        }
        if self.body(connection, shared, total).await? == Next::Close {
            return Ok(Next::Close);
        }
        let excess = std::mem::take(&mut self.fault.excess);
        if !excess.is_empty() {
            self.write(connection, excess, total).await?;
        }
        if self.fault.length == Length::Chunked {
            connection.wire.write_all(b"0\r\n\r\n").await?;
        }
        connection.wire.flush().await?;
        if next == Next::Close {
            connection.wire.shutdown().await?;
        }
        Ok(next)
    }

    fn head(&self) -> String {
        let status = self.answer.status;
        let reason = StatusCode::from_u16(status).ok();
        let reason = reason.and_then(|s| s.canonical_reason()).unwrap_or("Other");
        let mut headers = self.answer.headers.clone();
        let right = self.answer.range.end - self.answer.range.start;
        let length = match self.fault.length {
            Length::Right => Some(right + self.fault.excess.len() as u64),
            Length::Says(length) => Some(length),
            Length::Absent | Length::Chunked => None,
        };
        match length {
            Some(_) if status == 304 => {}
            Some(length) => headers.push(("content-length".to_owned(), length.to_string())),
            None if self.fault.length == Length::Chunked => {
                headers.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
            }
            None => {}
        }
        if self.close {
            headers.push((header::CONNECTION.to_string(), "close".to_owned()));
        }
        for (name, value) in &self.fault.headers {
            headers.retain(|(existing, _)| existing != name);
            headers.extend(value.clone().map(|value| (name.clone(), value)));
        }
        let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").expect("writing to a String does not fail");
        }
        head.push_str("\r\n");
        head
    }

    async fn body(
        &mut self,
        connection: &mut Connection,
        shared: &Shared,
        total: &Total,
    ) -> io::Result<Next> {
        let range = self.answer.range.clone();
        let mut position = range.start;
        while position < range.end {
            if self.fault.stall.is_some_and(|offset| position >= offset) {
                return connection.wait_for_end().await;
            }
            if let Some((_, gate)) = self.fault.hold.take_if(|(offset, _)| position >= *offset) {
                gate.pass().await;
            }
            let Some(left) = self.left_before_cut(connection, shared, position) else {
                return self.cut(connection);
            };
            let (shared_rate, own_rate) = self.rates(shared);
            let slower = [shared_rate, own_rate].into_iter().flatten().min();
            let limit = left
                .min(range.end - position)
                .min(chunk_size(slower) as u64);
            let limit =
                usize::try_from(self.before_obstacle(position, limit)).unwrap_or(usize::MAX);
            let chunk = self.flipped(self.answer.body.chunk(position, limit), position);
            let goes_on = position > range.start;
            let length = chunk.len() as u64;
            let now = Instant::now();
            if let Some(rate) = shared_rate {
                tokio::time::sleep_until(shared.line.reserve(length, rate, goes_on, now)).await;
            }
            if let Some(rate) = own_rate {
                tokio::time::sleep_until(connection.line.reserve(length, rate, goes_on, now)).await;
            }
            self.write(connection, chunk, total).await?;
            position += length;
        }
        // A body that is cut exactly at its end is complete; the connection closes all the same.
        match self.left_before_cut(connection, shared, position) {
            None => self.cut(connection),
            Some(_) => Ok(Next::KeepAlive),
        }
    }

    /// Rate of the line that all share, and of this connection or body.
    fn rates(&self, shared: &Shared) -> (Option<u64>, Option<u64>) {
        let settings = shared.settings();
        let own = [settings.connection_bandwidth, self.fault.rate];
        (settings.bandwidth, own.into_iter().flatten().min())
    }

    /// Bytes until the connection is to be cut; `None`: now.
    fn left_before_cut(
        &self,
        connection: &Connection,
        shared: &Shared,
        position: u64,
    ) -> Option<u64> {
        let sent = position - self.answer.range.start;
        let body = self.fault.cut.map(|cut| cut.after.saturating_sub(sent));
        let allowed = shared.settings().connection_bytes;
        let connection = allowed.map(|allowed| allowed.saturating_sub(connection.sent));
        let left = [body, connection].into_iter().flatten().min();
        match left {
            Some(0) => None,
            left => Some(left.unwrap_or(u64::MAX)),
        }
    }

    /// Ends a chunk where something happens next.
    fn before_obstacle(&self, position: u64, limit: u64) -> u64 {
        let hold = self.fault.hold.as_ref().map(|(offset, _)| *offset);
        [hold, self.fault.stall]
            .into_iter()
            .flatten()
            .filter(|offset| *offset > position)
            .map(|offset| offset - position)
            .fold(limit, u64::min)
    }

    fn flipped(&self, chunk: Bytes, position: u64) -> Bytes {
        let offset = self.fault.flip.and_then(|flip| flip.checked_sub(position));
        let index = offset.and_then(|offset| usize::try_from(offset).ok());
        match index.filter(|index| *index < chunk.len()) {
            None => chunk,
            Some(index) => {
                let mut bytes = BytesMut::from(&chunk[..]);
                bytes[index] ^= 1;
                bytes.freeze()
            }
        }
    }

    async fn write(
        &self,
        connection: &mut Connection,
        chunk: Bytes,
        total: &Total,
    ) -> io::Result<()> {
        let length = chunk.len() as u64;
        if self.fault.length == Length::Chunked {
            let head = format!("{length:x}\r\n");
            connection.wire.write_all(head.as_bytes()).await?;
        }
        connection.wire.write_all(&chunk).await?;
        if self.fault.length == Length::Chunked {
            connection.wire.write_all(b"\r\n").await?;
        }
        connection.sent += length;
        total.sent(length);
        Ok(())
    }

    fn cut(&self, connection: &Connection) -> io::Result<Next> {
        match self.fault.cut {
            Some(cut) if cut.reset => connection.reset(),
            _ => Ok(Next::Close),
        }
    }
}
