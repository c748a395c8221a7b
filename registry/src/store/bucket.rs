//! Records through `object_store`: in the store's folder for now, later in S3, GCS and Azure.

use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::key::{self, Entry, RecordKey};
use super::local::create_folder;
use super::{OpenError, RecordStore, StoreError};
use crate::name::RepoKey;

/// Records in a bucket, or in a folder that looks like one.
#[derive(Debug, Clone)]
pub struct Bucket {
    objects: Arc<dyn ObjectStore>,
}

impl Bucket {
    /// The records in the store's folder `root`. Removes what a crash left half-written. Blocking.
    ///
    /// Writes are synced: a record that was put is there after a power loss.
    pub fn folder(root: &Path) -> Result<Self, OpenError> {
        let repos = root.join(key::REPOS);
        create_folder(&repos).map_err(OpenError::io(&repos))?;
        sweep(&repos).map_err(OpenError::io(&repos))?;
        let objects = LocalFileSystem::new_with_prefix(root)
            .map_err(|error| OpenError::io(root)(io::Error::other(error)))?;
        Ok(Self {
            objects: Arc::new(objects.with_fsync(true)),
        })
    }

    async fn read(&self, path: object_store::path::Path) -> Result<Option<Bytes>, StoreError> {
        let read = async { self.objects.get(&path).await?.bytes().await };
        within("read a record", optional(read)).await
    }
}

impl RecordStore for Bucket {
    fn get<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        self.read(path(&key.to_string())).boxed()
    }

    fn put<'a>(
        &'a self,
        key: &'a RecordKey,
        record: Bytes,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let path = path(&key.to_string());
            let put = self.objects.put(&path, record.into());
            within("write a record", put).await.map(|_| ())
        }
        .boxed()
    }

    fn remove<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let path = path(&key.to_string());
            let removed = within("remove a record", optional(self.objects.delete(&path)));
            removed.await.map(|_| ())
        }
        .boxed()
    }

    fn list<'a>(
        &'a self,
        repo: Option<&'a RepoKey>,
    ) -> BoxStream<'a, Result<(RecordKey, Bytes), StoreError>> {
        let (own, folders) = match repo {
            None => (None, vec![key::REPOS.to_owned()]),
            Some(repo) => (
                Some(RecordKey::new(repo.clone(), Entry::Repo)),
                key::folders(repo).to_vec(),
            ),
        };
        let listed = stream::iter(folders)
            .flat_map(|folder| self.objects.list(Some(&path(&folder))))
            .map_err(failed("list records"))
            .try_filter_map(async |object| Ok(parse(&object.location)));
        stream::iter(own.map(Ok))
            .chain(listed)
            .map_ok(async |key| {
                let record = self.get(&key).await?;
                Ok(record.map(|record| (key, record)))
            })
            .try_buffered(READ_AHEAD)
            // Without a record: removed since it was listed.
            .try_filter_map(async |found| Ok(found))
            .boxed()
    }
}

/// A path has the text of its key: nothing in it needs escaping.
fn path(key: &str) -> object_store::path::Path {
    object_store::path::Path::from(key)
}

fn parse(location: &object_store::path::Path) -> Option<RecordKey> {
    let key = location.as_ref().parse().ok();
    if key.is_none() {
        tracing::warn!(key = %location, "an object among the records is none and is ignored");
    }
    key
}

/// What is not there is no failure.
async fn optional<T>(
    work: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<Option<T>> {
    match work.await {
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        result => result.map(Some),
    }
}

async fn within<T>(
    operation: &'static str,
    work: impl Future<Output = object_store::Result<T>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(result) => result.map_err(failed(operation)),
        Err(_) => Err(StoreError::io(operation)(io::ErrorKind::TimedOut.into())),
    }
}

/// For `map_err`. The library hides what the operating system said at the end of a chain.
fn failed(operation: &'static str) -> impl Fn(object_store::Error) -> StoreError {
    move |error| {
        let mut causes = std::iter::successors(
            Some(&error as &(dyn std::error::Error + 'static)),
            |error| error.source(),
        );
        let kind = causes.find_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()));
        let kind = kind.unwrap_or(io::ErrorKind::Other);
        StoreError::io(operation)(io::Error::new(kind, error))
    }
}

/// Removes the library's files `<name>#<number>`, which a crash leaves behind; no key contains a `#`.
fn sweep(folder: &Path) -> io::Result<()> {
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if is_leftover(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

fn is_leftover(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, number)| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Records of a listing that are read at the same time.
const READ_AHEAD: usize = 8;

/// Records are small: what takes longer will not come.
const DEADLINE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[tokio::test]
    async fn a_folder_conforms() {
        let root = tempfile::tempdir().unwrap();
        conformance::records(&Bucket::folder(root.path()).unwrap()).await;
    }

    #[tokio::test]
    async fn a_bucket_conforms() {
        let objects = Arc::new(object_store::memory::InMemory::new());
        conformance::records(&Bucket { objects }).await;
    }

    #[tokio::test]
    async fn leftovers_are_swept_at_start_and_foreign_files_are_not() {
        let root = tempfile::tempdir().unwrap();
        let tags = root.path().join("v1/repos/ghcr.io/a/_tags");
        fs::create_dir_all(&tags).unwrap();
        for name in ["v1", "v1#1", "v1#27", "notes#", "notes#x"] {
            fs::write(tags.join(name), name).unwrap();
        }
        let bucket = Bucket::folder(root.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(&tags)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["notes#", "notes#x", "v1"]);
        let listed: Vec<_> = bucket.list(None).try_collect().await.unwrap();
        let key = "v1/repos/ghcr.io/a/_tags/v1".parse().unwrap();
        assert_eq!(listed, [(key, Bytes::from_static(b"v1"))]);
    }

    #[test]
    fn a_full_volume_is_recognised_through_the_library() {
        let failure = |source: io::Error| object_store::Error::Generic {
            store: "test",
            source: Box::new(source),
        };
        let full = io::ErrorKind::StorageFull.into();
        assert!(matches!(failed("test")(failure(full)), StoreError::Full));
        let other = failed("test")(failure(io::Error::other("broken")));
        assert!(matches!(other, StoreError::Io { .. }));
    }
}
