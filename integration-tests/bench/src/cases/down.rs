//! `down`: the upstream refuses, is silent, or says 429.

use std::time::Duration;

use coral_integration_tests::upstream::{Fault, When};
use http::Method;
use tokio::time::Instant;

use super::{Bench, MIB, REPOSITORY, Scene, TAG, Who, milliseconds};
use crate::contestant::Contestant;
use crate::pull::{ACCEPT, Session};
use crate::table::{Row, Table};

/// How the upstream is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Down {
    Refused,
    Silent,
    RateLimited,
}

/// The same question, asked a few times.
#[derive(Debug, Clone)]
struct Asked {
    /// 0: no answer within the client's patience.
    status: u16,
    first: Duration,
    /// The median of the later ones; `None` when the first had no answer.
    later: Option<Duration>,
}

/// What is asked for, in this order.
#[derive(Debug, Clone)]
struct Outcome {
    tag: Asked,
    digest: Asked,
    blob: Asked,
    unseen: Asked,
}

impl Bench {
    pub(super) async fn down(&self, table: &mut Table) -> anyhow::Result<()> {
        for down in [Down::Refused, Down::Silent, Down::RateLimited] {
            let ours = self.measure_down(Who::Ours, down).await?;
            let peer = self.measure_down(Who::Peer, down).await?;
            let case = match down {
                Down::Refused => "down: upstream refuses",
                Down::Silent => "down: upstream is silent",
                Down::RateLimited => "down: upstream says 429",
            };
            add(table, case, down, ours.as_ref(), peer.as_ref());
        }
        Ok(())
    }

    async fn measure_down(&self, who: Who, down: Down) -> anyhow::Result<Option<Outcome>> {
        let mut scene = Scene::new(7, &[MIB]).await?;
        // A tag that is asked about at every pull but those within one second.
        let more = "    tags: [{ match: \"*\", freshness: 1s }]";
        let Some(contestant) = self.start(who, &scene, more).await? else {
            return Ok(None);
        };
        scene.order(&contestant, true).pull().await?;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        match down {
            Down::Refused => scene.upstream.refuse().await,
            Down::Silent => scene.upstream.always(When::any(), Fault::silence()),
            Down::RateLimited => {
                let limited = Fault::status(429).header("retry-after", "60");
                scene.upstream.always(When::any(), limited);
            }
        }
        let patience = Duration::from_secs(self.sizes.patience);
        let manifest = |reference: &str| format!("/v2/{REPOSITORY}/manifests/{reference}");
        let layer = scene.image.layers()[0].digest;
        let blob = format!("/v2/{REPOSITORY}/blobs/{layer}");
        let outcome = Outcome {
            tag: ask(&contestant, &manifest(TAG), patience).await?,
            digest: ask(
                &contestant,
                &manifest(&scene.image.digest().to_string()),
                patience,
            )
            .await?,
            blob: ask(&contestant, &blob, patience).await?,
            unseen: ask(&contestant, &manifest("unseen"), patience).await?,
        };
        contestant.stop().await?;
        Ok(Some(outcome))
    }
}

/// Asks six times on one connection; only once when there is no answer at all.
async fn ask(contestant: &Contestant, path: &str, patience: Duration) -> anyhow::Result<Asked> {
    let mut session = Session::open(contestant.address).await?;
    // The answers are measured, not the connection to us.
    let mut greeting = session.request(Method::GET, "/v2/", &[]).await?;
    session.connection.discard(&mut greeting).await?;
    let mut times = Vec::new();
    let mut status = 0;
    for _ in 0..6 {
        let start = Instant::now();
        let asking = async {
            let mut reply = session.request(Method::GET, path, &[ACCEPT]).await?;
            session.connection.discard(&mut reply).await?;
            anyhow::Ok(reply.status)
        };
        let Ok(Ok(answered)) = tokio::time::timeout(patience, asking).await else {
            times.push(start.elapsed());
            break;
        };
        if times.is_empty() {
            status = answered;
        }
        times.push(start.elapsed());
    }
    let first = times.remove(0);
    times.sort_unstable();
    Ok(Asked {
        status,
        first,
        later: times.get(times.len() / 2).copied(),
    })
}

fn add(table: &mut Table, case: &str, down: Down, ours: Option<&Outcome>, peer: Option<&Outcome>) {
    let mut row = |what: &str, pick: fn(&Outcome) -> &Asked, must: &str, verdict: Option<bool>| {
        table.add(
            Row::new(case, what)
                .ours(show(ours.map(pick)))
                .peer(show(peer.map(pick)))
                .must(must, verdict),
        );
    };
    let ms = Duration::from_millis;
    let held = |asked: &Asked, first: Duration| {
        asked.status == 200 && asked.first <= first && asked.later.is_some_and(|l| l <= ms(1))
    };
    let (words, first) = match down {
        Down::Silent => ("200: 2 s once, then ≤ 1 ms", ms(2100)),
        Down::Refused => ("200: ≤ 1 ms", ms(1)),
        Down::RateLimited => ("200: ≤ 5 ms once, then ≤ 1 ms", ms(5)),
    };
    row(
        "cached tag",
        |o| &o.tag,
        words,
        ours.map(|o| held(&o.tag, first)),
    );
    let digest = ours.map(|o| held(&o.digest, ms(1)));
    row("digest", |o| &o.digest, "200: ≤ 1 ms", digest);
    let blob = ours.map(|o| o.blob.status == 200);
    row("blob (1 MiB)", |o| &o.blob, "200", blob);
    let (words, status, within): (_, &[u16], _) = match down {
        Down::Silent => ("504 within 2.5 s (or 503 at once)", &[503, 504], ms(2500)),
        Down::Refused => ("502 or 503 at once", &[502, 503], ms(2500)),
        Down::RateLimited => ("429 at once", &[429], ms(2500)),
    };
    let unseen = |o: &Outcome| status.contains(&o.unseen.status) && o.unseen.first <= within;
    row("tag never seen", |o| &o.unseen, words, ours.map(unseen));
}

fn show(asked: Option<&Asked>) -> String {
    let Some(asked) = asked else {
        return String::new();
    };
    let first = milliseconds(asked.first);
    match (asked.status, asked.later) {
        (0, _) => format!("> {first}"),
        (status, None) => format!("{status}: {first}"),
        (status, Some(later)) => format!("{status}: {first}, then {}", milliseconds(later)),
    }
}
