//! Follows a transfer's watermark, at the pace of one client. Aborts, never ends cleanly, when the fill fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::bypass::Continuation;
use super::metrics::Counted;
use super::{Origin, Phase, Progress, Shared, Transfer, TransferError, Transfers};
use crate::store::{BufferSize, FileReader, StoreError};

/// Why a body ends before its end. The text is for the log; the client sees a broken connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The transfer failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The file could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The bytes of one client.
pub type Body = BoxStream<'static, Result<Bytes, ReadError>>;

/// Follows a transfer without reading; counts as one of those who wait for it.
#[derive(Debug)]
pub struct Follower {
    /// Where it stands.
    pub progress: watch::Receiver<Progress>,
    _presence: Presence,
}

impl Transfers {
    /// Follows a transfer that the caller may know about.
    pub fn follow(&self, transfer: &Arc<Transfer>) -> Follower {
        Follower {
            progress: transfer.watch(),
            _presence: Presence::new(&self.0, transfer),
        }
    }

    /// Bytes `start..end` of a transfer that has opened, for a client that may read from `origin`. With `end: None` to
    /// the end of the blob.
    pub fn read(
        &self,
        transfer: &Arc<Transfer>,
        origin: Origin,
        start: u64,
        end: Option<u64>,
    ) -> Body {
        let reader = Reader {
            shared: Arc::clone(&self.0),
            file: transfer.file.get().cloned(),
            progress: transfer.watch(),
            presence: Presence::new(&self.0, transfer),
            origin,
            position: start,
            end,
            started_at_zero: start == 0,
            pace: Pace::default(),
            continuation: None,
        };
        stream::unfold(Some(reader), step).boxed()
    }
}

async fn step(reader: Option<Reader>) -> Option<(Result<Bytes, ReadError>, Option<Reader>)> {
    let mut reader = reader?;
    match reader.next().await {
        Ok(Some(chunk)) => Some((Ok(chunk), Some(reader))),
        Ok(None) => None,
        Err(error) => Some((Err(error), None)),
    }
}

struct Reader {
    shared: Arc<Shared>,
    file: Option<FileReader>,
    progress: watch::Receiver<Progress>,
    presence: Presence,
    origin: Origin,
    position: u64,
    end: Option<u64>,
    started_at_zero: bool,
    pace: Pace,
    continuation: Option<Continuation>,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if let Some(continuation) = &mut self.continuation {
            return Ok(continuation.next().await?);
        }
        let at_most = self.pace.resume();
        loop {
            let now = self.progress.borrow_and_update().clone();
            let readable = readable(&now, self.end);
            if self.position < readable {
                let chunk = self.read(at_most.min(readable - self.position)).await?;
                self.count_unverified(&now, &chunk);
                return Ok(Some(chunk));
            }
            match now.phase {
                phase if phase.is_verified() => return Ok(None),
                _ if self.end.is_some_and(|end| self.position >= end) => return Ok(None),
                Phase::Failed(error) => return Err(error.into()),
                Phase::Detached(detached) => {
                    let continuation = Continuation::of(self, &detached, now.size);
                    return Ok(self.continuation.insert(continuation).next().await?);
                }
                _ => {}
            }
            // The sender lives in the transfer, which this reader holds.
            self.progress
                .changed()
                .await
                .map_err(|_| TransferError::Interrupted)?;
        }
    }

    async fn read(&mut self, most: u64) -> Result<Bytes, ReadError> {
        let file = match &self.file {
            Some(file) => file,
            None => self
                .file
                .insert(self.presence.file().ok_or(TransferError::Interrupted)?),
        };
        let chunk = file.read_at(self.position, most).await?;
        self.position += chunk.len() as u64;
        self.pace.hand_out(chunk.len());
        Ok(chunk)
    }

    fn count_unverified(&self, now: &Progress, chunk: &Bytes) {
        let whole = self.started_at_zero && self.end.is_none();
        if !whole && !now.phase.is_verified() {
            self.shared.metrics.unverified(chunk.len() as u64);
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// What a [`Continuation`] takes over from a reader.
pub(super) struct Position {
    pub(super) shared: Arc<Shared>,
    pub(super) digest: coral_schema::oci::Digest,
    pub(super) origin: Origin,
    pub(super) start: u64,
    pub(super) end: Option<u64>,
    pub(super) whole: bool,
}

impl Continuation {
    fn of(reader: &Reader, detached: &super::Detached, size: Option<u64>) -> Self {
        let position = Position {
            shared: Arc::clone(reader.shared()),
            digest: *reader.presence.transfer.digest(),
            origin: reader.origin.clone(),
            start: reader.position,
            end: reader.end,
            whole: reader.started_at_zero && reader.end.is_none(),
        };
        Self::new(position, detached, size)
    }
}

/// Up to where may a reader that wants `..end` read now? The last byte of the blob stays back until the digest was
/// verified; with an unknown size nothing stays back here, since the body's end marker does.
fn readable(now: &Progress, end: Option<u64>) -> u64 {
    let limit = match (&now.phase, now.size) {
        (phase, _) if phase.is_verified() => now.watermark,
        (_, None) => now.watermark,
        (Phase::Detached(detached), _) if now.size == Some(detached.offset) => {
            detached.offset.saturating_sub(1)
        }
        (_, Some(size)) => now.watermark.min(size.saturating_sub(1)),
    };
    end.map_or(limit, |end| limit.min(end))
}

/// A reader that is counted as long as it lives.
#[derive(Debug)]
struct Presence {
    transfer: Arc<Transfer>,
    _counted: Counted,
}

impl Presence {
    fn new(shared: &Shared, transfer: &Arc<Transfer>) -> Self {
        transfer.readers.fetch_add(1, Ordering::AcqRel);
        Self {
            transfer: Arc::clone(transfer),
            _counted: shared.metrics.reader(),
        }
    }

    fn file(&self) -> Option<FileReader> {
        self.transfer.file.get().cloned()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.transfer.readers.fetch_sub(1, Ordering::AcqRel);
        self.transfer.readers_changed.notify_one();
    }
}

/// Tells slow clients from fast ones: a client under 1 MiB/s gets small buffers of its own, so that many slow clients
/// do not hold the pool.
#[derive(Debug, Default)]
pub struct Pace {
    handed_out: Option<(Instant, usize)>,
    slow: bool,
}

impl Pace {
    /// The client asks for more: how many bytes does it get at most?
    pub fn resume(&mut self) -> u64 {
        if let Some((when, bytes)) = self.handed_out.take() {
            let at_limit = Duration::from_micros(bytes as u64 * 1_000_000 / SLOW);
            self.slow = when.elapsed() > at_limit;
        }
        let buffer = if self.slow {
            BufferSize::Small
        } else {
            BufferSize::Large
        };
        buffer.bytes() as u64
    }

    /// A chunk goes to the client.
    pub fn hand_out(&mut self, bytes: usize) {
        self.handed_out = Some((Instant::now(), bytes));
    }
}

/// Rate under which a client counts as slow, bytes per second.
const SLOW: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use coral_schema::oci::{Algorithm, Hasher};

    fn progress(phase: Phase, watermark: u64, size: Option<u64>) -> Progress {
        Progress {
            phase,
            watermark,
            size,
        }
    }

    #[rstest::rstest]
    #[case::running(progress(Phase::Running, 50, Some(100)), None, 50)]
    #[case::last_byte_waits(progress(Phase::Running, 100, Some(100)), None, 99)]
    #[case::last_byte_waits_while_verifying(progress(Phase::Verifying, 100, Some(100)), None, 99)]
    #[case::verified(progress(Phase::Verified, 100, Some(100)), None, 100)]
    #[case::published(progress(Phase::Published, 100, Some(100)), None, 100)]
    #[case::unpublished(progress(Phase::Unpublished, 100, Some(100)), None, 100)]
    #[case::failed(
        progress(Phase::Failed(TransferError::WrongBytes), 100, Some(100)),
        None,
        99
    )]
    #[case::range(progress(Phase::Running, 50, Some(100)), Some(20), 20)]
    #[case::range_with_last_byte(progress(Phase::Running, 100, Some(100)), Some(100), 99)]
    #[case::no_size(progress(Phase::Running, 50, None), None, 50)]
    #[case::empty(progress(Phase::Verified, 0, Some(0)), None, 0)]
    fn holds_back_the_last_byte(
        #[case] now: Progress,
        #[case] end: Option<u64>,
        #[case] limit: u64,
    ) {
        assert_eq!(readable(&now, end), limit);
    }

    #[test]
    fn a_detached_transfer_that_had_everything_still_holds_back() {
        let detached = Arc::new(super::super::Detached {
            offset: 100,
            hasher: Hasher::new(Algorithm::Sha256),
        });
        assert_eq!(
            readable(&progress(Phase::Detached(detached), 100, Some(100)), None),
            99
        );
    }

    #[tokio::test(start_paused = true)]
    async fn slow_clients_get_small_buffers_until_they_are_fast_again() {
        let (small, large) = (
            BufferSize::Small.bytes() as u64,
            BufferSize::Large.bytes() as u64,
        );
        let mut pace = Pace::default();
        assert_eq!(pace.resume(), large);
        pace.hand_out(256 << 10);
        tokio::time::advance(Duration::from_millis(300)).await;
        assert_eq!(pace.resume(), small);
        pace.hand_out(16 << 10);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(pace.resume(), large);
    }
}
