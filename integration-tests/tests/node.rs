//! The node's side of the warmer against a scripted container runtime, over a real socket: looks, pulls, removals.

use std::fs;
use std::time::Duration;

use coral_integration_tests::cri::{Cri, Pull};
use coral_integration_tests::node::Node;
use coral_schema::crd::Reason;
use coral_schema::crd::node_cache::{ImageState, PurgeResult};
use coral_schema::oci::docker_config::{DockerConfig, DockerLogin};
use coral_warmer::cri::{Client, Runtime as _, alive};
use coral_warmer::disk::Space;
use coral_warmer::execute::{CacheUnreachable, Held, NodeState};
use coral_warmer::record::Record;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::watch;
use tonic::Code;

fn client(cri: &Cri) -> Client {
    Client::new(&cri.socket(), &mut Registry::default()).expect("a path")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[tokio::test]
async fn l16a_an_image_is_pulled_under_exactly_its_spelling() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    cri.hold("nginx:1.27", &["docker.io/library/nginx:stable"]);
    node.wish(&json!([{ "ref": "nginx:1.27" }]), &[]);
    let image = node.image("nginx:1.27", ImageState::Ready).await;
    assert_eq!(
        cri.count("pull nginx:1.27"),
        1,
        "the same content under another name is not it"
    );
    assert!(image.pulled_by_us && image.digest.is_some());
    assert!(node.state.borrow().first_ready.is_some());
    node.stop().await;
}

#[tokio::test]
async fn what_is_there_is_not_pulled() {
    let (cri, folder) = (Cri::start(), folder());
    cri.hold("x", &["r.test/a:1"]);
    let mut node = Node::start(&cri, folder.path());
    node.wish(&json!([{ "ref": "r.test/a:1" }]), &[]);
    let image = node.image("r.test/a:1", ImageState::Ready).await;
    assert!(!image.pulled_by_us);
    assert_eq!(cri.count("pull r.test/a:1"), 0);
    node.wish(&json!([{ "ref": "r.test/a:1", "revision": 1 }]), &[]);
    cri.called("pull r.test/a:1", 1).await;
    node.until("refreshed", |state| state.images[0].revision == 1)
        .await;
    node.stop().await;
}

#[tokio::test]
async fn l01_what_the_node_removes_comes_back() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    node.wish(&json!([{ "ref": "r.test/a:1" }]), &[]);
    node.image("r.test/a:1", ImageState::Ready).await;
    cri.evict("r.test/a:1");
    cri.called("pull r.test/a:1", 2).await;
    node.until("back", |state| {
        state.images[0].state == ImageState::Ready && state.images[0].evictions == 1
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn l02_what_the_node_removes_again_and_again_stays_away() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    let wish = json!([{ "ref": "r.test/a:1" }]);
    node.wish(&wish, &[]);
    node.evicted(&cri, &["r.test/a:1"], 3).await;
    let image = node.image("r.test/a:1", ImageState::Evicted).await;
    assert_eq!(image.reason, Some(Reason::EvictedRepeatedly));
    assert!(image.next_attempt.is_some() && !image.pulled_by_us);
    assert_eq!(cri.count("pull r.test/a:1"), 3);
    let message = image.message.unwrap();
    assert!(
        message.contains("3 times, most likely by AgeGC"),
        "{message}"
    );
    // The first time could have been anybody.
    let by = |cause: &str| node.metric(&format!("evictions_total{{cause=\"{cause}\"}}"));
    assert_eq!(
        (by("ExternalDelete"), by("AgeGC")),
        ("1".into(), "2".into())
    );
    assert_eq!(node.metric("repull_suppressed_total"), "1");
    node.stop().await;

    let mut node = Node::start(&cri, folder.path());
    node.wish(&wish, &[]);
    let again = node.image("r.test/a:1", ImageState::Evicted).await;
    assert_eq!(
        again.next_attempt, image.next_attempt,
        "a restart is no peace"
    );
    assert_eq!(cri.count("pull r.test/a:1"), 3);
    node.stop().await;
}

#[tokio::test]
async fn l02_an_eviction_that_shall_be_ignored_is() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    let wish = |revision: u32| json!([{ "ref": "r.test/a:1", "onEviction": "Ignore", "revision": revision }]);
    node.wish(&wish(0), &[]);
    node.evicted(&cri, &["r.test/a:1"], 1).await;
    let image = node.image("r.test/a:1", ImageState::Evicted).await;
    assert_eq!(
        (image.reason, image.next_attempt),
        (Some(Reason::Evicted), None)
    );
    assert_eq!(node.metric("repull_suppressed_total"), "1");
    node.stop().await;

    let mut node = Node::start(&cri, folder.path());
    node.wish(&wish(0), &[]);
    node.image("r.test/a:1", ImageState::Evicted).await;
    assert_eq!(cri.count("pull r.test/a:1"), 1);
    node.wish(&wish(1), &[]);
    node.image("r.test/a:1", ImageState::Ready).await;
    assert_eq!(cri.count("pull r.test/a:1"), 2);
    node.stop().await;
}

/// The kubelet has made room before anybody looks.
#[tokio::test]
async fn l01_a_disk_that_was_full_is_the_cause_although_it_is_not_any_more() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    node.wish(&json!([{ "ref": "r.test/a:1" }]), &[]);
    node.image("r.test/a:1", ImageState::Ready).await;
    fs::write(folder.path().join("percent"), "84").unwrap();
    let used = |state: &NodeState| state.space.map(Space::used_percent);
    node.until("full", |state| used(state) == Some(84)).await;
    cri.evict("r.test/a:1");
    fs::write(folder.path().join("percent"), "40").unwrap();
    node.until("noticed", |state| state.images[0].evictions == 1)
        .await;
    assert_eq!(node.metric("evictions_total{cause=\"DiskGC\"}"), "1");
    node.stop().await;
}

/// Everything goes at once, again and again: nothing is pulled more often than three times.
#[tokio::test]
async fn l02_l04_a_storm_of_evictions_is_bounded() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    let names: Vec<String> = (0..24).map(|n| format!("r.test/a:{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let wish: Vec<Value> = names
        .iter()
        .map(|name| json!({ "ref": name, "sizeBytes": 1 }))
        .collect();
    node.wish(&Value::Array(wish), &[]);
    node.evicted(&cri, &names, 3).await;
    node.until("left away", |state| {
        let mut images = state.images.iter();
        images.all(|image| image.state == ImageState::Evicted)
    })
    .await;
    for name in names {
        assert_eq!(cri.count(&format!("pull {name}")), 3, "{name}");
    }
    assert_eq!(cri.most_pulls_at_once(), 1);
    assert_eq!(node.metric("repull_suppressed_total"), "24");
    node.stop().await;
}

#[tokio::test]
async fn l07_mirror_only_pulls_when_the_cache_has_it() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    let wish = json!([{ "ref": "r.test/a:1", "registryPolicy": "MirrorOnly" }]);
    for (answer, words) in [
        (Ok(Held::Absent), "does not hold it yet"),
        (Ok(Held::NotMirrored), "mirror settings"),
        (
            Err(CacheUnreachable("refused".to_owned())),
            "does not answer: refused",
        ),
    ] {
        node.shelf.says(answer);
        // A wish that went and came is asked about anew.
        node.wish(&json!([]), &[]);
        let generation = node.generation;
        node.until("empty", |state| state.generation == Some(generation))
            .await;
        node.wish(&wish, &[]);
        let waits = |state: &NodeState| {
            let mut images = state.images.iter();
            images.any(|image| {
                image.reason == Some(Reason::WaitingForCache)
                    && image
                        .message
                        .as_ref()
                        .is_some_and(|message| message.contains(words))
            })
        };
        node.until(words, waits).await;
    }
    assert_eq!(cri.count("pull r.test/a:1"), 0);
    node.shelf.says(Ok(Held::Filling));
    node.image("r.test/a:1", ImageState::Ready).await;
    assert_eq!(cri.count("pull r.test/a:1"), 1);
    node.stop().await;
}

#[tokio::test]
async fn l21a_a_pull_that_takes_long_holds_nothing_up() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    cri.script("r.test/large:1", Pull::Stays);
    node.wish(
        &json!([{ "ref": "r.test/large:1" }, { "ref": "r.test/small:1", "sizeBytes": 1 }]),
        &[],
    );
    node.image("r.test/large:1", ImageState::Pulling).await;
    node.image("r.test/small:1", ImageState::Ready).await;
    cri.evict("r.test/small:1");
    cri.called("pull r.test/small:1", 2).await;
    node.image("r.test/small:1", ImageState::Ready).await;
    cri.release();
    node.image("r.test/large:1", ImageState::Ready).await;
    node.stop().await;
}

#[tokio::test]
async fn l21_a_pull_survives_edits_that_keep_its_wish_and_ends_with_it() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    cri.script("r.test/a:1", Pull::Stays);
    node.wish(&json!([{ "ref": "r.test/a:1" }]), &[]);
    cri.called("pull r.test/a:1", 1).await;
    node.wish(
        &json!([{ "ref": "r.test/a:1", "priority": 7 }, { "ref": "r.test/b:1", "sizeBytes": 1 }]),
        &[],
    );
    node.image("r.test/b:1", ImageState::Ready).await;
    assert_eq!(cri.count("pull-dropped r.test/a:1"), 0);
    node.wish(&json!([{ "ref": "r.test/b:1" }]), &[]);
    cri.called("pull-dropped r.test/a:1", 1).await;
    assert_eq!(cri.count("pull r.test/a:1"), 1);
    assert_eq!(cri.names(), ["r.test/b:1"]);
    node.stop().await;
}

#[tokio::test]
async fn without_a_node_cache_pulls_end_and_nothing_is_removed() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    cri.script("r.test/b:1", Pull::Stays);
    node.wish(
        &json!([{ "ref": "r.test/a:1", "sizeBytes": 1 }, { "ref": "r.test/b:1" }]),
        &[],
    );
    node.image("r.test/a:1", ImageState::Ready).await;
    cri.called("pull r.test/b:1", 1).await;
    node.wishes.send_replace(None);
    cri.called("pull-dropped r.test/b:1", 1).await;
    node.until("nothing", |state| *state == NodeState::default())
        .await;
    assert_eq!(cri.names(), ["r.test/a:1"]);
    node.stop().await;
}

#[tokio::test]
async fn a_failed_pull_says_why_and_is_tried_again() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    let message = r#"failed to pull and unpack image "r.test/a:1": no match for platform in manifest: not found"#;
    cri.script(
        "r.test/a:1",
        Pull::Fails(Code::NotFound, message.to_owned()),
    );
    let retry = json!({ "limit": 2, "initialBackoff": "1s", "maxBackoff": "1s" });
    node.wish(&json!([{ "ref": "r.test/a:1", "retry": retry }]), &[]);
    let given_up = |state: &NodeState| {
        let image = state.images.first();
        image.is_some_and(|image| image.state == ImageState::Failed && image.attempts == 2)
    };
    let state = node.until("given up", given_up).await;
    assert_eq!(state.images[0].reason, Some(Reason::PlatformMissing));
    assert_eq!(state.images[0].message.as_deref(), Some(message));
    assert_eq!(state.images[0].next_attempt, None);
    cri.script("r.test/a:1", Pull::Brings("x".to_owned()));
    node.wish(
        &json!([{ "ref": "r.test/a:1", "revision": 1, "retry": retry }]),
        &[],
    );
    let image = node.image("r.test/a:1", ImageState::Ready).await;
    assert_eq!((image.attempts, image.revision, image.reason), (0, 1, None));
    node.stop().await;
}

#[tokio::test]
async fn l06_a_pull_has_a_total_time_only_where_one_was_set() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    cri.script("r.test/a:1", Pull::Stays);
    cri.script("r.test/b:1", Pull::Stays);
    // The small lane and the large one: both run.
    node.wish(
        &json!([{ "ref": "r.test/a:1", "sizeBytes": 1, "retry": { "timeout": "1s" } }, { "ref": "r.test/b:1" }]),
        &[],
    );
    let image = node.image("r.test/a:1", ImageState::Failed).await;
    assert_eq!(image.reason, Some(Reason::Timeout));
    cri.called("pull-dropped r.test/a:1", 1).await;
    assert_eq!(cri.count("pull-dropped r.test/b:1"), 0);
    node.stop().await;
}

#[tokio::test]
async fn l03_a_full_disk_is_not_filled_further() {
    let (cri, folder) = (Cri::start(), folder());
    fs::write(folder.path().join("percent"), "86").unwrap();
    let mut node = Node::start(&cri, folder.path());
    node.wish(&json!([{ "ref": "r.test/a:1", "sizeBytes": 1 }]), &[]);
    let waits = |state: &NodeState| {
        let image = state.images.first();
        image.is_some_and(|image| image.reason == Some(Reason::InsufficientStorage))
    };
    node.until("refused", waits).await;
    fs::write(folder.path().join("percent"), "50").unwrap();
    node.image("r.test/a:1", ImageState::Ready).await;
    assert_eq!(cri.count("pull r.test/a:1"), 1);
    node.stop().await;
}

/// What a pull took is remembered, and outlives the process.
#[tokio::test]
async fn l03_a_pull_teaches_how_much_room_the_next_one_takes() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    cri.script("r.test/a:1", Pull::Stays);
    let wish = json!([{ "ref": "r.test/a:1", "sizeBytes": 2_u64 << 30 }]);
    node.wish(&wish, &[]);
    cri.called("pull r.test/a:1", 1).await;
    fs::write(folder.path().join("percent"), "12").unwrap();
    cri.release();
    node.image("r.test/a:1", ImageState::Ready).await;
    let learnt = |record: &Record| record.ratios.need("r.test/a:1", 2 << 30) == 12 << 30;
    node.until("first ready", |state| state.first_ready.is_some())
        .await;
    node.stop().await;
    assert!(learnt(&Record::load(folder.path()).unwrap()));

    // 12 GiB do not fit above 74 % of 100, as a first guess of 6 would.
    cri.evict("r.test/a:1");
    fs::write(folder.path().join("percent"), "74").unwrap();
    let mut node = Node::start(&cri, folder.path());
    node.budget = 80;
    node.wish(&wish, &[]);
    let image = node.image("r.test/a:1", ImageState::Waiting).await;
    assert_eq!(image.reason, Some(Reason::InsufficientStorage));
    assert!(image.message.unwrap().contains("another 12288 MiB"));
    assert_eq!(cri.count("pull r.test/a:1"), 1);
    node.stop().await;
}

#[tokio::test]
async fn l04_no_pull_starts_while_the_disks_are_busy() {
    let (cri, folder) = (Cri::start(), folder());
    let says = |percent: u32| {
        let text = format!("some avg10=99.00 avg60=0.00\nfull avg10={percent}.00 avg60=0.00\n");
        fs::write(folder.path().join("pressure"), text).unwrap();
    };
    says(40);
    cri.hold("x", &["r.test/held:1"]);
    let mut node = Node::start(&cri, folder.path());
    node.wish(
        &json!([{ "ref": "r.test/held:1" }, { "ref": "r.test/a:1", "sizeBytes": 1 }]),
        &[],
    );
    node.image("r.test/held:1", ImageState::Ready).await;
    let image = node.image("r.test/a:1", ImageState::Waiting).await;
    assert_eq!(image.reason, Some(Reason::NodeUnderPressure));
    assert_eq!(
        image.next_attempt, None,
        "a time that moves would be written all the time"
    );
    says(20);
    let looks = cri.count("status r.test/a:1");
    cri.called("status r.test/a:1", looks + 2).await;
    assert_eq!(cri.count("pull r.test/a:1"), 0, "not yet calm");
    says(19);
    node.image("r.test/a:1", ImageState::Ready).await;
    node.stop().await;
}

#[tokio::test]
async fn l08_only_what_we_brought_is_removed() {
    let (cri, folder) = (Cri::start(), folder());
    cri.hold("before", &["r.test/before:1"]);
    let mut node = Node::start(&cri, folder.path());
    let names = [
        "r.test/ours:1",
        "r.test/used:1",
        "r.test/before:1",
        "r.test/tagged:1",
    ];
    let images: Vec<Value> = names
        .iter()
        .map(|name| json!({ "ref": name, "sizeBytes": 1 }))
        .collect();
    node.wish(&Value::Array(images), &[]);
    for name in names {
        node.image(name, ImageState::Ready).await;
    }
    cri.hold("r.test/tagged:1", &["r.test/tagged-by-a-person:1"]);
    cri.exited_container(&cri.hold("r.test/used:1", &[]));
    node.wish(&json!([]), &names);
    assert_eq!(node.purged("r.test/ours:1").await, PurgeResult::Purged);
    assert_eq!(node.purged("r.test/used:1").await, PurgeResult::InUse);
    assert_eq!(node.purged("r.test/before:1").await, PurgeResult::NotOurs);
    assert_eq!(node.purged("r.test/tagged:1").await, PurgeResult::NotOurs);
    let mut left = cri.names();
    left.sort();
    assert_eq!(
        left,
        [
            "r.test/before:1",
            "r.test/tagged-by-a-person:1",
            "r.test/tagged:1",
            "r.test/used:1"
        ]
    );
    assert_eq!(cri.count("remove r.test/ours:1"), 1);
    node.stop().await;
}

#[tokio::test]
async fn l22_after_a_restart_the_node_tells_what_is_there_and_the_record_what_is_ours() {
    let (cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    let wish =
        json!([{ "ref": "r.test/a:1", "sizeBytes": 1 }, { "ref": "r.test/b:1", "sizeBytes": 1 }]);
    node.wish(&wish, &[]);
    node.image("r.test/a:1", ImageState::Ready).await;
    node.image("r.test/b:1", ImageState::Ready).await;
    node.stop().await;
    cri.evict("r.test/b:1");
    let mut node = Node::start(&cri, folder.path());
    node.wish(&wish, &[]);
    let image = node.image("r.test/a:1", ImageState::Ready).await;
    assert!(image.pulled_by_us);
    assert_eq!(cri.count("pull r.test/a:1"), 1);
    let image = node.image("r.test/b:1", ImageState::Ready).await;
    assert_eq!(image.evictions, 1, "it went while nobody looked");
    node.wish(&json!([]), &["r.test/a:1"]);
    assert_eq!(node.purged("r.test/a:1").await, PurgeResult::Purged);
    node.stop().await;
}

#[tokio::test]
async fn l33_a_login_is_sent_for_one_registry_and_none_is_sent_by_nodes() {
    let (cri, folder) = (Cri::start(), folder());
    let file = br#"{"auths":{"r.test":{"username":"someone","password":"secret"}}}"#;
    let config = DockerConfig::parse(file).unwrap();
    let login: &DockerLogin = &config.matching("r.test/a:1")[0].login;
    client(&cri).pull("r.test/a:1", Some(login)).await.unwrap();
    let auth = cri.logins().remove(0).unwrap();
    assert_eq!(
        (auth.server_address.as_str(), auth.password.as_str()),
        ("https://r.test", "secret")
    );
    let mut node = Node::start(&cri, folder.path());
    node.wish(&json!([{ "ref": "r.test/b:1" }]), &[]);
    node.image("r.test/b:1", ImageState::Ready).await;
    assert_eq!(cri.logins()[1], None);
    node.stop().await;
}

#[tokio::test]
async fn l34_copied_logins_are_tried_one_after_the_other() {
    let (cri, folder) = (Cri::start(), folder());
    let copies = folder.path().join("pull-secrets");
    fs::create_dir(&copies).unwrap();
    let login =
        |user: &str| json!({ "repository": "r.test/a", "username": user, "password": "hidden" });
    let logins = json!([login("first"), login("second")]).to_string();
    fs::write(copies.join("ml.a"), logins).unwrap();
    let refused = "server message: insufficient_scope: authorization failed";
    cri.script("r.test/a:1", Pull::Fails(Code::Unknown, refused.to_owned()));
    let mut node = Node::start(&cri, folder.path());
    node.wish(
        &json!([{ "ref": "r.test/a:1", "owners": ["ml/a/all"], "retry": { "initialBackoff": "1h", "maxBackoff": "1h" } }]),
        &[],
    );
    let image = node.image("r.test/a:1", ImageState::Failed).await;
    assert_eq!(image.reason, Some(Reason::Unauthorized));
    let users = |cri: &Cri| {
        let logins = cri.logins().into_iter().flatten();
        logins.map(|login| login.username).collect::<Vec<_>>()
    };
    assert_eq!(users(&cri), ["first", "second"]);

    // It rotates: the next try has the new one, and comes at once; what is no refusal is not tried with another.
    let logins = json!([login("third"), login("fourth")]).to_string();
    fs::write(copies.join("ml.a"), logins).unwrap();
    cri.script(
        "r.test/a:1",
        Pull::Fails(Code::Unavailable, "no route to host".to_owned()),
    );
    cri.called("pull r.test/a:1", 3).await;
    assert_eq!(users(&cri)[2..], ["third"]);
    node.stop().await;
    let kept = fs::read_to_string(folder.path().join("record.json")).unwrap_or_default();
    assert!(!kept.contains("hidden"));
}

#[tokio::test]
async fn a_runtime_that_restarts_is_found_again() {
    let (mut cri, folder) = (Cri::start(), folder());
    let mut node = Node::start(&cri, folder.path());
    node.wish(&json!([{ "ref": "r.test/a:1" }]), &[]);
    node.image("r.test/a:1", ImageState::Ready).await;
    cri.close().await;
    let state = node
        .until("refused", |state| state.runtime_error.is_some())
        .await;
    let error = state.runtime_error.clone().unwrap();
    assert_eq!(
        (error.refused, error.reason),
        (true, Reason::RuntimeUnavailable),
        "{error}"
    );
    assert_eq!(
        state.images[0].state,
        ImageState::Ready,
        "what was known stays known"
    );
    node.wish(
        &json!([{ "ref": "r.test/a:1" }, { "ref": "r.test/b:1" }]),
        &[],
    );
    let image = node.image("r.test/b:1", ImageState::Unknown).await;
    assert_eq!(image.reason, Some(Reason::RuntimeUnavailable));
    cri.listen();
    node.image("r.test/b:1", ImageState::Ready).await;
    node.until("answered", |state| state.runtime_error.is_none())
        .await;
    node.stop().await;
}

#[tokio::test]
async fn a_socket_that_refuses_for_ten_seconds_is_dead() {
    let mut cri = Cri::start();
    let client = client(&cri);
    let (who, mut seen) = watch::channel(None);
    tokio::select! {
        dead = alive::watch(&client, &who) => panic!("{dead}"),
        answered = seen.wait_for(Option::is_some) => {
            assert_eq!(answered.unwrap().as_ref().unwrap().name, "containerd");
        }
    }
    cri.close().await;
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let _dead: alive::SocketDead = alive::watch(&client, &who).await;
    assert!(start.elapsed() >= Duration::from_secs(10));
    assert!(who.borrow().is_none());
}

#[tokio::test]
async fn l21a_queries_have_a_deadline() {
    let cri = Cri::start();
    let client = client(&cri);
    client.version().await.unwrap();
    cri.silence(true);
    tokio::time::pause();
    let error = client.image("r.test/a:1").await.unwrap_err();
    assert_eq!(
        (error.reason, error.refused),
        (Reason::RuntimeUnavailable, false)
    );
}
