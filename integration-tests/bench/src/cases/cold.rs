//! `cold-1` and `cold-n`: an image that nobody has yet.

use std::time::Duration;

use anyhow::Context as _;
use coral_integration_tests::program::Usage;
use coral_schema::process::tasks::Tasks;

use super::{Bench, Scene, Who, mib};
use crate::contestant::Contestant;
use crate::pull::Order;
use crate::table::{Row, Table};

/// Which rows are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Everything,
    Memory,
}

/// One cold pull by all clients.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// Of the slowest client among the first 99 %.
    p99: Duration,
    first_byte: Duration,
    usage: Usage,
    upstream: f64,
}

impl Bench {
    pub(super) async fn cold_1(&self, table: &mut Table, show: Show) -> anyhow::Result<()> {
        let scene = Scene::new(1, &[self.sizes.layer]).await?;
        let scene = scene.far(Duration::from_millis(50));
        let direct = self.best(Who::Direct, &scene, 1).await?;
        let direct = direct.context("the upstream is always there")?;
        let ours = self.best(Who::Ours, &scene, 1).await?;
        let peer = self.best(Who::Peer, &scene, 1).await?;
        let case = format!("cold-1 ({:.0} MiB, 50 ms, 1 Gbit/s)", mib(self.sizes.layer));
        if show == Show::Everything {
            let total = |o: Outcome| format!("{:.3}", ratio(o.p99, direct.p99));
            let first = |o: Outcome| format!("{:.3} s", o.first_byte.as_secs_f64());
            table.add(
                Row::new(&case, "total ÷ direct")
                    .direct(format!("1.000 ({:.2} s)", direct.p99.as_secs_f64()))
                    .ours(cell(ours, total))
                    .peer(cell(peer, total))
                    .limit("1.00")
                    .must("≤ 1.02", ours.map(|o| ratio(o.p99, direct.p99) <= 1.02)),
            );
            let limit = ours.map(|o| ratio(o.first_byte, direct.first_byte) <= 1.2);
            table.add(
                Row::new(&case, "first layer byte")
                    .direct(first(direct))
                    .ours(cell(ours, first))
                    .peer(cell(peer, first))
                    .must("≤ 1.2 × direct", limit),
            );
            upstream_row(table, &case, direct, ours, peer);
            let per_gib = |o: Outcome| {
                let gib = mib(self.sizes.layer) / 1024.0;
                format!("{:.2}", o.usage.cpu.as_secs_f64() / gib)
            };
            table.add(
                Row::new(&case, "CPU s/GiB")
                    .ours(cell(ours, per_gib))
                    .peer(cell(peer, per_gib)),
            );
        }
        memory_row(table, &case, ours, peer, 100);
        Ok(())
    }

    pub(super) async fn cold_n(&self, table: &mut Table, show: Show) -> anyhow::Result<()> {
        let scene = Scene::new(2, &[self.sizes.small_layer; 10]).await?;
        let scene = scene.far(Duration::from_millis(20));
        let direct = self.best(Who::Direct, &scene, 1).await?;
        let direct = direct.context("the upstream is always there")?;
        for &clients in &self.sizes.clients {
            let ours = self.best(Who::Ours, &scene, clients).await?;
            // The peer passes everybody on to the upstream: with more clients it takes minutes and shows no more.
            let peer = if clients <= 50 {
                self.best(Who::Peer, &scene, clients).await?
            } else {
                None
            };
            let size = mib(self.sizes.small_layer);
            let case = format!("cold-n ({clients} clients, 10 × {size:.0} MiB, 20 ms, 1 Gbit/s)");
            if show == Show::Everything {
                let limit = self.best(Who::Limit, &scene, clients).await?;
                let p99 = |o: Outcome| format!("{:.2}", ratio(o.p99, direct.p99));
                let both = ours.zip(limit);
                let verdict = both.map(|(ours, limit)| ratio(ours.p99, limit.p99) <= 1.15);
                table.add(
                    Row::new(&case, "p99 ÷ one direct client")
                        .direct(format!("1.00 ({:.2} s)", direct.p99.as_secs_f64()))
                        .ours(cell(ours, p99))
                        .peer(cell(peer, p99))
                        .limit(cell(limit, p99))
                        .must("≤ 1.15 × nginx", verdict),
                );
                upstream_row(table, &case, direct, ours, peer);
            }
            let most = if clients <= 50 { 150 } else { 300 };
            memory_row(table, &case, ours, peer, most);
        }
        Ok(())
    }

    /// The best of some runs, each with nothing stored.
    async fn best(
        &self,
        who: Who,
        scene: &Scene,
        clients: usize,
    ) -> anyhow::Result<Option<Outcome>> {
        let mut best: Option<Outcome> = None;
        let runs = if who == Who::Peer && clients > 1 {
            1
        } else {
            self.sizes.runs
        };
        for _ in 0..runs {
            let Some(contestant) = self.start(who, scene, "").await? else {
                return Ok(None);
            };
            let outcome = run(scene, &contestant, clients).await;
            contestant.stop().await?;
            let outcome = outcome.with_context(|| format!("{who:?}, {clients} clients"))?;
            let worst_memory = best.map_or(0, |best| best.usage.peak_rss);
            let mut better = match best {
                Some(best) if best.p99 < outcome.p99 => best,
                _ => outcome,
            };
            better.usage.peak_rss = worst_memory.max(outcome.usage.peak_rss);
            better.upstream = best.map_or(0.0, |best| best.upstream).max(outcome.upstream);
            best = Some(better);
        }
        Ok(best)
    }
}

async fn run(scene: &Scene, contestant: &Contestant, clients: usize) -> anyhow::Result<Outcome> {
    scene.upstream.reset_counters();
    let before = contestant.usage()?;
    let tasks = Tasks::new();
    let pulls: Vec<_> = (0..clients)
        .map(|number| {
            // One client checks; the others would only take the processor away from what is measured.
            let order: Order = scene.order(contestant, number == 0);
            tasks.spawn("client", async move {
                let patience = Duration::from_mins(10);
                tokio::time::timeout(patience, order.pull()).await?
            })
        })
        .collect();
    let mut totals = Vec::new();
    let mut first_byte = Duration::MAX;
    for pull in pulls {
        let pulled = pull.await??;
        totals.push(pulled.total);
        first_byte = first_byte.min(pulled.first_byte);
    }
    totals.sort_unstable();
    let after = contestant.usage()?;
    Ok(Outcome {
        p99: totals[(totals.len() * 99).div_ceil(100) - 1],
        first_byte,
        usage: Usage {
            cpu: after.cpu.saturating_sub(before.cpu),
            ..after
        },
        upstream: scene.upstream_ratio(),
    })
}

fn upstream_row(
    table: &mut Table,
    case: &str,
    direct: Outcome,
    ours: Option<Outcome>,
    peer: Option<Outcome>,
) {
    let bytes = |o: Outcome| format!("{:.2}", o.upstream);
    table.add(
        Row::new(case, "upstream bytes ÷ image")
            .direct(bytes(direct))
            .ours(cell(ours, bytes))
            .peer(cell(peer, bytes))
            .limit("1.00")
            .must("1.00", ours.map(|o| o.upstream <= 1.004)),
    );
}

fn memory_row(
    table: &mut Table,
    case: &str,
    ours: Option<Outcome>,
    peer: Option<Outcome>,
    most: u64,
) {
    let memory = |o: Outcome| format!("{:.0} MiB", mib(o.usage.peak_rss));
    let verdict = ours.map(|o| o.usage.peak_rss < most << 20);
    table.add(
        Row::new(case, "peak resident memory")
            .ours(cell(ours, memory))
            .peer(cell(peer, memory))
            .must(format!("< {most} MiB"), verdict),
    );
}

fn cell(outcome: Option<Outcome>, show: impl Fn(Outcome) -> String) -> String {
    outcome.map(show).unwrap_or_default()
}

fn ratio(part: Duration, whole: Duration) -> f64 {
    part.as_secs_f64() / whole.as_secs_f64()
}
