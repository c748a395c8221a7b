//! Fills an index that was lost, from what the store says, while requests are served.
//!
//! All records first, then all blobs; restoring adds what is not there and overwrites nothing, so requests may write at
//! the same time. Until it is done, a repository that somebody asks for is brought back at once, ahead of its turn.
//!
//! Two things a record does not say, and each errs on the safe side. When a tag was checked counts as never: one check
//! follows. Whether a blob came from a public repository is known only if *every* repository that has or names its
//! digest is public: a hostile manifest may name what only a private repository could have fetched (H-20).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::oci::Digest;
use coral_schema::process::tasks::Tasks;
use futures::{StreamExt as _, TryStreamExt as _};
use moka::future::Cache;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::index::{Index, IndexError, Restored, VisibilityRow};
use crate::name::RepoKey;
use crate::store::key::{Entry, RecordKey};
use crate::store::{BlobStore, RecordStore, StoreError};

pub mod records;

/// Why a rebuild did not end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RebuildError {
    /// The index cannot be written.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The repository has too many records to wait for.
    #[error("the repository is not rebuilt yet")]
    TooSlow,
}

/// Is this repository public, given what its record says? The configuration may say more than the record.
pub type IsPublic = dyn Fn(&RepoKey, Option<VisibilityRow>) -> bool + Send + Sync;

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Is one running?
    pub running: bool,
    /// Records brought back.
    pub records: u64,
    /// Records that could not be read.
    pub unreadable: u64,
    /// Blobs found.
    pub blobs: u64,
}

/// The rebuilder; clones are the same.
#[derive(Clone)]
pub struct Rebuild(Arc<Inner>);

struct Inner {
    index: Index,
    blobs: Arc<dyn BlobStore>,
    records: Arc<dyn RecordStore>,
    is_public: Box<IsPublic>,
    progress: watch::Sender<Progress>,
    /// Repositories brought back ahead of their turn, by the loss that made it necessary.
    ahead: Cache<(u64, RepoKey), ()>,
}

impl Rebuild {
    /// A rebuilder of `index`.
    pub fn new(
        index: Index,
        blobs: Arc<dyn BlobStore>,
        records: Arc<dyn RecordStore>,
        is_public: Box<IsPublic>,
    ) -> Self {
        Self(Arc::new(Inner {
            index,
            blobs,
            records,
            is_public,
            progress: watch::Sender::default(),
            ahead: Cache::new(REMEMBERED),
        }))
    }

    /// Starts the task: rebuilds whenever the index is not complete.
    pub fn start(&self, tasks: &Tasks) -> JoinHandle<()> {
        let (rebuild, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("rebuild", async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = rebuild.run() => {}
            }
        })
    }

    /// How far the present rebuild is, or how far the last one came.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.0.progress.subscribe()
    }

    /// Brings back everything, unless the index is complete.
    pub async fn whole(&self) -> Result<Progress, RebuildError> {
        let inner = &*self.0;
        while !inner.index.complete() {
            let loss = *inner.index.replacements().borrow();
            inner.progress.send_replace(Progress {
                running: true,
                ..Progress::default()
            });
            let restored = async {
                inner.restore_all().await?;
                Ok::<_, RebuildError>(inner.index.set_complete(loss).await?)
            };
            let restored = restored.await;
            inner
                .progress
                .send_modify(|progress| progress.running = false);
            restored?;
        }
        Ok(*inner.progress.borrow())
    }

    /// Brings back the records of one repository, unless the index is complete: to be called before a lookup in it is
    /// believed to have failed. Its blobs are found by asking the store. Concurrent calls share the work.
    pub async fn repository(&self, repo: &RepoKey) -> Result<(), RebuildError> {
        let inner = &*self.0;
        if inner.index.complete() {
            return Ok(());
        }
        let loss = *inner.index.replacements().borrow();
        let restore = async {
            timeout(AHEAD_DEADLINE, inner.restore_records(Some(repo)))
                .await
                .map_err(|_| RebuildError::TooSlow)?
        };
        inner
            .ahead
            .try_get_with((loss, repo.clone()), restore)
            .await
            .map_err(|error| (*error).clone())
    }

    /// Waits until everything is back, for as long as a client may wait. Is it?
    pub async fn settled(&self) -> bool {
        let index = &self.0.index;
        let mut progress = self.progress();
        let _ = timeout(AHEAD_DEADLINE, progress.wait_for(|_| index.complete())).await;
        index.complete()
    }

    async fn run(&self) {
        let mut losses = self.0.index.replacements();
        loop {
            losses.mark_unchanged();
            match self.whole().await {
                Ok(Progress {
                    records,
                    blobs,
                    unreadable,
                    ..
                }) => {
                    if records > 0 || blobs > 0 {
                        tracing::info!(records, blobs, unreadable, "the index is rebuilt");
                    }
                    if losses.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the index cannot be rebuilt; it is tried again");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

impl Inner {
    async fn restore_all(&self) -> Result<(), RebuildError> {
        self.restore_records(None).await?;
        let mut public = HashMap::new();
        let mut found = self.blobs.list().try_ready_chunks(CHUNK);
        while let Some(chunk) = found.next().await {
            let chunk = chunk.map_err(|error| error.1)?;
            let count = chunk.len() as u64;
            let restored = self.judge(chunk, &mut public).await?;
            self.index.restore(restored).await?;
            self.progress
                .send_modify(|progress| progress.blobs += count);
        }
        Ok(())
    }

    async fn restore_records(&self, repo: Option<&RepoKey>) -> Result<(), RebuildError> {
        let mut hosted = HashMap::new();
        let mut found = self.records.list(repo).try_ready_chunks(CHUNK);
        while let Some(chunk) = found.next().await {
            let chunk = chunk.map_err(|error| error.1)?;
            let mut restored = Vec::with_capacity(chunk.len());
            let mut unreadable = 0;
            for (key, record) in chunk {
                if key.repo.is_hosted() && !self.was_hosted(&key.repo, &mut hosted).await? {
                    continue;
                }
                match records::restored(&key, &record) {
                    Ok(row) => restored.extend(row),
                    Err(error) => {
                        tracing::warn!(%key, %error, "a record cannot be read and is ignored");
                        unreadable += 1;
                    }
                }
            }
            let count = restored.len() as u64;
            self.index.restore(restored).await?;
            if repo.is_none() {
                self.progress.send_modify(|progress| {
                    progress.records += count;
                    progress.unreadable += unreadable;
                });
            }
        }
        Ok(())
    }

    /// Was it pushed to, as its key says? Earlier releases wrote an upstream named `mirror` without a port, so that what was
    /// fetched from it lies where a hosted repository would. `known` remembers repositories.
    async fn was_hosted(
        &self,
        repo: &RepoKey,
        known: &mut HashMap<RepoKey, bool>,
    ) -> Result<bool, StoreError> {
        if let Some(hosted) = known.get(repo) {
            return Ok(*hosted);
        }
        let key = RecordKey::new(repo.clone(), Entry::Repo);
        let record = self.records.get(&key).await?;
        let hosted = record.is_some_and(|record| records::may_be_hosted(&record));
        known.insert(repo.clone(), hosted);
        Ok(hosted)
    }

    /// Which of these blobs certainly came from a public repository? `known` remembers repositories.
    async fn judge(
        &self,
        found: Vec<(Digest, u64)>,
        known: &mut HashMap<RepoKey, bool>,
    ) -> Result<Vec<Restored>, RebuildError> {
        let digests = found.iter().map(|(digest, _)| *digest).collect();
        let repositories = self.index.repositories_of(digests).await?;
        let mut restored = Vec::with_capacity(found.len());
        for ((digest, size), (_, repos)) in found.into_iter().zip(repositories) {
            let mut public = !repos.is_empty();
            for repo in repos {
                public &= self.is_public(repo, known).await?;
            }
            restored.push(Restored::Blob {
                digest,
                size,
                public,
            });
        }
        Ok(restored)
    }

    async fn is_public(
        &self,
        repo: RepoKey,
        known: &mut HashMap<RepoKey, bool>,
    ) -> Result<bool, IndexError> {
        if let Some(public) = known.get(&repo) {
            return Ok(*public);
        }
        let public = (self.is_public)(&repo, self.index.visibility(&repo).await?);
        known.insert(repo, public);
        Ok(public)
    }
}

impl fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rebuild").finish_non_exhaustive()
    }
}

/// Rows in one transaction: some tens of milliseconds during which no other write is committed.
const CHUNK: usize = 256;

/// Repositories asked for during one rebuild.
const REMEMBERED: u64 = 16_384;

/// A client waits for it; after that the upstream is asked.
const AHEAD_DEADLINE: Duration = Duration::from_secs(2);

/// A store that cannot be read needs a person, or a moment.
const RETRY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
