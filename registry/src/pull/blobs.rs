//! Blobs: from the store, from the one transfer that fetches them, or passed through.

use std::sync::Arc;

use coral_schema::oci::Digest;
use futures::StreamExt as _;
use tokio::time::timeout;

use super::failure::transfer_error;
use super::stored::from_store;
use super::{
    BlobAnswer, BlobBody, BlobHead, BodyError, Ensure, Kind, Outcome, PullError, Puller, RangeSpec,
    Shared, known,
};
use crate::access::cap::ReadCap;
use crate::transfer::reader::Body;
use crate::transfer::{Transfer, TransferError};
use crate::upstream::{Priority, UpstreamErrorKind};

impl Puller {
    /// The length of a blob of a repository. Never promises what a GET could not deliver (H-38).
    pub async fn head_blob(&self, cap: &ReadCap, digest: &Digest) -> Result<BlobHead, PullError> {
        self.0.remember(cap.repo()).await;
        let row = self.present(digest).await;
        if let Some(row) = &row
            && self.is_proven(cap, digest, row.public).await
        {
            return Ok(BlobHead {
                size: row.size,
                outcome: Outcome::Hit,
            });
        }
        if let Some(child) = known(self.0.index.child(cap.repo(), digest).await) {
            return Ok(BlobHead {
                size: child.size,
                outcome: Outcome::Hit,
            });
        }
        let said = self.prove(cap, digest).await?;
        let size = said.or(row.map(|row| row.size));
        let size = size.ok_or_else(|| {
            PullError::BadGateway("it does not say how long the blob is".to_owned())
        })?;
        Ok(BlobHead {
            size,
            outcome: Outcome::Miss,
        })
    }

    /// A blob of a repository, or a part of it.
    pub async fn blob(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        range: Option<RangeSpec>,
    ) -> Result<BlobAnswer, PullError> {
        self.0.remember(cap.repo()).await;
        if let Some(row) = self.present(digest).await {
            if !self.is_proven(cap, digest, row.public).await {
                self.prove(cap, digest).await?;
            }
            if let Some(stored) = self.open_checked(digest, &row).await {
                self.0.index.touch(digest);
                return from_store(stored, range);
            }
        }
        let ttl = self.0.config.load().negative_ttl;
        if let Some(error) = self.0.negative.check(cap, &digest.to_string(), ttl) {
            return Err(error);
        }
        if let Some(range) = range
            && let Some(answer) = self.passed_through(cap, digest, range).await?
        {
            return Ok(answer);
        }
        let answer = self.while_it_arrives(cap, digest, range).await;
        if let Err(error) = &answer {
            self.0.negative.note(cap, &digest.to_string(), error);
        }
        answer
    }

    /// Has a blob fetched, behind what clients wait for.
    pub async fn ensure_blob(&self, cap: &ReadCap, digest: &Digest) -> Result<Ensure, PullError> {
        if let Some(row) = self.present(digest).await {
            if !self.is_proven(cap, digest, row.public).await {
                self.prove(cap, digest).await?;
            }
            if self.open_checked(digest, &row).await.is_some() {
                return Ok(Ensure::Held);
            }
        }
        let (transfer, _) = self.join(cap, digest, Priority::Background).await?;
        self.opened(cap, &transfer).await?;
        Ok(Ensure::Running(self.0.transfers.follow(&transfer)))
    }

    /// A bounded range of a blob that is not here may be worth a request of its own. `None`: it is not.
    async fn passed_through(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        range: RangeSpec,
    ) -> Result<Option<BlobAnswer>, PullError> {
        let child = known(self.0.index.child(cap.repo(), digest).await);
        let Some(size) = child.map(|child| child.size) else {
            return Ok(None);
        };
        let Some((start, last)) = range.resolve(size) else {
            return Ok(None);
        };
        let end = if matches!(range, RangeSpec::From(_)) {
            None
        } else {
            Some(last)
        };
        if !self
            .0
            .transfers
            .passes_through(digest, cap.client(), (start, end), size)
        {
            return Ok(None);
        }
        let origin = Shared::origin(cap);
        match self
            .0
            .transfers
            .pass_through(digest, origin, (start, last + 1))
            .await
        {
            Ok((total, body)) => {
                self.0
                    .transfers
                    .note_passed(digest, cap.client(), last + 1 - start);
                let size = total.or(Some(size));
                Ok(Some(BlobAnswer {
                    size,
                    range: Some((start, last)),
                    body: to_answer(body),
                    outcome: Outcome::Bypass,
                }))
            }
            Err(error) if ignores_ranges(&error) => Ok(None),
            Err(error) => Err(transfer_error(&error, Kind::Blob)),
        }
    }

    async fn while_it_arrives(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        range: Option<RangeSpec>,
    ) -> Result<BlobAnswer, PullError> {
        let (transfer, outcome) = self.join(cap, digest, Priority::Interactive).await?;
        let size = self.opened(cap, &transfer).await?;
        let part = match (range, size) {
            (Some(range), Some(size)) => Some(
                range
                    .resolve(size)
                    .ok_or(PullError::RangeNotSatisfiable { size })?,
            ),
            // Without a length there are no ranges.
            _ => None,
        };
        let origin = Shared::origin(cap);
        let (start, end) = part.map_or((0, None), |(start, last)| (start, Some(last + 1)));
        if transfer.is_detached_from_start() {
            return self.bypassed(cap, digest, part).await;
        }
        let body = self.0.transfers.read(&transfer, origin, start, end);
        Ok(BlobAnswer {
            size,
            range: part,
            body: to_answer(body),
            outcome,
        })
    }

    /// The transfer of a digest, joined only after the repository was found to have it.
    pub(super) async fn join(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        priority: Priority,
    ) -> Result<(Arc<Transfer>, Outcome), PullError> {
        let joined = self
            .0
            .transfers
            .join(digest, &Shared::origin(cap), priority);
        if joined.started {
            return Ok((joined.transfer, Outcome::Miss));
        }
        if !self.may_join(cap, digest, &joined.transfer).await {
            self.prove(cap, digest).await?;
        }
        joined.transfer.add_origin(Shared::origin(cap));
        Ok((joined.transfer, Outcome::Join))
    }

    /// Waits for the status line. What other repositories deliver is not for this one until its own upstream has
    /// answered for it.
    async fn opened(&self, cap: &ReadCap, transfer: &Transfer) -> Result<Option<u64>, PullError> {
        let patience = cap.upstream().timeouts.headers;
        let opened = timeout(patience, transfer.opened()).await;
        let opened = opened
            .map_err(|_| PullError::Timeout("no upstream answered for this blob".to_owned()))?;
        let size = opened.map_err(|error| transfer_error(&error, Kind::Blob))?;
        let digest = transfer.digest();
        let is_public = async || {
            let stored = known(self.0.index.blob(digest).await);
            transfer.is_public() || stored.is_some_and(|row| row.public)
        };
        if !transfer.is_detached_from_start()
            && !transfer.was_delivered_by(cap.repo())
            && !self.is_proven(cap, digest, is_public().await).await
        {
            self.prove(cap, digest).await?;
        }
        Ok(size)
    }

    /// The store takes nothing: the client gets its own download.
    async fn bypassed(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        part: Option<(u64, u64)>,
    ) -> Result<BlobAnswer, PullError> {
        let origin = Shared::origin(cap);
        let opened = match part {
            Some((start, last)) => {
                self.0
                    .transfers
                    .pass_through(digest, origin, (start, last + 1))
                    .await
            }
            None => self.0.transfers.bypass(digest, origin).await,
        };
        let (size, body) = opened.map_err(|error| transfer_error(&error, Kind::Blob))?;
        Ok(BlobAnswer {
            size,
            range: part,
            body: to_answer(body),
            outcome: Outcome::Bypass,
        })
    }
}

fn ignores_ranges(error: &TransferError) -> bool {
    let TransferError::Upstream(errors) = error else {
        return false;
    };
    errors
        .iter()
        .any(|error| matches!(error.kind, UpstreamErrorKind::Protocol(_)))
}

fn to_answer(body: Body) -> BlobBody {
    let body = body.map(|chunk| chunk.map_err(|error| BodyError(error.to_string())));
    BlobBody::Arriving(body.boxed())
}
