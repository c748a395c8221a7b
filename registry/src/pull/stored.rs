//! Stored blobs as answers: how their bytes reach the client.

use std::sync::Arc;

use bytes::Bytes;
use coral_schema::process::serve::FileSender;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::{BlobAnswer, BlobBody, BodyError, Outcome, PullError, RangeSpec};
use crate::store::{BufferSize, StoredBlob};
use crate::transfer::reader::Pace;

/// A stored blob, or a part of it.
#[derive(Debug)]
pub struct StoredPart {
    blob: Arc<StoredBlob>,
    start: u64,
    /// One past the last byte.
    end: u64,
}

/// The answer for a stored blob.
pub(super) fn from_store(
    stored: Arc<StoredBlob>,
    range: Option<RangeSpec>,
) -> Result<BlobAnswer, PullError> {
    let size = stored.size();
    let part = match range {
        Some(range) => Some(
            range
                .resolve(size)
                .ok_or(PullError::RangeNotSatisfiable { size })?,
        ),
        None => None,
    };
    let (start, end) = part.map_or((0, size), |(start, last)| (start, last + 1));
    Ok(BlobAnswer {
        size: Some(size),
        range: part,
        body: BlobBody::Stored(StoredPart {
            blob: stored,
            start,
            end,
        }),
        outcome: Outcome::Hit,
    })
}

impl StoredPart {
    /// Length of the whole blob, bytes.
    pub fn size(&self) -> u64 {
        self.blob.size()
    }

    /// Another part of the same blob: from the first to the last of these bytes.
    pub fn part(&self, (first, last): (u64, u64)) -> BlobBody {
        BlobBody::Stored(Self {
            blob: Arc::clone(&self.blob),
            start: first,
            end: last.saturating_add(1).min(self.size()),
        })
    }

    /// Its bytes; what `sender` can send from the page cache, it sends. Short ends and whatever the disk must be asked for
    /// are read and passed on.
    pub(super) fn into_stream(
        self,
        sender: Option<FileSender>,
    ) -> BoxStream<'static, Result<Bytes, BodyError>> {
        stream::try_unfold((self, Pace::default()), move |(mut part, mut pace)| {
            let sender = sender.clone();
            async move {
                if part.start >= part.end {
                    return Ok(None);
                }
                let chunk = match part.stand_in(sender.as_ref()) {
                    Some(chunk) => chunk,
                    None => part.read(&mut pace).await?,
                };
                part.start += chunk.len() as u64;
                Ok(Some((chunk, (part, pace))))
            }
        })
        .boxed()
    }

    /// A copy is cheaper than a call of its own for a few bytes.
    fn stand_in(&self, sender: Option<&FileSender>) -> Option<Bytes> {
        let rest = self.end - self.start;
        let sender = sender.filter(|_| rest > BufferSize::Large.bytes() as u64)?;
        self.blob.stand_in(sender, self.start, rest)
    }

    async fn read(&self, pace: &mut Pace) -> Result<Bytes, BodyError> {
        let at_most = pace.resume().min(self.end - self.start);
        let at_most = usize::try_from(at_most).unwrap_or(usize::MAX);
        let chunk = self.blob.read(self.start, at_most).await;
        let chunk = chunk.map_err(|error| BodyError(error.to_string()))?;
        pace.hand_out(chunk.len());
        Ok(chunk)
    }
}
