use std::path::PathBuf;

use super::*;
use crate::index::{BlobState, TagRow};
use crate::store::key::{Entry, RecordKey};
use crate::store::record::{
    ChildRecord, ManifestRecord, Record, RepoKind, RepoRecord, TagRecord, Visibility, encode,
};
use crate::store::{Bucket, Buffers, Limits, LocalStore, VerifiedManifest};
use bytes::Bytes;
use coral_schema::oci::Tag;
use coral_schema::oci::manifest::ChildKind;
use jiff::Timestamp;
use tempfile::TempDir;

struct Bench {
    folder: TempDir,
    tasks: Tasks,
    blobs: Arc<LocalStore>,
    records: Arc<Bucket>,
}

const PUBLIC: &str = "docker.io/library/nginx";
const PRIVATE: &str = "docker.io/team/secret";

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let blobs = LocalStore::open(&root, Limits::default(), Buffers::default()).unwrap();
        Self {
            tasks: Tasks::new(),
            blobs: Arc::new(blobs),
            records: Arc::new(Bucket::folder(&root).unwrap()),
            folder,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("index.db")
    }

    fn open(&self) -> (Index, Rebuild) {
        let index = Index::open(&self.path(), &self.tasks).unwrap().index;
        let rebuild = Rebuild::new(
            index.clone(),
            self.blobs.clone(),
            self.records.clone(),
            Box::new(|_, row| row.is_some_and(|row| row.public)),
        );
        (index, rebuild)
    }

    async fn put_blob(&self, text: &str) -> Digest {
        let content = Bytes::copy_from_slice(text.as_bytes());
        let digest = Digest::sha256(&content);
        let checked = VerifiedManifest::check(content, &digest).unwrap();
        self.blobs.put_manifest(&checked).await.unwrap();
        digest
    }

    async fn put_record(&self, repo: &str, entry: Entry, record: &impl Record) {
        self.put_raw(repo, entry, encode(record)).await;
    }

    async fn put_raw(&self, repo: &str, entry: Entry, record: Bytes) {
        let key = RecordKey::new(self::repo(repo), entry);
        self.records.put(&key, record).await.unwrap();
    }

    async fn put_visibility(&self, repo: &str, public: bool) {
        let record = RepoRecord {
            kind: RepoKind::Proxied,
            visibility: Some(Visibility {
                public,
                checked: second(1),
                refused_since: None,
            }),
            missing_since: None,
        };
        self.put_record(repo, Entry::Repo, &record).await;
    }

    /// A manifest that names `children`, with its bytes, its record and a tag.
    async fn put_image(&self, repo: &str, tag: &str, children: &[Digest]) -> Digest {
        let digest = self.put_blob(&format!("{repo}:{tag}")).await;
        let child = |digest: &Digest| ChildRecord {
            kind: ChildKind::Layer,
            digest: *digest,
            size: 5,
            media_type: "a/b".to_owned(),
            platform: None,
        };
        let record = ManifestRecord {
            media_type: "c/d".to_owned(),
            size: 9,
            artifact_type: None,
            subject: None,
            annotations: [].into(),
            children: children.iter().map(child).collect(),
            origin: None,
            stored: second(2),
        };
        self.put_record(repo, Entry::Manifest(digest), &record)
            .await;
        let record = TagRecord {
            digest,
            previous: None,
            media_type: "c/d".to_owned(),
            size: 9,
            updated: second(3),
            checked: second(4),
            origin: Some("https://registry.example".to_owned()),
        };
        let entry = Entry::Tag(tag.parse().unwrap());
        self.put_record(repo, entry, &record).await;
        digest
    }
}

fn repo(text: &str) -> RepoKey {
    text.parse().unwrap()
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn tag_row(digest: Digest, checked: Timestamp) -> Arc<TagRow> {
    Arc::new(TagRow {
        digest,
        previous: None,
        etag: None,
        updated: checked,
        checked,
        missing_since: None,
        origin: "".into(),
    })
}

async fn tag(index: &Index, repo: &str, tag: &str) -> Option<Arc<TagRow>> {
    let tag = tag.parse().unwrap();
    index.tag(&self::repo(repo), &tag).await.unwrap()
}

#[tokio::test]
async fn everything_comes_back_and_tags_are_unchecked() {
    let bench = Bench::new();
    let layer = bench.put_blob("layer").await;
    let odd = bench.put_blob("odd").await;
    bench.put_visibility(PUBLIC, true).await;
    let manifest = bench.put_image(PUBLIC, "latest", &[layer]).await;
    bench.put_raw(PUBLIC, Entry::Blob(odd), Bytes::new()).await;
    let (index, rebuild) = bench.open();
    assert!(!index.complete());

    let progress = rebuild.whole().await.unwrap();
    let expected = Progress {
        running: false,
        records: 4,
        unreadable: 0,
        blobs: 3,
    };
    assert_eq!(progress, expected);
    assert!(index.complete());
    let row = tag(&index, PUBLIC, "latest").await.unwrap();
    assert_eq!((row.digest, row.checked), (manifest, Timestamp::UNIX_EPOCH));
    assert_eq!(row.updated, second(3));
    let r = repo(PUBLIC);
    assert_eq!(index.child(&r, &layer).await.unwrap().unwrap().size, 5);
    assert!(index.is_member(&r, &odd).await.unwrap());
    assert!(index.visibility(&r).await.unwrap().unwrap().public);
    for (digest, is_manifest) in [(layer, false), (odd, false), (manifest, true)] {
        let row = index.blob(&digest).await.unwrap().unwrap();
        assert_eq!((row.state, row.public), (BlobState::Present, true));
        assert_eq!(row.manifest, is_manifest);
    }
    let held: u64 =
        "layer".len() as u64 + "odd".len() as u64 + format!("{PUBLIC}:latest").len() as u64;
    assert_eq!(index.totals().borrow().bytes(), held);
    assert_eq!(
        rebuild.whole().await.unwrap(),
        expected,
        "nothing left to do"
    );
}

/// H-20: naming a digest in a public repository proves nothing about where its bytes came from.
#[tokio::test]
async fn h20_what_a_private_repository_knows_does_not_become_public() {
    let bench = Bench::new();
    let [secret, shared, public, orphan, proven] =
        ["secret", "shared", "public", "orphan", "proven"]
            .map(|text| Digest::sha256(text.as_bytes()));
    for text in ["secret", "shared", "public", "orphan", "proven"] {
        bench.put_blob(text).await;
    }
    bench.put_visibility(PUBLIC, true).await;
    bench.put_visibility(PRIVATE, false).await;
    bench
        .put_image(PUBLIC, "hostile", &[shared, public, proven])
        .await;
    bench.put_image(PRIVATE, "latest", &[shared, secret]).await;
    bench
        .put_image("quay.io/never/probed", "latest", &[proven])
        .await;
    let (index, rebuild) = bench.open();
    rebuild.whole().await.unwrap();
    let expected = [
        (secret, false),
        (shared, false),
        (public, true),
        (orphan, false),
        (proven, false),
    ];
    for (digest, is_public) in expected {
        let row = index.blob(&digest).await.unwrap().unwrap();
        assert_eq!(row.public, is_public, "{digest}");
    }
}

#[tokio::test]
async fn a_repository_comes_back_ahead_of_its_turn() {
    let bench = Bench::new();
    bench.put_image(PUBLIC, "latest", &[]).await;
    bench.put_image(PRIVATE, "latest", &[]).await;
    let (index, rebuild) = bench.open();
    assert!(tag(&index, PUBLIC, "latest").await.is_none());
    let r = repo(PUBLIC);
    let (first, second) = tokio::join!(rebuild.repository(&r), rebuild.repository(&r));
    first.and(second).unwrap();
    assert!(tag(&index, PUBLIC, "latest").await.is_some());
    assert!(tag(&index, PRIVATE, "latest").await.is_none());
    assert!(!index.complete());
}

/// What requests learned meanwhile is newer than any record; what cannot be read costs nothing else.
#[tokio::test]
async fn newer_rows_stay_and_bad_records_are_skipped() {
    let bench = Bench::new();
    bench.put_image(PUBLIC, "latest", &[]).await;
    let bad = Entry::Tag("bad".parse().unwrap());
    bench.put_raw(PUBLIC, bad, Bytes::from_static(b"{")).await;
    let (index, rebuild) = bench.open();
    let newer = tag_row(Digest::sha256(b"newer"), second(10));
    let latest = "latest".parse().unwrap();
    index
        .put_tag(&repo(PUBLIC), &latest, newer.clone())
        .await
        .unwrap();
    assert_eq!(rebuild.whole().await.unwrap().unreadable, 1);
    assert_eq!(tag(&index, PUBLIC, "latest").await, Some(newer));
    assert!(tag(&index, PUBLIC, "bad").await.is_none());
}

/// H-31: the file is deleted again and again under load; nothing that the store holds is missing in the end.
#[tokio::test]
async fn h31_losing_the_file_while_running_loses_nothing() {
    let bench = Bench::new();
    let (index, rebuild) = bench.open();
    let task = rebuild.start(&bench.tasks);
    let mut names: Vec<(Tag, Digest, Digest)> = Vec::new();
    for number in 0..60 {
        let name = format!("t{number}");
        let layer = bench.put_blob(&format!("layer {number}")).await;
        let manifest = bench.put_image(PUBLIC, &name, &[layer]).await;
        index.put_blob(&layer, 5, true, false).await.unwrap();
        index.put_blob(&manifest, 9, true, true).await.unwrap();
        let row = tag_row(manifest, second(5));
        let name = name.parse().unwrap();
        index.put_tag(&repo(PUBLIC), &name, row).await.unwrap();
        names.push((name, manifest, layer));
        if number % 20 == 10 {
            std::fs::remove_file(bench.path()).unwrap();
            index.flush().await.unwrap();
        }
    }
    let mut replacements = index.replacements();
    assert_eq!(*replacements.borrow_and_update(), 3);
    let mut progress = rebuild.progress();
    while !index.complete() {
        progress.changed().await.unwrap();
    }
    rebuild.whole().await.unwrap();
    index.flush().await.unwrap();
    assert!(bench.tasks.stop(Duration::from_secs(10)).await);
    task.await.unwrap();
    drop((index, rebuild));

    let (index, _) = bench.open();
    assert!(index.complete());
    for (name, manifest, layer) in names {
        let row = tag(&index, PUBLIC, name.as_str()).await.unwrap();
        assert_eq!(row.digest, manifest);
        assert!(index.blob(&layer).await.unwrap().is_some());
    }
}

/// A key alone does not make a repository hosted: early releases wrote that of an upstream without a dot the same way.
#[tokio::test]
async fn only_what_was_pushed_comes_back_as_hosted() {
    let bench = Bench::new();
    let hosted = RepoRecord {
        kind: RepoKind::Hosted,
        visibility: None,
        missing_since: None,
    };
    bench.put_record("team/app", Entry::Repo, &hosted).await;
    bench.put_visibility("mirror/app", true).await;
    let member = bench.put_blob("member").await;
    for repo in ["team/app", "mirror/app", "nameless/app"] {
        bench.put_image(repo, "v1", &[]).await;
        bench.put_raw(repo, Entry::Blob(member), Bytes::new()).await;
    }
    bench
        .put_raw("odd/app", Entry::Repo, Bytes::from_static(b"{"))
        .await;
    bench
        .put_raw("odd/app", Entry::Blob(member), Bytes::new())
        .await;
    let assert_hosted = async |index: &Index, name: &str, expected: bool| {
        let is_member = index.is_member(&repo(name), &member).await.unwrap();
        assert_eq!(is_member, expected, "{name}");
        let has_it = index.has_repository(&repo(name)).await.unwrap();
        assert_eq!(has_it, expected, "{name}");
    };
    let (index, rebuild) = bench.open();
    for ahead in ["team/app", "mirror/app"] {
        rebuild.repository(&repo(ahead)).await.unwrap();
        assert_hosted(&index, ahead, ahead == "team/app").await;
    }
    rebuild.whole().await.unwrap();
    assert_hosted(&index, "team/app", true).await;
    assert_hosted(&index, "mirror/app", false).await;
    assert_hosted(&index, "nameless/app", false).await;
    assert_hosted(&index, "odd/app", true).await;
    assert!(tag(&index, "team/app", "v1").await.is_some());
    assert!(tag(&index, "mirror/app", "v1").await.is_none());
}
