//! The control plane goes, and comes back.

use coral_schema::crd::node_cache::ImageState;

use super::{AT_ONCE, counts, everywhere, told};
use crate::cluster::namespaces::ADDRESS;
use crate::cluster::node::NodeSpec;
use crate::containerd::Kind;
use crate::line::{Line, wish};

const IMAGE: &str = "registry.example.test/team/app:1";
const NAME: &str = "registry.example.test/team/app";

/// A storm would be a write for each of them.
const OBJECTS: u32 = 24;

#[tokio::test]
async fn l18_l22_nodes_are_repaired_without_an_api_server_and_its_return_is_no_storm() {
    let specs = [NodeSpec::new(Kind::Current), NodeSpec::new(Kind::Current)];
    let mut line = Line::without_warmers(specs, false).await;
    for node in [1, 2] {
        line.start_warmer_with(node, &AT_ONCE);
    }
    line.cluster.push("team/app", 1, 100_000).await;
    let spec = everywhere(IMAGE, "");
    let wishes = (0..OBJECTS).map(|number| wish(&format!("app-{number}"), &spec));
    let wishes: Vec<String> = wishes.collect();
    line.apply(&wishes.join("---\n")).await;
    for number in 0..OBJECTS {
        let object = format!("imagecache/app-{number}");
        line.cluster.becomes(&object, "condition=Ready").await;
    }

    line.cluster.plane_mut().stop();
    let operator = format!("http://{ADDRESS}:9091/metrics");
    counts(&line, &operator, "coral_operator_leading", 0).await;
    let remove = ["rmi", IMAGE];
    line.cluster.node(1).crictl(&remove).await.unwrap();
    line.until_held(1, NAME, true).await;

    line.cluster.plane_mut().start_again().await;
    counts(&line, &operator, "coral_operator_leading", 1).await;
    told(&line, "node1", IMAGE, "told of when it could be", |image| {
        image.evictions == 1 && image.state == ImageState::Ready
    })
    .await;
    // Whoever leads has looked at everything once this is done.
    line.image_cache("last", &spec).await;
    line.until_ready("last", "Warm").await;
    let written = writes(&line).await;
    assert!(
        written < OBJECTS / 2,
        "{written} writes for one eviction and one object"
    );
}

/// What the API server was asked to write of our kinds since it started.
async fn writes(line: &Line) -> u32 {
    let metrics = line.kubectl(&["get", "--raw=/metrics"]).await.unwrap();
    let requests = metrics.lines().filter(|line| {
        let ours = ["imagecaches", "nodecaches"].map(|kind| format!("resource=\"{kind}\""));
        let reads = ["GET", "LIST", "WATCH"].map(|verb| format!("verb=\"{verb}\""));
        line.starts_with("apiserver_request_total{")
            && ours.iter().any(|kind| line.contains(kind))
            && !reads.iter().any(|verb| line.contains(verb))
    });
    let counts = requests.map(|line| line.rsplit(' ').next().unwrap());
    counts.map(|count| count.parse::<u32>().unwrap()).sum()
}
