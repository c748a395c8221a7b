//! Many clients at once, for a while.

use std::time::Duration;

use coral_integration_tests::mixed::{self, Mixed};

use crate::coral::{Config, Coral};
use crate::upstream::Upstream;

/// Bodies and manifests that are in flight have 64 MiB each, whatever the number of clients; the rest is what the program
/// has at rest, and small buffers of connections.
const MEMORY: u64 = 192 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_clients_push_and_pull_for_two_minutes() {
    let upstream = Upstream::plain().await;
    let hosted = format!(
        "hosted: [{{ prefix: {} }}]\nanonymousPush: true\n",
        mixed::PREFIX
    );
    let coral = Coral::start(Config::of(&upstream).more(&hosted)).await;
    let mixed = Mixed {
        address: coral.address().parse().unwrap(),
        clients: 64,
        lasts: Duration::from_mins(2),
        // Other tests run meanwhile: the benchmark shows how fast it can be.
        pause: Duration::from_secs(2),
    };
    let moved = mixed.run().await.unwrap();
    assert!(moved.images >= 2 * mixed.clients, "{moved:?}");
    let peak = coral.usage().peak_rss;
    assert!(peak < MEMORY, "{} MiB", peak >> 20);
}
