//! What clusters do to warm nodes: kubelets that collect images, tags that move, nodes that boot, an API server that is away.

use std::time::Duration;

use coral_schema::crd::node_cache::NodeImageStatus;

use crate::cluster::node::Node;
use crate::harness::{eventually, polled};
use crate::line::{Line, WARM};

mod away;
mod collection;
mod starts;
mod tags;

/// Evictions are noticed at once, not minutes later.
const AT_ONCE: [&str; 1] = ["--containerd-api"];

/// An `ImageCache` that wants one image on all nodes at once; `more` are lines of its spec.
fn everywhere(image: &str, more: &str) -> String {
    format!(
        "  rollout: {{ maxConcurrentNodes: 4 }}\n{more}  sets:\n  - name: all\n    images: [\"{image}\"]\n    nodes: {{}}\n"
    )
}

/// Waits until a node says this of an image, and fails with what it says.
async fn told(
    line: &Line,
    node: &str,
    image: &str,
    what: &str,
    is: impl Fn(&NodeImageStatus) -> bool,
) -> NodeImageStatus {
    let mut last = None;
    let found = polled(WARM, async || {
        let images = line.node_cache(node).await?.status?.images;
        let status = images.into_iter().find(|it| it.reference == image);
        last.clone_from(&status);
        status.filter(&is)
    });
    match found.await {
        Some(status) => status,
        None => panic!("{node} does not say that {image} is {what}: {last:#?}"),
    }
}

/// Waits until the value of one sample in the metrics at a URL is this.
async fn counts(line: &Line, url: &str, sample: &str, is: u32) {
    let wanted = format!("{sample} {is}");
    let mut last = String::new();
    let found = polled(Duration::from_mins(1), async || {
        last = line.cluster.get(url).await.unwrap_or_default();
        last.lines().any(|line| line == wanted).then_some(())
    });
    assert!(found.await.is_some(), "no {wanted} in\n{last}");
}

/// The digest that a node's runtime has for an image, whatever anybody says.
async fn digest_on(node: &Node, image: &str) -> String {
    let digests = "{{range .status.repoDigests}}{{.}} {{end}}";
    let inspect = ["inspecti", "--output", "go-template", "--template", digests];
    let held = node.crictl(&[&inspect[..], &[image]].concat()).await;
    let held = held.unwrap();
    let (_, digest) = held.trim().rsplit_once('@').expect("a digest");
    digest.to_owned()
}

/// Waits until a node's runtime has this digest for an image.
async fn holds_digest(node: &Node, image: &str, digest: &str) {
    eventually(&format!("{image} is {digest}"), WARM, async || {
        let inspect = node.crictl(&["inspecti", image]).await.ok()?;
        inspect.contains(digest).then_some(())
    })
    .await;
    assert_eq!(digest_on(node, image).await, digest);
}
