//! Uploads on real files.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::folder::JUST_BEGUN;
use super::*;
use crate::store::run::Run;
use crate::store::space::{Limits, Space};

fn folder(root: &Path) -> Arc<UploadFolder> {
    let space = Space::new(File::open(root).unwrap(), Limits::default()).unwrap();
    let (path, run) = (root.join("uploads"), Run::begin().unwrap());
    Arc::new(UploadFolder::open(path, Arc::new(space), run).unwrap())
}

fn repo() -> RepoKey {
    "team/app".parse().unwrap()
}

fn count(root: &Path) -> usize {
    fs::read_dir(root.join("uploads")).unwrap().count()
}

/// The hash state goes on where it was saved, and what came after it is read again.
#[rstest::rstest]
#[case(Algorithm::Sha256, Algorithm::Sha256)]
#[case(Algorithm::Sha512, Algorithm::Sha512)]
#[case(Algorithm::Sha256, Algorithm::Sha512)]
fn an_upload_goes_on_after_a_restart(#[case] started: Algorithm, #[case] ended: Algorithm) {
    let root = tempfile::tempdir().unwrap();
    let mut upload = folder(root.path()).create(&repo(), started).unwrap();
    let id = upload.id().clone();
    upload.append(&[Bytes::from_static(b"one ")]).unwrap();
    upload.save().unwrap();
    upload.append(&[Bytes::from_static(b"two ")]).unwrap();
    drop(upload);

    let folder = folder(root.path());
    assert_eq!(folder.space.spool_bytes(), 8);
    let mut upload = folder.find(&id).unwrap().unwrap();
    assert_eq!((upload.offset(), upload.repo()), (8, &repo()));
    upload.append(&[Bytes::from_static(b"three")]).unwrap();
    let (upload, error) = upload.verify(&Digest::of(ended, b"other")).unwrap_err();
    assert!(matches!(error, VerifyError::Mismatch(_)));
    let upload = upload.verify(&Digest::of(ended, b"one two three"));
    upload.unwrap().finish().unwrap();
    assert_eq!((folder.space.spool_bytes(), count(root.path())), (0, 0));
    assert!(folder.find(&id).unwrap().is_none());
}

#[test]
fn what_came_after_a_mark_is_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let folder = folder(root.path());
    let mut upload = folder.create(&repo(), Algorithm::Sha256).unwrap();
    upload.append(&[Bytes::from_static(b"good")]).unwrap();
    let mark = upload.mark();
    upload.append(&[Bytes::from_static(b" and bad")]).unwrap();
    upload.save().unwrap();
    upload.go_back(mark).unwrap();
    assert_eq!((upload.offset(), folder.space.spool_bytes()), (4, 4));
    let upload = folder.find(&upload.id().clone()).unwrap().unwrap();
    upload.verify(&Digest::sha256(b"good")).unwrap();
}

#[test]
fn old_and_lost_uploads_are_swept_but_none_that_is_written() {
    let root = tempfile::tempdir().unwrap();
    let folder = folder(root.path());
    let [kept, unsaved, written] =
        [0; 3].map(|_| folder.create(&repo(), Algorithm::Sha256).unwrap());
    kept.save().unwrap();
    let is_written = |id: &UploadId| id == written.id();
    let now = SystemTime::now();
    folder.sweep(DAY, now, is_written).unwrap();
    assert_eq!(count(root.path()), 3, "just begun");
    folder.sweep(DAY, now + 2 * JUST_BEGUN, is_written).unwrap();
    assert!(folder.find(unsaved.id()).unwrap().is_none());
    assert_eq!(count(root.path()), 2);
    folder.sweep(DAY, now + 2 * DAY, is_written).unwrap();
    assert_eq!(count(root.path()), 1);
    assert!(folder.find(kept.id()).unwrap().is_none());
}

/// A kill between the rename of the bytes and the removal of the rest: the session is over, and does not stay.
#[test]
fn h03_what_is_left_of_an_accepted_upload_is_swept() {
    let root = tempfile::tempdir().unwrap();
    let folder = folder(root.path());
    let upload = folder.create(&repo(), Algorithm::Sha256).unwrap();
    upload.save().unwrap();
    let path = folder.folder_of(upload.id());
    fs::rename(path.join(DATA), root.path().join("blob")).unwrap();
    assert!(folder.find(upload.id()).unwrap().is_none());
    let now = SystemTime::now();
    folder.sweep(DAY, now, |_| false).unwrap();
    assert_eq!(count(root.path()), 1, "just begun");
    folder.sweep(DAY, now + 2 * DAY, |_| false).unwrap();
    assert_eq!(count(root.path()), 0);
}

/// H-09: after a power loss the file may have the length without the bytes.
#[test]
fn h09_an_upload_of_another_boot_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let folder = folder(root.path());
    let upload = folder.create(&repo(), Algorithm::Sha256).unwrap();
    upload.save().unwrap();
    let (path, space) = (root.path().join("uploads"), Arc::clone(&folder.space));
    let after = UploadFolder::open(path, space, Run::of_another_boot()).unwrap();
    assert!(Arc::new(after).find(upload.id()).unwrap().is_none());
}

/// H-03: what lies there is not what was pushed, though the state says so.
#[test]
fn h03_an_upload_whose_bytes_changed_while_we_were_away_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let mut upload = folder(root.path())
        .create(&repo(), Algorithm::Sha256)
        .unwrap();
    let (id, path) = (upload.id().clone(), upload.folder.folder_of(upload.id()));
    upload.append(&[Bytes::from_static(b"pushed")]).unwrap();
    upload.save().unwrap();
    drop(upload);
    let after = folder(root.path());
    assert!(after.find(&id).unwrap().is_some());
    fs::write(path.join(DATA), "Pushed").unwrap();
    assert!(folder(root.path()).find(&id).unwrap().is_none());
    let found = after.find(&id).unwrap();
    assert!(found.is_some(), "this run has read it, and does not again");
}

#[rstest::rstest]
#[case("")]
#[case("../../../etc/passwd/0123456789ab")]
#[case("0123456789ABCDEF0123456789ABCDEF")]
fn ids_are_ours(#[case] text: &str) {
    assert!(text.parse::<UploadId>().is_err());
    assert!(
        UploadId::random()
            .unwrap()
            .to_string()
            .parse::<UploadId>()
            .is_ok()
    );
}

const DAY: Duration = Duration::from_hours(24);
