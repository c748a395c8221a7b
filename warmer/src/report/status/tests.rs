use std::collections::BTreeSet;

use coral_schema::crd::NodeCacheSpec;
use coral_schema::crd::node_cache::{PurgeOutcome, PurgeResult};
use jiff::SignedDuration;
use serde_json::json;

use super::*;
use crate::cri::CriError;

fn wishes() -> Wishes {
    let spec: NodeCacheSpec = serde_json::from_value(json!({ "nodeUID": "u1" })).unwrap();
    Wishes {
        generation: 4,
        spec,
    }
}

fn image(reference: &str, state: ImageState, reason: Option<Reason>) -> NodeImageStatus {
    NodeImageStatus {
        reference: reference.to_owned(),
        state,
        reason,
        message: reason.map(|reason| format!("because of {}", reason.as_str())),
        last_transition: Some(Time(at(50))),
        ..NodeImageStatus::default()
    }
}

fn node(images: Vec<NodeImageStatus>) -> NodeState {
    NodeState {
        generation: Some(4),
        images,
        space: Some(Space {
            capacity: 1000,
            used: 415,
        }),
        ..NodeState::default()
    }
}

fn mirror(reason: Option<Reason>) -> MirrorState {
    MirrorState {
        reason,
        message: "as it is".to_owned(),
        leads: BTreeSet::new(),
        cache: None,
    }
}

fn version() -> Version {
    Version {
        name: "containerd".to_owned(),
        version: "v2.4.2".to_owned(),
    }
}

#[rstest::rstest]
#[case("containerd", "v2.4.2", true)]
#[case("containerd", "1.7.27", true)]
#[case("containerd", "1.6.20~ds1", false)]
#[case("containerd", "main", true)]
fn l09_a_runtime_that_does_not_know_pins_offers_none(
    #[case] name: &str,
    #[case] version: &str,
    #[case] pins: bool,
) {
    let runtime = Version {
        name: name.to_owned(),
        version: version.to_owned(),
    };
    let node = NodeState {
        capabilities: vec!["ImageEvents", "Pin"],
        ..NodeState::default()
    };
    let facts = Facts {
        wishes: &wishes(),
        node: &node,
        mirror: &mirror(None),
        runtime: Some(&runtime),
    };
    let status = status(facts, &NodeCacheStatus::default(), at(0));
    let told = status.runtime.unwrap().capabilities;
    let expected = &["ImageEvents", "Pin"][..if pins { 2 } else { 1 }];
    assert_eq!(told, expected);
}

fn at(second: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second)
}

fn said(node: &NodeState, previous: &NodeCacheStatus, second: i64) -> NodeCacheStatus {
    let facts = Facts {
        wishes: &wishes(),
        node,
        mirror: &mirror(Some(Reason::Written)),
        runtime: Some(&version()),
    };
    status(facts, previous, at(second))
}

fn condition(status: &NodeCacheStatus, kind: ConditionType) -> &Condition {
    let mut conditions = status.conditions.iter();
    conditions
        .find(|condition| condition.type_ == kind.as_str())
        .unwrap()
}

const READY: fn() -> NodeImageStatus = || image("a", ImageState::Ready, None);

#[test]
fn counts_runtime_and_conditions() {
    let node = node(vec![
        READY(),
        image("b", ImageState::Pulling, None),
        image("c", ImageState::Evicted, Some(Reason::EvictedRepeatedly)),
        image("d", ImageState::Failed, Some(Reason::NotFound)),
        image("e", ImageState::Waiting, Some(Reason::WaitingForCache)),
    ]);
    let status = said(&node, &NodeCacheStatus::default(), 100);
    let counts = (status.desired, status.ready, status.pulling, status.failed);
    assert_eq!(counts, (5, 1, 1, 2));
    assert_eq!(status.observed_generation, Some(4));
    assert_eq!(status.node_uid.as_deref(), Some("u1"));
    assert_eq!(status.runtime.as_ref().unwrap().version, "v2.4.2");
    assert_eq!(status.image_fs.unwrap().used_percent, 42);
    let kinds: Vec<_> = status
        .conditions
        .iter()
        .map(|one| one.type_.as_str())
        .collect();
    assert_eq!(
        kinds,
        [
            "Ready",
            "RuntimeReachable",
            "StorageAvailable",
            "MirrorConfigured"
        ]
    );
    let ready = condition(&status, ConditionType::Ready);
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "EvictedRepeatedly")
    );
    assert_eq!(
        ready.message,
        "1 of 5 images are held; c: because of EvictedRepeatedly"
    );
    assert_eq!(ready.observed_generation, Some(4));
}

#[rstest::rstest]
#[case::all_held(vec![READY()], "True", "Warm")]
#[case::nothing_wished_for(vec![], "True", "Warm")]
#[case::on_their_way(vec![READY(), image("b", ImageState::Pulling, None)], "False", "Warming")]
#[case::waits(vec![image("b", ImageState::Waiting, Some(Reason::WaitingForCache))], "False", "WaitingForCache")]
#[case::failed(vec![image("b", ImageState::Failed, Some(Reason::RateLimited))], "False", "RateLimited")]
fn ready_says_what_is_missing(
    #[case] images: Vec<NodeImageStatus>,
    #[case] expected: &str,
    #[case] reason: &str,
) {
    let status = said(&node(images), &NodeCacheStatus::default(), 100);
    let ready = condition(&status, ConditionType::Ready);
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        (expected, reason)
    );
}

#[test]
fn a_silent_runtime_and_a_full_disk_show() {
    let mut node = node(vec![image("b", ImageState::Unknown, None)]);
    node.runtime_error = Some(CriError {
        reason: Reason::RuntimeUnavailable,
        refused: false,
        message: "no answer within 10 s".to_owned(),
    });
    node.space = Some(Space {
        capacity: 100,
        used: 80,
    });
    let status = said(&node, &NodeCacheStatus::default(), 100);
    for (kind, reason) in [
        (ConditionType::Ready, "RuntimeUnavailable"),
        (ConditionType::RuntimeReachable, "RuntimeUnavailable"),
        (ConditionType::StorageAvailable, "InsufficientStorage"),
    ] {
        let condition = condition(&status, kind);
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("False", reason)
        );
    }
}

#[rstest::rstest]
#[case(Some(Reason::Written), "True", "Written")]
#[case(Some(Reason::Removed), "False", "Removed")]
#[case(Some(Reason::NotOurs), "False", "NotOurs")]
#[case(None, "Unknown", "WaitingForCache")]
fn mirror_settings_show(
    #[case] reason: Option<Reason>,
    #[case] expected: &str,
    #[case] shown: &str,
) {
    let facts = Facts {
        wishes: &wishes(),
        node: &node(vec![]),
        mirror: &mirror(reason),
        runtime: None,
    };
    let status = status(facts, &NodeCacheStatus::default(), at(0));
    let condition = condition(&status, ConditionType::MirrorConfigured);
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        (expected, shown)
    );
}

#[test]
fn a_status_that_was_read_back_is_the_same() {
    let mut node = node(vec![READY()]);
    node.first_ready = Some(at(77) + SignedDuration::from_millis(123));
    let written = said(&node, &NodeCacheStatus::default(), 100);
    let text = serde_json::to_string(&written).unwrap();
    let read = serde_json::from_str(&text).unwrap();
    assert!(is_same(&read, &said(&node, &read, 200)));
}

/// Nothing changed, nothing is written: times stay, and bytes within a percent are no change.
#[test]
fn l18_the_same_facts_make_the_same_status() {
    let before = said(&node(vec![READY()]), &NodeCacheStatus::default(), 100);
    let mut later = node(vec![READY()]);
    later.images[0].last_transition = Some(Time(at(900)));
    later.space = Some(Space {
        capacity: 1000,
        used: 419,
    });
    assert_eq!(said(&later, &before, 900), before);
    later.space = Some(Space {
        capacity: 1000,
        used: 421,
    });
    let fuller = said(&later, &before, 900);
    assert_eq!(fuller.image_fs.unwrap().used_percent, 43);
    assert!(!is_news(&before, &fuller));
}

#[test]
fn a_transition_time_moves_only_with_its_status() {
    let waiting = image("a", ImageState::Waiting, Some(Reason::WaitingForCache));
    let first = said(&node(vec![waiting]), &NodeCacheStatus::default(), 100);
    let failed = image("a", ImageState::Failed, Some(Reason::NotFound));
    let second = said(&node(vec![failed]), &first, 200);
    let third = said(&node(vec![READY()]), &second, 300);
    let time = |status: &NodeCacheStatus| {
        condition(status, ConditionType::Ready)
            .last_transition_time
            .0
    };
    assert_eq!(
        (time(&first), time(&second), time(&third)),
        (at(100), at(100), at(300))
    );
}

#[rstest::rstest]
#[case(ImageState::Ready, true)]
#[case(ImageState::Failed, true)]
#[case(ImageState::Waiting, false)]
#[case(ImageState::Pulling, false)]
#[case(ImageState::Evicted, false)]
fn l18_ready_and_failed_are_news_once(#[case] state: ImageState, #[case] news: bool) {
    let before = said(&node(vec![]), &NodeCacheStatus::default(), 100);
    let after = said(&node(vec![image("a", state, None)]), &before, 200);
    assert_eq!(is_news(&before, &after), news);
    assert!(!is_news(&after, &after));
}

/// Beyond its bounds the API server would refuse the whole status.
#[test]
fn lists_and_texts_are_bounded() {
    let long = "é".repeat(1000);
    let mut failed = image("a", ImageState::Failed, Some(Reason::Internal));
    failed.message = Some(long.clone());
    let mut node = node(vec![failed; 300]);
    let outcome = PurgeOutcome {
        reference: "a".to_owned(),
        result: PurgeResult::Purged,
        time: Time(at(0)),
    };
    node.purge = vec![outcome; 300];
    let facts = Facts {
        wishes: &wishes(),
        node: &node,
        mirror: &MirrorState {
            message: long.clone(),
            ..mirror(Some(Reason::NotOurs))
        },
        runtime: Some(&Version {
            name: long.clone(),
            version: long,
        }),
    };
    let status = status(facts, &NodeCacheStatus::default(), at(0));
    assert_eq!((status.images.len(), status.purge.len()), (256, 256));
    let runtime = status.runtime.unwrap();
    assert_eq!(
        (
            runtime.name.chars().count(),
            runtime.version.chars().count()
        ),
        (64, 64)
    );
    assert!(
        status
            .conditions
            .iter()
            .all(|one| one.message.chars().count() <= 317)
    );
}
