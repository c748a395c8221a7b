//! `range-miss` and `head-miss`: little is asked of a layer that is not held.

use std::time::Duration;

use coral_integration_tests::upstream::{Kind, When};
use http::Method;
use tokio::time::Instant;

use super::{Bench, REPOSITORY, Scene, Who, mib, milliseconds};
use crate::pull::Session;
use crate::table::{Row, Table};

/// What a client and the upstream saw.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    status: u16,
    took: Duration,
    /// Bytes of blobs that left the upstream within a second.
    upstream: u64,
}

impl Bench {
    pub(super) async fn range_miss(&self, table: &mut Table) -> anyhow::Result<()> {
        let start = self.sizes.layer - 5000;
        let range = format!("bytes={start}-{}", start + 999);
        let case = "range-miss (1000 bytes of an uncached layer, 50 ms)";
        let outcomes = self.ask(&Method::GET, &[("range", &range)]).await?;
        let must = "206, ≤ 0.06 s, nothing else fetched";
        let verdict = outcomes[1].map(|o| o.status == 206 && is_quick(o) && o.upstream <= 1000);
        add(table, case, outcomes, must, verdict);
        Ok(())
    }

    pub(super) async fn head_miss(&self, table: &mut Table) -> anyhow::Result<()> {
        let outcomes = self.ask(&Method::HEAD, &[]).await?;
        let case = "head-miss (an uncached layer, 50 ms)";
        let must = "200, ≤ 0.06 s, nothing fetched";
        let verdict = outcomes[1].map(|o| o.status == 200 && is_quick(o) && o.upstream == 0);
        add(table, case, outcomes, must, verdict);
        Ok(())
    }

    /// A client that has the manifest asks for the layer: directly, through us, through the peer.
    async fn ask(
        &self,
        method: &Method,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<[Option<Outcome>; 3]> {
        let mut outcomes = [None; 3];
        for (outcome, who) in outcomes.iter_mut().zip([Who::Direct, Who::Ours, Who::Peer]) {
            let scene = Scene::new(6, &[self.sizes.layer]).await?;
            let scene = scene.far(Duration::from_millis(50));
            let Some(contestant) = self.start(who, &scene, "").await? else {
                continue;
            };
            let mut session = Session::open(contestant.address).await?;
            scene
                .order(&contestant, true)
                .manifest(&mut session)
                .await?;
            let layer = scene.image.layers()[0].digest;
            let path = format!("/v2/{REPOSITORY}/blobs/{layer}");
            let start = Instant::now();
            let asking = session.request(method.clone(), &path, headers);
            let patience = Duration::from_secs(self.sizes.patience);
            let reply = tokio::time::timeout(patience, asking).await;
            let took = start.elapsed();
            tokio::time::sleep(Duration::from_secs(1)).await;
            *outcome = Some(Outcome {
                status: reply.map_or(0, |reply| reply.map_or(0, |reply| reply.status)),
                took,
                upstream: scene.upstream.bytes(&When::kind(Kind::Blob)),
            });
            drop(session);
            contestant.stop().await?;
        }
        Ok(outcomes)
    }
}

/// 0.06 s to two digits.
fn is_quick(outcome: Outcome) -> bool {
    outcome.took < Duration::from_millis(65)
}

fn add(
    table: &mut Table,
    case: &str,
    outcomes: [Option<Outcome>; 3],
    must: &str,
    verdict: Option<bool>,
) {
    let show = |outcome: Outcome| {
        let upstream = match outcome.upstream {
            bytes if bytes >= 1 << 20 => format!("{:.0} MiB", mib(bytes)),
            bytes => format!("{bytes} bytes"),
        };
        let status = match outcome.status {
            0 => "no answer".to_owned(),
            status => status.to_string(),
        };
        let took = milliseconds(outcome.took);
        format!("{status}, {took}, {upstream}")
    };
    let [direct, ours, peer] = outcomes.map(|outcome| outcome.map(show).unwrap_or_default());
    table.add(
        Row::new(case, "status, time, upstream bytes 1 s later")
            .direct(direct)
            .ours(ours)
            .peer(peer)
            .must(must, verdict),
    );
}
