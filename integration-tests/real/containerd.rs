//! containerd through `hosts.toml`, pulled by `crictl` as the kubelet would.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coral_schema::process::tasks::Tasks;
use coral_warmer::cri::containerd::{self, Told};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::clients::{Client, assert_cold_warm_and_cut_off};
use crate::coral::{Config, Coral, UPSTREAM};
use crate::harness::{self, Process};
use crate::images::{ARCHITECTURE, Image};
use crate::upstream::{Upstream, seed};

/// Nothing listens there: a pull that falls back fails.
pub(crate) const NOWHERE: &str = "http://127.0.0.1:9";

/// What 2.4 reads of one range before it drops it, in bytes.
const PARALLEL_BUFFER: u32 = 8 << 20;

/// Which containerd, and how it fetches layers.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// 2.4, one request per layer.
    Current,
    /// 2.4 in parallel: open-ended ranges of one layer, each dropped in mid-body.
    Parallel,
    /// Debian's 1.6.
    Old,
}

/// A containerd with root, state and sockets of its own.
pub(crate) struct Containerd {
    program: PathBuf,
    socket: PathBuf,
    _daemon: Process,
    _folder: TempDir,
}

impl Containerd {
    /// Starts it with our registry as the mirror of the upstream, and `server` as what it falls back to.
    pub(crate) async fn start(kind: Kind, coral: &Coral, server: &str) -> Self {
        let folder = harness::scratch();
        let hosts = folder.path().join("certs.d").join(UPSTREAM);
        std::fs::create_dir_all(&hosts).unwrap();
        let mirror = format!(
            "server = \"{server}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            coral.address()
        );
        harness::write(&hosts, "hosts.toml", &mirror);
        let socket = folder.path().join("c.sock");
        let mut command = harness::command(kind.program());
        command.arg("--config").arg(harness::write(
            folder.path(),
            "config.toml",
            &kind.config(folder.path()),
        ));
        let daemon = Process::spawn("containerd", command, &folder.path().join("log"));
        let containerd = Self {
            program: kind.program(),
            socket,
            _daemon: daemon,
            _folder: folder,
        };
        harness::eventually("containerd answers", Duration::from_mins(1), async || {
            containerd.crictl(&["info"]).await.ok()
        })
        .await;
        containerd
    }

    /// Runs `ctr`, which comes with it.
    pub(crate) async fn ctr(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = harness::command(self.program.with_file_name("ctr"));
        command.arg("--address").arg(&self.socket).args(arguments);
        harness::run(command).await.result()
    }

    async fn crictl(&self, arguments: &[&str]) -> Result<String, String> {
        let socket = format!("unix://{}", self.socket.display());
        let mut command = harness::command(harness::tool("CORAL_REAL_CRICTL"));
        command
            .args([
                "--runtime-endpoint",
                &socket,
                "--image-endpoint",
                &socket,
                "--timeout",
                "120s",
            ])
            .args(arguments);
        harness::run(command).await.result()
    }

    /// One that has an image of the upstream under the name that it is pushed to.
    pub(crate) async fn holding(kind: Kind, coral: &Coral, image: &Image, to: &str) -> Self {
        let containerd = Self::start(kind, coral, NOWHERE).await;
        let from = coral.pulled_through(image);
        let fetch = ["content", "fetch", "--plain-http", &from];
        containerd.ctr(&fetch).await.unwrap();
        let tag = ["images", "tag", &from, to];
        containerd.ctr(&tag).await.unwrap();
        containerd
    }
}

impl Client for Containerd {
    async fn pull(&self, image: &Image) -> Result<(), String> {
        let reference = format!("{UPSTREAM}/{}", image.name());
        // It may not hold the image yet.
        let _ = self.crictl(&["rmi", &reference]).await;
        self.crictl(&["pull", &reference]).await?;
        let shown = self
            .crictl(&["inspecti", "--output", "json", &reference])
            .await?;
        let expected = format!("{UPSTREAM}/{}@{}", image.repository, image.digest());
        assert!(shown.contains(&expected), "{shown} instead of {expected}");
        Ok(())
    }
}

impl Kind {
    pub(crate) fn program(self) -> PathBuf {
        match self {
            Self::Current | Self::Parallel => harness::tool("CORAL_REAL_CONTAINERD"),
            Self::Old => "containerd".into(),
        }
    }

    /// The native snapshotter works on every filesystem, an overlay too. The socket of the node resource interface lies
    /// at one path of the machine unless it is off, and two daemons at a time would fight for it.
    fn config(self, folder: &Path) -> String {
        let path = folder.display();
        let common = format!(
            "root = \"{path}/root\"\nstate = \"{path}/state\"\n[grpc]\naddress = \"{path}/c.sock\"\n\
             [ttrpc]\naddress = \"{path}/t.sock\"\n"
        );
        let buffer = if matches!(self, Self::Parallel) {
            8 << 20
        } else {
            0
        };
        match self {
            Self::Old => format!(
                "version = 2\n{common}[plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{path}/certs.d\"\n"
            ),
            Self::Current | Self::Parallel => format!(
                "version = 3\n{common}[plugins.'io.containerd.cri.v1.images']\nsnapshotter = \"native\"\n\
                 max_concurrent_downloads = 3\nconcurrent_layer_fetch_buffer = {buffer}\n\
                 [plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = \"{path}/certs.d\"\n\
                 [plugins.'io.containerd.transfer.v1.local']\nmax_concurrent_downloads = 3\n\
                 concurrent_layer_fetch_buffer = {buffer}\n\
                 [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n\
                 platform = \"linux/{ARCHITECTURE}\"\nsnapshotter = \"native\"\n\
                 [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n"
            ),
        }
    }
}

#[tokio::test]
async fn containerd_pulls_cold_warm_and_cut_off() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    let containerd = Containerd::start(Kind::Current, &coral, NOWHERE).await;
    assert_cold_warm_and_cut_off(&containerd, upstream).await;
}

#[tokio::test]
async fn an_old_containerd_pulls_cold_warm_and_cut_off() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    let containerd = Containerd::start(Kind::Old, &coral, NOWHERE).await;
    assert_cold_warm_and_cut_off(&containerd, upstream).await;
}

/// What the warmer asks of containerd beyond the CRI: the kubelet learns of a pin by the CRI, and a removal is told.
/// What a kubelet does for a pod with a pull secret: a registry that asked for it would get it, and would have to know it.
#[tokio::test]
async fn l33a_pulls_with_a_login_go_through_the_cache_of_both_containerds() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    let image = &seed().await.twenty;
    let reference = format!("{UPSTREAM}/{}", image.name());
    for kind in [Kind::Current, Kind::Old] {
        let containerd = Containerd::start(kind, &coral, NOWHERE).await;
        let pull = ["pull", "--creds", "team:a-secret-of-a-pod", &reference];
        containerd.crictl(&pull).await.unwrap();
    }
    upstream.assert_each_blob_once(image);
}

#[tokio::test]
async fn l01_l09_containerd_pins_and_tells_of_deletions() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    let containerd = Containerd::start(Kind::Current, &coral, NOWHERE).await;
    let image = &seed().await.twenty;
    containerd.pull(image).await.unwrap();
    let reference = format!("{UPSTREAM}/{}", image.name());
    let api = containerd::Containerd::new(&containerd.socket).unwrap();
    let (tells, mut told) = watch::channel(Told::default());
    let tasks = Tasks::new();
    tasks.spawn("listen", api.clone().listen(tells, tasks.stopping()));
    let listening = told.wait_for(|told| told.listening);
    tokio::time::timeout(Duration::from_mins(1), listening)
        .await
        .expect("it listens")
        .unwrap();

    let names = api.names().await.unwrap();
    assert!(names.iter().any(|name| name.name == reference), "{names:?}");
    for name in &names {
        api.pin(name, true).await.unwrap();
    }
    let is_pinned = async |pinned: bool| {
        let what = format!("the CRI says pinned: {pinned}");
        harness::eventually(&what, Duration::from_mins(1), async || {
            let arguments = ["inspecti", "--output", "json", &reference];
            let shown = containerd.crictl(&arguments).await.unwrap();
            let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
            (shown["status"]["pinned"] == pinned).then_some(())
        })
        .await;
    };
    is_pinned(true).await;
    assert_eq!(api.unpin_all().await.unwrap(), names.len());
    is_pinned(false).await;
    assert!(
        api.names()
            .await
            .unwrap()
            .iter()
            .all(|name| name.pin.is_none())
    );

    let before = told.borrow_and_update().deletions;
    containerd.crictl(&["rmi", &reference]).await.unwrap();
    let gone = told.wait_for(|told| told.deletions > before);
    tokio::time::timeout(Duration::from_mins(1), gone)
        .await
        .expect("it is told")
        .unwrap();
}

#[tokio::test]
async fn h24_parallel_layer_fetch_is_one_download() {
    let upstream = Upstream::plain().await;
    let coral = Coral::before(&upstream).await;
    let containerd = Containerd::start(Kind::Parallel, &coral, NOWHERE).await;
    containerd.pull(&seed().await.big).await.unwrap();
    let chunks = f64::from(256 << 20) / f64::from(PARALLEL_BUFFER);
    assert!(
        coral.metric("coral_registry_requests_total").await > chunks,
        "it did not fetch in parallel"
    );
    assert_cold_warm_and_cut_off(&containerd, upstream).await;
}

#[tokio::test]
async fn h40_a_stop_in_mid_pull_is_no_failed_pull_and_no_lost_bytes() {
    let (slow, fallback) = (Upstream::plain().await, Upstream::plain().await);
    let mut coral = Coral::start(Config::of(&slow)).await;
    let containerd = Containerd::start(Kind::Current, &coral, &fallback.url()).await;
    let image = &seed().await.big;

    let stop_when_it_runs = async {
        coral.freeze_in_mid_download(&slow).await;
        coral.terminate();
        coral.ended().await
    };
    let (pull, status) = tokio::join!(containerd.pull(image), stop_when_it_runs);
    pull.unwrap();
    assert!(status.success(), "the stop ended with {status}");

    slow.thaw();
    coral.start_again().await;
    coral.read_largest(image).await;
    let (digest, _) = image.largest();
    let fetches = slow.fetches(digest);
    assert!(
        fetches.iter().any(|(status, _)| *status == 206),
        "the part was not resumed: {fetches:?}"
    );
}
