//! The part file of a fill: taking it up, asking for what is missing, and what becomes of it when the fill fails.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coral_schema::oci::Hasher;
use tokio::time::Instant;

use super::download::{Download, Origins, Part};
use super::fill::Ending;
use super::{Detached, Shared, Transfer, TransferError};
use crate::index::BlobState;
use crate::store::{Spool, StoreError};
use crate::upstream::UpstreamErrorKind;

/// Was the blob published by a transfer that left the table after our client had looked into the store?
pub(super) async fn find_stored(shared: &Shared, transfer: &Transfer) -> bool {
    let digest = &transfer.digest;
    let Ok(Some(row)) = shared.index.blob(digest).await else {
        return false;
    };
    let stored = shared.store.open(digest).await.ok().flatten();
    let Some(stored) = stored.filter(|stored| stored.size() == row.size) else {
        return false;
    };
    if row.state != BlobState::Present || shared.index.suspect(&row) {
        return false;
    }
    let _ = transfer.file.set(stored.reader());
    let public = row.public;
    transfer.stored_as_public.store(public, Ordering::Release);
    transfer.progress.send_modify(|progress| {
        progress.watermark = row.size;
        progress.size = Some(row.size);
    });
    true
}

pub(super) async fn open_spool(shared: &Shared, transfer: &Transfer) -> Result<Spool, Ending> {
    let opened = if has_room(shared).await {
        take_spool(shared, transfer).await
    } else {
        Err(StoreError::Full)
    };
    let spool = opened.map_err(|error| {
        report_degraded(shared, &error);
        let hasher = Hasher::new(transfer.digest.algorithm());
        Ending::Detached(Arc::new(Detached { offset: 0, hasher }))
    })?;
    if shared.suspects.must_fetch_whole(&transfer.digest) && spool.offset() > 0 {
        return reset(spool).await;
    }
    Ok(spool)
}

/// The last step of a fill that was given up may still hold the part file; it ends soon.
async fn take_spool(shared: &Shared, transfer: &Transfer) -> Result<Spool, StoreError> {
    let until = Instant::now() + BUSY;
    loop {
        match shared.store.spool(&transfer.digest).await {
            Err(StoreError::Io { source, .. })
                if source.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until =>
            {
                tokio::time::sleep(BUSY_LOOK).await;
            }
            result => return result,
        }
    }
}

/// May the fill go on? If not, room is made first where that can be done.
pub(super) async fn has_room(shared: &Shared) -> bool {
    if !shared.store.may_fill() {
        shared.room.ask().await;
    }
    shared.store.may_fill()
}

pub(super) fn report_degraded(shared: &Shared, error: &StoreError) {
    tracing::warn!(%error, "the store takes no content; clients are served from the upstream until it does");
    shared.room.failed(error);
}

/// Asks the origins for what is missing. A part file that they do not go on with is dropped, and all is asked for.
pub(super) async fn connect(
    shared: &Arc<Shared>,
    transfer: &Arc<Transfer>,
    spool: Spool,
) -> Result<(Download, Spool), Ending> {
    let mut download = download(shared, transfer, &spool);
    let complete = spool.resumed() && spool.hasher().finish() == transfer.digest;
    let opened = if complete {
        download.confirm(spool.offset()).await
    } else {
        download.open().await
    };
    match opened {
        Ok(()) => Ok((download, spool)),
        Err(error) if spool.resumed() && contradicts_part(&error) => {
            let spool = reset(spool).await?;
            let mut download = self::download(shared, transfer, &spool);
            match download.open().await {
                Ok(()) => Ok((download, spool)),
                Err(error) => Err(keep_what_is_there(spool, transfer, error).await),
            }
        }
        Err(error) => Err(keep_what_is_there(spool, transfer, error).await),
    }
}

fn download(shared: &Arc<Shared>, transfer: &Arc<Transfer>, spool: &Spool) -> Download {
    let part = Part {
        start: spool.offset(),
        end: None,
        size: spool.size(),
    };
    let origins = Origins::Of(Arc::clone(transfer));
    Download::new(shared, transfer.digest, origins, part)
}

/// The download failed. The next demand goes on from a part file, unless it is the part file that does not fit.
pub(super) async fn keep_what_is_there(
    spool: Spool,
    transfer: &Transfer,
    error: TransferError,
) -> Ending {
    if spool.offset() == 0 || contradicts_part(&error) {
        discard(spool);
    } else {
        save(spool, origins(transfer)).await;
    }
    error.into()
}

/// Does an origin say that the blob is not what the part file takes it for?
fn contradicts_part(error: &TransferError) -> bool {
    let TransferError::Upstream(errors) = error else {
        return false;
    };
    errors.iter().any(|error| {
        matches!(
            error.kind,
            UpstreamErrorKind::Protocol(_) | UpstreamErrorKind::Status(416)
        )
    })
}

/// Leaves a part file from which the next demand goes on.
async fn save(mut spool: Spool, origins: Vec<String>) {
    let saved = tokio::task::spawn_blocking(move || spool.save_state(&origins)).await;
    if !matches!(saved, Ok(Ok(()))) {
        tracing::debug!("state of a part file not saved");
    }
}

/// Repositories that the bytes may come from, for whoever looks at a part file.
pub(super) fn origins(transfer: &Transfer) -> Vec<String> {
    transfer
        .origins()
        .iter()
        .map(|origin| origin.repo.to_string())
        .collect()
}

pub(super) async fn reset(mut spool: Spool) -> Result<Spool, Ending> {
    let reset = tokio::task::spawn_blocking(move || spool.reset().map(|()| spool)).await;
    let spool = reset.map_err(|_| TransferError::Interrupted)?;
    Ok(spool.map_err(|_| TransferError::Interrupted)?)
}

/// Gives the readers what they need to go on without the store. The file is unlinked; they have it open.
pub(super) fn detach(spool: Spool) -> Ending {
    let detached = Detached {
        offset: spool.offset(),
        hasher: spool.hasher(),
    };
    discard(spool);
    Ending::Detached(Arc::new(detached))
}

pub(super) fn discard(spool: Spool) {
    if let Err(error) = spool.discard() {
        tracing::warn!(%error, "a part file could not be removed; it is dropped at the next start");
    }
}

/// One step of a fill that was given up takes milliseconds; a disk that needs longer is in trouble.
const BUSY: Duration = Duration::from_secs(2);
const BUSY_LOOK: Duration = Duration::from_millis(5);
