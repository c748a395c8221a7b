//! What is cached outlives restarts, a lost index, and its upstream.

use std::path::Path;
use std::time::Duration;

use crate::clients::{Client, Crane, Skopeo};
use crate::coral::{Config, Coral, UPSTREAM};
use crate::harness;
use crate::images::{Image, Noise, TAG};
use crate::upstream::{Upstream, seed};

#[tokio::test]
async fn a_restart_between_pulls_loses_nothing() {
    let mut upstream = Upstream::plain().await;
    let mut coral = Coral::before(&upstream).await;
    pull_all(&coral).await;
    upstream.stop().await;
    coral.restart().await;
    pull_all(&coral).await;
    coral.crash().await;
    pull_all(&coral).await;
}

#[tokio::test]
async fn a_crash_during_a_pull_costs_the_next_one_nothing() {
    let upstream = Upstream::plain().await;
    let mut coral = Coral::before(&upstream).await;
    let image = &seed().await.big;
    let skopeo = Skopeo::of(&coral);
    let crash = async {
        coral.freeze_in_mid_download(&upstream).await;
        coral.crash().await;
        upstream.thaw();
    };
    // skopeo gives up where its connection breaks.
    let (broken, ()) = tokio::join!(skopeo.pull(image), crash);
    broken.unwrap_err();
    skopeo.pull(image).await.unwrap();
    assert_resumed(&upstream, image);
}

#[tokio::test]
async fn h03_a_part_file_of_garbage_is_not_served() {
    let mut noise = Noise::new("garbage");
    for spoilt in ["part", "state"] {
        let upstream = Upstream::plain().await;
        let mut coral = Coral::before(&upstream).await;
        let image = &seed().await.hundred;
        break_off(&mut coral, &upstream, image).await;
        for part in coral.parts() {
            let file = if spoilt == "part" {
                part
            } else {
                beside(&part)
            };
            let length = file.metadata().unwrap().len().max(8);
            let garbage: Vec<u8> = (0..length.div_ceil(8))
                .flat_map(|_| noise.next().to_le_bytes())
                .collect();
            std::fs::write(file, garbage).unwrap();
        }
        upstream.thaw();
        coral.start_again().await;
        // Readers are cut off where the garbage shows: they are never told that the bytes are right.
        let again = Duration::from_mins(1);
        let skopeo = Skopeo::of(&coral);
        harness::eventually("the image comes whole", again, async || {
            skopeo.pull(image).await.ok()
        })
        .await;
        coral.read_largest(image).await;
        assert!(coral.holds(image));
    }
}

#[tokio::test]
async fn h31_the_index_may_be_deleted_between_pulls() {
    let mut upstream = Upstream::plain().await;
    let mut coral = Coral::before(&upstream).await;
    pull_all(&coral).await;
    upstream.stop().await;
    remove_index(&coral);
    pull_all(&coral).await;
    coral.kill().await;
    remove_index(&coral);
    coral.start_again().await;
    pull_all(&coral).await;
}

#[tokio::test]
async fn h31_a_newer_index_is_set_aside() {
    let mut upstream = Upstream::plain().await;
    let mut coral = Coral::before(&upstream).await;
    pull_all(&coral).await;
    upstream.stop().await;
    coral.terminate();
    coral.ended().await;
    claim_newer_version(&coral.index());
    coral.start_again().await;
    pull_all(&coral).await;
    assert!(
        coral.log().contains("index.db"),
        "nothing in the log names the file:\n{}",
        coral.log()
    );
}

#[tokio::test]
async fn h11_an_old_tag_is_served_with_a_warning_when_its_upstream_is_gone_or_silent() {
    for silent in [false, true] {
        let mut upstream = Upstream::plain().await;
        let short = "tags: [{ match: \"*\", freshness: 1s }],";
        let coral = Coral::start(Config::with_policy(&upstream, short)).await;
        let image = &seed().await.small;
        Crane(&coral).pull(image).await.unwrap();
        if silent {
            upstream.freeze();
        } else {
            upstream.stop().await;
        }
        // Freshness is wall-clock time with 10 % jitter: after this the tag is due for a check, however busy the machine.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let answer = coral
            .get(&format!("{UPSTREAM}/{}/manifests/{TAG}", image.repository))
            .await;
        assert_eq!(answer.status(), 200);
        let warning = answer.headers()["warning"].to_str().unwrap();
        assert!(warning.starts_with("299 "), "{warning}");
        Crane(&coral).pull(image).await.unwrap();
    }
}

async fn pull_all(coral: &Coral) {
    for image in seed().await.pulled() {
        Crane(coral).pull(image).await.unwrap();
    }
}

/// Leaves a part file of the image's largest blob, with the upstream silent and our registry dead.
async fn break_off(coral: &mut Coral, upstream: &Upstream, image: &Image) {
    let reading = coral.largest(image).await;
    coral.freeze_in_mid_download(upstream).await;
    coral.kill().await;
    drop(reading);
}

fn assert_resumed(upstream: &Upstream, image: &Image) {
    let fetches = upstream.fetches(&image.largest().0);
    assert!(
        fetches.iter().any(|(status, _)| *status == 206),
        "never resumed: {fetches:?}"
    );
}

fn beside(part: &Path) -> std::path::PathBuf {
    let appended = part.with_extension("part.state");
    if appended.exists() {
        appended
    } else {
        part.with_extension("state")
    }
}

fn remove_index(coral: &Coral) {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = coral.index().into_os_string();
        name.push(suffix);
        // Not there after a clean stop, or because nothing was written since it was deleted the last time.
        let _ = std::fs::remove_file(name);
    }
}

/// `user_version` stands at byte 60 of a `SQLite` file: <https://www.sqlite.org/fileformat.html#database_header>.
fn claim_newer_version(index: &Path) {
    let mut bytes = std::fs::read(index).unwrap();
    bytes[60..64].copy_from_slice(&9999_u32.to_be_bytes());
    std::fs::write(index, bytes).unwrap();
}
