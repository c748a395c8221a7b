//! What a warmer takes while nothing happens: every image is held, the cache answers, and it looks at both now and then.
//! The runtime and the API server are scripted, so a node's connection with TLS comes on top.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use coral_integration_tests::cri::Cri;
use coral_integration_tests::kube::Kube;
use coral_integration_tests::program::{Program, Usage, free_port};
use coral_integration_tests::registry::{Registry, UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::Upstream;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::sleep;

use crate::table::{Row, Table};

/// What to measure with.
#[derive(Debug)]
pub(crate) struct Idle {
    pub(crate) images: usize,
    /// How long nothing happens.
    pub(crate) time: Duration,
    pub(crate) registry: PathBuf,
    pub(crate) warmer: PathBuf,
}

/// The design's limits; of one core.
const MEMORY: u64 = 20 << 20;
const CPU_PERCENT: f64 = 0.1;
/// What follows a start is over by then.
const SETTLED: Duration = Duration::from_secs(10);
const NODE: &str = "node-1";

impl Idle {
    pub(crate) async fn run(&self, table: &mut Table) -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let (kube, cri) = (Kube::start().await?, Cri::start());
        let upstream = Upstream::start().await?;
        let registry = Registry::start(&self.registry, &configuration(&upstream, "")).await?;
        let references = (0..self.images).map(|number| {
            let reference = format!("{UPSTREAM_NAME}/team/application-{number}:v1.0.0");
            cri.hold(&reference, &[&reference]);
            reference
        });
        let images: Vec<Value> = references.map(|it| json!({ "ref": it })).collect();
        kube.put("nodecaches", "", &json!({
            "apiVersion": "coral.dev/v1alpha1", "kind": "NodeCache", "metadata": { "name": NODE },
            "spec": {
                "nodeUID": "1", "images": images,
                "mirror": { "url": format!("http://{}", registry.address()), "registries": [UPSTREAM_NAME] },
            },
        }));
        let mut warmer = self.start(folder.path(), &kube, &cri)?;
        kube.until("nodecaches", NODE, |object| {
            let status = &object["status"];
            status["ready"] == self.images && status["firstReadyTime"].is_string()
        })
        .await?;
        sleep(SETTLED).await;
        let before = warmer.usage()?;
        sleep(self.time).await;
        let after = warmer.usage()?;
        warmer.stop(Duration::from_secs(20)).await?;
        self.tell(before, after, table);
        Ok(())
    }

    fn start(&self, folder: &Path, kube: &Kube, cri: &Cri) -> anyhow::Result<Program> {
        let (kubeconfig, mirrors) = (folder.join("kubeconfig"), folder.join("certs.d"));
        std::fs::create_dir(&mirrors)?;
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: bench\n\
             clusters: [{{ name: bench, cluster: {{ server: \"http://{}\" }} }}]\n\
             users: [{{ name: warmer, user: {{}} }}]\n\
             contexts: [{{ name: bench, context: {{ cluster: bench, user: warmer }} }}]\n",
            kube.address()
        );
        std::fs::write(&kubeconfig, config)?;
        let mut command = Command::new(&self.warmer);
        command
            .env("KUBECONFIG", &kubeconfig)
            .args(["--node-name", NODE, "--cri-socket"])
            .arg(cri.socket())
            .arg("--state")
            .arg(folder.join("state"))
            .arg("--mirror-config")
            .arg(mirrors)
            .args(["--admin-listen", &format!("127.0.0.1:{}", free_port()?)]);
        Program::start(command, &folder.join("warmer.log")).context("the warmer")
    }

    fn tell(&self, before: Usage, after: Usage, table: &mut Table) {
        let case = format!("warmer, {} images, idle", self.images);
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        let mebibytes = after.rss as f64 / f64::from(1 << 20);
        table.add(
            Row::new(&case, "resident memory, MiB")
                .ours(format!("{mebibytes:.1}"))
                .must("< 20", Some(after.rss < MEMORY)),
        );
        let share = after.cpu.saturating_sub(before.cpu).as_secs_f64() / self.time.as_secs_f64();
        table.add(
            Row::new(&case, "CPU, % of a core")
                .ours(format!("{:.2}", share * 100.0))
                .must("< 0.1", Some(share * 100.0 < CPU_PERCENT)),
        );
    }
}
