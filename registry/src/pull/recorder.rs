//! Writes what was learnt to the store, in order and behind the answers: blob, then manifest record, then tag record.
//!
//! Proxied content can be fetched again, so nobody waits for these writes; a full queue makes the tasks that fetch wait,
//! never a client that is served from what is held.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coral_schema::oci::{Digest, Tag};
use coral_schema::process::tasks::Tasks;
use jiff::Timestamp;
use moka::sync::Cache;
use tokio::sync::mpsc;

use crate::index::{Index, ManifestRow, TagRow};
use crate::name::RepoKey;
use crate::rebuild::records::{manifest_record, tag_record};
use crate::store::key::{Entry, RecordKey};
use crate::store::record::{self, RepoKind, RepoRecord, Visibility};
use crate::store::{BlobStore, RecordStore, StoreError, VerifiedManifest};

/// Something to write down.
#[derive(Debug)]
pub(super) enum Fact {
    /// A manifest of a repository.
    Manifest(NewManifest),
    /// What a tag means, and the manifest that it means.
    Tag {
        repo: RepoKey,
        tag: Tag,
        row: Arc<TagRow>,
        manifest: Arc<ManifestRow>,
    },
    /// The upstream confirmed that a repository has a digest.
    Member { repo: RepoKey, digest: Digest },
}

/// A manifest that was fetched, with its bytes.
#[derive(Debug)]
pub(super) struct NewManifest {
    pub(super) repo: RepoKey,
    pub(super) manifest: VerifiedManifest,
    pub(super) row: Arc<ManifestRow>,
    /// Which endpoint it came from.
    pub(super) origin: Arc<str>,
    /// May the anonymous public read the repository?
    pub(super) public: bool,
}

/// The queue in front of the writing task.
#[derive(Debug, Clone)]
pub(super) struct Recorder(mpsc::Sender<Fact>);

impl Recorder {
    /// Starts the writing task. When the process stops it writes what is queued, and ends.
    pub(super) fn start(
        tasks: &Tasks,
        blobs: Arc<dyn BlobStore>,
        records: Arc<dyn RecordStore>,
        index: Index,
    ) -> Self {
        let (sender, mut queue) = mpsc::channel(QUEUE);
        let stopping = tasks.stopping();
        tasks.spawn("recorder", async move {
            let writer = Writer {
                blobs,
                records,
                index,
                repos: Cache::new(REPOS),
            };
            loop {
                let fact = tokio::select! {
                    biased;
                    fact = queue.recv() => fact,
                    () = stopping.cancelled() => queue.try_recv().ok(),
                };
                let Some(fact) = fact else { return };
                writer.write(fact).await;
            }
        });
        Self(sender)
    }

    /// Queues a fact. Waits a little when the queue is full; what does not fit then is learnt again.
    pub(super) async fn note(&self, fact: Fact) {
        if self.0.send_timeout(fact, PATIENCE).await.is_err() {
            tracing::warn!(
                "the store is too slow to write down what was learnt; it will be asked for again"
            );
        }
    }
}

#[derive(Debug)]
struct Writer {
    blobs: Arc<dyn BlobStore>,
    records: Arc<dyn RecordStore>,
    index: Index,
    /// Repositories whose record was written by this process, with the visibility that it says.
    repos: Cache<RepoKey, bool>,
}

impl Writer {
    async fn write(&self, fact: Fact) {
        let written = match fact {
            Fact::Manifest(new) => self.manifest(&new).await,
            Fact::Tag {
                repo,
                tag,
                row,
                manifest,
            } => {
                let origin = Some(row.origin.to_string());
                let record = tag_record(&row, &manifest, origin);
                self.put(repo, Entry::Tag(tag), record::encode(&record))
                    .await
            }
            Fact::Member { repo, digest } => {
                self.put(repo, Entry::Blob(digest), Bytes::new()).await
            }
        };
        if let Err(error) = written {
            tracing::warn!(%error, "what was learnt could not be stored; it will be fetched again");
        }
    }

    async fn manifest(&self, new: &NewManifest) -> Result<(), StoreError> {
        let NewManifest {
            repo,
            manifest,
            row,
            origin,
            public,
        } = new;
        let digest = *manifest.digest();
        self.repository(repo, *public).await?;
        // From here until the row is there, eviction leaves the digest alone.
        let _publishing = self.index.publishing(&digest).await;
        self.blobs.put_manifest(manifest).await?;
        if let Err(error) = self
            .index
            .put_blob(&digest, manifest.bytes().len() as u64, *public, true)
            .await
        {
            tracing::warn!(%digest, %error, "the index did not take a manifest; it will be found in the store");
        }
        let record = manifest_record(row, Some(origin.to_string()));
        self.put(
            repo.clone(),
            Entry::Manifest(digest),
            record::encode(&record),
        )
        .await
    }

    async fn repository(&self, repo: &RepoKey, public: bool) -> Result<(), StoreError> {
        if self.repos.get(repo) == Some(public) {
            return Ok(());
        }
        let visibility = Visibility {
            public,
            checked: Timestamp::now(),
            refused_since: None,
        };
        let record = RepoRecord {
            kind: RepoKind::Proxied,
            visibility: Some(visibility),
            missing_since: None,
        };
        self.put(repo.clone(), Entry::Repo, record::encode(&record))
            .await?;
        self.repos.insert(repo.clone(), public);
        Ok(())
    }

    async fn put(&self, repo: RepoKey, entry: Entry, record: Bytes) -> Result<(), StoreError> {
        self.records.put(&RecordKey::new(repo, entry), record).await
    }
}

/// Repositories that are remembered as written; one more write is all that forgetting costs.
const REPOS: u64 = 10_000;
/// Facts in the queue; a manifest's bytes are also counted by the puller's budget for manifests in flight.
const QUEUE: usize = 64;
/// How long a fetch waits for room in the queue.
const PATIENCE: Duration = Duration::from_secs(5);
