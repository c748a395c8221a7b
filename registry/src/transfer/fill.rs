//! Upstream body to spool file: hash, write, advance the watermark, verify, publish. Outlives every reader.
//!
//! Readers have their last byte once the digest is verified; store and index follow behind them, since a disk that is
//! busy writing back can keep a rename waiting for long.
//!
//! Two halves run in one task: one pulls from the network ([`receive`]), one hashes and writes on a blocking thread
//! ([`store`]); between them at most [`IN_FLIGHT`] bytes wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use super::download::{Download, Source};
use super::part::{
    connect, detach, discard, find_stored, has_room, keep_what_is_there, open_spool, origins,
    report_degraded, reset,
};
use super::table::Permit;
use super::{Detached, Phase, Shared, Transfer, TransferError};
use crate::store::key::{Entry, RecordKey};
use crate::store::{Spool, StoreError, VerifiedSpool};

/// Runs a transfer to its end.
pub(super) async fn run(shared: &Arc<Shared>, permit: Permit) {
    let transfer = permit.transfer();
    let ending = match fill(shared, transfer).await {
        Ok(()) => Phase::Published,
        Err(Ending::Failed(error)) => {
            tracing::info!(digest = %transfer.digest, %error, "transfer failed");
            Phase::Failed(error)
        }
        Err(Ending::Detached(detached)) => Phase::Detached(detached),
        Err(Ending::Unpublished) => Phase::Unpublished,
    };
    transfer.set_phase(ending);
}

/// How a fill ends without a published blob.
pub(super) enum Ending {
    Failed(TransferError),
    Detached(Arc<Detached>),
    Unpublished,
}

impl From<TransferError> for Ending {
    fn from(error: TransferError) -> Self {
        Self::Failed(error)
    }
}

async fn fill(shared: &Arc<Shared>, transfer: &Arc<Transfer>) -> Result<(), Ending> {
    if find_stored(shared, transfer).await {
        return Ok(());
    }
    let spool = open_spool(shared, transfer).await?;
    // A reader can only ask for the file once the phase says that there is one.
    let _ = transfer.file.set(spool.reader());
    let (mut download, spool) = connect(shared, transfer, spool).await?;
    if download.size().is_some_and(|size| !shared.store.fits(size)) {
        tracing::info!(digest = %transfer.digest, "larger than the store may be; passed through");
        return Err(detach(reset(spool).await?));
    }
    announce(transfer, &spool, download.size());
    let spool = transport(shared, transfer, &mut download, spool).await?;
    transfer.set_phase_if_announced(Phase::Verifying);
    let sources = download.into_used();
    let verified = verify(shared, transfer, &sources, spool)?;
    transfer.set_phase(Phase::Verified);
    publish(shared, transfer, &sources, verified).await
}

/// Lets the waiting readers send their headers. An empty blob is verified first: its headers are its whole body.
fn announce(transfer: &Transfer, spool: &Spool, size: Option<u64>) {
    transfer.progress.send_modify(|progress| {
        progress.watermark = spool.offset();
        progress.size = size;
        if size != Some(0) {
            progress.phase = Phase::Running;
        }
    });
}

impl Transfer {
    /// An empty blob goes from connecting to its end, without letting readers send headers in between.
    fn set_phase_if_announced(&self, phase: Phase) {
        if self.progress.borrow().size != Some(0) {
            self.set_phase(phase);
        }
    }
}

/// Moves all bytes from the network to the spool.
async fn transport(
    shared: &Shared,
    transfer: &Transfer,
    download: &mut Download,
    spool: Spool,
) -> Result<Spool, Ending> {
    let in_flight = Semaphore::new(IN_FLIGHT);
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let stopping = shared.tasks.stopping();
    // When the store fails, the readers are not kept waiting for what the network has next.
    let both = async {
        tokio::try_join!(
            async { Ok(receive(download, &in_flight, sender).await) },
            store(shared, transfer, &in_flight, receiver, spool)
        )
    };
    let (downloaded, mut spool) = tokio::select! {
        both = both => both?,
        () = stopping.cancelled() => return Err(TransferError::Interrupted.into()),
        () = abandoned(shared, transfer) => return Err(TransferError::Abandoned.into()),
    };
    spool.set_size(download.size());
    if let Err(error) = downloaded {
        return Err(keep_what_is_there(spool, transfer, error).await);
    }
    transfer
        .progress
        .send_modify(|progress| progress.size = download.size());
    Ok(spool)
}

/// Ends when nobody reads and the configuration says that the transfer shall not go on.
async fn abandoned(shared: &Shared, transfer: &Transfer) {
    loop {
        let changed = transfer.readers_changed.notified();
        let nobody = transfer.readers.load(Ordering::Acquire) == 0;
        let (watermark, size) = {
            let progress = transfer.progress.borrow();
            (progress.watermark, progress.size)
        };
        let young = transfer.started.elapsed() < GRACE;
        if nobody && !young && !shared.config.load().finish.goes_on(watermark, size) {
            return;
        }
        let _ = tokio::time::timeout(GRACE, changed).await;
    }
}

async fn receive(
    download: &mut Download,
    in_flight: &Semaphore,
    sender: mpsc::Sender<Bytes>,
) -> Result<(), TransferError> {
    while let Some(chunk) = download.next().await? {
        let weight = weight(&chunk);
        let room = in_flight.acquire_many(weight).await;
        room.map_err(|_| TransferError::Interrupted)?.forget();
        if sender.send(chunk).await.is_err() {
            break; // The store failed; its half says so.
        }
    }
    Ok(())
}

fn weight(chunk: &Bytes) -> u32 {
    u32::try_from(chunk.len().min(IN_FLIGHT)).unwrap_or(u32::MAX)
}

async fn store(
    shared: &Shared,
    transfer: &Transfer,
    in_flight: &Semaphore,
    mut receiver: mpsc::Receiver<Bytes>,
    mut spool: Spool,
) -> Result<Spool, Ending> {
    let mut batch = Vec::new();
    let mut saved = spool.offset();
    loop {
        collect(&mut receiver, &mut batch, spool.offset()).await;
        if batch.is_empty() {
            return Ok(spool);
        }
        if !has_room(shared).await {
            report_degraded(shared, &StoreError::Full);
            return Err(detach(spool));
        }
        let weights: u32 = batch.iter().map(weight).sum();
        let save = (spool.offset() - saved >= SAVE_EVERY).then(|| origins(transfer));
        if save.is_some() {
            spool.set_size(transfer.progress.borrow().size);
            saved = spool.offset();
        }
        let written;
        (spool, batch, written) = write(shared, spool, batch, save).await?;
        batch.clear();
        in_flight.add_permits(weights as usize);
        transfer
            .progress
            .send_modify(|progress| progress.watermark = spool.offset());
        if let Err(error) = written {
            report_degraded(shared, &error);
            return Err(detach(spool));
        }
    }
}

/// Collects what has arrived: the first bytes go on at once, later ones in batches worth a trip to another thread.
async fn collect(receiver: &mut mpsc::Receiver<Bytes>, batch: &mut Vec<Bytes>, offset: u64) {
    if receiver.recv_many(batch, CHUNKS).await == 0 || offset == 0 {
        return;
    }
    let more = async {
        while batch.iter().map(Bytes::len).sum::<usize>() < BATCH {
            if receiver.recv_many(batch, CHUNKS).await == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, more).await;
}

type Written = (Spool, Vec<Bytes>, Result<(), StoreError>);

async fn write(
    shared: &Shared,
    mut spool: Spool,
    batch: Vec<Bytes>,
    save: Option<Vec<String>>,
) -> Result<Written, Ending> {
    let _step = shared
        .hash_steps
        .acquire()
        .await
        .map_err(|_| TransferError::Interrupted)?;
    let step = tokio::task::spawn_blocking(move || {
        let written = spool.append(&batch);
        if let Some(origins) = save
            && let Err(error) = spool.save_state(&origins)
        {
            tracing::debug!(%error, "state of a part file not saved; it will be hashed again after a restart");
        }
        (spool, batch, written)
    });
    step.await.map_err(|_| TransferError::Interrupted.into())
}

fn verify(
    shared: &Shared,
    transfer: &Transfer,
    sources: &[Source],
    spool: Spool,
) -> Result<VerifiedSpool, Ending> {
    let resumed = spool.resumed();
    let (spool, mismatch) = match spool.verify(&transfer.digest) {
        Ok(verified) => return Ok(verified),
        Err((spool, mismatch)) => (spool, mismatch),
    };
    discard(*spool);
    match sources {
        [only] if !resumed => {
            tracing::warn!(digest = %transfer.digest, source = %only.key(), %mismatch, "upstream sent wrong bytes");
            shared.metrics.verify_failed(&only.origin.upstream.name);
            shared.suspects.poison(&transfer.digest, only);
        }
        sources => {
            let sources = sources.len();
            tracing::warn!(digest = %transfer.digest, sources, resumed, %mismatch, "pieces do not fit together");
            let name = transfer.origins()[0].upstream.name.clone();
            shared.metrics.verify_failed(&name);
            shared.suspects.fetch_whole(&transfer.digest);
        }
    }
    Err(TransferError::WrongBytes.into())
}

/// Bytes, then row. What fails here is not the readers' failure: they have verified bytes in an open file.
async fn publish(
    shared: &Shared,
    transfer: &Transfer,
    sources: &[Source],
    verified: VerifiedSpool,
) -> Result<(), Ending> {
    let (digest, size) = (&transfer.digest, verified.size());
    // From here until the row is there, eviction leaves the digest alone.
    let _publishing = shared.index.publishing(digest).await;
    if let Err(error) = shared.store.publish(verified).await {
        report_degraded(shared, &error);
        return Err(Ending::Unpublished);
    }
    shared.room.works();
    let public = sources.iter().any(|source| source.origin.public);
    let row = shared.index.put_blob(digest, size, public, false).await;
    let mut members = Ok(());
    for source in sources.iter().filter(|source| !source.origin.public) {
        let repo = &source.origin.repo;
        // The upstream answered 200 to this repository's credential: proof of membership.
        let _ = shared
            .records
            .put(
                &RecordKey::new(repo.clone(), Entry::Blob(*digest)),
                Bytes::new(),
            )
            .await;
        members = members.and(shared.index.put_member(repo, digest).await);
    }
    if let Err(error) = row.and(members) {
        tracing::warn!(%digest, %error, "the index did not take a stored blob; it will be found in the store");
    }
    Ok(())
}

/// Bytes between the network and the disk, per transfer.
const IN_FLIGHT: usize = 1 << 20;
/// Chunks between the network and the disk: a chunk is rarely under 8 KiB, and the bytes are bounded above.
const CHUNKS: usize = 256;
/// A batch worth a trip to a blocking thread.
const BATCH: usize = 256 << 10;
/// How long a batch may wait to grow.
const LINGER: Duration = Duration::from_millis(1);
/// Bytes that are hashed again after a crash, at most.
const SAVE_EVERY: u64 = 16 << 20;
/// A transfer without readers is not given up sooner: its client may be between its request and its first read.
const GRACE: Duration = Duration::from_secs(2);
