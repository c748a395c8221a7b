//! `push` and `mixed`: what clients bring, against the peer without an upstream.

use std::time::Duration;

use coral_integration_tests::images::Blob;
use coral_integration_tests::mixed::{self, Mixed};
use coral_integration_tests::program::Usage;
use coral_integration_tests::push::{Pusher, Style};
use coral_schema::process::tasks::Tasks;
use tokio::time::Instant;

use super::{Bench, Who, mib};
use crate::contestant::Contestant;
use crate::table::{Row, Table};

/// What one contestant took in, or moved.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// Decimal megabytes per second.
    speed: f64,
    usage: Usage,
    bytes: u64,
}

impl Bench {
    pub(super) async fn push(&self, table: &mut Table) -> anyhow::Result<()> {
        let mut memory = [None; 2];
        for style in [Style::Monolithic, Style::Chunked] {
            for (size, count) in self.sizes.pushed {
                let order = Order { style, size, count };
                let ours = self.best_push(Who::Ours, order).await?;
                let peer = self.best_push(Who::Peer, order).await?;
                let style = match style {
                    Style::Monolithic => "whole",
                    Style::Chunked => "in chunks of 5 MiB",
                };
                let case = format!("push ({CLIENTS} clients, {:.0} MiB, {style})", mib(size));
                speed_rows(table, &case, [ours, peer]);
                for (most, outcome) in memory.iter_mut().zip([ours, peer]) {
                    *most = (*most).max(outcome.map(|o| o.usage.peak_rss));
                }
            }
        }
        memory_row(table, "push, all of these", memory);
        Ok(())
    }

    pub(super) async fn mixed(&self, table: &mut Table) -> anyhow::Result<()> {
        let ours = self.measure_mixed(Who::Ours).await?;
        let peer = self.measure_mixed(Who::Peer).await?;
        let seconds = self.sizes.seconds;
        let case = format!("mixed ({MIXED_CLIENTS} clients push and pull, {seconds} s)");
        speed_rows(table, &case, [ours, peer]);
        memory_row(
            table,
            &case,
            [ours, peer].map(|o| o.map(|o| o.usage.peak_rss)),
        );
        Ok(())
    }

    /// The best of some runs, each with nothing stored; of memory the worst.
    async fn best_push(&self, who: Who, order: Order) -> anyhow::Result<Option<Outcome>> {
        let mut best: Option<Outcome> = None;
        for _ in 0..self.sizes.runs {
            let Some(contestant) = self.hosting(who).await? else {
                return Ok(None);
            };
            let outcome = order.push(&contestant).await;
            contestant.stop().await?;
            let outcome = outcome?;
            let peak = best.map_or(0, |best| best.usage.peak_rss);
            let mut better = match best {
                Some(best) if best.speed > outcome.speed => best,
                _ => outcome,
            };
            better.usage.peak_rss = peak.max(outcome.usage.peak_rss);
            best = Some(better);
        }
        Ok(best)
    }

    async fn measure_mixed(&self, who: Who) -> anyhow::Result<Option<Outcome>> {
        let Some(contestant) = self.hosting(who).await? else {
            return Ok(None);
        };
        let mixed = Mixed {
            address: contestant.address,
            clients: MIXED_CLIENTS,
            lasts: Duration::from_secs(self.sizes.seconds),
            pause: Duration::ZERO,
        };
        let moved = mixed.run().await;
        let usage = contestant.usage()?;
        contestant.stop().await?;
        let moved = moved?;
        Ok(Some(Outcome {
            speed: speed(moved.bytes, moved.elapsed),
            usage,
            bytes: moved.bytes,
        }))
    }

    /// A contestant that takes pushes, with nothing stored.
    async fn hosting(&self, who: Who) -> anyhow::Result<Option<Contestant>> {
        let program = match who {
            Who::Ours => &self.programs.ours,
            _ => &self.programs.distribution,
        };
        let Some(program) = program.as_deref() else {
            return Ok(None);
        };
        let started = match who {
            Who::Ours => Contestant::hosting(program, mixed::PREFIX).await?,
            _ => Contestant::distribution(program, None).await?,
        };
        Ok(Some(started))
    }
}

/// What each client pushes.
#[derive(Debug, Clone, Copy)]
struct Order {
    style: Style,
    /// Of a blob, bytes.
    size: u64,
    /// Blobs.
    count: u64,
}

impl Order {
    async fn push(self, contestant: &Contestant) -> anyhow::Result<Outcome> {
        let blobs: Vec<Vec<Blob>> = (0..CLIENTS)
            .map(|client| {
                let seeds = client * self.count..(client + 1) * self.count;
                seeds.map(|seed| Blob::layer(seed, self.size)).collect()
            })
            .collect();
        let tasks = Tasks::new();
        let before = contestant.usage()?;
        let start = Instant::now();
        let clients: Vec<_> = blobs
            .into_iter()
            .map(|blobs| {
                let (address, style) = (contestant.address, self.style);
                tasks.spawn("client", async move {
                    let mut pusher = Pusher::open(address).await?;
                    for blob in &blobs {
                        pusher.blob(REPOSITORY, blob, style).await?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for client in clients {
            client.await??;
        }
        let elapsed = start.elapsed();
        let after = contestant.usage()?;
        let bytes = CLIENTS * self.count * self.size;
        Ok(Outcome {
            speed: speed(bytes, elapsed),
            usage: Usage {
                cpu: after.cpu.saturating_sub(before.cpu),
                ..after
            },
            bytes,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
fn speed(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64()
}

fn speed_rows(table: &mut Table, case: &str, [ours, peer]: [Option<Outcome>; 2]) {
    let verdict = ours.zip(peer).map(|(ours, peer)| ours.speed >= peer.speed);
    let speed = |o: Option<Outcome>| o.map_or_else(String::new, |o| format!("{:.0}", o.speed));
    let row = Row::new(case, "MB/s").ours(speed(ours)).peer(speed(peer));
    table.add(row.must("≥ peer", verdict));
    let cpu = |o: Option<Outcome>| {
        o.map_or_else(String::new, |o| {
            format!("{:.2}", o.usage.cpu.as_secs_f64() / (mib(o.bytes) / 1024.0))
        })
    };
    table.add(Row::new(case, "CPU s/GiB").ours(cpu(ours)).peer(cpu(peer)));
}

fn memory_row(table: &mut Table, case: &str, [ours, peer]: [Option<u64>; 2]) {
    let memory =
        |peak: Option<u64>| peak.map_or_else(String::new, |peak| format!("{:.0} MiB", mib(peak)));
    let row = Row::new(case, "peak resident memory");
    let row = row.ours(memory(ours)).peer(memory(peer));
    table.add(row.must(
        format!("< {MEMORY_MIB} MiB"),
        ours.map(|peak| peak < MEMORY_MIB << 20),
    ));
}

const REPOSITORY: &str = "mixed/pushed";
const CLIENTS: u64 = 10;
const MIXED_CLIENTS: u64 = 64;
/// 64 MiB of bodies and 64 MiB of manifests in flight, whatever the number of clients, besides what it has at rest.
const MEMORY_MIB: u64 = 192;
