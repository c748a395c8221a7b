//! `kill -9` at any byte.

use crate::coral::Coral;
use crate::images::Noise;
use crate::upstream::{Upstream, seed};

/// Each takes about a second; the seed is fixed, what the kill meets differs by timing.
const RUNS: u64 = 30;

#[tokio::test]
async fn h03_a_kill_at_any_offset_leaves_only_right_blobs_and_wastes_no_download() {
    let image = &seed().await.hundred;
    let (digest, size) = image.largest();
    let mut noise = Noise::new("offsets");
    for run in 0..RUNS {
        let upstream = Upstream::plain().await;
        let mut coral = Coral::before(&upstream).await;
        let offset = noise.below(*size);
        let mut response = coral.largest(image).await.error_for_status().unwrap();
        let mut read = 0;
        while read < offset {
            let Some(chunk) = response.chunk().await.unwrap() else {
                break;
            };
            read += chunk.len() as u64;
        }
        coral.kill().await;
        drop(response);
        coral.stored_blobs();

        coral.start_again().await;
        coral.read_largest(image).await;
        coral.stored_blobs();
        let sent: u64 = upstream
            .fetches(digest)
            .iter()
            .map(|(_, bytes)| bytes)
            .sum();
        assert!(
            sent < 2 * size,
            "run {run}, killed at {offset} of {size}: upstream sent {sent}"
        );
    }
}
