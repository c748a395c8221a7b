//! Promise 6, never over the limit: what is stored stays within `store.maxBytes`, and nobody's pull fails for it.

use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::{Blob, Image};
use coral_integration_tests::pull::{eventually, get, pull};
use coral_integration_tests::registry::configuration;
use coral_integration_tests::upstream::{Kind, Upstream, When};
use futures::future::try_join_all;

const REPOSITORY: &str = "team/app";
const LIMIT: u64 = 4 << 20;
/// Evicting starts above nine tenths.
const HIGH: u64 = LIMIT - LIMIT / 10;

async fn start(upstream: &Upstream) -> anyhow::Result<Cache> {
    let store = format!("store: {{ maxBytes: {LIMIT} }}\n");
    Cache::start(&format!("{}{store}", configuration(upstream, ""))).await
}

/// Images of about 1.2 MiB, of three layers each.
fn publish(upstream: &Upstream, count: u64) -> Vec<Image> {
    let publish = |number| {
        let image = Image::new(number, &[700_000, 400_000, 100_000]);
        upstream.publish(REPOSITORY, &format!("v{number}"), &image);
        image
    };
    (1..=count).map(publish).collect()
}

/// Bytes of all files in the store.
fn held(cache: &Cache) -> u64 {
    let files = cache.stored().into_values().chain(cache.parts());
    let sizes = files.filter_map(|file| std::fs::metadata(file).ok());
    sizes.map(|metadata| metadata.len()).sum()
}

async fn assert_settles(cache: &Cache) {
    eventually("the store is within its watermark", async || {
        held(cache) <= HIGH
    })
    .await;
    cache.assert_sound();
    let limit = cache.metric("store_limit_bytes").await.expect("metrics");
    assert!(limit.is_some_and(|limit| limit.to_string() == LIMIT.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_beyond_the_limit_leave_the_last_ones() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let images = publish(&upstream, 12);
    let cache = start(&upstream).await?;
    for number in 1..=images.len() {
        pull(cache.address(), REPOSITORY, &format!("v{number}")).await?;
        // The next fill waits for room when there is none, so this is never beyond what may be in use.
        assert!(held(&cache) <= LIMIT + LIMIT / 20 + (1 << 20));
    }
    assert_settles(&cache).await;
    let evicted = cache
        .metric("evicted_bytes_total{reason=\"limit\"}")
        .await?;
    assert!(evicted.is_some_and(|bytes| bytes > 0.0));
    let stored = cache.stored();
    assert!(!stored.is_empty(), "not everything went");
    // An image that lost some of its parts gets them again, and nothing else.
    upstream.reset_counters();
    pull(cache.address(), REPOSITORY, "v1").await?;
    let missing = images[0]
        .blobs
        .iter()
        .filter(|blob| !stored.contains_key(&blob.digest));
    let asked = upstream.requests(&When::kind(Kind::Blob));
    assert!(asked >= 1 && asked >= missing.count() as u64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h01_a_slow_reader_survives_the_eviction_of_its_blob() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let images = publish(&upstream, 8);
    let large = Blob::layer(99, 3 << 20);
    upstream.add_blob(REPOSITORY, &large);
    let cache = start(&upstream).await?;
    let path = format!("/v2/{REPOSITORY}/blobs/{}", large.digest);
    let got = get(cache.address(), &path, &[]).await?;
    assert!(got.clean && got.status == 200);
    eventually("it is stored", async || {
        cache.stored().contains_key(&large.digest)
    })
    .await;
    let mut slow = Connection::open(cache.address()).await?;
    let mut reply = slow.get(&path, &[]).await?;
    slow.chunk(&mut reply).await?.expect("some bytes");
    for number in 1..=images.len() {
        pull(cache.address(), REPOSITORY, &format!("v{number}")).await?;
    }
    eventually("it is evicted", async || {
        !cache.stored().contains_key(&large.digest)
    })
    .await;
    upstream.reset_counters();
    let rest = slow.read_all(&mut reply).await?;
    let content = large.content.read_all();
    assert!(
        content.ends_with(&rest),
        "the reader has the end of the blob"
    );
    assert_eq!(upstream.requests(&When::any()), 0, "from the open file");
    assert_settles(&cache).await;
    Ok(())
}

/// H-15: whatever is missing comes back, whatever else is there.
#[tokio::test(flavor = "multi_thread")]
async fn h15_pulls_succeed_while_random_objects_vanish() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let cache = start(&upstream).await?;
    let index = Image::multi_platform(50, &["linux/arm64", "linux/amd64"], &[300_000, 20]);
    upstream.publish(REPOSITORY, "multi", &index);
    publish(&upstream, 3);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..60 {
        for tag in ["multi", "v1", "v2", "v3"] {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(round);
            let stored: Vec<_> = cache.stored().into_values().collect();
            if !stored.is_empty() {
                // As an administrator's `rm` does it: nobody is told.
                let victim = usize::try_from(random >> 33)? % stored.len();
                let _ = std::fs::remove_file(&stored[victim]);
            }
            pull(cache.address(), REPOSITORY, tag).await?;
        }
    }
    assert_settles(&cache).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_at_once_succeed_while_evicting() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    publish(&upstream, 10);
    let cache = start(&upstream).await?;
    for round in 0..3 {
        let pulls = (0..20).map(|client| {
            let tag = format!("v{}", (client + round) % 10 + 1);
            let address = cache.address();
            async move { pull(address, REPOSITORY, &tag).await }
        });
        let pulled = try_join_all(pulls).await?;
        assert!(pulled.iter().all(|blobs| blobs.len() == 4));
        cache.assert_sound();
    }
    assert_settles(&cache).await;
    eventually("no part file", async || cache.parts().is_empty()).await;
    Ok(())
}

/// The limit holds for what an earlier run left, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_lower_limit_takes_effect_with_a_restart() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    publish(&upstream, 5);
    let roomy = format!(
        "{}store: {{ maxBytes: 64Mi }}\n",
        configuration(&upstream, "")
    );
    let mut cache = Cache::start(&roomy).await?;
    for number in 1..=5 {
        pull(cache.address(), REPOSITORY, &format!("v{number}")).await?;
    }
    eventually("all is stored", async || held(&cache) > 5 * 1_200_000).await;
    cache.stop().await?;
    let tight = roomy.replace("64Mi", &LIMIT.to_string());
    std::fs::write(cache.configuration(), tight)?;
    cache.restart().await?;
    assert_settles(&cache).await;
    pull(cache.address(), REPOSITORY, "v1").await?;
    Ok(())
}
