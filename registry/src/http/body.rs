//! The body of every answer: hands on the content and tells the access log how it went.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::access_log::Entry;
use super::answer::Content;
use crate::pull::BodyError;

/// A body that counts, and ends its [`Entry`] when it is dropped.
#[derive(Debug)]
pub(super) struct LoggedBody {
    content: Content,
    /// After which the body is complete.
    length: Option<u64>,
    entry: Entry,
}

impl LoggedBody {
    /// The body of an answer whose status and outcome stand in `entry`.
    pub(super) fn new(content: Content, length: Option<u64>, mut entry: Entry) -> Self {
        if matches!(content, Content::Empty) {
            entry.end(None);
        }
        Self {
            content,
            length,
            entry,
        }
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match &mut self.content {
            Content::Empty => Poll::Ready(None),
            Content::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.content = Content::Empty;
                Poll::Ready(Some(Ok(bytes)))
            }
            Content::Stream(stream) => stream.as_mut().poll_next(cx),
        }
    }
}

impl http_body::Body for LoggedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let next = std::task::ready!(self.next(cx));
        let this = &mut *self;
        Poll::Ready(match next {
            Some(Ok(bytes)) => {
                this.entry.count(bytes.len() as u64, this.length);
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(error)) => {
                this.entry.fail(&error);
                Some(Err(error))
            }
            None => {
                this.entry.end(this.length);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Full(bytes) => bytes.is_empty(),
            Content::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Stream(_) => SizeHint::default(),
        }
    }
}
