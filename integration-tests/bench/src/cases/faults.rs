//! `break` and `wrong`: an upstream that cuts, and one that lies.

use std::time::Duration;

use coral_integration_tests::upstream::{Fault, When};
use coral_schema::oci::Digest;
use http::Method;

use super::{Bench, MIB, REPOSITORY, Scene, Who, mib};
use crate::contestant::Contestant;
use crate::pull::Session;
use crate::table::{Row, Table};

impl Bench {
    pub(super) async fn breaking(&self, table: &mut Table) -> anyhow::Result<()> {
        let mut cells = Vec::new();
        for who in [Who::Ours, Who::Peer] {
            let scene = Scene::new(4, &[self.sizes.layer]).await?;
            let most = self.sizes.connection;
            scene
                .upstream
                .configure(|settings| settings.connection_bytes = Some(most));
            let Some(contestant) = self.start(who, &scene, "").await? else {
                cells.push(None);
                continue;
            };
            let order = scene.order(&contestant, true);
            let pulled = tokio::time::timeout(Duration::from_mins(3), order.pull()).await;
            let succeeded = matches!(pulled, Ok(Ok(_)));
            cells.push(Some((succeeded, scene.upstream_ratio())));
            contestant.stop().await?;
        }
        let show = |cell: Option<(bool, f64)>| match cell {
            None => String::new(),
            Some((true, bytes)) => format!("succeeds, {bytes:.2} × bytes"),
            Some((false, bytes)) => format!("fails, {bytes:.2} × bytes"),
        };
        let verdict = cells[0].map(|(succeeded, bytes)| succeeded && bytes <= 1.004);
        let connection = mib(self.sizes.connection);
        let case = format!("break (each connection ends after {connection:.0} MiB)");
        table.add(
            Row::new(&case, "one large layer")
                .ours(show(cells[0]))
                .peer(show(cells[1]))
                .must("succeeds, 1.00 × bytes", verdict),
        );
        Ok(())
    }

    pub(super) async fn wrong(&self, table: &mut Table) -> anyhow::Result<()> {
        let size = 16 * MIB;
        for (place, offset) in [("first", 0), ("middle", size / 2), ("last", size - 1)] {
            let mut cells = Vec::new();
            for who in [Who::Ours, Who::Peer] {
                let scene = Scene::new(5 + offset, &[size]).await?;
                let Some(contestant) = self.start(who, &scene, "").await? else {
                    cells.push(None);
                    continue;
                };
                let layer = scene.image.layers()[0].digest;
                scene
                    .upstream
                    .always(When::blob(&layer), Fault::new().flip_bit(offset));
                let mut clean = false;
                for _ in 0..2 {
                    clean |= ends_cleanly(&scene, &contestant, &layer).await?;
                }
                cells.push(Some(clean));
                contestant.stop().await?;
            }
            let show = |cell: Option<bool>| match cell {
                None => "",
                Some(true) => "wrong bytes, cleanly ended",
                Some(false) => "never cleanly ended",
            };
            table.add(
                Row::new("wrong (one flipped bit)", &format!("in the {place} byte"))
                    .ours(show(cells[0]))
                    .peer(show(cells[1]))
                    .must("never cleanly ended", cells[0].map(|clean| !clean)),
            );
        }
        Ok(())
    }
}

/// Is the layer, which the upstream has wrong, given to a client as if it were right?
async fn ends_cleanly(
    scene: &Scene,
    contestant: &Contestant,
    layer: &Digest,
) -> anyhow::Result<bool> {
    let mut session = Session::open(contestant.address).await?;
    // Whoever cannot even serve the manifest has not refused the layer.
    scene.order(contestant, true).manifest(&mut session).await?;
    let asking = async {
        let path = format!("/v2/{REPOSITORY}/blobs/{layer}");
        let mut reply = session.request(Method::GET, &path, &[]).await?;
        session.connection.hash(&mut reply).await?;
        anyhow::Ok(reply.status == 200)
    };
    let asked = tokio::time::timeout(Duration::from_mins(1), asking).await;
    Ok(matches!(asked, Ok(Ok(true))))
}
