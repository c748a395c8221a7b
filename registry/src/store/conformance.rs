//! What every backend must do, whatever it is made of.

use bytes::Bytes;
use coral_schema::oci::{Algorithm, Digest};
use futures::TryStreamExt as _;

use super::key::{Entry, RecordKey};
use super::{BlobStore, BufferSize, RecordStore, StoredBlob, VerifiedManifest, VerifiedSpool};
use crate::name::RepoKey;

/// Runs all checks of blobs against an empty store.
pub(in crate::store) async fn blobs(store: &dyn BlobStore) {
    nothing_is_there(store).await;
    a_blob_comes_back(store).await;
    publishing_again_succeeds(store).await;
    h05_wrong_bytes_are_not_published(store).await;
    h16_manifests_keep_their_bytes(store).await;
    h01_a_removed_blob_is_read_to_its_end(store).await;
    everything_is_listed(store).await;
    assert!(store.may_fill());
    store.sync().await.unwrap();
    let volume = store.volume().await.unwrap();
    assert!(volume.free <= volume.total);
}

/// Runs all checks of records against an empty store.
pub(in crate::store) async fn records(store: &dyn RecordStore) {
    records_come_and_go(store).await;
    repositories_are_listed_apart(store).await;
}

async fn nothing_is_there(store: &dyn BlobStore) {
    let digest = Digest::sha256(b"nothing");
    assert!(store.open(&digest).await.unwrap().is_none());
    store.remove(&digest).await.unwrap();
    assert_eq!(listed(store).await, []);
}

async fn a_blob_comes_back(store: &dyn BlobStore) {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for length in [0, 1, BufferSize::Large.bytes(), 700_001] {
            let content = content(length);
            let digest = Digest::of(algorithm, &content);
            let published = store.publish(verified(store, &digest, &content).await);
            assert!(read(&published.await.unwrap()).await == content);
            let opened = store.open(&digest).await.unwrap().unwrap();
            assert_eq!(opened.size(), length as u64);
            assert!(read(&opened).await == content);
            store.remove(&digest).await.unwrap();
            assert!(store.open(&digest).await.unwrap().is_none());
        }
    }
}

async fn publishing_again_succeeds(store: &dyn BlobStore) {
    let content = content(5000);
    let digest = Digest::sha256(&content);
    for _ in 0..2 {
        let spool = verified(store, &digest, &content).await;
        assert!(read(&store.publish(spool).await.unwrap()).await == content);
    }
    assert_eq!(listed(store).await, [(digest, 5000)]);
    store.remove(&digest).await.unwrap();
}

async fn h05_wrong_bytes_are_not_published(store: &dyn BlobStore) {
    let digest = Digest::sha256(b"right");
    let mut spool = store.spool(&digest).await.unwrap();
    spool.append(&[Bytes::from_static(b"wrong")]).unwrap();
    let (mut spool, mismatch) = spool.verify(&digest).unwrap_err();
    assert_eq!(mismatch.computed, Digest::sha256(b"wrong"));
    assert!(store.open(&digest).await.unwrap().is_none());

    spool.reset().unwrap();
    assert_eq!((spool.offset(), spool.resumed()), (0, false));
    spool.append(&[Bytes::from_static(b"right")]).unwrap();
    assert_eq!(spool.reader().read_at(0, 5).await.unwrap(), "right");
    store.publish(spool.verify(&digest).unwrap()).await.unwrap();
    store.remove(&digest).await.unwrap();
}

async fn h16_manifests_keep_their_bytes(store: &dyn BlobStore) {
    let odd: [&[u8]; 4] = [
        b"\xef\xbb\xbf{\"b\" : 1,\r\n\t\"a\":1.0e0, \"a\":2}\n\n",
        b"{}",
        b"",
        b"\xff\x00 not even JSON",
    ];
    for bytes in odd {
        let digest = Digest::sha256(bytes);
        let manifest = VerifiedManifest::check(Bytes::from_static(bytes), &digest).unwrap();
        store.put_manifest(&manifest).await.unwrap();
        store.put_manifest(&manifest).await.unwrap();
        let blob = store.open(&digest).await.unwrap().unwrap();
        assert_eq!(read(&blob).await, bytes);
        store.remove(&digest).await.unwrap();
    }
}

async fn h01_a_removed_blob_is_read_to_its_end(store: &dyn BlobStore) {
    let content = content(600_000);
    let digest = Digest::sha256(&content);
    let spool = verified(store, &digest, &content).await;
    let blob = store.publish(spool).await.unwrap();
    let first = blob.read(0, BufferSize::Large.bytes()).await.unwrap();
    store.remove(&digest).await.unwrap();
    assert!(store.open(&digest).await.unwrap().is_none());
    assert!(read(&blob).await == content);
    assert!(content.starts_with(&first));
}

async fn everything_is_listed(store: &dyn BlobStore) {
    let mut expected = Vec::new();
    for number in 0..20_usize {
        let content = number.to_string().repeat(number).into_bytes();
        let digest = Digest::of([Algorithm::Sha256, Algorithm::Sha512][number % 2], &content);
        store
            .publish(verified(store, &digest, &content).await)
            .await
            .unwrap();
        expected.push((digest, content.len() as u64));
    }
    expected.sort_unstable();
    assert_eq!(listed(store).await, expected);
    for (digest, _) in expected {
        store.remove(&digest).await.unwrap();
    }
    assert_eq!(listed(store).await, []);
}

async fn records_come_and_go(store: &dyn RecordStore) {
    let key = key("registry.internal:5000/a/b", "latest");
    assert_eq!(store.get(&key).await.unwrap(), None);
    store.remove(&key).await.unwrap();
    for record in ["first", "the second is longer", ""] {
        store.put(&key, record.into()).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap(), record);
    }
    store.remove(&key).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap(), None);
    assert_eq!(all_records(store, None).await, []);
}

/// Repositories nest: one's records are not the other's.
async fn repositories_are_listed_apart(store: &dyn RecordStore) {
    let digest = Digest::sha256(b"");
    let mut expected = Vec::new();
    for repo in ["ghcr.io/a", "ghcr.io/a/b", "ghcr.io/ab", "ghcr.io:5000/a"] {
        let entries = [
            Entry::Repo,
            Entry::Manifest(digest),
            Entry::Tag("v1".parse().unwrap()),
            Entry::Blob(digest),
        ];
        let keys = entries.map(|entry| RecordKey::new(repo.parse().unwrap(), entry));
        for key in keys {
            let record = Bytes::from(key.to_string());
            store.put(&key, record.clone()).await.unwrap();
            expected.push((key, record));
        }
    }
    expected.sort_unstable();
    assert_eq!(all_records(store, None).await, expected);
    for repo in [
        "ghcr.io/a",
        "ghcr.io/a/b",
        "ghcr.io:5000/a",
        "ghcr.io/other",
    ] {
        let repo: RepoKey = repo.parse().unwrap();
        let own: Vec<_> = expected
            .iter()
            .filter(|(key, _)| key.repo == repo)
            .cloned()
            .collect();
        assert_eq!(all_records(store, Some(&repo)).await, own);
    }
}

/// A part file with this content, checked.
pub(in crate::store) async fn verified(
    store: &dyn BlobStore,
    digest: &Digest,
    content: &[u8],
) -> VerifiedSpool {
    let mut spool = store.spool(digest).await.unwrap();
    for chunk in content.chunks(100_000) {
        spool.append(&[Bytes::copy_from_slice(chunk)]).unwrap();
    }
    spool.verify(digest).unwrap()
}

/// All bytes of a blob.
pub(in crate::store) async fn read(blob: &StoredBlob) -> Vec<u8> {
    let mut content = Vec::new();
    loop {
        let next = blob.read(content.len() as u64, BufferSize::Large.bytes());
        let next = next.await.unwrap();
        if next.is_empty() {
            return content;
        }
        content.extend_from_slice(&next);
    }
}

/// Bytes that differ from place to place.
pub(in crate::store) fn content(length: usize) -> Vec<u8> {
    (0_u64..)
        .flat_map(|number| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .take(length)
        .collect()
}

async fn listed(store: &dyn BlobStore) -> Vec<(Digest, u64)> {
    let mut found: Vec<_> = store.list().try_collect().await.unwrap();
    found.sort_unstable();
    found
}

async fn all_records(store: &dyn RecordStore, repo: Option<&RepoKey>) -> Vec<(RecordKey, Bytes)> {
    let mut found: Vec<_> = store.list(repo).try_collect().await.unwrap();
    found.sort_unstable();
    found
}

fn key(repo: &str, tag: &str) -> RecordKey {
    RecordKey::new(repo.parse().unwrap(), Entry::Tag(tag.parse().unwrap()))
}
