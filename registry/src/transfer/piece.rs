//! Identical far ranges that are asked for at the same time are one request upstream.
//!
//! A [`Piece`] is a small transfer of its own: a task writes what arrives into a part file under a key that no blob has,
//! and everybody who asked follows it there. Nothing is verified or published; the file is gone when the task ends, and
//! who still reads has it open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use coral_schema::oci::Digest;
use futures::StreamExt as _;
use futures::stream;
use tokio::sync::watch;

use super::download::{Download, Origins, Part};
use super::reader::{Body, ReadError};
use super::{Origin, Shared, TransferError, lock};
use crate::store::{BufferSize, FileReader, Spool, StoreError};

/// Pieces under way, by key.
#[derive(Debug, Default)]
pub(super) struct Pieces(Mutex<HashMap<Digest, Arc<Piece>>>);

#[derive(Debug)]
struct Piece {
    file: OnceLock<FileReader>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Clone)]
enum Progress {
    /// No answer yet.
    Opening,
    /// Bytes that are there; length of the blob, if the upstream said it.
    Running { written: u64, size: Option<u64> },
    /// No more will come.
    Failed(TransferError),
    /// The store takes nothing: everybody asks by himself.
    Unshared,
}

/// What a piece is of.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) digest: Digest,
    pub(super) origin: Origin,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Wanted {
    /// Equal for equal wishes of one repository; no blob has it, since it is the digest of this text.
    fn key(&self) -> Digest {
        let Self {
            digest,
            origin,
            start,
            end,
        } = self;
        Digest::sha256(format!("{} {digest} {start}-{end}", origin.repo).as_bytes())
    }
}

/// The bytes of a range, shared with whoever asks for the same now. `None` when the store takes nothing.
pub(super) async fn shared_piece(
    shared: &Arc<Shared>,
    wanted: &Wanted,
) -> Result<Option<(Option<u64>, Body)>, TransferError> {
    let piece = join(shared, wanted);
    let mut progress = piece.progress.subscribe();
    let opened = progress
        .wait_for(|now| !matches!(now, Progress::Opening))
        .await;
    let size = match opened.map_err(|_| TransferError::Interrupted)?.clone() {
        Progress::Running { size, .. } => size,
        Progress::Failed(error) => return Err(error),
        Progress::Opening | Progress::Unshared => return Ok(None),
    };
    let file = piece
        .file
        .get()
        .cloned()
        .ok_or(TransferError::Interrupted)?;
    let reader = Reader {
        shared: Arc::clone(shared),
        file,
        progress,
        position: 0,
        length: wanted.end - wanted.start,
    };
    let body = stream::try_unfold(reader, |mut reader| async move {
        let chunk = reader.next().await?;
        Ok(chunk.map(|chunk| (chunk, reader)))
    });
    Ok(Some((size, body.boxed())))
}

fn join(shared: &Arc<Shared>, wanted: &Wanted) -> Arc<Piece> {
    let key = wanted.key();
    let mut pieces = lock(&shared.pieces.0);
    if let Some(piece) = pieces.get(&key) {
        return Arc::clone(piece);
    }
    let progress = watch::Sender::new(Progress::Opening);
    let piece = Arc::new(Piece {
        file: OnceLock::new(),
        progress,
    });
    pieces.insert(key, Arc::clone(&piece));
    // A runtime that is being shut down drops the task while it is spawned, and its end takes the lock.
    drop(pieces);
    let (owner, leaving) = (
        Arc::clone(shared),
        Leaving {
            shared: Arc::clone(shared),
            key,
        },
    );
    let (wanted, written) = (wanted.clone(), Arc::clone(&piece));
    shared.tasks.spawn("range", async move {
        let ended = fetch(&owner, &wanted, &written, leaving.key).await;
        drop(leaving);
        if let Err(ending) = ended {
            written.progress.send_replace(ending);
        }
    });
    piece
}

/// Takes a piece off the list however its task ends.
struct Leaving {
    shared: Arc<Shared>,
    key: Digest,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        lock(&self.shared.pieces.0).remove(&self.key);
    }
}

async fn fetch(
    shared: &Arc<Shared>,
    wanted: &Wanted,
    piece: &Piece,
    key: Digest,
) -> Result<(), Progress> {
    let mut spool = empty_spool(shared, &key)
        .await
        .map_err(|_| Progress::Unshared)?;
    let part = Part {
        start: wanted.start,
        end: Some(wanted.end),
        size: None,
    };
    let origins = Origins::Own(wanted.origin.clone());
    let mut download = Download::new(shared, wanted.digest, origins, part);
    if let Err(error) = download.open().await {
        discard(spool).await;
        return Err(Progress::Failed(error));
    }
    // Nobody can set it before: the phase that lets readers look follows.
    let _ = piece.file.set(spool.reader());
    let size = download.size();
    piece
        .progress
        .send_replace(Progress::Running { written: 0, size });
    loop {
        let chunk = match download.next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                discard(spool).await;
                return Err(Progress::Failed(error));
            }
        };
        spool = append(spool, chunk).await?;
        let written = spool.offset();
        if written < wanted.end - wanted.start {
            piece
                .progress
                .send_replace(Progress::Running { written, size });
        }
    }
    // The name goes first: who has all bytes finds nothing left behind.
    let written = spool.offset();
    discard(spool).await;
    piece
        .progress
        .send_replace(Progress::Running { written, size });
    Ok(())
}

/// What cannot be removed now is swept with the other parts.
async fn discard(spool: Spool) {
    let _ = tokio::task::spawn_blocking(move || spool.discard()).await;
}

async fn empty_spool(shared: &Shared, key: &Digest) -> Result<Spool, StoreError> {
    if !shared.store.may_fill() {
        return Err(StoreError::Full);
    }
    let mut spool = shared.store.spool(key).await?;
    // What an earlier process left under this key may be of another day.
    let reset = tokio::task::spawn_blocking(move || spool.reset().map(|()| spool)).await;
    reset.unwrap_or(Err(StoreError::Full))
}

async fn append(mut spool: Spool, chunk: Bytes) -> Result<Spool, Progress> {
    let written = tokio::task::spawn_blocking(move || spool.append(&[chunk]).map(|()| spool)).await;
    match written {
        Ok(Ok(spool)) => Ok(spool),
        Ok(Err(_)) | Err(_) => Err(Progress::Failed(TransferError::Interrupted)),
    }
}

struct Reader {
    shared: Arc<Shared>,
    file: FileReader,
    progress: watch::Receiver<Progress>,
    position: u64,
    length: u64,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        while self.position < self.length {
            let written = match &*self.progress.borrow_and_update() {
                Progress::Running { written, .. } => *written,
                Progress::Failed(error) => return Err(error.clone().into()),
                Progress::Opening | Progress::Unshared => 0,
            };
            if self.position < written {
                let most = (written - self.position).min(BufferSize::Large.bytes() as u64);
                let chunk = self.file.read_at(self.position, most).await?;
                self.position += chunk.len() as u64;
                self.shared.metrics.unverified(chunk.len() as u64);
                return Ok(Some(chunk));
            }
            self.progress
                .changed()
                .await
                .map_err(|_| TransferError::Interrupted)?;
        }
        Ok(None)
    }
}
