//! The bytes of a request into an upload, in steps: a fixed number of MiB is in memory, whatever the number of clients.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::sessions::Turn;
use super::upload::{After, step};
use super::{Body, HostedError, SILENCE, Shared};
use crate::store::Upload;

/// Adds the body to the upload; `said` bytes should come. What was written before an error stays.
pub(super) async fn fill(
    shared: &Shared,
    mut upload: Upload,
    turn: &Turn,
    said: Option<u64>,
    mut body: Body,
) -> Result<After<()>, HostedError> {
    let stopping = shared.parts.tasks.stopping();
    let (start, mut saved) = (upload.offset(), upload.offset());
    loop {
        let first = match next(&stopping, &mut body).await {
            Ok(Some(first)) => first,
            Ok(None) => break,
            Err(error) => return Ok((upload, Err(error))),
        };
        if let Err(error) = shared.need_room().await {
            return Ok((upload, Err(error)));
        }
        shared.active.note(upload.repo());
        let permit = shared.steps.acquire().await;
        let (chunks, ended) = gather(first, &mut body).await;
        let length: u64 = chunks.iter().map(|bytes| bytes.len() as u64).sum();
        let after = upload.offset() + length;
        if let Some(said) = said.filter(|said| after - start > *said) {
            let found = after - start;
            drop(permit);
            if ended.is_none() {
                skip(body).await;
            }
            return Ok((upload, Err(HostedError::Length { said, found })));
        }
        let save = after - saved >= SAVE_EVERY;
        let write = move |upload: &mut Upload| {
            upload.append(&chunks)?;
            if save { upload.save() } else { Ok(()) }
        };
        let written;
        (upload, written) = step(upload, write).await?;
        turn.note(upload.offset());
        if save {
            saved = upload.offset();
        }
        match (written, ended) {
            (Ok(()), None) => {}
            (Ok(()), Some(Ok(()))) => break,
            (Err(error), _) | (_, Some(Err(error))) => return Ok((upload, Err(error))),
        }
    }
    let found = upload.offset() - start;
    let right = match said {
        Some(said) if said != found => Err(HostedError::Length { said, found }),
        _ => Ok(()),
    };
    Ok((upload, right))
}

/// Reads a body that nobody wants, if there is not much of it: a client that is cut off while it sends does not read the
/// answer.
pub async fn skip(mut body: Body) {
    let read = async {
        let mut left = SKIPPED;
        while let Some(Ok(chunk)) = body.next().await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    let _ = timeout(SKIPPING, read).await;
}

async fn next(stopping: &CancellationToken, body: &mut Body) -> Result<Option<Bytes>, HostedError> {
    let next = stopping.run_until_cancelled(arriving(body)).await;
    next.unwrap_or_else(|| Err(broken("this registry stops")))
}

/// What comes next of a body; nothing at its end.
pub(super) async fn arriving(body: &mut Body) -> Result<Option<Bytes>, HostedError> {
    match timeout(SILENCE, body.next()).await {
        Ok(next) => next.transpose().map_err(broken),
        Err(_) => Err(broken("nothing came for a minute")),
    }
}

/// What comes right after goes with it, up to a step; and how the body ended, if it did.
///
/// The connection hands over one read of its socket at a time: without the little wait each would be a step of its own,
/// with its way to the threads that write.
async fn gather(first: Bytes, body: &mut Body) -> (Vec<Bytes>, Option<Result<(), HostedError>>) {
    let mut length = first.len();
    let mut chunks = vec![first];
    while length < STEP && chunks.len() < PIECES {
        match timeout(TOGETHER, body.next()).await {
            Ok(Some(Ok(bytes))) => {
                length += bytes.len();
                chunks.push(bytes);
            }
            Ok(Some(Err(error))) => return (chunks, Some(Err(broken(error)))),
            Ok(None) => return (chunks, Some(Ok(()))),
            Err(_) => break,
        }
    }
    (chunks, None)
}

fn broken(reason: impl Display) -> HostedError {
    HostedError::Broken(reason.to_string())
}

/// Bytes that are written and hashed in one step, about.
const STEP: usize = 1 << 20;

/// Pieces in one step: as many as one call writes (`IOV_MAX`), and few enough that their bookkeeping is no matter.
const PIECES: usize = 1024;

/// A piece that comes so soon goes with the one before. Shorter than any round trip that a client waits for.
const TOGETHER: Duration = Duration::from_millis(1);

/// Bounds what is hashed again after a restart, bytes.
const SAVE_EVERY: u64 = 64 << 20;

/// Bytes that are skipped; whoever sends more is cut off.
const SKIPPED: usize = 16 << 20;
const SKIPPING: Duration = Duration::from_secs(2);
