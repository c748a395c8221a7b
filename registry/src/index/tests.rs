//! The index as its users see it, on real files.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use coral_schema::oci::Tag;
use tempfile::TempDir;

mod garbage;
mod hosted;

struct Bench {
    folder: TempDir,
    tasks: Tasks,
}

impl Bench {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            tasks: Tasks::new(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("index.db")
    }

    fn open(&self) -> Index {
        self.open_in("boot").index
    }

    fn open_in(&self, boot: &str) -> Opened {
        Index::open_in_boot(&self.path(), &self.tasks, boot).unwrap()
    }

    fn aside(&self) -> usize {
        let names = fs::read_dir(self.folder.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.contains(".damaged-") || name.contains(".newer-"))
            .filter(|name| name.ends_with('Z'))
            .count()
    }
}

fn digest(name: &str) -> Digest {
    Digest::sha256(name.as_bytes())
}

fn repo(name: &str) -> RepoKey {
    name.parse().unwrap()
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn tag_row(digest: Digest) -> Arc<TagRow> {
    Arc::new(TagRow {
        digest,
        previous: Some(self::digest("previous")),
        etag: Some("\"etag\"".to_owned()),
        updated: second(1),
        checked: second(2),
        missing_since: None,
        origin: "https://registry.example".into(),
    })
}

fn manifest_row(children: &[(&str, ChildKind)]) -> Arc<ManifestRow> {
    let child = |(name, kind): &(&str, ChildKind)| ChildRow {
        digest: digest(name),
        kind: *kind,
        size: 7,
        media_type: "a/b".to_owned(),
        platform: Some("linux/amd64".parse().unwrap()),
    };
    Arc::new(ManifestRow {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        size: 3,
        subject: Some(digest("subject")),
        artifact_type: Some("c/d".to_owned()),
        annotations: [("key".to_owned(), "value".to_owned())].into(),
        children: children.iter().map(child).collect(),
        stored: second(3),
    })
}

/// Fills one row of each kind.
async fn fill(index: &Index) {
    let r = repo("docker.io/library/nginx");
    let layers = [("config", ChildKind::Config), ("layer", ChildKind::Layer)];
    index
        .put_blob(&digest("layer"), 100, true, false)
        .await
        .unwrap();
    index
        .put_blob(&digest("manifest"), 3, true, true)
        .await
        .unwrap();
    index
        .put_manifest(&r, &digest("manifest"), manifest_row(&layers))
        .await
        .unwrap();
    index
        .put_tag(&r, &tag("latest"), tag_row(digest("manifest")))
        .await
        .unwrap();
    index.put_member(&r, &digest("odd")).await.unwrap();
    let visibility = VisibilityRow {
        public: true,
        checked: second(4),
        refused_since: None,
    };
    index.put_visibility(&r, visibility).await.unwrap();
}

/// Everything that [`fill`] wrote.
async fn assert_filled(index: &Index) {
    let r = repo("docker.io/library/nginx");
    let layers = [("config", ChildKind::Config), ("layer", ChildKind::Layer)];
    let blob = index.blob(&digest("layer")).await.unwrap().unwrap();
    assert_eq!(
        (blob.size, blob.state, blob.public),
        (100, BlobState::Present, true)
    );
    let row = manifest_row(&layers);
    let m = digest("manifest");
    assert!(index.blob(&m).await.unwrap().unwrap().manifest);
    assert_eq!(index.manifest(&r, &m).await.unwrap(), Some(row.clone()));
    assert_eq!(
        index.child(&r, &digest("layer")).await.unwrap(),
        Some(row.children[1].clone())
    );
    assert_eq!(index.child(&r, &m).await.unwrap(), None);
    assert_eq!(
        index.tag(&r, &tag("latest")).await.unwrap(),
        Some(tag_row(m))
    );
    assert_eq!(index.tags(&r, None, 10).await.unwrap(), [tag("latest")]);
    assert_eq!(
        index
            .referrers(&r, &digest("subject"), None, (None, 9))
            .await
            .unwrap(),
        [(m, row)]
    );
    assert!(index.is_member(&r, &digest("odd")).await.unwrap());
    assert!(index.visibility(&r).await.unwrap().unwrap().public);
}

/// A row, whatever memory held before, comes from the file.
async fn assert_in_file(bench: &Bench, index: Index) {
    index.flush().await.unwrap();
    drop(index);
    assert_filled(&bench.open()).await;
}

#[tokio::test]
async fn rows_are_there_at_once_and_after_a_crash() {
    let bench = Bench::new();
    let opened = bench.open_in("boot");
    assert_eq!(opened.state, OpenState::Fresh);
    fill(&opened.index).await;
    assert_filled(&opened.index).await;
    assert_in_file(&bench, opened.index).await;
}

#[tokio::test]
async fn a_clean_end_is_known() {
    let bench = Bench::new();
    let state = |clean, same_boot| OpenState::Existing { clean, same_boot };
    bench.open().close().await.unwrap();
    let opened = bench.open_in("other");
    assert_eq!(opened.state, state(true, false));
    opened.index.flush().await.unwrap();
    drop(opened);
    assert_eq!(bench.open_in("other").state, state(false, true));
    assert_eq!(bench.open_in("third").state, state(false, false));
}

#[tokio::test]
async fn a_closed_index_says_so() {
    let bench = Bench::new();
    let index = bench.open();
    index.clone().close().await.unwrap();
    let put = index.put_blob(&digest("a"), 1, false, false).await;
    assert!(matches!(put, Err(IndexError::Closed)), "{put:?}");
}

/// H-09: after a power loss only what was synced is trusted; after a mere crash all of it.
#[tokio::test]
async fn h09_rows_that_were_not_durable_become_suspect() {
    let bench = Bench::new();
    let index = bench.open();
    index
        .put_blob(&digest("old"), 1, false, false)
        .await
        .unwrap();
    index.mark_durable(index.now()).await.unwrap();
    index
        .put_blob(&digest("new"), 1, false, false)
        .await
        .unwrap();
    index.flush().await.unwrap();
    drop(index);

    let suspects = async |index: &Index| {
        let mut suspects = Vec::new();
        for name in ["old", "new"] {
            let row = index.blob(&digest(name)).await.unwrap().unwrap();
            suspects.push(index.suspect(&row));
        }
        suspects
    };
    assert_eq!(suspects(&bench.open()).await, [false, false]);
    let index = bench.open_in("after power loss").index;
    assert_eq!(suspects(&index).await, [false, true]);
    index.mark_durable(index.now()).await.unwrap();
    drop(index);
    let index = bench.open_in("after power loss").index;
    assert_eq!(
        suspects(&index).await,
        [false, true],
        "a sync does not mend it"
    );
    index
        .put_blob(&digest("new"), 1, false, false)
        .await
        .unwrap();
    assert_eq!(suspects(&index).await, [false, false], "a check does");
}

/// H-09: a file that cannot tell vouches for nothing.
#[tokio::test]
async fn h09_what_a_rebuild_finds_is_suspect_if_the_index_was_lost() {
    let bench = Bench::new();
    let index = bench.open();
    let found = |name| Restored::Blob {
        digest: digest(name),
        size: 1,
        public: false,
    };
    index.restore(vec![found("a")]).await.unwrap();
    assert!(index.blob(&digest("a")).await.unwrap().unwrap().suspect);
    index.close().await.unwrap();
    let index = bench.open();
    index.restore(vec![found("b")]).await.unwrap();
    assert!(!index.blob(&digest("b")).await.unwrap().unwrap().suspect);
}

/// H-20: nothing that is known of one repository says anything about another.
#[tokio::test]
async fn h20_membership_is_per_repository_and_public_is_only_added() {
    let bench = Bench::new();
    let index = bench.open();
    fill(&index).await;
    let other = repo("docker.io/evil/nginx");
    assert!(!index.is_member(&other, &digest("odd")).await.unwrap());
    assert!(
        index
            .child(&other, &digest("layer"))
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        index
            .manifest(&other, &digest("manifest"))
            .await
            .unwrap()
            .is_none()
    );

    let secret = digest("secret");
    index.put_blob(&secret, 1, false, false).await.unwrap();
    assert!(!index.blob(&secret).await.unwrap().unwrap().public);
    index.put_blob(&secret, 1, true, false).await.unwrap();
    index.put_blob(&secret, 1, false, false).await.unwrap();
    assert!(index.blob(&secret).await.unwrap().unwrap().public);
    index.flush().await.unwrap();
    drop(index);
    assert!(bench.open().blob(&secret).await.unwrap().unwrap().public);
}

/// H-43: a blob of another size than the row says takes the row's place, and the totals follow.
#[tokio::test]
async fn h43_the_last_size_counts() {
    let bench = Bench::new();
    let index = bench.open();
    index
        .put_blob(&digest("a"), 100, false, false)
        .await
        .unwrap();
    index.put_blob(&digest("m"), 5, false, true).await.unwrap();
    index.mark_durable(index.now()).await.unwrap();
    index
        .put_blob(&digest("a"), 40, false, false)
        .await
        .unwrap();
    index.flush().await.unwrap();
    assert_eq!(
        *index.totals().borrow(),
        Totals {
            blobs: 40,
            manifests: 5
        }
    );
    assert!(!index.blob(&digest("a")).await.unwrap().unwrap().durable);
    index.drop_blob(&digest("a")).await.unwrap();
    index.flush().await.unwrap();
    assert_eq!(index.totals().borrow().bytes(), 5);
    assert_eq!(index.blob(&digest("a")).await.unwrap(), None);
}

/// The lock between publishing and deleting.
#[tokio::test]
async fn publishing_waits_for_a_deletion_and_keeps_others_off() {
    let bench = Bench::new();
    let index = bench.open();
    let a = digest("a");
    index.put_blob(&a, 1, false, false).await.unwrap();
    let claim = index.claim(&a).await.unwrap().unwrap();
    assert_eq!(
        index.blob(&a).await.unwrap().unwrap().state,
        BlobState::Deleting
    );
    assert!(index.claim(&a).await.unwrap().is_none());
    let mut put = std::pin::pin!(index.put_blob(&a, 2, false, false));
    assert!(futures::poll!(put.as_mut()).is_pending());
    claim.finish().await.unwrap();
    put.await.unwrap();
    assert_eq!(index.blob(&a).await.unwrap().unwrap().size, 2);

    let publishing = index.publishing(&a).await.unwrap();
    assert!(index.claim(&a).await.unwrap().is_none());
    index.drop_blob(&a).await.unwrap();
    assert!(index.blob(&a).await.unwrap().is_some());
    drop(publishing);
    index
        .claim(&a)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    assert_eq!(
        index.blob(&a).await.unwrap().unwrap().state,
        BlobState::Present
    );
}

/// A claim that nobody finished is found again, by this process and by the next.
#[tokio::test]
async fn an_abandoned_claim_is_found_again() {
    let bench = Bench::new();
    let index = bench.open();
    let a = digest("a");
    index.put_blob(&a, 1, false, false).await.unwrap();
    drop(index.claim(&a).await.unwrap().unwrap());
    assert_eq!(index.deleting().await.unwrap(), [a]);
    drop(index);
    let index = bench.open();
    assert_eq!(
        index.blob(&a).await.unwrap().unwrap().state,
        BlobState::Deleting
    );
    index
        .claim(&a)
        .await
        .unwrap()
        .unwrap()
        .finish()
        .await
        .unwrap();
    index.flush().await.unwrap();
    assert_eq!(index.deleting().await.unwrap(), []);
    assert_eq!(index.blob(&a).await.unwrap(), None);
}

#[tokio::test]
async fn tags_are_listed_in_pages_in_ascii_order() {
    let bench = Bench::new();
    let index = bench.open();
    let r = repo("ghcr.io/a/b");
    for name in ["b", "B", "_", "a", "10", "9"] {
        index
            .put_tag(&r, &tag(name), tag_row(digest(name)))
            .await
            .unwrap();
    }
    index
        .put_tag(&repo("ghcr.io/a/c"), &tag("x"), tag_row(digest("x")))
        .await
        .unwrap();
    let names = |tags: Vec<Tag>| tags.iter().map(ToString::to_string).collect::<Vec<_>>();
    let first = index.tags(&r, None, 4).await.unwrap();
    assert_eq!(names(first), ["10", "9", "B", "_"]);
    index.forget_tag(&r, &tag("a")).await.unwrap();
    let second = index.tags(&r, Some(&tag("_")), 4).await.unwrap();
    assert_eq!(names(second), ["b"]);
    assert_eq!(index.tag(&r, &tag("a")).await.unwrap(), None);
}

/// [`fill`]'s image, an index that names it, and a manifest without a tag.
async fn fill_images(index: &Index) -> RepoKey {
    let r = repo("docker.io/library/nginx");
    fill(index).await;
    let names = manifest_row(&[("manifest", ChildKind::Manifest)]);
    index
        .put_manifest(&r, &digest("index"), names)
        .await
        .unwrap();
    index
        .put_tag(&r, &tag("multi"), tag_row(digest("index")))
        .await
        .unwrap();
    index
        .put_manifest(&r, &digest("untagged"), manifest_row(&[]))
        .await
        .unwrap();
    index.flush().await.unwrap();
    r
}

#[tokio::test]
async fn lists_images_with_what_is_held_of_them() {
    let bench = Bench::new();
    let index = bench.open();
    let r = fill_images(&index).await;
    let all = index.images(&ImageFilter::default(), 10).await.unwrap();
    let seen: Vec<_> = all
        .iter()
        .map(|image| (image.tag.as_ref().map(Tag::as_str), image.held))
        .collect();
    assert_eq!(
        seen,
        [(None, 0), (Some("latest"), 103), (Some("multi"), 103)]
    );
    let found = async |repo: Option<&str>, text: Option<&str>, after: Option<&Image>| {
        let filter = ImageFilter {
            repo: repo.map(self::repo),
            text: text.map(str::to_owned),
            after: after.map(|image| (image.repo.clone(), image.tag.clone(), image.digest)),
        };
        index.images(&filter, 10).await.unwrap().len()
    };
    assert_eq!(found(None, Some("nginx:mu"), None).await, 1);
    assert_eq!(found(Some("docker.io/library/redis"), None, None).await, 0);
    assert_eq!(found(None, None, Some(&all[0])).await, 2);
    let summary = RepoSummary {
        repo: r.clone(),
        tags: 2,
        manifests: 3,
    };
    assert_eq!(index.repos(None, 10).await.unwrap(), [summary]);
    assert!(index.repos(Some(&r), 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_forgotten_is_gone() {
    let bench = Bench::new();
    let index = bench.open();
    let r = fill_images(&index).await;
    let layer = digest("layer");
    assert!(index.child(&r, &layer).await.unwrap().is_some());
    index
        .forget_manifest(&r, &digest("manifest"))
        .await
        .unwrap();
    assert!(index.child(&r, &layer).await.unwrap().is_none());
    index.forget_repository(&r).await.unwrap();
    assert!(index.repos(None, 10).await.unwrap().is_empty());
    assert!(index.tag(&r, &tag("multi")).await.unwrap().is_none());
    assert!(index.blob(&layer).await.unwrap().is_some());
}

/// What was learned while serving is newer than a record.
#[tokio::test]
async fn restoring_fills_gaps_and_overwrites_nothing() {
    let bench = Bench::new();
    let index = bench.open();
    let r = repo("docker.io/library/nginx");
    let known = tag_row(digest("new"));
    index
        .put_tag(&r, &tag("known"), known.clone())
        .await
        .unwrap();
    assert!(index.tag(&r, &tag("lost")).await.unwrap().is_none());
    let old = tag_row(digest("old"));
    let restored = ["known", "lost"].map(|t| Restored::Tag(r.clone(), tag(t), (*old).clone()));
    index.restore(restored.into()).await.unwrap();
    assert_eq!(index.tag(&r, &tag("known")).await.unwrap(), Some(known));
    assert_eq!(index.tag(&r, &tag("lost")).await.unwrap(), Some(old));
    assert!(!index.complete());
    assert!(!index.set_complete(1).await.unwrap());
    assert!(!index.complete());
    assert!(index.set_complete(0).await.unwrap());
    assert!(index.complete());
    drop(index);
    assert!(bench.open().complete());
}

async fn opens_anew(bench: &Bench, reason: &str) -> Index {
    let opened = bench.open_in("boot");
    match &opened.state {
        OpenState::Replaced(text) => assert!(text.contains(reason), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(!opened.index.complete());
    fill(&opened.index).await;
    assert_filled(&opened.index).await;
    opened.index
}

/// H-31: garbage, torn files and files of a newer program are moved aside at start.
#[tokio::test]
async fn h31_unusable_files_are_moved_aside_at_start() {
    let bench = Bench::new();
    fs::write(
        bench.path(),
        "garbage, certainly longer than a header".repeat(100),
    )
    .unwrap();
    opens_anew(&bench, "not a database")
        .await
        .close()
        .await
        .unwrap();

    let size = fs::metadata(bench.path()).unwrap().len();
    overwrite(&bench.path(), size / 2);
    opens_anew(&bench, "").await.close().await.unwrap();

    let db = rusqlite::Connection::open(bench.path()).unwrap();
    db.pragma_update(None, "user_version", 1_000_000).unwrap();
    drop(db);
    opens_anew(&bench, "newer program")
        .await
        .close()
        .await
        .unwrap();
    assert_eq!(bench.aside(), 2);
}

fn overwrite(path: &Path, from: u64) {
    use std::io::{Seek as _, SeekFrom, Write as _};
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(from)).unwrap();
    let garbage = vec![0xa5; usize::try_from(length - from).unwrap()];
    file.write_all(&garbage).unwrap();
}

#[derive(Clone, Copy)]
enum Loss {
    Deleted,
    AllDeleted,
    Replaced,
    Emptied,
    Garbled,
}

/// H-31: whatever happens to the file while running, reads and writes go on, and the file is there again.
#[rstest::rstest]
#[case(Loss::Deleted)]
#[case(Loss::AllDeleted)]
#[case(Loss::Replaced)]
#[case(Loss::Emptied)]
#[case(Loss::Garbled)]
#[tokio::test]
async fn h31_a_file_lost_while_running_is_replaced(#[case] loss: Loss) {
    let bench = Bench::new();
    let index = bench.open();
    let replacements = index.replacements();
    fill(&index).await;
    index.set_complete(0).await.unwrap();
    // Everything out of the log, so that the damage hits what is read.
    index.flush().await.unwrap();
    let db = rusqlite::Connection::open(bench.path()).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    drop(db);
    match loss {
        Loss::Deleted => fs::remove_file(bench.path()).unwrap(),
        Loss::AllDeleted => {
            for entry in fs::read_dir(bench.folder.path()).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
        Loss::Replaced => {
            let other = bench.folder.path().join("other");
            fs::write(&other, "not even a database").unwrap();
            fs::rename(&other, bench.path()).unwrap();
        }
        Loss::Emptied => fs::write(bench.path(), "").unwrap(),
        Loss::Garbled => overwrite(&bench.path(), 0),
    }
    for number in 0..100 {
        let r = repo(&format!("docker.io/a/b{number}"));
        index.blob(&digest(&number.to_string())).await.unwrap();
        index
            .put_tag(&r, &tag("t"), tag_row(digest("x")))
            .await
            .unwrap();
        assert!(index.tags(&r, None, 10).await.unwrap().len() <= 1);
        if number % 10 == 0 {
            index.flush().await.unwrap();
        }
    }
    assert_filled(&index).await;
    assert!(replacements.has_changed().unwrap());
    assert!(!index.complete());
    assert!(index.progressing(Duration::from_mins(1)));
    assert_in_file(&bench, index).await;
}

/// H-08: a file that cannot be written costs no answer; what was put meanwhile is written later.
#[tokio::test]
async fn h08_writes_that_fail_are_kept_and_tried_again() {
    let bench = Bench::new();
    let index = bench.open();
    let other = rusqlite::Connection::open(bench.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    fill(&index).await;
    assert!(index.flush().await.is_err());
    assert_filled(&index).await;
    assert!(index.progressing(Duration::from_mins(1)));
    let claim = index.claim(&digest("layer")).await.unwrap().unwrap();
    claim.release().await.unwrap();

    other.execute_batch("ROLLBACK").unwrap();
    assert_in_file(&bench, index).await;
}

/// Rows as a simple map has them, whatever the order of writes, losses and restarts.
#[tokio::test]
async fn agrees_with_a_model() {
    use std::collections::HashMap;
    let bench = Bench::new();
    let mut index = bench.open();
    let mut model: HashMap<u64, Arc<TagRow>> = HashMap::new();
    let r = repo("quay.io/a/b");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for step in 0..2000_u64 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let name = state % 16;
        let tag = tag(&format!("t{name}"));
        match state >> 32 & 15 {
            0..=5 => {
                let row = tag_row(digest(&step.to_string()));
                index.put_tag(&r, &tag, row.clone()).await.unwrap();
                model.insert(name, row);
            }
            6 | 7 => {
                index.forget_tag(&r, &tag).await.unwrap();
                model.remove(&name);
            }
            8 => index.0.memory.forget_repositories(),
            9 if step % 7 == 0 => {
                index.flush().await.unwrap();
                drop(index);
                index = bench.open();
            }
            10 => {
                let tags = index.tags(&r, None, 100).await.unwrap();
                assert_eq!(tags.len(), model.len(), "step {step}");
            }
            _ => {
                let row = index.tag(&r, &tag).await.unwrap();
                assert_eq!(row.as_ref(), model.get(&name), "step {step}");
            }
        }
    }
}
