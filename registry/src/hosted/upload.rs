//! Upload sessions: begun, filled in chunks or at once, ended with a digest or cancelled.
//!
//! A session has exactly the bytes that the client was told of, or, when a body broke, more: its status says how many.
//! A chunk that is refused leaves nothing behind.

use std::time::Duration;

use coral_schema::oci::{Algorithm, Digest};
use tokio::time::sleep;

use super::sessions::{Busy, Turn};
use super::{Body, Hosted, HostedError, Shared, fill, skip};
use crate::access::cap::WriteCap;
use crate::store::{StoreError, Upload, UploadId, VerifiedUpload, VerifyError};

/// What a request says of the bytes that it brings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chunk {
    /// First and last byte (`Content-Range`).
    pub range: Option<(u64, u64)>,
    /// How many (`Content-Length`).
    pub length: Option<u64>,
}

impl Chunk {
    /// Does it begin where the session ends, and agree with itself? How many bytes will come, if that is known.
    fn check(self, received: u64) -> Result<Option<u64>, HostedError> {
        let Some((first, last)) = self.range else {
            return Ok(self.length);
        };
        if first != received {
            return Err(HostedError::OutOfOrder { received });
        }
        let said = last.saturating_sub(first).saturating_add(1);
        match self.length {
            Some(found) if found != said => Err(HostedError::Length { said, found }),
            _ => Ok(Some(said)),
        }
    }
}

impl Hosted {
    /// Begins a session whose content is hashed with `algorithm` while it arrives.
    pub async fn begin(
        &self,
        cap: &WriteCap,
        algorithm: Algorithm,
    ) -> Result<UploadId, HostedError> {
        self.0.need_room().await?;
        self.0.active.note(cap.repo());
        let upload = self.0.parts.uploads.create(cap.repo(), algorithm).await?;
        let (upload, saved) = step(upload, |upload| upload.save()).await?;
        saved?;
        Ok(upload.id().clone())
    }

    /// A whole blob in one request, without a session.
    pub async fn push(
        &self,
        cap: &WriteCap,
        digest: Digest,
        chunk: Chunk,
        body: Body,
    ) -> Result<(), HostedError> {
        let (shared, cap) = (self.0.clone(), cap.clone());
        let work = async move {
            let upload = shared.parts.uploads.create(cap.repo(), digest.algorithm());
            let upload = upload.await?;
            let turn = shared.sessions.take(upload.id());
            let turn = turn.map_err(|Busy(_)| HostedError::UnknownUpload)?;
            let (upload, received) = receive(&shared, upload, &turn, chunk, body).await?;
            let ended = match received {
                Ok(()) => verify(upload, digest).await?,
                Err(error) => Err((upload, error)),
            };
            match ended {
                Ok(verified) => shared.accept(cap.repo(), verified).await,
                Err((upload, error)) => {
                    discard(upload).await;
                    Err(error)
                }
            }
        };
        self.finish_in_any_case(work).await
    }

    /// Adds a chunk. How many bytes the session has now.
    pub async fn append(
        &self,
        cap: &WriteCap,
        id: &UploadId,
        chunk: Chunk,
        body: Body,
    ) -> Result<u64, HostedError> {
        let (shared, cap, id) = (self.0.clone(), cap.clone(), id.clone());
        let work = async move {
            let (upload, turn, body) = shared.session_for(&cap, &id, body).await?;
            let (upload, received) = receive(&shared, upload, &turn, chunk, body).await?;
            received.map(|()| upload.offset())
        };
        self.finish_in_any_case(work).await
    }

    /// Ends a session, perhaps with a last chunk. When the digest is wrong, the session is as it was before.
    pub async fn finish(
        &self,
        cap: &WriteCap,
        id: &UploadId,
        digest: Digest,
        (chunk, body): (Chunk, Body),
    ) -> Result<(), HostedError> {
        let (shared, cap, id) = (self.0.clone(), cap.clone(), id.clone());
        let work = async move {
            let (upload, turn, body) = shared.session_for(&cap, &id, body).await?;
            let mark = upload.mark();
            let (upload, received) = receive(&shared, upload, &turn, chunk, body).await?;
            received?;
            match verify(upload, digest).await? {
                Ok(verified) => shared.accept(cap.repo(), verified).await,
                Err((upload, error)) => {
                    let (_, back) = step(upload, move |upload| upload.go_back(mark)).await?;
                    back?;
                    Err(error)
                }
            }
        };
        self.finish_in_any_case(work).await
    }

    /// How many bytes a session has, whoever writes to it.
    pub async fn status(&self, cap: &WriteCap, id: &UploadId) -> Result<u64, HostedError> {
        let upload = self.0.find(cap, id).await?;
        let written = self.0.sessions.busy(id).and_then(|Busy(received)| received);
        Ok(written.unwrap_or(upload.offset()))
    }

    /// Ends a session without a result.
    pub async fn cancel(&self, cap: &WriteCap, id: &UploadId) -> Result<(), HostedError> {
        let (shared, cap, id) = (self.0.clone(), cap.clone(), id.clone());
        let work = async move {
            let (upload, _turn) = shared.session(&cap, &id).await?;
            discard(upload).await;
            Ok(())
        };
        self.finish_in_any_case(work).await
    }

    /// Removes sessions that nobody has gone on with for `gc.uploads`, again and again.
    pub async fn sweep_forever(&self) {
        loop {
            let max_age = self.0.settings.load().gc.uploads;
            if let Err(error) = self.sweep(max_age).await {
                tracing::warn!(%error, "old uploads could not be removed; it is tried again");
            }
            sleep(max_age.min(SWEEP_EVERY)).await;
        }
    }

    async fn sweep(&self, max_age: Duration) -> Result<(), HostedError> {
        let sessions = self.0.sessions.clone();
        let is_written = Box::new(move |id: &UploadId| sessions.busy(id).is_some());
        Ok(self.0.parts.uploads.sweep(max_age, is_written).await?)
    }
}

impl Shared {
    /// The session as far as it came, for nobody else until the turn is given back.
    async fn session(&self, cap: &WriteCap, id: &UploadId) -> Result<(Upload, Turn), HostedError> {
        let turn = match self.sessions.take(id) {
            Ok(turn) => turn,
            Err(Busy(received)) => {
                let upload = self.find(cap, id).await?;
                let received = received.unwrap_or(upload.offset());
                return Err(HostedError::OutOfOrder { received });
            }
        };
        let upload = self.find(cap, id).await?;
        turn.note(upload.offset());
        Ok((upload, turn))
    }

    /// As [`Shared::session`], for the body that goes into it.
    async fn session_for(
        &self,
        cap: &WriteCap,
        id: &UploadId,
        body: Body,
    ) -> Result<(Upload, Turn, Body), HostedError> {
        match self.session(cap, id).await {
            Ok((upload, turn)) => Ok((upload, turn, body)),
            Err(error) => {
                skip(body).await;
                Err(error)
            }
        }
    }

    /// The session as far as it came. Only who has the turn may change it.
    async fn find(&self, cap: &WriteCap, id: &UploadId) -> Result<Upload, HostedError> {
        let found = self.parts.uploads.find(id).await?;
        let upload = found.filter(|upload| upload.repo() == cap.repo());
        upload.ok_or(HostedError::UnknownUpload)
    }
}

/// An upload after something was done to it, and whether that succeeded.
pub(super) type After<T> = (Upload, Result<T, HostedError>);

/// Takes in a body. A chunk that is refused is forgotten; what came of one that broke off is kept.
async fn receive(
    shared: &Shared,
    upload: Upload,
    turn: &Turn,
    chunk: Chunk,
    body: Body,
) -> Result<After<()>, HostedError> {
    let said = match chunk.check(upload.offset()) {
        Ok(said) => said,
        Err(error) => {
            skip(body).await;
            return Ok((upload, Err(error)));
        }
    };
    let mark = upload.mark();
    let (upload, received) = fill::fill(shared, upload, turn, said, body).await?;
    let is_refused = matches!(received, Err(HostedError::Length { .. }));
    let save = move |upload: &mut Upload| {
        if is_refused {
            upload.go_back(mark)
        } else {
            upload.save()
        }
    };
    let (upload, saved) = step(upload, save).await?;
    turn.note(upload.offset());
    Ok((upload, received.and(saved)))
}

/// One step of work on the disk.
pub(super) async fn step<T: Send + 'static>(
    mut upload: Upload,
    work: impl FnOnce(&mut Upload) -> Result<T, StoreError> + Send + 'static,
) -> Result<After<T>, HostedError> {
    let step = tokio::task::spawn_blocking(move || {
        let result = work(&mut upload);
        (upload, result.map_err(HostedError::from))
    });
    step.await
        .map_err(|error| HostedError::Unavailable(error.to_string()))
}

/// A blob, or the upload that is none.
type Verified = Result<VerifiedUpload, (Upload, HostedError)>;

async fn verify(upload: Upload, expected: Digest) -> Result<Verified, HostedError> {
    let verified = tokio::task::spawn_blocking(move || upload.verify(&expected)).await;
    let verified = verified.map_err(|error| HostedError::Unavailable(error.to_string()))?;
    Ok(verified.map_err(|(upload, error)| {
        let error = match error {
            VerifyError::Mismatch(mismatch) => mismatch.into(),
            VerifyError::Store(error) => error.into(),
        };
        (*upload, error)
    }))
}

async fn discard(upload: Upload) {
    let id = upload.id().clone();
    let removed = tokio::task::spawn_blocking(move || upload.discard()).await;
    if !matches!(removed, Ok(Ok(()))) {
        tracing::warn!(%id, "an upload could not be removed; it is swept later");
    }
}

/// Sessions that rest cost their bytes and nothing else.
const SWEEP_EVERY: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(None, None, Ok(None))]
    #[case(None, Some(5), Ok(Some(5)))]
    #[case(Some((10, 14)), Some(5), Ok(Some(5)))]
    #[case(Some((10, 14)), None, Ok(Some(5)))]
    #[case(Some((9, 14)), Some(6), Err("begins there"))]
    #[case(Some((11, 14)), Some(4), Err("begins there"))]
    #[case(Some((10, 14)), Some(4), Err("5 were announced"))]
    #[case(Some((10, u64::MAX)), Some(4), Err("were announced"))]
    fn h32_chunks_begin_where_the_session_ends(
        #[case] range: Option<(u64, u64)>,
        #[case] length: Option<u64>,
        #[case] expected: Result<Option<u64>, &str>,
    ) {
        let found = Chunk { range, length }.check(10);
        match expected {
            Ok(expected) => assert_eq!(found.unwrap(), expected),
            Err(text) => assert!(found.unwrap_err().to_string().contains(text)),
        }
    }
}
