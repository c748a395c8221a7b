//! The cases, and what they have in common: an upstream with tokens, an image that nobody has, and contestants.

mod cold;
mod down;
mod faults;
mod hit;
mod miss;
mod push;

use std::path::Path;
use std::time::Duration;

use coral_integration_tests::images::{Blob, Image};
use coral_integration_tests::upstream::{Auth, Bearer, Kind, Upstream, When};

use crate::cli::{Case, Cli, Programs, Sizes};
use crate::contestant::Contestant;
use crate::idle::Idle;
use crate::pull::Order;
use crate::scale::Scale;
use crate::table::Table;

/// Sizes and programs of this run.
#[derive(Debug)]
pub(crate) struct Bench {
    sizes: Sizes,
    programs: Programs,
    scale: Option<Scale>,
    idle: Option<Idle>,
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Direct,
    Ours,
    Peer,
    Limit,
}

impl Bench {
    pub(crate) fn new(cli: &Cli) -> Self {
        Self {
            sizes: cli.sizes(),
            programs: cli.programs(),
            scale: cli.scale(),
            idle: cli.idle(),
        }
    }

    /// What will be missing from the table, and why.
    pub(crate) fn notes(&self) -> Vec<String> {
        let Programs {
            ours,
            distribution,
            nginx,
        } = &self.programs;
        let missing = |path: &Option<_>, note: &str| path.is_none().then(|| note.to_owned());
        [
            missing(ours, "`ours` is left out: skipped, or no `coral-registry` beside this program (build it with the same profile, or `--ours`)."),
            missing(distribution, "`peer` is left out: skipped, or no `distribution-…/registry` in the folder of tools (`--distribution`)."),
            missing(nginx, "`limit` is left out: skipped, or no nginx (`--nginx`)."),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Measures one case.
    pub(crate) async fn run(&self, case: Case, table: &mut Table) -> anyhow::Result<()> {
        match case {
            Case::Cold1 => self.cold_1(table, cold::Show::Everything).await,
            Case::ColdN => self.cold_n(table, cold::Show::Everything).await,
            Case::Rss => {
                self.cold_1(table, cold::Show::Memory).await?;
                self.cold_n(table, cold::Show::Memory).await
            }
            Case::Hit => self.hit(table).await,
            Case::Break => self.breaking(table).await,
            Case::Wrong => self.wrong(table).await,
            Case::Down => self.down(table).await,
            Case::RangeMiss => self.range_miss(table).await,
            Case::HeadMiss => self.head_miss(table).await,
            Case::Push => self.push(table).await,
            Case::Mixed => self.mixed(table).await,
            Case::OperatorScale => match &self.scale {
                Some(scale) => scale.run(table).await,
                None => {
                    anyhow::bail!("no `coral-registry` and `coral-operator` beside this program")
                }
            },
            Case::WarmerIdle => match &self.idle {
                Some(idle) => idle.run(table).await,
                None => anyhow::bail!("no `coral-registry` and `coral-warmer` beside this program"),
            },
            Case::All => Ok(()),
        }
    }

    /// Starts a contestant with nothing stored; `None` when its program is not there.
    async fn start(
        &self,
        who: Who,
        scene: &Scene,
        more: &str,
    ) -> anyhow::Result<Option<Contestant>> {
        let path = match who {
            Who::Direct => return Ok(Some(Contestant::direct(&scene.upstream))),
            Who::Ours => &self.programs.ours,
            Who::Peer => &self.programs.distribution,
            Who::Limit => &self.programs.nginx,
        };
        let Some(path) = path.as_deref() else {
            return Ok(None);
        };
        let started = scene.start(who, path, more).await?;
        Ok(Some(started))
    }
}

/// An upstream with one image.
#[derive(Debug)]
struct Scene {
    upstream: Upstream,
    image: Image,
}

impl Scene {
    /// Layers of these sizes behind an upstream with tokens, near and fast.
    async fn new(seed: u64, layers: &[u64]) -> anyhow::Result<Self> {
        let upstream = Upstream::start().await?;
        let image = Image::new(seed, layers);
        upstream.publish(REPOSITORY, TAG, &image);
        upstream.configure(|settings| settings.auth = Auth::Bearer(Bearer::default()));
        Ok(Self { upstream, image })
    }

    /// Moves the upstream away.
    fn far(self, rtt: Duration) -> Self {
        self.upstream.configure(|settings| {
            settings.rtt = rtt;
            settings.bandwidth = Some(GIGABIT);
        });
        self
    }

    async fn start(&self, who: Who, path: &Path, more: &str) -> anyhow::Result<Contestant> {
        match who {
            Who::Direct => Ok(Contestant::direct(&self.upstream)),
            Who::Ours => Contestant::ours(path, &self.upstream, more).await,
            Who::Peer => Contestant::distribution(path, Some(&self.upstream)).await,
            Who::Limit => Contestant::nginx(path, REPOSITORY, TAG, &self.image).await,
        }
    }

    /// A pull of the image, checked or not.
    fn order(&self, contestant: &Contestant, verify: bool) -> Order {
        Order {
            address: contestant.address,
            repository: REPOSITORY,
            tag: TAG,
            digest: self.image.digest(),
            verify,
        }
    }

    /// Bytes of blobs that left the upstream, in images.
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    fn upstream_ratio(&self) -> f64 {
        let blobs: u64 = self.image.blobs.iter().map(Blob::size).sum();
        self.upstream.bytes(&When::kind(Kind::Blob)) as f64 / blobs as f64
    }
}

const REPOSITORY: &str = "library/bench";
const TAG: &str = "1";
/// One gigabit per second, in bytes.
const GIGABIT: u64 = 125_000_000;
const MIB: u64 = 1 << 20;

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

fn milliseconds(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1000.0;
    if milliseconds >= 1000.0 {
        format!("{:.1} s", duration.as_secs_f64())
    } else if milliseconds >= 10.0 {
        format!("{milliseconds:.0} ms")
    } else {
        format!("{milliseconds:.1} ms")
    }
}
