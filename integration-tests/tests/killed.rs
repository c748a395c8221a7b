//! Promise 8, nothing lost: the registry is killed again and again while clients push and pull.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Parser as _;
use coral_integration_tests::cache::assert_sound;
use coral_integration_tests::images::{Image, mix};
use coral_integration_tests::pull::{PATIENCE, eventually, get, pull};
use coral_integration_tests::push::{begin, blob, image, manifest, send};
use coral_integration_tests::registry::{Registry, configuration};
use coral_integration_tests::upstream::Upstream;
use coral_registry::cli::{self, Cli};
use coral_schema::oci::Digest;
use coral_schema::process::entry;
use http::Method;

/// Pushes and pulls in all.
const OPERATIONS: u64 = 300;
/// How often it is killed.
const KILLS: u64 = 12;
/// At once.
const CLIENTS: usize = 6;
/// Images of the upstream.
const UPSTREAM_IMAGES: u64 = 8;

const HOSTED: &str = "\
hosted: [{ prefix: team, deleteUntaggedAfter: 0s }]
anonymousPush: true
gc: { interval: 200ms, grace: 10s, uploads: 3s }
";

/// The registry of the test below, in a process of its own: this program with the registry's environment.
#[test]
fn serve() -> anyhow::Result<()> {
    let cli = Cli::try_parse_from(["coral-registry"])?;
    if cli.flags.config.is_none() {
        return Ok(());
    }
    let run = async |telemetry: &_| Ok(cli::run(&cli, telemetry).await?);
    let ended = entry::run("coral-registry", &cli.flags.logs, run);
    anyhow::ensure!(ended == ExitCode::SUCCESS, "the registry failed");
    Ok(())
}

/// The same numbers for the same seed.
#[derive(Debug, Clone, Copy)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = mix(self.0);
        self.0 % limit
    }
}

/// What a client was told that it is there.
#[derive(Debug, Clone)]
struct Accepted {
    repository: String,
    tag: String,
    digest: Digest,
}

#[derive(Debug)]
struct Scene {
    seed: u64,
    address: SocketAddr,
    next: AtomicU64,
    done: AtomicU64,
    accepted: Mutex<Vec<Accepted>>,
}

impl Scene {
    /// Does its share of the operations, each until it succeeds: the registry may be away.
    async fn client(&self) -> anyhow::Result<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= OPERATIONS {
                return Ok(());
            }
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while let Err(error) = self.operation(number).await {
                let late = tokio::time::Instant::now() > deadline;
                anyhow::ensure!(!late, "operation {number} never succeeds: {error:#}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn operation(&self, number: u64) -> anyhow::Result<()> {
        let mut random = Random(self.seed ^ (number << 20));
        match random.below(5) {
            0 | 1 => {
                let repository = format!("apps/{}", random.below(UPSTREAM_IMAGES));
                pull(self.address, &repository, "v1").await.map(drop)
            }
            style => {
                let repository = format!("team/{}", random.below(3));
                let sizes = [1 + random.below(300_000), 1 + random.below(3000)];
                let pushed = Image::new(number, &sizes);
                let tag = format!("t{number}");
                match style {
                    2 => image(self.address, &repository, &tag, &pushed).await?,
                    _ => {
                        self.push_in_chunks(&repository, &tag, &pushed, &mut random)
                            .await?;
                    }
                }
                let accepted = Accepted {
                    repository,
                    tag,
                    digest: pushed.digest(),
                };
                self.accepted.lock().expect("no panic").push(accepted);
                Ok(())
            }
        }
    }

    async fn push_in_chunks(
        &self,
        repository: &str,
        tag: &str,
        image: &Image,
        random: &mut Random,
    ) -> anyhow::Result<()> {
        for part in &image.blobs {
            let content = part.content.read_all();
            let middle = usize::try_from(random.below(content.len() as u64 + 1))?;
            let location = begin(self.address, repository).await?;
            let got = send(
                self.address,
                (Method::PATCH, &location),
                &[],
                &content[..middle],
            )
            .await?;
            anyhow::ensure!(got.status == 202, "{}", got.status);
            if random.below(4) == 0 {
                // This client gives up, and begins anew.
                blob(self.address, repository, &content).await?;
                continue;
            }
            let end = format!("{location}?digest={}", part.digest);
            let got = send(self.address, (Method::PUT, &end), &[], &content[middle..]).await?;
            anyhow::ensure!(got.status == 201, "{}", got.status);
        }
        let bytes = image.manifest.content.read_all();
        let to = (repository, tag);
        let got = manifest(self.address, to, &image.manifest.media_type, &bytes).await?;
        anyhow::ensure!(got.status == 201, "{}", got.status);
        Ok(())
    }

    /// Everything from the `first` accepted push on is there, byte for byte. How many there are.
    async fn verify(&self, first: usize) -> anyhow::Result<usize> {
        let accepted = self.accepted.lock().expect("no panic").clone();
        for Accepted {
            repository,
            tag,
            digest,
        } in &accepted[first..]
        {
            let found = pull(self.address, repository, tag).await;
            found.with_context(|| format!("{repository}:{tag} was accepted"))?;
            let path = format!("/v2/{repository}/manifests/{tag}");
            let got = get(self.address, &path, &[]).await?;
            let found = got.header("docker-content-digest");
            anyhow::ensure!(found == digest.to_string(), "{repository}:{tag} is {found}");
        }
        Ok(accepted.len())
    }
}

#[expect(
    clippy::print_stdout,
    reason = "a test that fails shows its seed, to be tried again"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn h03_nothing_accepted_is_lost_when_it_is_killed() -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = match option_env!("CORAL_TEST_SEED") {
        Some(seed) => seed.parse()?,
        None => u64::from(now.subsec_nanos()),
    };
    println!("seed {seed}");
    let upstream = Upstream::start().await?;
    for number in 0..UPSTREAM_IMAGES {
        let image = Image::new(1_000_000 + number, &[400_000, 3000]);
        upstream.publish(&format!("apps/{number}"), "v1", &image);
    }
    let configuration = format!("{}{HOSTED}", configuration(&upstream, ""));
    let this = std::env::current_exe()?;
    let arguments = ["--exact", "serve", "--nocapture"];
    let mut registry = Registry::start_with(&this, &arguments, &configuration).await?;
    let scene = Scene {
        seed,
        address: registry.address(),
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        accepted: Mutex::default(),
    };
    let clients = futures::future::try_join_all((0..CLIENTS).map(|_| scene.client()));
    let killing = async {
        let (mut random, mut verified) = (Random(seed), 0);
        for kill in 1..=KILLS {
            let enough = kill * OPERATIONS / (KILLS + 1);
            eventually("the clients get on", async || {
                scene.done.load(Ordering::Relaxed) >= enough
            })
            .await;
            tokio::time::sleep(Duration::from_millis(random.below(40))).await;
            registry.kill().await?;
            assert_sound(&registry.data());
            registry.restart().await?;
            verified = scene.verify(verified).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(clients, killing).with_context(|| format!("seed {seed}"))?;
    let accepted = scene
        .verify(0)
        .await
        .with_context(|| format!("seed {seed}"))?;
    println!("{accepted} pushes accepted, {KILLS} kills");
    assert!(accepted > 100, "{accepted}");
    assert_sound(&registry.data());
    let uploads = registry.data().join("store/uploads");
    eventually("no upload is left", async || {
        std::fs::read_dir(&uploads).is_ok_and(|entries| entries.count() == 0)
    })
    .await;
    Ok(())
}
