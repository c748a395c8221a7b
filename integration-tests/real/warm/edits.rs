//! What becomes of images that leave an object: while they are pulled, and while containers use them.

use coral_schema::crd::node_cache::{ImageState, PurgeResult};
use coral_schema::crd::{NodeCache, Reason};
use serde_json::Value;

use super::{APP, gpu};
use crate::cluster::pulls::What;
use crate::containerd::Kind;
use crate::harness::eventually;
use crate::line::{Line, WARM, pod};

/// Its layers take minutes to the cache, and from there to the nodes.
const SLOW: &str = "slow.example.test/team/slow:1";
const FREE: &str = "registry.example.test/team/free";
const OWN: &str = "registry.example.test/team/own";

fn spec(images: &str) -> String {
    format!(
        "  rollout: {{ maxConcurrentNodes: 2 }}\n  retention: {{ deletionPolicy: PurgeUnused }}\n  sets:\n  \
         - name: servers\n    images: [{images}]\n    nodes: {{ selector: {{ matchLabels: {{ pool: gpu }} }} }}\n"
    )
}

#[tokio::test]
async fn l08_l21_what_leaves_while_it_is_pulled_ends_and_what_containers_used_stays() {
    let line = Line::start([gpu(Kind::Current), gpu(Kind::Old)]).await;
    line.cluster.push("team/slow", 1, 20 << 20).await;
    line.image_cache("demo", &spec(&format!("\"{SLOW}\"")))
        .await;
    for node in ["node1", "node2"] {
        eventually(&format!("{node} pulls"), WARM, async || {
            let status = line.node_cache(node).await?.status?;
            let mut images = status.images.iter();
            images
                .any(|image| image.state == ImageState::Pulling)
                .then_some(())
        })
        .await;
    }

    // One node leaves, and only its pull ends.
    let leave = ["label", "node", "node2", "pool-"];
    line.kubectl(&leave).await.unwrap();
    pull_is_given_up(&line, 2).await;
    assert_eq!(pulls_of_slow(&line, 1), [What::Began]);

    // Another image takes the place of the first.
    line.cluster.push("team/app", 1, 100_000).await;
    let app = "\"registry.example.test/team/app:1\"";
    line.image_cache("demo", &spec(app)).await;
    pull_is_given_up(&line, 1).await;
    let status = line.until_ready("demo", "Warm").await.status.unwrap();
    assert_eq!((status.nodes.desired, status.entries.len()), (1, 1));
    assert!(line.holds(1, APP).await && !line.holds(2, APP).await);
    for node in ["node1", "node2"] {
        eventually("nothing is left to remove", WARM, async || {
            let cache = line.node_cache(node).await?;
            let images = cache.status?.images;
            let slow = images.iter().any(|image| image.reference == SLOW);
            (!slow && cache.spec.purge.is_empty()).then_some(())
        })
        .await;
    }
    assert!(!line.holds(1, "slow.example.test/team/slow").await);
    assert!(!line.holds(2, "slow.example.test/team/slow").await);

    what_containers_used_stays(&line).await;
}

/// Waits until a node's runtime says that nobody wants the slow image of it any more.
async fn pull_is_given_up(line: &Line, node: usize) {
    eventually(
        &format!("node{node} gives up"),
        WARM,
        async || match &pulls_of_slow(line, node)[..] {
            [What::Began] => None,
            [What::Began, What::Failed(error)] if error.contains("cancel") => Some(()),
            other => panic!("{other:?}"),
        },
    )
    .await;
}

fn pulls_of_slow(line: &Line, node: usize) -> Vec<What> {
    let pulls = line.cluster.node(node).pulls().into_iter();
    pulls
        .filter(|pull| pull.image == SLOW)
        .map(|pull| pull.what)
        .collect()
}

/// A container that ended, an image that somebody else had pulled, and one that may go.
async fn what_containers_used_stays(line: &Line) {
    for repository in ["team/free", "team/own"] {
        line.cluster.push(repository, 1, 100_000).await;
    }
    let pull = ["pull", "registry.example.test/team/own:1"];
    line.cluster.node(1).crictl(&pull).await.unwrap();
    let images =
        ["app", "free", "own"].map(|name| format!("\"registry.example.test/team/{name}:1\""));
    line.image_cache("demo", &spec(&images.join(", "))).await;
    line.until_ready("demo", "Warm").await;
    let place = "nodeName: node1\n  restartPolicy: Never";
    let ended = pod("ended", "registry.example.test/team/app:1", place, "Never");
    let ended = ended.replace("name: app,", "name: app, args: [end],");
    line.apply(&ended).await;
    let succeeded = "jsonpath={.status.phase}=Succeeded";
    line.cluster.becomes("pod/ended", succeeded).await;

    // The operator withdraws what was answered: only who watches sees the answers.
    let node1 = "/apis/coral.dev/v1alpha1/nodecaches?fieldSelector=metadata.name=node1";
    let states = line.cluster.plane().watch("node1", node1).await;
    let delete = ["delete", "imagecache", "demo", "--timeout=120s"];
    line.kubectl(&delete).await.unwrap();
    for (name, result, held) in [
        (APP, PurgeResult::InUse, true),
        (OWN, PurgeResult::NotOurs, true),
        (FREE, PurgeResult::Purged, false),
    ] {
        assert_eq!(line.holds(1, name).await, held, "{name}");
        let what = format!("node1 answers for {name} with {result:?}");
        eventually(&what, WARM, async || {
            let answer = (format!("{name}:1"), result);
            answers(&states.log()).contains(&answer).then_some(())
        })
        .await;
    }
    let event = line.tells("demo", "Warning", Reason::StillInUse).await;
    for word in [APP, "node1", Reason::StillInUse.remedy()] {
        assert!(event.contains(word), "{event}");
    }
    let event = line.tells("demo", "Warning", Reason::NotOurs).await;
    assert!(event.contains(OWN), "{event}");
}

/// What a node answered in any of its states: an image and what became of it.
fn answers(states: &str) -> Vec<(String, PurgeResult)> {
    let states = states.lines().filter_map(|line| {
        let state: Value = serde_json::from_str(line).ok()?;
        let object: NodeCache = serde_json::from_value(state["object"].clone()).unwrap();
        object.status
    });
    let outcomes = states.flat_map(|status| status.purge);
    outcomes
        .map(|outcome| (outcome.reference, outcome.result))
        .collect()
}
