//! `hit`: what is held, against nginx with the same bytes as files.

use std::time::Duration;

use coral_integration_tests::upstream::When;
use coral_schema::process::tasks::Tasks;
use tokio::time::Instant;

use super::{Bench, MIB, REPOSITORY, Scene, TAG, Who, mib};
use crate::contestant::Contestant;
use crate::load::{self, Load};
use crate::pull::Session;
use crate::table::{Row, Table};

/// Everything about one contestant.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    one: Blobs,
    eight: Blobs,
    digest: Manifests,
    tag: Manifests,
}

/// Blobs to some clients at once.
#[derive(Debug, Clone, Copy)]
struct Blobs {
    /// Decimal megabytes per second.
    speed: f64,
    /// Processor seconds per GiB.
    cpu: f64,
}

/// Manifests to many connections.
#[derive(Debug, Clone, Copy)]
struct Manifests {
    load: Load,
    /// Processor microseconds per request.
    cpu: f64,
    /// Upstream requests per request.
    upstream: f64,
}

impl Bench {
    pub(super) async fn hit(&self, table: &mut Table) -> anyhow::Result<()> {
        let mut layers = vec![self.sizes.layer];
        layers.extend([MIB / 16; 9]);
        let scene = Scene::new(3, &layers).await?;
        let limit = self.measure_hits(Who::Limit, &scene).await?;
        let ours = self.measure_hits(Who::Ours, &scene).await?;
        let peer = self.measure_hits(Who::Peer, &scene).await?;
        blob_rows(
            table,
            "one client",
            [ours, peer, limit].map(|o| o.map(|o| o.one)),
        );
        blob_rows(
            table,
            "eight clients",
            [ours, peer, limit].map(|o| o.map(|o| o.eight)),
        );
        manifest_rows(
            table,
            "by digest",
            [ours, peer, limit].map(|o| o.map(|o| o.digest)),
        );
        manifest_rows(
            table,
            "by tag",
            [ours, peer, limit].map(|o| o.map(|o| o.tag)),
        );
        let upstream = |o: Option<Outcome>| o.map(|o| format!("{:.4}", o.tag.upstream));
        table.add(
            Row::new("hit-manifest by tag", "upstream requests each")
                .ours(upstream(ours).unwrap_or_default())
                .peer(upstream(peer).unwrap_or_default())
                .must("≤ 0.001", ours.map(|o| o.tag.upstream <= 0.001)),
        );
        Ok(())
    }

    async fn measure_hits(&self, who: Who, scene: &Scene) -> anyhow::Result<Option<Outcome>> {
        let Some(contestant) = self.start(who, scene, "").await? else {
            return Ok(None);
        };
        let outcome = self.hits(scene, &contestant).await;
        contestant.stop().await?;
        Ok(Some(outcome?))
    }

    async fn hits(&self, scene: &Scene, contestant: &Contestant) -> anyhow::Result<Outcome> {
        scene.order(contestant, true).pull().await?;
        // What the pull left to be written back is not part of a hit.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(Outcome {
            one: self.blobs(scene, contestant, 1).await?,
            eight: self.blobs(scene, contestant, 8).await?,
            digest: {
                let digest = scene.image.digest().to_string();
                self.manifests(scene, contestant, &digest).await?
            },
            tag: self.manifests(scene, contestant, TAG).await?,
        })
    }

    /// Whole blobs, again and again, for as long as a load lasts.
    async fn blobs(
        &self,
        scene: &Scene,
        contestant: &Contestant,
        clients: usize,
    ) -> anyhow::Result<Blobs> {
        let tasks = Tasks::new();
        let layer = &scene.image.layers()[0];
        let before = contestant.usage()?;
        let start = Instant::now();
        let until = start + Duration::from_secs(self.sizes.seconds);
        let running: Vec<_> = (0..clients)
            .map(|_| {
                let (order, layer) = (scene.order(contestant, false), layer.digest);
                tasks.spawn("client", async move {
                    let mut session = Session::open(order.address).await?;
                    let mut blobs = 0;
                    while Instant::now() < until {
                        order.blob(&mut session, &layer).await?;
                        blobs += 1;
                    }
                    anyhow::Ok(blobs)
                })
            })
            .collect();
        let mut blobs: u64 = 0;
        for client in running {
            blobs += client.await??;
        }
        let elapsed = start.elapsed().as_secs_f64();
        let cpu = contestant.usage()?.cpu.saturating_sub(before.cpu);
        let mib = mib(blobs * layer.size());
        Ok(Blobs {
            speed: mib * 1.048_576 / elapsed,
            cpu: cpu.as_secs_f64() / (mib / 1024.0),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 requests")]
    async fn manifests(
        &self,
        scene: &Scene,
        contestant: &Contestant,
        reference: &str,
    ) -> anyhow::Result<Manifests> {
        let path = format!("/v2/{REPOSITORY}/manifests/{reference}");
        scene.upstream.reset_counters();
        let before = contestant.usage()?;
        let load = load::get(
            contestant.address,
            path,
            Duration::from_secs(self.sizes.seconds),
        );
        let load = load.await?;
        let cpu = contestant.usage()?.cpu.saturating_sub(before.cpu);
        let upstream = scene.upstream.requests(&When::any());
        Ok(Manifests {
            cpu: cpu.as_secs_f64() * 1e6 / load.requests as f64,
            upstream: upstream as f64 / load.requests as f64,
            load,
        })
    }
}

fn blob_rows(table: &mut Table, clients: &str, outcomes: [Option<Blobs>; 3]) {
    let case = format!("hit-blob, {clients}");
    let [ours, _, limit] = outcomes;
    let both = ours.zip(limit);
    let fast = both.map(|(ours, limit)| ours.speed >= 0.95 * limit.speed);
    let frugal = both.map(|(ours, limit)| ours.cpu <= 1.1 * limit.cpu);
    let speed = |o: Blobs| format!("{:.0}", o.speed);
    let cpu = |o: Blobs| format!("{:.2}", o.cpu);
    table.add(row(&case, "MB/s", outcomes, speed).must("≥ 0.95 × nginx", fast));
    table.add(row(&case, "CPU s/GiB", outcomes, cpu).must("≤ 1.1 × nginx", frugal));
}

fn manifest_rows(table: &mut Table, reference: &str, outcomes: [Option<Manifests>; 3]) {
    let case = format!("hit-manifest {reference}");
    let [ours, _, limit] = outcomes;
    let both = ours.zip(limit);
    let fast = both.map(|(ours, limit)| ours.load.per_second() >= 0.5 * limit.load.per_second());
    let frugal = both.map(|(ours, limit)| ours.cpu <= 2.5 * limit.cpu);
    let rate = |o: Manifests| format!("{:.0}", o.load.per_second());
    let cpu = |o: Manifests| format!("{:.1}", o.cpu);
    let times = |o: Manifests| {
        let micros = |time: Duration| time.as_micros();
        format!("{} · {}", micros(o.load.median), micros(o.load.p99))
    };
    table.add(row(&case, "requests/s", outcomes, rate).must("≥ 0.5 × nginx", fast));
    table.add(row(&case, "CPU µs/request", outcomes, cpu).must("≤ 2.5 × nginx", frugal));
    table.add(row(&case, "p50 · p99, µs, 16 connections", outcomes, times));
}

fn row<T: Copy>(
    case: &str,
    measure: &str,
    [ours, peer, limit]: [Option<T>; 3],
    show: impl Fn(T) -> String,
) -> Row {
    let cell = |outcome: Option<T>| outcome.map(&show).unwrap_or_default();
    Row::new(case, measure)
        .ours(cell(ours))
        .peer(cell(peer))
        .limit(cell(limit))
}
