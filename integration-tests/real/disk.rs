//! A volume that is full.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coral_schema::oci::Digest;
use tempfile::TempDir;

use crate::clients::{Client, Crane};
use crate::coral::{Config, Coral};
use crate::harness;
use crate::upstream::{Upstream, seed};

#[tokio::test]
async fn h04_h08_a_full_disk_fails_no_pull_and_recovers_without_a_restart() {
    if cannot_mount("h04_h08_a_full_disk_fails_no_pull_and_recovers_without_a_restart") {
        return;
    }
    let mut upstream = Upstream::plain().await;
    let volume = Volume::mount(180 << 20).await;
    let ballast = fill_up_to(volume.path(), 10 << 20);
    // A limit above the volume's size: what keeps the store within the disk must not be luck with a default.
    let config = Config::of(&upstream)
        .data(&volume.path)
        .more("store: { maxBytes: 1Gi }\n");
    let coral = Coral::start(config).await;
    let image = &seed().await.hundred;

    Crane(&coral).pull(image).await.unwrap();
    coral.read_largest(image).await;
    assert!(!coral.holds(image), "a blob of 100 MiB on 10 MiB");
    let spooled: u64 = coral
        .parts()
        .iter()
        .map(|part| part.metadata().unwrap().len())
        .sum();
    assert_eq!(spooled, 0, "something partial stays");
    let degraded = coral.metric("coral_registry_store_degraded").await;
    assert!(degraded > 0.0, "the store does not show as degraded");

    std::fs::remove_file(ballast).unwrap();
    let recovers = Duration::from_mins(2);
    harness::eventually("a pull is stored again", recovers, async || {
        coral.read_largest(image).await;
        coral.holds(image).then_some(())
    })
    .await;
    Crane(&coral).pull(image).await.unwrap();
    upstream.stop().await;
    Crane(&coral).pull(image).await.unwrap();
}

#[tokio::test]
async fn a_volume_of_ten_megabytes_passes_a_hundred_through() {
    if cannot_mount("a_volume_of_ten_megabytes_passes_a_hundred_through") {
        return;
    }
    let upstream = Upstream::plain().await;
    let volume = Volume::mount(10 << 20).await;
    let coral = Coral::start(Config::of(&upstream).data(&volume.path)).await;
    Crane(&coral).pull(&seed().await.hundred).await.unwrap();
    assert!(!coral.holds(&seed().await.hundred));
    Crane(&coral).pull(&seed().await.small).await.unwrap();
}

/// H-04 for what clients bring: nothing partial shows, and the session goes on where it was once there is room.
#[tokio::test]
async fn h04_a_push_into_a_full_disk_goes_on_when_there_is_room() {
    if cannot_mount("h04_a_push_into_a_full_disk_goes_on_when_there_is_room") {
        return;
    }
    let upstream = Upstream::plain().await;
    let volume = Volume::mount(60 << 20).await;
    let config = Config::of(&upstream)
        .data(&volume.path)
        .more("hosted: [{ prefix: own }]\nanonymousPush: true\nstore: { maxBytes: 1Gi }\n");
    let coral = Coral::start(config).await;
    let ballast = fill_up_to(volume.path(), 8 << 20);
    let content: Vec<u8> = (0..20 << 20)
        .map(|at: u32| at.to_le_bytes()[at as usize % 3])
        .collect();
    let digest = Digest::sha256(&content);
    let client = reqwest::Client::new();
    let url = |path: &str| format!("http://{}{path}", coral.address());

    let begun = client.post(url("/v2/own/app/blobs/uploads/")).send().await;
    let location = begun.unwrap().headers()["location"]
        .to_str()
        .unwrap()
        .to_owned();
    let refused = client.patch(url(&location)).body(content.clone()).send();
    let refused = refused.await.unwrap();
    assert_eq!(refused.status(), 503);
    let said = refused.text().await.unwrap();
    assert!(said.contains("no space") || said.contains("full"), "{said}");
    let blob = format!("own/app/blobs/{digest}");
    assert_eq!(coral.get(&blob).await.status(), 404);

    std::fs::remove_file(ballast).unwrap();
    let status = client.get(url(&location)).send().await.unwrap();
    let range = status.headers()["range"].to_str().unwrap();
    let last: usize = range.strip_prefix("0-").unwrap().parse().unwrap();
    let received = if last == 0 { 0 } else { last + 1 };
    let end = url(&format!("{location}?digest={digest}"));
    harness::eventually("the push goes on", Duration::from_mins(2), async || {
        let rest = content[received..].to_vec();
        let put = client.put(&end).body(rest).send().await.unwrap();
        (put.status() == 201).then_some(())
    })
    .await;
    assert_eq!(coral.get(&blob).await.bytes().await.unwrap(), content);
}

/// Without root `test` is skipped.
fn cannot_mount(test: &str) -> bool {
    let cannot = !rustix::process::geteuid().is_root();
    if cannot {
        harness::skip(test, "needs root to mount");
    }
    cannot
}

/// A tmpfs that is unmounted with this value.
pub(crate) struct Volume {
    path: PathBuf,
    folder: Option<TempDir>,
}

impl Volume {
    /// On a folder of its own.
    pub(crate) async fn mount(bytes: u64) -> Self {
        let folder = harness::scratch();
        let path = folder.path().join("volume");
        std::fs::create_dir(&path).unwrap();
        let mut volume = Self::mount_on(path, bytes).await;
        volume.folder = Some(folder);
        volume
    }

    /// Over a folder.
    pub(crate) async fn mount_on(path: PathBuf, bytes: u64) -> Self {
        let mut command = Command::new("mount");
        command
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={bytes},mode=700"),
                "tmpfs",
            ])
            .arg(&path);
        harness::run(command).await.result().unwrap();
        Self { path, folder: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        harness::unmount(&self.path);
        drop(self.folder.take());
    }
}

/// Leaves only so many bytes of a volume free; returns the file to delete.
pub(crate) fn fill_up_to(volume: &Path, left: u64) -> PathBuf {
    let file = volume.join("ballast");
    let content = vec![1; usize::try_from(free_bytes(volume) - left).unwrap()];
    std::fs::write(&file, content).unwrap();
    file
}

pub(crate) fn free_bytes(path: &Path) -> u64 {
    let volume = rustix::fs::statvfs(path).unwrap();
    volume.f_bavail * volume.f_frsize
}
