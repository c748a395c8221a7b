//! The bytes of one blob in order, whatever happens to the connections they come over.
//!
//! A [`Download`] asks its sources in turn, resumes where a connection broke, leaves a source that is too slow, and
//! skips what a source sends again because it ignores ranges. It does not verify: its user hashes what it gets.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use coral_schema::oci::Digest;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::watch;

use super::resume::{Retries, is_final, retry_after};
use super::stall::StallMeter;
use super::{Origin, Shared, Transfer, TransferError};
use crate::upstream::{
    BlobCall, BlobStream, ByteRange, Endpoint, Priority, UpstreamError, UpstreamErrorKind, failover,
};

/// One endpoint of one origin.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) origin: Origin,
    endpoint: usize,
}

impl Source {
    fn endpoint(&self) -> &dyn Endpoint {
        &*self.origin.upstream.endpoints[self.endpoint]
    }

    /// Names the source without secrets: endpoint, repository and login.
    pub(super) fn key(&self) -> Arc<str> {
        let repository = self.origin.repo.repository();
        let endpoint = self.endpoint();
        format!(
            "{} {repository} {}",
            endpoint.url(),
            endpoint.credential_id(repository).0
        )
        .into()
    }
}

/// Whose origins a download uses.
#[derive(Debug, Clone)]
pub(super) enum Origins {
    /// Those of a transfer, which may grow.
    Of(Arc<Transfer>),
    /// One reader's own, who waits for it.
    Own(Origin),
}

/// What to download.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// First byte that is still wanted.
    pub(super) start: u64,
    /// First byte that is not wanted any more; `None` for the end of the blob.
    pub(super) end: Option<u64>,
    /// Length of the blob, as far as known.
    pub(super) size: Option<u64>,
}

/// See the module.
pub(super) struct Download {
    shared: Arc<Shared>,
    digest: Digest,
    origins: Origins,
    part: Part,
    body: Option<(Source, BoxStream<'static, Result<Bytes, UpstreamError>>)>,
    skip: u64,
    used: Vec<Source>,
    refused: HashSet<Arc<str>>,
    failed_last: Option<Arc<str>>,
    retries: Retries,
    stall: StallMeter,
}

impl Download {
    pub(super) fn new(shared: &Arc<Shared>, digest: Digest, origins: Origins, part: Part) -> Self {
        Self {
            shared: Arc::clone(shared),
            digest,
            origins,
            part,
            body: None,
            skip: 0,
            used: Vec::new(),
            refused: HashSet::new(),
            failed_last: None,
            retries: Retries::default(),
            stall: StallMeter::default(),
        }
    }

    /// Connects. Each source is asked once: a client is waiting for a status line, and has a fallback.
    pub(super) async fn open(&mut self) -> Result<(), TransferError> {
        self.connect()
            .await
            .map_err(|errors| TransferError::Upstream(errors.into()))
    }

    /// Length of the blob, as far as known by now.
    pub(super) fn size(&self) -> Option<u64> {
        self.part.size
    }

    /// The sources that delivered something, first first.
    pub(super) fn into_used(self) -> Vec<Source> {
        self.used
    }

    /// The next bytes; `None` at the end of the part.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, TransferError> {
        loop {
            if self.is_complete() {
                return Ok(None);
            }
            let Some((source, body)) = &mut self.body else {
                self.reconnect().await?;
                continue;
            };
            let chunk = match self.stall.watch(source, body.next()).await {
                Ok(Some(Ok(chunk))) => self.advance(chunk),
                Ok(Some(Err(error))) | Err(error) => self.broken(error).await?,
                Ok(None) if self.part.size.is_none() => {
                    self.part.size = Some(self.part.start);
                    return Ok(None);
                }
                Ok(None) => self.ended_early().await?,
            };
            if let Some(chunk) = chunk {
                return Ok(Some(chunk));
            }
        }
    }

    /// Asks the sources whether they have the blob at all: proof for a part file that is complete already, with `size`
    /// bytes.
    pub(super) async fn confirm(&mut self, size: u64) -> Result<(), TransferError> {
        let mut errors = Vec::new();
        for source in self.candidates() {
            let repository = source.origin.repo.repository();
            match source
                .endpoint()
                .head_blob(self.call(&source).now(), repository, &self.digest)
                .await
            {
                Ok(_) => {
                    self.note_use(&source);
                    self.part.size = Some(size);
                    return Ok(());
                }
                Err(error) => errors.push(error),
            }
        }
        Err(TransferError::Upstream(errors.into()))
    }

    fn is_complete(&self) -> bool {
        let end = self.part.end.or(self.part.size);
        end.is_some_and(|end| self.part.start >= end)
    }

    /// Takes in what arrived: `None` if all of it was skipped.
    fn advance(&mut self, mut chunk: Bytes) -> Option<Bytes> {
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        chunk.advance(usize::try_from(skipped).unwrap_or(chunk.len()));
        if let Some(end) = self.part.end.or(self.part.size) {
            let wanted = usize::try_from(end - self.part.start).unwrap_or(usize::MAX);
            chunk.truncate(wanted);
        }
        self.part.start += chunk.len() as u64;
        self.retries.progressed(chunk.len() as u64);
        (!chunk.is_empty()).then_some(chunk)
    }

    async fn ended_early(&mut self) -> Result<Option<Bytes>, TransferError> {
        let (source, _) = self.body.as_ref().expect("a body has ended");
        let error = source.error(UpstreamErrorKind::Connection("the body ended early".into()));
        self.broken(error).await
    }

    /// The connection broke: pause, so that the next round connects anew.
    async fn broken(&mut self, error: UpstreamError) -> Result<Option<Bytes>, TransferError> {
        if let Some((source, _)) = self.body.take() {
            self.failed_last = Some(source.key());
        }
        tracing::debug!(digest = %self.digest, offset = self.part.start, %error, "download broke, resuming");
        self.pause(vec![error]).await?;
        Ok(None)
    }

    async fn reconnect(&mut self) -> Result<(), TransferError> {
        self.shared.metrics.resumed();
        match self.connect().await {
            Ok(()) => Ok(()),
            Err(errors) => self.pause(errors).await,
        }
    }

    async fn pause(&mut self, errors: Vec<UpstreamError>) -> Result<(), TransferError> {
        if self.candidates().is_empty() {
            return Err(TransferError::Upstream(errors.into()));
        }
        let wanted = errors
            .iter()
            .filter_map(|error| retry_after(&error.kind))
            .min();
        let jitter = RandomState::new().hash_one(self.digest.bytes());
        match self.retries.failed(wanted, jitter) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(TransferError::Upstream(errors.into())),
        }
        Ok(())
    }

    /// Asks the candidates in order.
    async fn connect(&mut self) -> Result<(), Vec<UpstreamError>> {
        let candidates = self.candidates().into_iter();
        let candidates = candidates.map(|source| (self.call(&source), source));
        let (digest, part) = (self.digest, self.part);
        let ask = |(call, source): (BlobCall, Source)| async move {
            let repository = source.origin.repo.repository();
            let blob = source
                .endpoint()
                .blob(call, repository, &digest, part.range());
            match blob.await.and_then(|stream| part.accept(&source, stream)) {
                Ok(stream) => Ok((source, stream)),
                Err(error) => Err((source, error)),
            }
        };
        let (won, lost) = failover::race(candidates.collect(), ask).await;
        let mut errors = Vec::new();
        for (source, error) in lost {
            self.note_failure(&source, &error);
            errors.push(error);
        }
        let (source, stream) = won.ok_or(errors)?;
        self.attach(source, stream);
        Ok(())
    }

    fn note_failure(&mut self, source: &Source, error: &UpstreamError) {
        if is_final(&error.kind) {
            self.refused.insert(source.key());
        }
        self.failed_last = Some(source.key());
    }

    fn attach(&mut self, source: Source, stream: BlobStream) {
        self.skip = self.part.start - stream.start;
        self.part.size = self.part.size.or(stream.total);
        self.stall = StallMeter::default();
        self.note_use(&source);
        self.body = Some((source, stream.body));
    }

    fn note_use(&mut self, source: &Source) {
        if !self.used.iter().any(|used| used.key() == source.key()) {
            self.used.push(source.clone());
        }
        if let Origins::Of(transfer) = &self.origins {
            transfer.note_delivery(&source.origin);
        }
    }

    fn call(&self, source: &Source) -> BlobCall {
        let timeouts = &source.origin.upstream.timeouts;
        let priority = match &self.origins {
            Origins::Of(transfer) => transfer.priority.subscribe(),
            Origins::Own(_) => watch::channel(Priority::Interactive).1,
        };
        BlobCall {
            priority,
            step: timeouts.stall,
            total: timeouts.headers,
        }
    }

    /// Sources that may be asked, best first: not refused, those that sent wrong bytes not at all, the one that failed
    /// last after the others. Where bytes of several sources did not match before, only the first.
    fn candidates(&self) -> Vec<Source> {
        let origins = match &self.origins {
            Origins::Of(transfer) => transfer.origins(),
            Origins::Own(origin) => vec![origin.clone()],
        };
        let mut sources: Vec<_> = origins
            .iter()
            .flat_map(|origin| {
                (0..origin.upstream.endpoints.len()).map(|endpoint| Source {
                    origin: origin.clone(),
                    endpoint,
                })
            })
            .filter(|source| !self.refused.contains(&source.key()))
            .filter(|source| !self.shared.suspects.is_poisoned(&self.digest, source))
            .collect();
        if self.shared.suspects.must_fetch_whole(&self.digest)
            && let Some(only) = self.used.first()
        {
            sources.retain(|source| source.key() == only.key());
        }
        sources.sort_by_key(|source| self.failed_last.as_ref() == Some(&source.key()));
        sources
    }
}

impl Part {
    fn range(self) -> Option<ByteRange> {
        let whole = self.start == 0 && self.end.is_none();
        (!whole).then(|| ByteRange {
            start: self.start,
            end: self.end.map(|end| end - 1),
        })
    }

    /// Does the answer fit what is known already?
    fn accept(self, source: &Source, stream: BlobStream) -> Result<BlobStream, UpstreamError> {
        let unusable = |reason: &str| Err(source.error(UpstreamErrorKind::Protocol(reason.into())));
        match (stream.total, self.size) {
            (Some(total), Some(size)) if total != size => {
                return unusable("its length differs from what was said before");
            }
            _ => {}
        }
        if stream.start > self.start {
            return unusable("the range starts later than asked");
        }
        if stream.start < self.start && self.end.is_some() {
            return unusable("it ignores ranges");
        }
        Ok(stream)
    }
}

impl Source {
    pub(super) fn error(&self, kind: UpstreamErrorKind) -> UpstreamError {
        UpstreamError {
            endpoint: self.endpoint().url().into(),
            kind,
        }
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("digest", &self.digest)
            .field("part", &self.part)
            .finish_non_exhaustive()
    }
}
