//! Walks through all blobs, one folder in memory at a time.

use std::fs;
use std::io;
use std::path::Path;

use coral_schema::oci::{Algorithm, Digest};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::LocalStore;
use crate::store::{StoreError, key};

type Found = Result<(Digest, u64), StoreError>;

pub(super) fn blobs(store: &LocalStore) -> BoxStream<'_, Found> {
    let folders = [Algorithm::Sha256, Algorithm::Sha512]
        .into_iter()
        .flat_map(|algorithm| (0..=u8::MAX).map(move |first| (algorithm, first)));
    stream::iter(folders)
        .then(move |(algorithm, first)| async move {
            let read = store.blocking("list blobs", move |store| {
                let folder = format!("{}/{}/{first:02x}", key::BLOBS, algorithm.name());
                read_folder(&store.root.join(folder), algorithm, first)
            });
            let found: Vec<Found> = match read.await {
                Ok(found) => found.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            stream::iter(found)
        })
        .flatten()
        .boxed()
}

/// The blobs whose digest begins with the byte `first`.
fn read_folder(folder: &Path, algorithm: Algorithm, first: u8) -> io::Result<Vec<(Digest, u64)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let digest = name
            .to_str()
            .and_then(|hex| key::parse_blob(algorithm, hex))
            .filter(|digest| digest.bytes().first() == Some(&first));
        let metadata = match entry.metadata() {
            // Removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        match digest {
            Some(digest) if metadata.is_file() => found.push((digest, metadata.len())),
            _ => {
                tracing::warn!(path = %entry.path().display(), "a file among the blobs is none and is ignored");
            }
        }
    }
    Ok(found)
}
