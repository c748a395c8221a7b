//! What cannot be: the status says of which image, why, and what to do; the rest goes on.

use coral_schema::crd::image_cache::Failure;
use coral_schema::crd::{ImageCache, Reason};

use super::{APP, gpu};
use crate::containerd::Kind;
use crate::line::Line;

/// What a node's list takes.
const MOST: usize = 256;

fn everywhere(policy: &str, images: &[String]) -> String {
    let images = images.join("\", \"");
    format!(
        "  registryPolicy: {policy}\n  sets:\n  - name: all\n    images: [\"{images}\"]\n    nodes: {{}}\n"
    )
}

fn image(name: &str) -> String {
    format!("registry.example.test/team/{name}:1")
}

#[tokio::test]
async fn another_platform_and_a_full_list_are_told_with_remedies_and_hinder_nothing_else() {
    let line = Line::start([gpu(Kind::Current)]).await;
    for repository in ["team/app", "team/other", "team/third"] {
        line.cluster.push(repository, 1, 100_000).await;
    }
    line.cluster.push_for("s390x", "team/foreign").await;
    an_image_of_another_platform(&line).await;
    more_than_the_list_takes(&line).await;
}

async fn an_image_of_another_platform(line: &Line) {
    let images = [image("app"), image("foreign")];
    line.image_cache("foreign", &everywhere("Auto", &images))
        .await;
    let foreign = line
        .until("foreign", "told that it has no platform", |object| {
            let failure = failure(object, Reason::PlatformMissing);
            failure.is_some_and(|failure| failure.nodes == 1)
        })
        .await;
    let failure = failure(&foreign, Reason::PlatformMissing).unwrap();
    assert_eq!(failure.reference, Some(image("foreign")));
    assert_eq!(failure.sample_nodes, ["node1"]);
    let remedy = Reason::PlatformMissing.remedy();
    assert!(failure.message.ends_with(remedy), "{}", failure.message);
    line.until_held(1, APP, true).await;
    let event = line
        .tells("foreign", "Warning", Reason::PlatformMissing)
        .await;
    assert!(event.contains(remedy), "{event}");
    let described = line
        .kubectl(&["describe", "imagecache", "foreign"])
        .await
        .unwrap();
    for word in [remedy, "Stalled", "Events:", "Warning"] {
        assert!(described.contains(word), "no {word} in {described}");
    }
    assert!(!line.holds(1, "registry.example.test/team/foreign").await);
}

/// The older object takes nearly all of the node's list: the younger one is told what does not fit, and gets it when
/// there is room.
async fn more_than_the_list_takes(line: &Line) {
    let unknown: Vec<String> = (0..MOST - 2)
        .map(|number| image(&format!("none{number}")))
        .collect();
    line.image_cache("crowd", &everywhere("Default", &unknown))
        .await;
    line.until("crowd", "told to its node", |object| {
        let status = object.status.as_ref();
        status.is_some_and(|status| status.entries.len() == MOST - 2 && status.nodes.failed == 1)
    })
    .await;
    line.kubectl(&["delete", "imagecache", "foreign"])
        .await
        .unwrap();
    let images = ["app", "other", "third"].map(image);
    line.image_cache("late", &everywhere("Auto", &images)).await;
    let late = line
        .until("late", "told that the list is full", |object| {
            let entries = object.status.iter().flat_map(|status| &status.entries);
            let ready = entries.filter(|entry| entry.ready_nodes == 1);
            ready.count() == 2 && failure(object, Reason::NodeListFull).is_some()
        })
        .await;
    let full = failure(&late, Reason::NodeListFull).unwrap();
    assert_eq!(full.reference, Some(image("third")));
    assert_eq!(full.message, Reason::NodeListFull.remedy());
    line.tells("late", "Warning", Reason::NodeListFull).await;
    let node = line.node_cache("node1").await.unwrap();
    assert_eq!(node.spec.images.len(), MOST);

    line.kubectl(&["delete", "imagecache", "crowd"])
        .await
        .unwrap();
    line.until_ready("late", "Warm").await;
    assert!(line.holds(1, "registry.example.test/team/third").await);
}

fn failure(object: &ImageCache, reason: Reason) -> Option<&Failure> {
    let mut failures = object.status.iter().flat_map(|status| &status.failures);
    failures.find(|failure| failure.reason == reason)
}
