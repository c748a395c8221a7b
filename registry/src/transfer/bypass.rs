//! Bytes that go from the upstream to one client without being stored: ranges far ahead of what is here, and the rest
//! of a blob when the store takes no more.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use coral_schema::oci::{Digest, Hasher};
use futures::StreamExt as _;
use futures::stream;

use super::budget::RangeFacts;
use super::download::{Download, Origins, Part};
use super::piece::{Wanted, shared_piece};
use super::reader::{Body, Position, ReadError};
use super::{Detached, Origin, TransferError, Transfers};

impl Transfers {
    /// Shall a range (`last: None` for an open end) of a blob that is not here go upstream by itself?
    pub fn passes_through(
        &self,
        digest: &Digest,
        client: Option<IpAddr>,
        (start, last): (u64, Option<u64>),
        size: u64,
    ) -> bool {
        let (passed, second_client) = self.0.ranges.read(digest, client);
        let watermark = self
            .running(digest)
            .map(|transfer| transfer.watch().borrow().watermark);
        let facts = RangeFacts {
            start,
            end: last,
            size,
            watermark,
            passed,
            second_client,
        };
        self.0.config.load().fill_on_range.passes_through(&facts)
    }

    /// Remembers that `client` was passed `bytes` of a blob.
    pub fn note_passed(&self, digest: &Digest, client: Option<IpAddr>, bytes: u64) {
        self.0.ranges.add(digest, client, bytes);
    }

    /// A whole blob for one client, verified on the way, while the store takes nothing.
    pub async fn bypass(
        &self,
        digest: &Digest,
        origin: Origin,
    ) -> Result<(Option<u64>, Body), TransferError> {
        let from = Position {
            shared: Arc::clone(&self.0),
            digest: *digest,
            origin,
            start: 0,
            end: None,
            whole: true,
        };
        let nothing = Detached {
            offset: 0,
            hasher: Hasher::new(digest.algorithm()),
        };
        let mut continuation = Continuation::new(from, &nothing, None);
        continuation.open().await?;
        let size = continuation.download.size();
        let body = stream::try_unfold(continuation, |mut continuation| async move {
            let chunk = continuation.next().await.map_err(ReadError::from)?;
            Ok(chunk.map(|chunk| (chunk, continuation)))
        });
        Ok((size, body.boxed()))
    }

    /// Fetches exactly `start..end`, once for all who ask for the same at the same time. Fails, without having fetched
    /// anything else, if the upstream ignores ranges.
    pub async fn pass_through(
        &self,
        digest: &Digest,
        origin: Origin,
        (start, end): (u64, u64),
    ) -> Result<(Option<u64>, Body), TransferError> {
        let wanted = Wanted {
            digest: *digest,
            origin,
            start,
            end,
        };
        match shared_piece(&self.0, &wanted).await? {
            Some(answer) => Ok(answer),
            None => self.pass_to_one(wanted).await,
        }
    }

    async fn pass_to_one(&self, wanted: Wanted) -> Result<(Option<u64>, Body), TransferError> {
        let Wanted {
            digest,
            origin,
            start,
            end,
        } = wanted;
        let part = Part {
            start,
            end: Some(end),
            size: None,
        };
        let origins = Origins::Own(origin);
        let mut download = Download::new(&self.0, digest, origins, part);
        download.open().await?;
        let size = download.size();
        let shared = Arc::clone(&self.0);
        let body = stream::try_unfold((download, shared), |(mut download, shared)| async move {
            let chunk = download.next().await.map_err(ReadError::from)?;
            let length = chunk.as_ref().map_or(0, Bytes::len);
            shared.metrics.unverified(length as u64);
            Ok(chunk.map(|chunk| (chunk, (download, shared))))
        });
        Ok((size, body.boxed()))
    }
}

/// A reader that lost its transfer to a failing store: goes on upstream from where it is, and verifies a whole body
/// itself, whose last chunk it holds back until then.
#[derive(Debug)]
pub(super) struct Continuation {
    download: Download,
    digest: Digest,
    /// For whole bodies: the hash state, and how many bytes of what comes next it has seen already.
    check: Option<(Hasher, u64)>,
    held: Option<Bytes>,
    opened: bool,
}

impl Continuation {
    pub(super) fn new(from: Position, detached: &Detached, size: Option<u64>) -> Self {
        let part = Part {
            start: from.start,
            end: from.end,
            size,
        };
        let seen = detached.offset.saturating_sub(from.start);
        let origins = Origins::Own(from.origin);
        Self {
            download: Download::new(&from.shared, from.digest, origins, part),
            digest: from.digest,
            check: from.whole.then(|| (detached.hasher.clone(), seen)),
            held: None,
            opened: false,
        }
    }

    async fn open(&mut self) -> Result<(), TransferError> {
        if std::mem::replace(&mut self.opened, true) {
            Ok(())
        } else {
            self.download.open().await
        }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, TransferError> {
        self.open().await?;
        loop {
            let Some(chunk) = self.download.next().await? else {
                return self.finish();
            };
            let Some((hasher, seen)) = &mut self.check else {
                return Ok(Some(chunk));
            };
            let already = usize::try_from(*seen)
                .unwrap_or(usize::MAX)
                .min(chunk.len());
            hasher.update(&chunk[already..]);
            *seen -= already as u64;
            if let Some(ready) = self.held.replace(chunk) {
                return Ok(Some(ready));
            }
        }
    }

    fn finish(&mut self) -> Result<Option<Bytes>, TransferError> {
        let right = self
            .check
            .take()
            .is_none_or(|(hasher, _)| hasher.finish() == self.digest);
        if right {
            Ok(self.held.take())
        } else {
            Err(TransferError::WrongBytes)
        }
    }
}
