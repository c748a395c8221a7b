use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use bytes::Bytes;
use coral_schema::oci::Algorithm;
use futures::TryStreamExt as _;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::BufferSize;
use crate::store::conformance::{self, content, read, verified};
use crate::store::reader::FileReader;

fn open(root: &TempDir) -> LocalStore {
    open_with(root, Limits::default())
}

fn open_with(root: &TempDir, limits: Limits) -> LocalStore {
    LocalStore::open(root.path(), limits, Buffers::default()).unwrap()
}

/// What is in `spool/`, sorted.
fn spooled(root: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(root.path().join(SPOOL)).unwrap();
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}

fn chunk(content: &[u8]) -> [Bytes; 1] {
    [Bytes::copy_from_slice(content)]
}

/// A part file with `content` that nobody holds.
fn leave_part(store: &LocalStore, digest: &Digest, content: &[u8]) {
    let mut spool = store.0.spool.spool(digest).unwrap();
    spool.append(&chunk(content)).unwrap();
}

#[tokio::test]
async fn conforms() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    conformance::blobs(&store).await;
    assert_eq!((store.spool_bytes(), store.space().stored_bytes()), (0, 0));
    assert_eq!(spooled(&root), [""; 0]);
}

#[tokio::test]
async fn only_the_owner_may_look() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let (blob, part) = (Digest::sha256(b"blob"), Digest::sha256(b"part"));
    store
        .publish(verified(&store, &blob, b"blob").await)
        .await
        .unwrap();
    leave_part(&store, &part, b"pa");
    let mode = |path: &str| {
        let metadata = fs::metadata(root.path().join(path)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    let folder_of_blob = format!("v1/blobs/sha256/{}", &blob.hex()[..2]);
    for folder in ["v1", "v1/blobs", "v1/repos", "spool", &folder_of_blob] {
        assert_eq!(mode(folder), 0o700, "{folder}");
    }
    let part = format!("spool/sha256-{}.part", part.hex());
    for file in ["v1/format", &key::blob(&blob), &part] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
}

#[test]
fn a_newer_format_is_refused_and_ours_is_kept() {
    let root = tempfile::tempdir().unwrap();
    open(&root);
    let path = root.path().join("v1/format");
    let written = fs::read_to_string(&path).unwrap();
    assert!(
        written.starts_with(r#"{"version":1,"clusterId":""#),
        "{written}"
    );
    open(&root);
    assert_eq!(fs::read_to_string(&path).unwrap(), written);

    fs::write(&path, r#"{"version":2,"clusters":[]}"#).unwrap();
    let error = LocalStore::open(root.path(), Limits::default(), Buffers::default()).unwrap_err();
    assert!(matches!(
        error,
        OpenError::Newer {
            found: 2,
            known: 1,
            ..
        }
    ));
    assert!(error.to_string().contains("format 2"), "{error}");

    fs::write(&path, "").unwrap();
    open(&root);
    assert_ne!(fs::read_to_string(&path).unwrap(), "");
}

#[test]
fn what_cannot_be_taken_up_is_swept_at_start() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let [kept, old, no_state, no_part] = ["kept", "old", "no state", "no part"].map(|text| {
        let digest = Digest::sha256(text.as_bytes());
        leave_part(&store, &digest, text.as_bytes());
        digest
    });
    let folder = root.path().join(SPOOL);
    let path = |digest: &Digest, extension: &str| {
        folder.join(format!("sha256-{}.{extension}", digest.hex()))
    };
    let day_ago = SystemTime::now() - PART_MAX_AGE - Duration::from_mins(1);
    let part = File::options()
        .write(true)
        .open(path(&old, "part"))
        .unwrap();
    part.set_modified(day_ago).unwrap();
    fs::remove_file(path(&no_state, "state")).unwrap();
    fs::remove_file(path(&no_part, "part")).unwrap();
    fs::write(path(&kept, "state-tmp"), "half").unwrap();
    fs::write(store.0.spool.temporary_path(&kept, 7), "half").unwrap();
    fs::write(folder.join("foreign"), "").unwrap();

    let store = open(&root);
    let part = |extension: &str| format!("sha256-{}.{extension}", kept.hex());
    assert_eq!(spooled(&root), ["foreign", &part("part"), &part("state")]);
    assert_eq!(store.spool_bytes(), 4);
    assert!(store.0.spool.spool(&kept).unwrap().resumed());
}

#[tokio::test]
async fn sweeping_spares_what_is_being_written() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let (held, left) = (Digest::sha256(b"held"), Digest::sha256(b"left"));
    leave_part(&store, &left, b"le");
    let mut spool = store.spool(&held).await.unwrap();
    spool.append(&chunk(b"he")).unwrap();
    let later = SystemTime::now() + Duration::from_secs(10);
    store.0.spool.sweep(Duration::ZERO, later).unwrap();
    assert_eq!(store.spool_bytes(), 2);
    spool.append(&chunk(b"ld")).unwrap();
    store.publish(spool.verify(&held).unwrap()).await.unwrap();

    leave_part(&store, &left, b"le");
    store.sweep_parts().await.unwrap();
    assert_eq!(store.spool_bytes(), 2, "too young");
}

#[tokio::test]
async fn one_writer_per_digest() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let digest = Digest::sha256(b"x");
    let first = store.spool(&digest).await.unwrap();
    let second = store.spool(&digest).await.unwrap_err();
    let StoreError::Io { source, .. } = second else {
        panic!("{second}");
    };
    assert_eq!(source.kind(), io::ErrorKind::ResourceBusy);
    drop(first);
    store.spool(&digest).await.unwrap().discard().unwrap();
    assert_eq!(spooled(&root), [""; 0]);
}

/// H-01: bytes of a removed blob are free as soon as nobody reads it: we do not keep the file open.
#[tokio::test]
async fn h01_a_removed_blob_is_closed() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let digest = Digest::sha256(b"x");
    let blob = store
        .publish(verified(&store, &digest, b"x").await)
        .await
        .unwrap();
    let hit = store.open(&digest).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&blob, &hit), "a hit opens nothing");
    store.remove(&digest).await.unwrap();
    drop(hit);
    let open = Arc::downgrade(&blob);
    drop(blob);
    assert!(open.upgrade().is_none());
}

/// H-01: an open file that raced with the removal is not handed out again.
#[tokio::test]
async fn h01_a_blob_opened_during_its_removal_is_not_remembered() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let digest = Digest::sha256(b"x");
    store
        .publish(verified(&store, &digest, b"x").await)
        .await
        .unwrap();
    let file = File::open(store.0.blob_path(&digest)).unwrap();
    store.remove(&digest).await.unwrap();
    let reader = FileReader::new(Arc::new(file), Buffers::default());
    let late = store.0.remember(digest, StoredBlob::new(reader, 1));
    assert!(store.open(&digest).await.unwrap().is_none());
    assert_eq!(read(&late).await, b"x");
}

/// H-04: on a full volume nothing partial is published, what was kept is known exactly, and space makes it work again.
#[tokio::test]
async fn h04_a_full_spool_stays_consistent() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits {
        spool_bytes: Some(100_000),
        ..Limits::default()
    };
    let store = open_with(&root, limits);
    let content = content(300_000);
    let digest = Digest::sha256(&content);
    let mut spool = store.spool(&digest).await.unwrap();
    let mut chunks = content.chunks(64_000);
    let mut next = || chunk(chunks.next().unwrap());
    spool.append(&next()).unwrap();
    assert!(matches!(spool.append(&next()), Err(StoreError::Full)));
    assert!(matches!(spool.append(&next()), Err(StoreError::Full)));
    assert_eq!((spool.offset(), store.spool_bytes()), (100_000, 100_000));
    assert_eq!(spool.hasher().finish(), Digest::sha256(&content[..100_000]));
    let reader = StoredBlob::new(spool.reader(), 100_000);
    assert!(read(&reader).await == content[..100_000]);

    let (spool, _) = spool.verify(&digest).unwrap_err();
    assert!(store.open(&digest).await.unwrap().is_none());
    spool.discard().unwrap();
    assert_eq!((store.spool_bytes(), spooled(&root).len()), (0, 0));
    let small = Digest::sha256(b"small");
    store
        .publish(verified(&store, &small, b"small").await)
        .await
        .unwrap();
}

/// H-04: after the store was full, a fill may go on once there is space again.
#[tokio::test]
async fn h04_a_full_spool_goes_on_later() {
    let root = tempfile::tempdir().unwrap();
    let limits = |bytes| Limits {
        spool_bytes: Some(bytes),
        ..Limits::default()
    };
    let content = content(3000);
    let digest = Digest::sha256(&content);
    let mut spool = open_with(&root, limits(1000))
        .0
        .spool
        .spool(&digest)
        .unwrap();
    spool.append(&chunk(&content)).unwrap_err();
    drop(spool);

    let store = open_with(&root, limits(3000));
    let mut spool = store.spool(&digest).await.unwrap();
    assert_eq!((spool.offset(), spool.resumed()), (1000, true));
    spool.append(&chunk(&content[1000..])).unwrap();
    store.publish(spool.verify(&digest).unwrap()).await.unwrap();
}

/// H-09: what was written before a power loss is not believed.
#[tokio::test]
async fn h09_a_part_of_another_boot_is_dropped() {
    let root = tempfile::tempdir().unwrap();
    let digest = Digest::sha256(b"whole");
    for at_start in [false, true] {
        let store = open(&root);
        leave_part(&store, &digest, b"who");
        let path = root
            .path()
            .join(format!("spool/sha256-{}.state", digest.hex()));
        let mut state: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        state["run"]["bootId"] = "another".into();
        fs::write(&path, state.to_string()).unwrap();
        let store = if at_start { open(&root) } else { store };
        assert_eq!(store.spool_bytes(), if at_start { 0 } else { 3 });
        let spool = store.spool(&digest).await.unwrap();
        assert_eq!((spool.offset(), spool.resumed()), (0, false));
        assert_eq!(store.spool_bytes(), 0);
    }
}

/// H-43: a blob that got shorter is never read as complete, and the next publication repairs it.
#[tokio::test]
async fn h43_a_shorter_blob_is_damaged_and_repaired() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let content = content(400_000);
    let digest = Digest::sha256(&content);
    let blob = store
        .publish(verified(&store, &digest, &content).await)
        .await
        .unwrap();
    let file = File::options()
        .write(true)
        .open(store.0.blob_path(&digest))
        .unwrap();
    file.set_len(300_000).unwrap();
    let mut offset = 0;
    let error = loop {
        match blob.read(offset, BufferSize::Large.bytes()).await {
            Ok(next) => offset += next.len() as u64,
            Err(error) => break error,
        }
        assert!(offset < 400_000);
    };
    assert!(matches!(error, StoreError::Damaged(_)));

    let store = open(&root);
    let blob = store.open(&digest).await.unwrap().unwrap();
    assert_eq!(blob.size(), 300_000, "the index knows better");
    store
        .publish(verified(&store, &digest, &content).await)
        .await
        .unwrap();
    let blob = store.open(&digest).await.unwrap().unwrap();
    assert!(read(&blob).await == content);
}

#[tokio::test]
async fn foreign_files_are_not_listed() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let digest = Digest::sha256(b"x");
    store
        .publish(verified(&store, &digest, b"x").await)
        .await
        .unwrap();
    let folder = root.path().join("v1/blobs/sha256/00");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("notes"), "").unwrap();
    fs::write(folder.join(digest.hex()), "in the wrong folder").unwrap();
    fs::create_dir(folder.join(format!("00{}", &digest.hex()[2..]))).unwrap();
    let listed: Vec<_> = store.list().try_collect().await.unwrap();
    assert_eq!(listed, [(digest, 1)]);
}

/// What a crash may do to the files of a part.
#[derive(Debug, Clone, Copy)]
enum Damage {
    None,
    /// Bytes at the end that nobody wrote.
    Garbage(u8),
    /// Fewer bytes than the state says.
    Shorter,
    /// Another first byte, behind the back of the state.
    Changed,
    /// A state that is not one.
    State,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => Just(Damage::None),
        1 => any::<u8>().prop_map(Damage::Garbage),
        1 => Just(Damage::Shorter),
        1 => Just(Damage::Changed),
        1 => Just(Damage::State),
    ]
}

fn inflict(damage: Damage, store: &LocalStore, digest: &Digest) {
    let part = store.0.spool.part_path(digest);
    let file = File::options().append(true).open(&part).unwrap();
    match damage {
        Damage::None => {}
        Damage::Garbage(byte) => (&file).write_all(&[byte; 10]).unwrap(),
        Damage::Shorter => file.set_len(0).unwrap(),
        Damage::Changed => {
            let mut bytes = fs::read(&part).unwrap();
            bytes.iter_mut().take(1).for_each(|byte| *byte = !*byte);
            fs::write(&part, bytes).unwrap();
        }
        Damage::State => fs::write(part.with_extension("state"), [0; 200]).unwrap(),
    }
}

proptest! {
    // Each case opens the store several times, on a real disk.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// H-03: killed anywhere, whatever the files look like then: the next fill ends with the right bytes, and asks for
    /// none again that were written, unless something is damaged.
    #[test]
    fn h03_killed_anywhere(
        length in 0_usize..40_000,
        cuts in prop::collection::vec((0.0..1.0_f64, any::<bool>(), damage()), 1..4),
        long in any::<bool>(),
    ) {
        let root = tempfile::tempdir().unwrap();
        let content = content(length);
        let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
        let digest = Digest::of(algorithm, &content);
        let mut store = open(&root);
        let (mut written, mut in_state) = (0, 0);
        let mut garbage = false;
        for (cut, saved, damage) in cuts {
            let mut spool = store.0.spool.spool(&digest).unwrap();
            if garbage {
                spool.reset().unwrap();
                (written, in_state, garbage) = (0, 0, false);
            }
            prop_assert_eq!(spool.offset(), written as u64);
            prop_assert_eq!(spool.resumed(), written > 0);
            prop_assert_eq!(spool.hasher().finish(), Digest::of(algorithm, &content[..written]));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                reason = "a place within the rest, no more")]
            let take = ((length - written) as f64 * cut) as usize;
            let next = &content[written..written + take];
            let (first, second) = next.split_at(take / 2);
            spool.append(&[Bytes::copy_from_slice(first), Bytes::new()]).unwrap();
            if saved {
                spool.save_state(&["origin".to_owned()]).unwrap();
                in_state = written + first.len();
            }
            spool.append(&chunk(second)).unwrap();
            written += take;
            drop(spool);
            inflict(damage, &store, &digest);
            match damage {
                Damage::None => {}
                Damage::Garbage(_) => garbage = true,
                // What the state vouches for is read again; the rest shows in the end.
                Damage::Changed if in_state == 0 => garbage = written > 0,
                Damage::Changed | Damage::Shorter | Damage::State => (written, in_state) = (0, 0),
            }
            store = open(&root);
        }
        let mut spool = store.0.spool.spool(&digest).unwrap();
        if garbage {
            let (returned, _) = spool.verify(&digest).unwrap_err();
            spool = *returned;
            spool.reset().unwrap();
            written = 0;
        }
        prop_assert_eq!(spool.offset(), written as u64);
        spool.append(&chunk(&content[written..])).unwrap();
        store.0.publish(&spool.verify(&digest).unwrap().into_spool()).unwrap();
        prop_assert_eq!(fs::read(store.0.blob_path(&digest)).unwrap(), content);
        prop_assert_eq!(spooled(&root), [""; 0]);
        prop_assert_eq!(store.spool_bytes(), 0);
    }
}
