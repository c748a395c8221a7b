//! Upstream body to spool file: hash, write, advance the watermark, verify, publish. Outlives every reader.
//!
//! Two halves run in one task: one pulls from the network ([`receive`]), one hashes and writes on a blocking thread
//! ([`store`]); between them at most [`IN_FLIGHT`] bytes wait.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coral_schema::oci::Digest;
use tokio::sync::{Semaphore, mpsc};

use super::download::{Download, Origins, Part, Source};
use super::table::Permit;
use super::{Detached, Phase, Shared, Transfer, TransferError};
use crate::index::BlobState;
use crate::store::key::{Entry, RecordKey};
use crate::store::{Spool, StoreError, StoredBlob, VerifiedSpool};
use crate::upstream::{UpstreamError, UpstreamErrorKind};

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
    };
    transfer.set_phase(ending);
}

/// How a fill ends without a published blob.
enum Ending {
    Failed(TransferError),
    Detached(Arc<Detached>),
}

impl From<TransferError> for Ending {
    fn from(error: TransferError) -> Self {
        Self::Failed(error)
    }
}

async fn fill(shared: &Arc<Shared>, transfer: &Arc<Transfer>) -> Result<(), Ending> {
    // Another transfer may have ended between this one's last look at the store and its start.
    if let Some(stored) = stored(shared, &transfer.digest).await {
        transfer.found(&stored);
        return Ok(());
    }
    let (mut download, spool) = connect(shared, transfer).await?;
    let resumed = spool.resumed();
    // A reader can only ask for the file once the phase says that there is one.
    let _ = transfer.file.set(spool.reader());
    announce(transfer, &spool, download.size());
    let spool = transport(shared, transfer, &mut download, spool).await?;
    transfer.set_phase_if_announced(Phase::Verifying);
    let sources = download.into_used();
    let verified = verify(shared, transfer, &sources, spool, resumed)?;
    publish(shared, transfer, &sources, verified).await;
    Ok(())
}

/// The blob, if index and store agree that it is there.
async fn stored(shared: &Shared, digest: &Digest) -> Option<Arc<StoredBlob>> {
    let row = shared.index.blob(digest).await.ok()??;
    if row.state != BlobState::Present || shared.index.suspect(&row) {
        return None;
    }
    let stored = shared.store.open(digest).await.ok()??;
    (stored.size() == row.size).then_some(stored)
}

/// A part file, and a source that goes on where it ends. A part that no source goes on with is dropped: it may be of
/// another length than the blob.
async fn connect(
    shared: &Arc<Shared>,
    transfer: &Arc<Transfer>,
) -> Result<(Download, Spool), Ending> {
    let mut spool = open_spool(shared, transfer).await?;
    loop {
        let mut download = begin(shared, transfer, &spool);
        let opened = if is_complete(&spool) {
            download.confirm().await
        } else {
            download.open().await
        };
        match opened {
            Ok(()) => return Ok((download, spool)),
            Err(TransferError::Upstream(errors)) if spool.offset() > 0 && refuse_range(&errors) => {
                tracing::info!(digest = %transfer.digest, "a part file does not fit the upstream's blob, starting over");
                spool = empty(spool).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn begin(shared: &Arc<Shared>, transfer: &Arc<Transfer>, spool: &Spool) -> Download {
    // What a former source said of the length binds nobody, unless all of it is here.
    let size = spool.size().filter(|_| is_complete(spool));
    let part = Part {
        start: spool.offset(),
        end: None,
        size,
    };
    let origins = Origins::Of(Arc::clone(transfer));
    Download::new(shared, transfer.digest, transfer.priority, origins, part)
}

fn is_complete(spool: &Spool) -> bool {
    spool.resumed() && spool.size() == Some(spool.offset())
}

fn refuse_range(errors: &[UpstreamError]) -> bool {
    let refuses = |error: &UpstreamError| {
        matches!(
            error.kind,
            UpstreamErrorKind::Status(416) | UpstreamErrorKind::Protocol(_)
        )
    };
    errors.iter().any(refuses)
}

async fn empty(mut spool: Spool) -> Result<Spool, TransferError> {
    let reset = tokio::task::spawn_blocking(move || spool.reset().map(|()| spool)).await;
    reset
        .map_err(|_| TransferError::Interrupted)?
        .map_err(|_| TransferError::Interrupted)
}

async fn open_spool(shared: &Shared, transfer: &Transfer) -> Result<Spool, Ending> {
    let full = if shared.store.may_fill() {
        None
    } else {
        Some(StoreError::Full)
    };
    let opened = match full {
        Some(error) => Err(error),
        None => shared.store.spool(&transfer.digest).await,
    };
    let mut spool = opened.map_err(|error| {
        report_degraded(shared, &error);
        let hasher = coral_schema::oci::Hasher::new(transfer.digest.algorithm());
        Ending::Detached(Arc::new(Detached { offset: 0, hasher }))
    })?;
    if shared.suspects.must_fetch_whole(&transfer.digest) && spool.offset() > 0 {
        spool = empty(spool).await?;
    }
    Ok(spool)
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
    /// The blob is stored already: readers take it from there.
    fn found(&self, stored: &StoredBlob) {
        let _ = self.file.set(stored.reader());
        self.progress.send_modify(|progress| {
            progress.watermark = stored.size();
            progress.size = Some(stored.size());
        });
    }

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
    let both = async {
        tokio::join!(
            receive(download, &in_flight, sender),
            store(shared, transfer, &in_flight, receiver, spool)
        )
    };
    let (fetched, stored) = tokio::select! {
        both = both => both,
        () = stopping.cancelled() => return Err(TransferError::Interrupted.into()),
        () = abandoned(shared, transfer) => return Err(TransferError::Abandoned.into()),
    };
    let mut spool = stored?;
    spool.set_size(download.size());
    if let Err(error) = fetched {
        save(spool, origins(transfer)).await;
        return Err(error.into());
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
        let nobody = transfer.readers.load(std::sync::atomic::Ordering::Acquire) == 0;
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

/// Gives the readers what they need to go on without the store. The file is unlinked; they have it open.
fn detach(spool: Spool) -> Ending {
    let detached = Detached {
        offset: spool.offset(),
        hasher: spool.hasher(),
    };
    discard(spool);
    Ending::Detached(Arc::new(detached))
}

fn discard(spool: Spool) {
    if let Err(error) = spool.discard() {
        tracing::warn!(%error, "a part file could not be removed; it is dropped at the next start");
    }
}

fn report_degraded(shared: &Shared, error: &StoreError) {
    tracing::warn!(%error, "the store takes no content; clients are served from the upstream until it does");
    shared.metrics.store_failed();
}

/// Leaves a part file from which the next demand goes on.
async fn save(mut spool: Spool, origins: Vec<String>) {
    let saved = tokio::task::spawn_blocking(move || spool.save_state(&origins)).await;
    if !matches!(saved, Ok(Ok(()))) {
        tracing::debug!("state of a part file not saved");
    }
}

/// Repositories that the bytes may come from, for whoever looks at a part file.
fn origins(transfer: &Transfer) -> Vec<String> {
    transfer
        .origins()
        .iter()
        .map(|origin| origin.repo.to_string())
        .collect()
}

fn verify(
    shared: &Shared,
    transfer: &Transfer,
    sources: &[Source],
    spool: Spool,
    resumed: bool,
) -> Result<VerifiedSpool, Ending> {
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
) {
    let (digest, size) = (&transfer.digest, verified.size());
    // From here until the row is there, eviction leaves the digest alone.
    let _publishing = shared.index.publishing(digest).await;
    if let Err(error) = shared.store.publish(verified).await {
        report_degraded(shared, &error);
        return;
    }
    shared.metrics.store_works();
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
