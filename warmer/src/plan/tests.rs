use coral_schema::crd::node_cache::NodeImage;
use rstest::rstest;

use super::*;
use crate::cri::ImageFacts;
use crate::presence::{Cause, Evictions};
use crate::record::Failure;

const GIB: u64 = 1 << 30;
const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// A node with 100 GiB, half full, that wishes for one image and has nothing.
struct Node {
    spec: NodeCacheSpec,
    found: Found,
    record: Record,
    running: BTreeMap<String, Charge>,
    space: Option<Space>,
    disks_busy: bool,
    cache: BTreeMap<String, Asked>,
    not_before: BTreeMap<String, Timestamp>,
    runtime_answers: bool,
}

impl Node {
    fn wishing(images: &serde_json::Value) -> Self {
        let spec = serde_json::json!({ "nodeUID": "u", "images": images });
        let spec: NodeCacheSpec = serde_json::from_value(spec).unwrap();
        let found = spec
            .images
            .iter()
            .map(|image| (image.reference.clone(), None));
        Self {
            found: found.collect(),
            spec,
            record: Record::default(),
            running: BTreeMap::new(),
            space: Some(Space {
                capacity: 100 * GIB,
                used: 50 * GIB,
            }),
            disks_busy: false,
            cache: BTreeMap::new(),
            not_before: BTreeMap::new(),
            runtime_answers: true,
        }
    }

    fn one() -> Self {
        Self::wishing(
            &serde_json::json!([{ "ref": "a", "sizeBytes": GIB, "registryPolicy": "MirrorOnly" }]),
        )
    }

    fn plan_at(&self, now: Timestamp) -> Vec<(&NodeImage, Step)> {
        plan(&Situation {
            spec: &self.spec,
            runtime_answers: self.runtime_answers,
            found: &self.found,
            record: &self.record,
            running: &self.running,
            space: self.space,
            disks_busy: self.disks_busy,
            cache: &self.cache,
            not_before: &self.not_before,
            now,
        })
    }

    fn only_step(&self) -> Step {
        self.plan_at(NOW).remove(0).1
    }

    fn starts(&self) -> Vec<&str> {
        let plan = self.plan_at(NOW);
        let started = |name: &str| {
            plan.iter()
                .any(|(image, step)| image.reference == name && matches!(step, Step::Pull(_)))
        };
        let names = self
            .spec
            .images
            .iter()
            .map(|image| image.reference.as_str());
        names.filter(|name| started(name)).collect()
    }

    fn entry(&mut self) -> &mut Entry {
        self.record.images.entry("a".to_owned()).or_default()
    }
}

fn reason(step: Step) -> Option<Reason> {
    match step {
        Step::Wait(wait) => wait.reason,
        other => panic!("{other:?} is no wait"),
    }
}

fn answered(answer: Answer) -> Asked {
    Asked::Answered {
        answer,
        until: NOW + SignedDuration::from_secs(10),
    }
}

fn seconds(seconds: i64) -> Timestamp {
    NOW + SignedDuration::from_secs(seconds)
}

/// Everything stands in the way at once; what is taken away shows the next check in line.
#[test]
fn l07_the_checks_before_a_pull_have_their_order() {
    let mut node = Node::one();
    node.spec.paused = true;
    node.disks_busy = true;
    node.space = Some(Space {
        capacity: 100 * GIB,
        used: 90 * GIB,
    });
    node.cache.insert("a".to_owned(), answered(Answer::Absent));
    let charge = Charge {
        lane: Lane::Large,
        bytes: 0,
    };
    node.running.insert("b".to_owned(), charge);
    node.found
        .insert("a".to_owned(), Some(ImageFacts::default()));
    assert_eq!(node.only_step(), Step::Held, "present comes first");
    node.found.insert("a".to_owned(), None);
    assert_eq!(reason(node.only_step()), Some(Reason::Suspended));
    node.spec.paused = false;
    let Step::Wait(pressure) = node.only_step() else {
        panic!()
    };
    assert!(
        pressure.message.contains("under disk pressure"),
        "{}",
        pressure.message
    );
    node.space = Some(Space {
        capacity: 100 * GIB,
        used: 78 * GIB,
    });
    let Step::Wait(budget) = node.only_step() else {
        panic!()
    };
    assert!(
        budget.message.contains("the budget ends at 80 %"),
        "{}",
        budget.message
    );
    node.space = Some(Space {
        capacity: 100 * GIB,
        used: 50 * GIB,
    });
    assert_eq!(reason(node.only_step()), Some(Reason::WaitingForCache));
    node.cache.insert("a".to_owned(), answered(Answer::Held));
    assert_eq!(reason(node.only_step()), Some(Reason::NodeUnderPressure));
    node.disks_busy = false;
    assert_eq!(reason(node.only_step()), None, "no slot");
    node.running.clear();
    assert_eq!(node.starts(), ["a"]);
}

#[rstest]
#[case::never_asked(None, None)]
#[case::stale(Some(Asked::Answered { answer: Answer::Absent, until: NOW }), None)]
#[case::asking(Some(Asked::Asking), Some("is being asked"))]
#[case::absent(Some(answered(Answer::Absent)), Some("does not hold it yet"))]
#[case::elsewhere(Some(answered(Answer::NotMirrored)), Some("mirror settings"))]
#[case::down(Some(answered(Answer::Unreachable("refused".to_owned()))), Some("does not answer: refused"))]
fn l07_mirror_only_asks_the_cache_first(
    #[case] asked: Option<Asked>,
    #[case] message: Option<&str>,
) {
    let mut node = Node::one();
    node.cache
        .extend(asked.map(|asked| ("a".to_owned(), asked)));
    match (node.only_step(), message) {
        (Step::Ask, None) => {}
        (Step::Wait(wait), Some(message)) => {
            assert_eq!(wait.reason, Some(Reason::WaitingForCache));
            assert!(wait.message.contains(message), "{}", wait.message);
        }
        (step, _) => panic!("{step:?}"),
    }
    node.spec.images[0].registry_policy = NodeRegistryPolicy::Default;
    assert_eq!(node.starts(), ["a"], "the default policy asks nobody");
    node.spec.images[0].registry_policy = NodeRegistryPolicy::Unknown;
    assert!(
        node.starts().is_empty(),
        "an unknown policy is the stricter one"
    );
}

#[test]
fn l03_room_is_reserved_for_what_runs_and_what_this_plan_starts() {
    let image = |name: &str, size: u64| serde_json::json!({ "ref": name, "sizeBytes": size });
    let mut node = Node::wishing(&serde_json::json!([
        image("a", 6 * GIB),
        image("b", 5 * GIB),
        image("c", 3 * GIB)
    ]));
    node.spec.budget.concurrent_pulls = 9;
    // 30 GiB up to 80 %; an image takes three times its compressed size.
    assert_eq!(node.starts(), ["a", "c"], "18 + 9 fit, 18 + 15 do not");
    let charge = Charge {
        lane: Lane::Large,
        bytes: 20 * GIB,
    };
    node.running.insert("x".to_owned(), charge);
    assert_eq!(node.starts(), ["c"]);
    node.running.clear();
    node.record.ratios.learn("b", GIB, 6 * GIB);
    node.record.ratios.learn("a", GIB, GIB);
    assert_eq!(node.starts(), ["a", "c"], "a takes 6 by now, b takes 30");
    node.space = None;
    assert!(
        node.starts().is_empty(),
        "what cannot be measured is not filled"
    );
}

#[test]
fn l04_a_large_image_does_not_block_a_small_one() {
    let image = |name: &str, size: u64| serde_json::json!({ "ref": name, "sizeBytes": size });
    let mut node = Node::wishing(&serde_json::json!([
        image("large-1", GIB), image("large-2", GIB), image("small-1", 1), image("small-2", 1), { "ref": "unknown" }
    ]));
    assert_eq!(node.starts(), ["large-1", "small-1"]);
    node.spec.budget.concurrent_pulls = 3;
    assert_eq!(node.starts(), ["large-1", "large-2", "small-1", "unknown"]);
    node.spec.images[1].priority = 5;
    node.spec.budget.concurrent_pulls = 1;
    assert_eq!(
        node.starts(),
        ["large-2", "small-1"],
        "the more wanted first"
    );
}

/// The kubelet frees down to 80 %: nothing of ours takes that room again, whatever is missing.
#[test]
fn l16b_what_a_collection_freed_is_not_filled_again() {
    let mut node = Node::one();
    node.spec.images[0].registry_policy = NodeRegistryPolicy::Default;
    node.spec.images[0].size_bytes = Some(1);
    for (used, pulls) in [(79, true), (80, false), (84, false)] {
        node.space = Some(Space {
            capacity: 100 * GIB,
            used: used * GIB,
        });
        assert_eq!(!node.starts().is_empty(), pulls, "at {used} %");
    }
}

#[test]
fn l05_a_new_wish_waits_for_its_moment() {
    let mut node = Node::one();
    node.spec.images[0].registry_policy = NodeRegistryPolicy::Default;
    node.not_before.insert("a".to_owned(), seconds(3));
    let Step::Wait(wait) = node.only_step() else {
        panic!()
    };
    assert_eq!((wait.reason, wait.until), (None, Some(seconds(3))));
    assert!(matches!(node.plan_at(seconds(3))[0].1, Step::Pull(_)));
}

fn failure(attempts: u32, next: Timestamp) -> Failure {
    Failure {
        attempts,
        revision: 0,
        reason: Reason::NotFound,
        message: "not there".to_owned(),
        next,
    }
}

#[test]
fn a_failed_pull_is_tried_again_in_time() {
    let mut node = Node::one();
    node.spec.images[0].registry_policy = NodeRegistryPolicy::Default;
    node.entry().failure = Some(failure(3, seconds(20)));
    let Step::Wait(wait) = node.only_step() else {
        panic!()
    };
    assert_eq!(
        (wait.state, wait.until),
        (ImageState::Failed, Some(seconds(20)))
    );
    assert!(matches!(node.plan_at(seconds(20))[0].1, Step::Pull(_)));
    node.entry().failure = Some(failure(3, seconds(1_000_000)));
    let Step::Wait(wait) = node.only_step() else {
        panic!()
    };
    assert_eq!(
        wait.until,
        Some(seconds(300)),
        "a wrong clock is bounded by the longest back-off"
    );
    node.spec.images[0].retry.limit = Some(3);
    let Step::Wait(wait) = node.only_step() else {
        panic!()
    };
    assert_eq!(
        (wait.state, wait.until),
        (ImageState::Failed, None),
        "the limit is reached"
    );
    node.spec.images[0].revision = 1;
    assert_eq!(node.starts(), ["a"], "asked for anew");
}

#[test]
fn l02_an_image_that_the_node_keeps_removing_is_left_away() {
    let mut node = Node::one();
    node.spec.images[0].registry_policy = NodeRegistryPolicy::Default;
    let mut evictions = Evictions::default();
    (0..3).for_each(|_| evictions.gone(None, Cause::DiskGC, NOW));
    node.entry().evictions = evictions;
    let Step::Wait(wait) = node.only_step() else {
        panic!()
    };
    assert_eq!(
        (wait.state, wait.reason),
        (ImageState::Evicted, Some(Reason::EvictedRepeatedly))
    );
    assert!(wait.message.contains("DiskGC"), "{}", wait.message);
    assert!(matches!(
        node.plan_at(wait.until.unwrap())[0].1,
        Step::Pull(_)
    ));
    node.spec.images[0].revision = 1;
    assert_eq!(node.starts(), ["a"], "asked for anew");
}

#[test]
fn l02_what_shall_not_be_repulled_stays_away_until_it_is_asked_for() {
    let mut node = Node::one();
    node.spec.images[0].registry_policy = NodeRegistryPolicy::Default;
    node.spec.images[0].on_eviction = OnEviction::Ignore;
    assert_eq!(node.starts(), ["a"], "what was never held is no eviction");
    node.entry().evictions.gone(None, Cause::AgeGC, NOW);
    for now in [NOW, seconds(1_000_000)] {
        let (_, Step::Wait(wait)) = node.plan_at(now).remove(0) else {
            panic!()
        };
        let said = (wait.state, wait.reason, wait.until);
        assert_eq!(said, (ImageState::Evicted, Some(Reason::Evicted), None));
        assert!(wait.message.contains("AgeGC"), "{}", wait.message);
    }
    node.found
        .insert("a".to_owned(), Some(ImageFacts::default()));
    assert_eq!(node.only_step(), Step::Held, "somebody else brought it");
    node.found.insert("a".to_owned(), None);
    node.spec.images[0].revision = 1;
    assert_eq!(node.starts(), ["a"]);
    node.spec.images[0].revision = 0;
    node.spec.images[0].on_eviction = OnEviction::Repull;
    assert_eq!(node.starts(), ["a"]);
}

#[test]
fn l22_the_runtime_decides_what_is_there() {
    let mut node = Node::one();
    node.spec.images[0].registry_policy = NodeRegistryPolicy::Default;
    node.found.clear();
    assert_eq!(
        node.only_step(),
        Step::Unseen,
        "before the first look nothing is pulled"
    );
    node.found
        .insert("a".to_owned(), Some(ImageFacts::default()));
    assert_eq!(
        node.only_step(),
        Step::Held,
        "found, though no record says so"
    );
    node.spec.images[0].revision = 2;
    node.entry().revision = 1;
    assert_eq!(node.starts(), ["a"], "raised: again although present");
    node.entry().revision = 2;
    assert_eq!(node.only_step(), Step::Held);
    node.entry().revision = 1;
    node.runtime_answers = false;
    assert_eq!(reason(node.only_step()), Some(Reason::RuntimeUnavailable));
}
