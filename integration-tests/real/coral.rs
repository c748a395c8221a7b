//! Our registry as users start it: the release binary with a configuration file.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use coral_integration_tests::program::{Usage, usage_of};
use coral_schema::oci::Digest;
use coral_schema::oci::digest::{Algorithm, Hasher};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::{self, Process};
use crate::images::Image;
use crate::upstream::Upstream;

/// The upstream's name in paths: `127.0.0.1:5000/upstream.test/team/small:1`.
pub(crate) const UPSTREAM: &str = "upstream.test";

/// What a test wants in the configuration file.
pub(crate) struct Config {
    upstreams: Vec<(String, String)>,
    more: String,
    data: Option<PathBuf>,
}

impl Config {
    /// One upstream, and its value in YAML.
    pub(crate) fn new(upstream: &str, value: &str) -> Self {
        Self {
            upstreams: vec![(upstream.to_owned(), value.to_owned())],
            more: String::new(),
            data: None,
        }
    }

    /// A plain upstream under its own name and as what the Docker daemon takes for Docker Hub.
    pub(crate) fn of(upstream: &Upstream) -> Self {
        Self::with_policy(upstream, "")
    }

    /// The same with further keys of the upstream, each ending with a comma.
    pub(crate) fn with_policy(upstream: &Upstream, more: &str) -> Self {
        let value = upstream.configured(more);
        Self::new(UPSTREAM, &value)
            .and("docker.io", &value)
            .more("defaultUpstream: docker.io\n")
    }

    /// One more upstream.
    pub(crate) fn and(mut self, upstream: &str, value: &str) -> Self {
        self.upstreams.push((upstream.to_owned(), value.to_owned()));
        self
    }

    /// Further lines on the top level.
    pub(crate) fn more(mut self, lines: &str) -> Self {
        self.more.push_str(lines);
        self
    }

    /// A data folder of the test's choice.
    pub(crate) fn data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    fn text(&self, port: u16, admin: u16, data: &Path) -> String {
        let mut text = format!(
            "listen: 127.0.0.1:{port}\nadmin: {{ listen: \"127.0.0.1:{admin}\" }}\ndata: {}\nshutdownGrace: 2s\n{}upstreams:\n",
            data.display(),
            self.more
        );
        for (name, value) in &self.upstreams {
            let _ = writeln!(text, "  {name}: {value}");
        }
        text
    }
}

/// A running registry of ours; its data outlives its restarts and goes with this value.
pub(crate) struct Coral {
    process: Process,
    port: u16,
    admin: u16,
    data: PathBuf,
    folder: TempDir,
}

impl Coral {
    /// Starts it and waits until it serves.
    pub(crate) async fn start(config: Config) -> Self {
        let folder = harness::scratch();
        let (port, admin) = (harness::free_port(), harness::free_port());
        let data = config
            .data
            .clone()
            .unwrap_or_else(|| folder.path().join("data"));
        harness::write(
            folder.path(),
            "config.yaml",
            &config.text(port, admin, &data),
        );
        let process = launch(folder.path(), admin).await;
        Self {
            process,
            port,
            admin,
            data,
            folder,
        }
    }

    /// Starts it in front of one plain upstream.
    pub(crate) async fn before(upstream: &Upstream) -> Self {
        Self::start(Config::of(upstream)).await
    }

    /// Ends it at once, as a crash does.
    pub(crate) async fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.ended(Duration::from_secs(10)).await;
    }

    /// Asks it to end; `ended` waits for that.
    pub(crate) fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for its end after `terminate`: five seconds for lagging endpoints, the grace, and some more.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        self.process.ended(Duration::from_secs(20)).await
    }

    /// Starts it again after its end, on the same data and ports.
    pub(crate) async fn start_again(&mut self) {
        self.process = launch(self.folder.path(), self.admin).await;
    }

    /// A crash and a new start.
    pub(crate) async fn crash(&mut self) {
        self.kill().await;
        self.start_again().await;
    }

    /// A stop as a service manager does it, and a new start.
    pub(crate) async fn restart(&mut self) {
        self.terminate();
        let status = self.ended().await;
        assert!(
            status.success(),
            "a stop ended with {status}:\n{}",
            self.log()
        );
        self.start_again().await;
    }

    /// `127.0.0.1:5000`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `127.0.0.1:9090`.
    pub(crate) fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.admin)
    }

    /// What the upstream has, as clients name it here.
    pub(crate) fn pulled_through(&self, image: &Image) -> String {
        format!("{}/{UPSTREAM}/{}", self.address(), image.name())
    }

    /// What is hosted below `own`, as clients name it.
    pub(crate) fn own(&self, name: &str) -> String {
        format!("{}/own/{name}", self.address())
    }

    /// The configuration file, to be changed while it runs.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// Sends a GET for `/v2/<path>`.
    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        reqwest::get(format!("http://{}/v2/{path}", self.address()))
            .await
            .unwrap()
    }

    /// Starts to read the largest blob of an image.
    pub(crate) async fn largest(&self, image: &Image) -> reqwest::Response {
        let (digest, _) = image.largest();
        self.get(&format!("{UPSTREAM}/{}/blobs/{digest}", image.repository))
            .await
    }

    /// Reads the largest blob of an image whole, and compares it.
    pub(crate) async fn read_largest(&self, image: &Image) {
        let (digest, size) = image.largest();
        let mut response = self.largest(image).await.error_for_status().unwrap();
        let (mut hasher, mut read) = (Hasher::new(Algorithm::Sha256), 0);
        while let Some(chunk) = response.chunk().await.unwrap() {
            hasher.update(&chunk);
            read += chunk.len() as u64;
        }
        assert_eq!((&hasher.finish(), read), (digest, *size));
    }

    /// The blobs in its store, sorted. Fails when the bytes of one are not what its name says.
    pub(crate) fn stored_blobs(&self) -> Vec<Digest> {
        let mut blobs: Vec<Digest> = harness::files(&self.data)
            .into_iter()
            .filter_map(|path| stored(&path))
            .collect();
        blobs.sort_by_key(Digest::hex);
        blobs
    }

    /// Whether the store holds the largest blob of an image.
    pub(crate) fn holds(&self, image: &Image) -> bool {
        let (digest, _) = image.largest();
        self.stored_blobs().contains(digest)
    }

    /// Downloads that are not finished.
    pub(crate) fn parts(&self) -> Vec<PathBuf> {
        let ends_in_part = |path: &PathBuf| {
            path.extension()
                .is_some_and(|extension| extension == "part")
        };
        let files = harness::files(&self.data).into_iter();
        files.filter(ends_in_part).collect()
    }

    /// Waits for a download to be well under way, and silences its upstream before it can end.
    pub(crate) async fn freeze_in_mid_download(&self, upstream: &Upstream) {
        harness::eventually("a download runs", Duration::from_mins(1), async || {
            let mut lengths = self
                .parts()
                .into_iter()
                .filter_map(|part| part.metadata().ok())
                .map(|part| part.len());
            lengths.any(|length| length >= 4 << 20).then_some(())
        })
        .await;
        upstream.freeze();
    }

    /// The index.
    pub(crate) fn index(&self) -> PathBuf {
        self.data.join("index.db")
    }

    /// Its log since the first start.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// What it has used since it was started last.
    pub(crate) fn usage(&self) -> Usage {
        usage_of(self.process.id().cast_signed()).unwrap()
    }

    /// The sum of all samples of a metric, over all labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", self.admin))
            .await
            .unwrap();
        let metrics = metrics.text().await.unwrap();
        let samples = metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' '])
                .then(|| rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        });
        samples.sum()
    }
}

/// The program under test.
pub(crate) fn program() -> PathBuf {
    harness::tool("CORAL_REGISTRY_BIN")
}

async fn launch(folder: &Path, admin: u16) -> Process {
    let mut command = harness::command(program());
    command
        .arg("--config")
        .arg(folder.join("config.yaml"))
        .current_dir(folder);
    let process = Process::spawn("coral-registry", command, &folder.join("log"));
    let ready = format!("http://127.0.0.1:{admin}/readyz");
    process
        .ready(async || {
            reqwest::get(&ready)
                .await
                .is_ok_and(|answer| answer.status().is_success())
        })
        .await
}

/// The digest that a path `…/v1/blobs/sha256/ab/ab…` promises, after a look whether it is kept.
fn stored(path: &Path) -> Option<Digest> {
    if !path.to_str()?.contains("/v1/blobs/sha256/") {
        return None;
    }
    let promised: Digest = format!("sha256:{}", path.file_name()?.to_str()?)
        .parse()
        .ok()?;
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(
        Digest::sha256(&bytes),
        promised,
        "wrong bytes are stored in {}",
        path.display()
    );
    Some(promised)
}
