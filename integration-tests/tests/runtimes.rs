//! What runtimes do differently, and what rough nodes do: names, identifiers, shared content, slow and failing pulls,
//! lists that are too long. CRI-O is only to be had as a script (see `Kind::Crio`).

use coral_integration_tests::cri::{Cri, Kind, Pull, SHORT_NAMES};
use coral_integration_tests::node::Node;
use coral_integration_tests::pull::eventually;
use coral_schema::crd::Reason;
use coral_schema::crd::node_cache::{ImageState, PurgeResult};
use coral_warmer::cri::containerd::Containerd;
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

fn start(kind: Kind) -> (Cri, TempDir, Node) {
    let folder = tempfile::tempdir().expect("a folder");
    let cri = Cri::start_as(kind);
    let node = Node::start(&cri, folder.path());
    (cri, folder, node)
}

fn wish(names: &[&str]) -> Value {
    let images = names.iter();
    images
        .map(|name| json!({ "ref": name, "sizeBytes": 1 }))
        .collect()
}

/// Pulls answer with an identifier or a digest, containers name their image by either: what counts is what the runtime
/// finds under the spelling.
#[rstest]
#[tokio::test]
async fn l12_an_image_comes_returns_and_goes_whatever_answers_look_like(
    #[values(Kind::Containerd, Kind::Crio)] kind: Kind,
) {
    let (cri, _folder, mut node) = start(kind);
    let digest = format!("r.test/d@sha256:{}", "d".repeat(64));
    let names = ["r.test/a:1", "r.test/b:1", digest.as_str()];
    node.wish(&wish(&names), &[]);
    for name in names {
        let image = node.image(name, ImageState::Ready).await;
        assert!(image.pulled_by_us && image.digest.is_some(), "{image:?}");
    }
    cri.evict("r.test/a:1");
    cri.called("pull r.test/a:1", 2).await;
    node.until("back", |state| {
        state.images[0].state == ImageState::Ready && state.images[0].evictions == 1
    })
    .await;
    cri.exited_container(&cri.hold("r.test/b:1", &[]));
    node.wish(&json!([]), &names);
    assert_eq!(node.purged("r.test/a:1").await, PurgeResult::Purged);
    assert_eq!(node.purged("r.test/b:1").await, PurgeResult::InUse);
    assert_eq!(node.purged(&digest).await, PurgeResult::Purged);
    assert_eq!(cri.names(), ["r.test/b:1"]);
    assert_eq!(cri.count("pull r.test/b:1"), 1);
    node.stop().await;
}

/// Two names of one content: they are evicted together, and none takes the other along that is still wished for.
#[rstest]
#[tokio::test]
async fn l08_l12_names_that_share_an_image(#[values(Kind::Containerd, Kind::Crio)] kind: Kind) {
    let (cri, _folder, mut node) = start(kind);
    let names = ["r.test/a:1", "q.test/b:2"];
    for name in names {
        cri.script(name, Pull::Brings("the same".to_owned()));
    }
    node.wish(&wish(&names), &[]);
    node.evicted(&cri, &names[..1], 1).await;
    node.until("both back", |state| {
        let mut images = state.images.iter();
        images.all(|image| image.state == ImageState::Ready && image.evictions == 1)
    })
    .await;
    for name in names {
        assert_eq!(cri.count(&format!("pull {name}")), 2, "{name}");
    }
    node.wish(&wish(&names[1..]), &names[..1]);
    assert_eq!(node.purged(names[0]).await, PurgeResult::InUse);
    assert_eq!(cri.names().len(), 2);
    node.wish(&json!([]), &[]);
    node.until("forgotten", |state| state.purge.is_empty())
        .await;
    node.wish(&json!([]), &names);
    for name in names {
        assert_eq!(node.purged(name).await, PurgeResult::Purged);
    }
    assert!(cri.names().is_empty());
    node.stop().await;
}

/// CRI-O looks for a short name where its administrator said. Whose name it then has is not ours to guess: it is kept.
#[tokio::test]
async fn l12_l16a_a_short_name_is_what_the_runtime_makes_of_it() {
    let (cri, _folder, mut node) = start(Kind::Crio);
    node.wish(&wish(&["nginx:1.27"]), &[]);
    node.image("nginx:1.27", ImageState::Ready).await;
    assert_eq!(cri.names(), [format!("{SHORT_NAMES}/nginx:1.27")]);
    let looks = cri.count("status nginx:1.27");
    cri.called("status nginx:1.27", looks + 2).await;
    assert_eq!(cri.count("pull nginx:1.27"), 1);
    node.wish(&json!([]), &["nginx:1.27"]);
    assert_eq!(node.purged("nginx:1.27").await, PurgeResult::NotOurs);
    assert_eq!(cri.count("remove nginx:1.27"), 0);
    node.stop().await;
}

/// A name that looks like the beginning of an identifier means that image to CRI-O, for ever: it is neither taken for
/// present nor removed.
#[tokio::test]
async fn l12_a_name_that_is_the_beginning_of_an_identifier() {
    let (cri, _folder, mut node) = start(Kind::Crio);
    let id = cri.hold("somebody else's", &["r.test/other:1"]);
    let name = &id[..5];
    node.wish(&wish(&[name]), &[]);
    let image = node.image(name, ImageState::Failed).await;
    assert_eq!(image.reason, Some(Reason::Internal));
    assert!(image.message.unwrap().contains("under this spelling"));
    node.wish(&json!([]), &[name]);
    assert_eq!(
        node.purged(name).await,
        PurgeResult::Purged,
        "it is not there"
    );
    assert_eq!(cri.count(&format!("remove {name}")), 0);
    assert!(cri.names().contains(&"r.test/other:1".to_owned()));
    node.stop().await;
}

/// One pull that takes for ever, many that fail: what can be had is had.
#[tokio::test]
async fn l04_l21a_slow_and_failing_pulls_do_not_stand_in_the_way() {
    let (cri, _folder, mut node) = start(Kind::Containerd);
    cri.script("r.test/slow:1", Pull::Stays);
    let mut images = vec![json!({ "ref": "r.test/slow:1", "sizeBytes": 20_u64 << 30 })];
    for n in 0..10 {
        let (bad, good) = (format!("r.test/bad:{n}"), format!("r.test/good:{n}"));
        let why = "503 Service Unavailable".to_owned();
        cri.script(&bad, Pull::Fails(Code::Unknown, why));
        images.push(json!({ "ref": bad, "sizeBytes": 1, "retry": { "limit": 1 } }));
        images.push(json!({ "ref": good, "sizeBytes": 1 }));
    }
    node.wish(&Value::Array(images), &[]);
    let state = node
        .until("settled", |state| {
            let in_state = |state_of| {
                let images = state.images.iter();
                images.filter(|image| image.state == state_of).count()
            };
            in_state(ImageState::Ready) == 10 && in_state(ImageState::Failed) == 10
        })
        .await;
    let reasons = state.images.iter().filter_map(|image| image.reason);
    assert!(reasons.eq([Reason::UpstreamUnavailable; 10]));
    assert_eq!(state.images[0].state, ImageState::Pulling);
    assert!(cri.most_pulls_at_once() <= 2, "a large one and a small one");
    node.stop().await;
}

/// The list of a full node would not go into a message. It is never asked for: each wished image is, by its name.
#[tokio::test]
async fn l11_a_node_with_20_mib_of_images_is_asked_about_the_wished_ones() {
    let (cri, _folder, mut node) = start(Kind::Containerd);
    cri.hold_a_crowd(20 << 20);
    node.wish(&wish(&["r.test/a:1"]), &[]);
    let image = node.image("r.test/a:1", ImageState::Ready).await;
    assert!(image.pulled_by_us);
    assert!(node.state.borrow().runtime_error.is_none());
    node.stop().await;
}

/// Where containerd tells, nobody waits for the next look, also after a restart of containerd. Where it may not be asked,
/// it is not.
#[tokio::test]
async fn l01_containerd_tells_of_deletions_where_it_may() {
    let (mut cri, folder) = (Cri::start(), tempfile::tempdir().unwrap());
    let mut node = Node::start_beyond_the_cri(&cri, folder.path());
    node.look_interval = "1h";
    node.wish(&wish(&["r.test/a:1"]), &[]);
    node.image("r.test/a:1", ImageState::Ready).await;
    node.until("listening", |state| !state.capabilities.is_empty())
        .await;
    cri.evict("r.test/a:1");
    cri.called("pull r.test/a:1", 2).await;
    node.image("r.test/a:1", ImageState::Ready).await;
    cri.close().await;
    node.until("deaf", |state| state.capabilities.is_empty())
        .await;
    cri.listen();
    // Gone while nobody listened.
    cri.evict("r.test/a:1");
    cri.called("pull r.test/a:1", 3).await;
    node.stop().await;

    let (cri, _folder, mut node) = start(Kind::Containerd);
    node.wish(&wish(&["r.test/a:1"]), &[]);
    node.image("r.test/a:1", ImageState::Ready).await;
    assert!(node.state.borrow().capabilities.is_empty());
    assert_eq!(cri.count("subscribe") + cri.count("list"), 0);
    node.stop().await;
}

/// Every name carries the pin as long as it is wished for. Nobody else's pin is touched, and none is left behind.
#[tokio::test]
async fn l09_pins_come_and_go() {
    const PIN: &str = "io.cri-containerd.pinned";
    let (cri, folder) = (Cri::start(), tempfile::tempdir().unwrap());
    let mut node = Node::start_beyond_the_cri(&cri, folder.path());
    cri.hold("theirs", &["r.test/theirs:1"]);
    cri.label("r.test/theirs:1", PIN, "pinned");
    let image =
        |name: &str, protect: bool| json!({ "ref": name, "sizeBytes": 1, "protect": protect });
    let pinned = |pins: usize| {
        let cri = &cri;
        async move {
            eventually("the pins are so many", async || {
                cri.labelled(PIN).len() == pins
            })
            .await;
        }
    };
    node.wish(
        &json!([image("r.test/a:1", true), image("r.test/theirs:1", false)]),
        &[],
    );
    // The tag, the digest and the identifier.
    pinned(4).await;
    assert_eq!(cri.labelled("coral.dev/pinned-by").len(), 3);
    assert!(cri.labelled(PIN).iter().all(|(_, value)| value == "pinned"));
    cri.evict("r.test/a:1");
    cri.called("pull r.test/a:1", 2).await;
    pinned(4).await;
    node.stop().await;

    // Another process, which finds them there and is told otherwise.
    let mut node = Node::start_beyond_the_cri(&cri, folder.path());
    node.wish(&json!([image("r.test/a:1", false)]), &[]);
    pinned(1).await;
    assert_eq!(cri.labelled(PIN)[0].0, "r.test/theirs:1");
    node.wish(&json!([image("r.test/a:1", true)]), &[]);
    pinned(4).await;
    let lists = cri.count("list");
    let looks = cri.count("status r.test/a:1");
    cri.called("status r.test/a:1", looks + 2).await;
    assert_eq!(
        cri.count("list"),
        lists,
        "nothing changed: nothing is asked"
    );
    node.stop().await;

    let containerd = Containerd::new(&cri.socket()).unwrap();
    assert_eq!(containerd.unpin_all().await.unwrap(), 3);
    assert_eq!(cri.labelled(PIN).len(), 1);
}

/// Without a list of the containers nobody knows what is in use.
#[tokio::test]
async fn l08_without_a_list_of_containers_nothing_is_removed() {
    let (cri, _folder, mut node) = start(Kind::Containerd);
    node.wish(&wish(&["r.test/a:1"]), &[]);
    node.image("r.test/a:1", ImageState::Ready).await;
    cri.run_a_crowd(20 << 20);
    node.wish(&json!([]), &["r.test/a:1"]);
    cri.called("containers", 2).await;
    assert_eq!(cri.count("remove r.test/a:1"), 0);
    cri.run_a_crowd(0);
    assert_eq!(node.purged("r.test/a:1").await, PurgeResult::Purged);
    node.stop().await;
}
