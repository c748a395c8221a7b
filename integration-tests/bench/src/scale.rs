//! How much of an API server the operator takes for thousands of nodes: real etcd, API server, registry and operator;
//! nodes are objects, and warmers are tasks here that answer each spec with a status.
//!
//! All nodes may pull at once, so nothing but the operator holds writes back.

mod api_server;
mod fleet;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use coral_integration_tests::images::Image;
use coral_integration_tests::program::{Program, Usage, free_port};
use coral_integration_tests::pull::get;
use coral_integration_tests::registry::{Registry, UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::Upstream;
use coral_schema::crd::ImageCache;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use self::api_server::ApiServer;
use self::fleet::Fleet;
use crate::table::{Row, Table};

/// What to measure with.
#[derive(Debug)]
pub(crate) struct Scale {
    pub(crate) nodes: usize,
    pub(crate) images: usize,
    pub(crate) registry: PathBuf,
    pub(crate) operator: PathBuf,
    /// Folder of tools that `integration-tests/run` builds.
    pub(crate) tools: PathBuf,
}

/// The design's limits.
const WRITES: f64 = 50.0;
const MEMORY: u64 = 300 << 20;
const LARGEST: usize = 256 << 10;
const RECONCILE: f64 = 1.0;
const STORM: u64 = 10;
/// Over so many seconds a rate is taken.
const WINDOW: usize = 10;
/// How long a new leader is watched.
const AFTER_RESTART: Duration = Duration::from_mins(1);
/// Longest wait for all nodes.
const PATIENCE: Duration = Duration::from_mins(15);

impl Scale {
    pub(crate) async fn run(&self, table: &mut Table) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let api = ApiServer::start(&self.tools, folder.path()).await?;
        let client = api.client().await?;
        let (upstream, references) = self.upstream().await?;
        let registry = Registry::start(&self.registry, &configuration(&upstream, "")).await?;
        let start = Start {
            program: &self.operator,
            folder: folder.path(),
            kubeconfig: api.kubeconfig(),
            registry: &registry,
        };
        start.apply_definitions().await?;
        let fleet = Fleet::start(&client, self.nodes, self.images).await?;
        let mut operator = start.operator().await?;

        let begun = Instant::now();
        wish(&client, &references).await?;
        let mut rates = Rates::default();
        while !fleet.all_are_warm() {
            if begun.elapsed() > PATIENCE {
                bail!("{} of {} nodes are warm", fleet.warm(), self.nodes);
            }
            rates.sample(&operator).await?;
        }
        let written = begun.elapsed();
        until_ready(&client, begun, &mut rates, &operator).await?;
        let mut found = Found {
            written,
            ready: begun.elapsed(),
            fastest: rates.fastest(),
            usage: operator.program.usage()?,
            slow: operator.slow_reconciles().await?,
            largest: fleet.largest(),
            storm: 0,
        };

        operator.program.kill().await?;
        let mut operator = start.operator().await?;
        sleep(AFTER_RESTART).await;
        found.storm = operator.writes().await?;
        let peak = operator.program.usage()?.peak_rss;
        found.usage.peak_rss = found.usage.peak_rss.max(peak);
        operator.program.stop(Duration::from_secs(20)).await?;
        found.tell(
            &format!("{} nodes × {} images", self.nodes, self.images),
            table,
        );
        Ok(())
    }

    /// Images of a few bytes: their pulls are not what is measured.
    async fn upstream(&self) -> anyhow::Result<(Upstream, Vec<String>)> {
        let upstream = Upstream::start().await?;
        let mut references = Vec::new();
        for number in 0..self.images {
            let repository = format!("team/application-{number}");
            upstream.publish(&repository, "v1.0.0", &Image::new(number as u64, &[1000]));
            references.push(format!("{UPSTREAM_NAME}/{repository}:v1.0.0"));
        }
        Ok((upstream, references))
    }
}

/// What was measured.
struct Found {
    written: Duration,
    ready: Duration,
    /// Writes per second.
    fastest: f64,
    /// Of the first operator; the peak of both.
    usage: Usage,
    /// A share.
    slow: f64,
    /// Bytes.
    largest: usize,
    /// Writes.
    storm: u64,
}

impl Found {
    fn tell(&self, case: &str, table: &mut Table) {
        let mut row = |measure: &str, ours: String, must: &str, verdict| {
            table.add(Row::new(case, measure).ours(ours).must(must, verdict));
        };
        let seconds = |time: Duration| format!("{:.0}", time.as_secs_f64());
        let memory = self.usage.peak_rss;
        row(
            "operator's writes/s, most in 10 s",
            format!("{:.1}", self.fastest),
            "≤ 50",
            Some(self.fastest <= WRITES),
        );
        row(
            "apply to last NodeCache answered, s",
            seconds(self.written),
            "",
            None,
        );
        row(
            "apply to ImageCache Ready, s",
            seconds(self.ready),
            "",
            None,
        );
        row(
            "operator's memory, MiB",
            (memory >> 20).to_string(),
            "< 300",
            Some(memory < MEMORY),
        );
        row("operator's CPU, s", seconds(self.usage.cpu), "", None);
        row(
            "reconciles over 1 s, %",
            format!("{:.1}", self.slow * 100.0),
            "< 1",
            Some(self.slow < 0.01),
        );
        row(
            "largest object, KiB",
            (self.largest >> 10).to_string(),
            "≤ 256",
            Some(self.largest <= LARGEST),
        );
        row(
            "writes in 60 s after a restart",
            self.storm.to_string(),
            "≤ 10",
            Some(self.storm <= STORM),
        );
    }
}

/// How to start the operator.
struct Start<'a> {
    program: &'a Path,
    folder: &'a Path,
    kubeconfig: &'a Path,
    registry: &'a Registry,
}

impl Start<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command
            .env("KUBECONFIG", self.kubeconfig)
            .args([
                "--namespace",
                "default",
                "--max-concurrent-nodes",
                "1000000",
            ])
            .args([
                "--registry-admin",
                &format!("http://{}", self.registry.admin()),
            ])
            .args(["--registry-address", &self.registry.address().to_string()]);
        command
    }

    async fn apply_definitions(&self) -> anyhow::Result<()> {
        let output = self.command().arg("apply-crds").output().await?;
        if !output.status.success() {
            bail!("apply-crds: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Starts it and waits until its metrics are there.
    async fn operator(&self) -> anyhow::Result<Operator> {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut command = self.command();
        command.args(["--admin-listen", &admin.to_string()]);
        let program = Program::start(command, &self.folder.join("operator.log"))?;
        let operator = Operator { program, admin };
        for _ in 0..100 {
            if operator.metrics().await.is_ok() {
                return Ok(operator);
            }
            sleep(Duration::from_millis(100)).await;
        }
        bail!(
            "the operator does not start: {}",
            std::fs::read_to_string(self.folder.join("operator.log"))?
        )
    }
}

/// A running operator.
struct Operator {
    program: Program,
    admin: SocketAddr,
}

impl Operator {
    async fn metrics(&self) -> anyhow::Result<String> {
        let got = get(self.admin, "/metrics", &[]).await?;
        Ok(String::from_utf8(got.body.to_vec())?)
    }

    /// Specs and statuses that it has written.
    async fn writes(&self) -> anyhow::Result<u64> {
        let metrics = self.metrics().await?;
        let nodes = value(&metrics, "coral_operator_node_cache_writes_total")?;
        let statuses = value(&metrics, "coral_operator_status_writes_total")?;
        Ok(nodes + statuses)
    }

    /// The share of looks at an object that took longer than they may.
    async fn slow_reconciles(&self) -> anyhow::Result<f64> {
        let metrics = self.metrics().await?;
        let within = format!("coral_operator_reconcile_seconds_bucket{{le=\"{RECONCILE:.1}\"}}");
        let all = value(&metrics, "coral_operator_reconcile_seconds_count")?;
        let within = value(&metrics, &within)?;
        #[expect(clippy::cast_precision_loss, reason = "counts of looks are small")]
        Ok((all - within) as f64 / all.max(1) as f64)
    }
}

/// A sample of a metric by its name and labels.
fn value(metrics: &str, name: &str) -> anyhow::Result<u64> {
    let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let text = lines.find_map(|rest| rest.strip_prefix(' '));
    let text = text.with_context(|| format!("{name} is not among the metrics"))?;
    Ok(text.trim().parse()?)
}

/// Writes of each second.
#[derive(Debug, Default)]
struct Rates {
    totals: Vec<u64>,
}

impl Rates {
    /// Once a second.
    async fn sample(&mut self, operator: &Operator) -> anyhow::Result<()> {
        self.totals.push(operator.writes().await?);
        sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds and writes are few")]
    fn fastest(&self) -> f64 {
        let windows = self.totals.windows(WINDOW + 1);
        let most = windows.map(|window| window[WINDOW] - window[0]).max();
        most.unwrap_or(0) as f64 / WINDOW as f64
    }
}

/// Every image on every node, without waves.
async fn wish(client: &Client, references: &[String]) -> anyhow::Result<()> {
    let object = json!({
        "apiVersion": "coral.dev/v1alpha1", "kind": "ImageCache", "metadata": { "name": "scale" },
        "spec": {
            "sets": [{ "name": "all", "images": references, "nodes": {} }],
            "rollout": { "maxConcurrentNodes": "100%" },
        },
    });
    let api: Api<ImageCache> = Api::namespaced(client.clone(), "default");
    api.patch(
        "scale",
        &PatchParams::apply("coral-bench"),
        &Patch::Apply(&object),
    )
    .await?;
    Ok(())
}

async fn until_ready(
    client: &Client,
    begun: Instant,
    rates: &mut Rates,
    operator: &Operator,
) -> anyhow::Result<()> {
    let api: Api<ImageCache> = Api::namespaced(client.clone(), "default");
    loop {
        let object = api.get_status("scale").await?;
        let conditions = object.status.map(|status| status.conditions);
        let mut conditions = conditions.into_iter().flatten();
        let ready = conditions.find(|condition| condition.type_ == "Ready");
        if ready.as_ref().is_some_and(|ready| ready.status == "True") {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("all nodes are warm, and the ImageCache is not Ready: {ready:?}");
        }
        rates.sample(operator).await?;
    }
}
