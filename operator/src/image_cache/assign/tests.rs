use std::collections::BTreeSet;
use std::time::Duration;

use coral_schema::admin::{PrefetchReason, PrefetchState};
use coral_schema::crd::node_cache::{ImageState, NodeRegistryPolicy, PurgeResult};
use rstest::rstest;

use super::*;
use crate::test_support::{EVERYWHERE, World, object};

mod tags;

const IMAGE: &str = "nginx:1.27";
const MINUTE: Duration = Duration::from_mins(1);

/// Nodes whose images take a slot.
fn busy(assignment: &Assignment) -> Vec<&str> {
    assignment.slots.busy.iter().map(|name| &**name).collect()
}

fn targets(assignment: &Assignment) -> Vec<&str> {
    let nodes = assignment.nodes.iter();
    nodes.map(|plan| &*plan.node.name).collect()
}

fn policies(assignment: &Assignment) -> Vec<Option<NodeRegistryPolicy>> {
    let pairs = assignment.nodes.iter().flat_map(|plan| &plan.pairs);
    pairs
        .map(|pair| pair.grant.map(|grant| grant.policy))
        .collect()
}

fn two_at_once(world: &mut World) -> ValidatedImageCache {
    world.cached(IMAGE);
    object(
        "a",
        &format!("{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 2}}"),
    )
}

#[test]
fn l05_a_wave_waits_for_the_one_before_it() {
    let mut world = World::with_nodes(5);
    let object = two_at_once(&mut world);
    assert_eq!(busy(&world.assign(&object)), ["n000", "n001"]);
    world.reconcile(&object);
    // Not yet in any NodeCache: the last wishes hold the slots.
    assert_eq!(busy(&world.assign(&object)), ["n000", "n001"]);
    world.write();
    assert_eq!(world.told(IMAGE), ["n000", "n001"]);

    world.say("n000", IMAGE, ImageState::Pulling);
    assert_eq!(busy(&world.assign(&object)), ["n000", "n001"]);
    world.say("n000", IMAGE, ImageState::Ready);
    world.reconcile(&object);
    world.write();
    assert_eq!(world.told(IMAGE), ["n000", "n001", "n002"], "grants stay");
}

#[derive(Debug)]
enum Then {
    Failed,
    TriesAgain,
    Repairs,
    NotReady,
    Silent,
    Paused,
    DiskFullForLong,
    DiskFullForAMinute,
    WaitsForCacheForLong,
}

#[rstest]
#[case(Then::Failed, true)]
#[case(Then::TriesAgain, true)]
#[case(Then::Repairs, true)]
#[case(Then::NotReady, true)]
#[case(Then::Silent, true)]
#[case(Then::Paused, true)]
#[case(Then::DiskFullForLong, true)]
#[case(Then::DiskFullForAMinute, false)]
#[case(Then::WaitsForCacheForLong, false)]
fn l05_a_slot_comes_free(#[case] then: Then, #[case] free: bool) {
    use coral_schema::crd::Reason;
    let mut world = World::with_nodes(3);
    world.cached(IMAGE);
    let object = object(
        "a",
        &format!("{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 1}}"),
    );
    world.reconcile(&object);
    world.write();
    world.look();
    world.say("n000", IMAGE, ImageState::Pulling);
    for node in ["n001", "n002"] {
        world.answer(node);
    }
    assert_eq!(busy(&world.assign(&object)), ["n000"]);
    let waits = |world: &mut World, reason, minutes: u32| {
        world.say("n000", IMAGE, ImageState::Waiting);
        let image = &mut world.answer("n000").images[0];
        image.attempts = 0;
        image.reason = Some(reason);
        world.pass(MINUTE * minutes);
    };
    match then {
        Then::Failed => world.say("n000", IMAGE, ImageState::Failed),
        Then::TriesAgain => {
            world.say("n000", IMAGE, ImageState::Failed);
            world.say("n000", IMAGE, ImageState::Pulling);
        }
        Then::Repairs => world.answer("n000").images[0].evictions = 1,
        Then::NotReady => world.set_ready("n000", false),
        Then::Silent => {
            world.answer("n000").observed_generation = Some(0);
            world.look();
            world.pass(MINUTE * 6);
        }
        Then::Paused => {
            let node = world.nodes.get_mut("n000").unwrap();
            let annotations = node.metadata.annotations.get_or_insert_default();
            annotations.insert("coral.dev/paused".to_owned(), "true".to_owned());
        }
        Then::DiskFullForLong => waits(&mut world, Reason::InsufficientStorage, 11),
        Then::DiskFullForAMinute => waits(&mut world, Reason::InsufficientStorage, 1),
        Then::WaitsForCacheForLong => waits(&mut world, Reason::WaitingForCache, 60),
    }
    let expected = if free { "n001" } else { "n000" };
    assert_eq!(busy(&world.assign(&object)), [expected]);
}

#[rstest]
#[case("{}", 25, 3)] // 10 % of 25, rounded up
#[case("{maxConcurrentNodes: '50%'}", 25, 13)]
#[case("{maxConcurrentNodes: 7}", 25, 7)]
#[case("{maxConcurrentNodes: 7}", 3, 3)]
#[case("{}", 1, 1)]
fn l05_how_many_at_once(#[case] rollout: &str, #[case] nodes: usize, #[case] expected: usize) {
    let mut world = World::with_nodes(nodes);
    world.cached(IMAGE);
    let object = object("a", &format!("{EVERYWHERE}\nrollout: {rollout}"));
    assert_eq!(busy(&world.assign(&object)).len(), expected);
}

#[test]
fn all_objects_share_the_slots_and_the_more_important_one_goes_first() {
    let mut world = World::with_nodes(4);
    world.cached(IMAGE);
    world.slots = Slots::new(2);
    let spec = |priority: i32| {
        format!("{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 3, priority: {priority}}}")
    };
    let (low, high) = (object("low", &spec(0)), object("high", &spec(5)));
    world.reconcile(&low);
    assert_eq!(busy(&world.assign(&low)), ["n000", "n001"]);
    // A node that pulls anyhow takes no second slot.
    world.reconcile(&high);
    assert_eq!(busy(&world.assign(&high)), ["n000", "n001"]);
    assert_eq!(world.slots.waiting(), [high.key.clone(), low.key.clone()]);

    world.write();
    world.say("n000", IMAGE, ImageState::Ready);
    world.reconcile(&low);
    assert_eq!(
        busy(&world.assign(&low)),
        ["n001"],
        "what is free is for the other"
    );
    world.reconcile(&high);
    assert_eq!(busy(&world.assign(&high)), ["n001", "n002"]);

    world.slots.set_limit(0);
    world.add_node("n009", &[]);
    assert!(!busy(&world.assign(&high)).contains(&"n009"));
}

#[test]
fn sets_in_sequence() {
    let mut world = World::with_nodes(2);
    world.cached(IMAGE);
    world.cached("redis:7");
    let object = object(
        "a",
        "sets: [{name: one, images: [nginx:1.27], nodes: {}}, {name: two, images: ['redis:7'], nodes: {}}]
rollout: {order: Sequential, maxConcurrentNodes: 2}",
    );
    world.reconcile(&object);
    world.write();
    assert_eq!(
        (world.told(IMAGE).len(), world.told("redis:7").len()),
        (2, 0)
    );
    world.say("n000", IMAGE, ImageState::Ready);
    world.reconcile(&object);
    world.write();
    assert_eq!(world.told("redis:7").len(), 0);
    world.say("n001", IMAGE, ImageState::Failed);
    world.reconcile(&object);
    world.write();
    assert_eq!(
        world.told("redis:7").len(),
        2,
        "one broken node does not hold up the rest"
    );
}

#[test]
fn a_closed_window_grants_nothing_and_takes_nothing_back() {
    let mut world = World::with_nodes(2);
    world.cached(IMAGE);
    let object = object(
        "a",
        &format!(
            "{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 1, window: {{schedule: '0 22 * * *', duration: 6h}}}}"
        ),
    );
    let status = world.reconcile(&object);
    assert!(world.write() == ["n000", "n001"] && world.told(IMAGE).is_empty());
    let ready = &status.conditions[0].message;
    assert!(ready.contains("opens at 2026-06-01T22:00:00Z"), "{ready}");
    world.pass(Duration::from_hours(10));
    world.reconcile(&object);
    world.write();
    assert_eq!(world.told(IMAGE), ["n000"]);
    world.pass(Duration::from_hours(6));
    world.finish_pulls(PurgeResult::Purged);
    world.reconcile(&object);
    world.write();
    assert_eq!(world.told(IMAGE), ["n000"]);
}

#[test]
fn suspended_grants_nothing_and_takes_nothing_back() {
    let mut world = World::with_nodes(3);
    let object = two_at_once(&mut world);
    world.reconcile(&object);
    world.write();
    let suspended = ValidatedImageCache {
        suspend: true,
        ..object
    };
    world.say("n000", IMAGE, ImageState::Ready);
    world.reconcile(&suspended);
    world.write();
    assert_eq!(world.told(IMAGE), ["n000", "n001"]);
}

#[test]
fn replicas_keep_their_nodes_and_are_spread() {
    let mut world = World::new();
    world.cached(IMAGE);
    for (index, zone) in ["x", "x", "x", "y", "y", "z"].iter().enumerate() {
        world.add_node(
            &format!("n{index}"),
            &[(coral_schema::crd::node_target::NodeTarget::ZONE, zone)],
        );
    }
    let spec = |replicas: usize| {
        object(
            "a",
            &format!(
                "sets: [{{name: a, images: [nginx:1.27], nodes: {{replicas: {replicas}}}}}]\n\
                 rollout: {{maxConcurrentNodes: 9}}"
            ),
        )
    };
    world.reconcile(&spec(3));
    world.write();
    for index in 0..6 {
        world.answer(&format!("n{index}"));
    }
    let first: BTreeSet<String> = world.told(IMAGE).into_iter().map(str::to_owned).collect();
    assert!(first.contains("n5"), "each zone has one: {first:?}");
    assert!(first.contains("n3") || first.contains("n4"));

    // The operator starts anew: everything comes from owners[].
    world.wishes = crate::node_cache::wishes::Wishes::default();
    let more = world.assign(&spec(4));
    assert!(
        targets(&more)
            .iter()
            .filter(|name| first.contains(**name))
            .count()
            == 3
    );

    // A short absence changes nothing, a long one does.
    world.set_ready("n5", false);
    world.pass(MINUTE * 5);
    assert!(targets(&world.assign(&spec(3))).contains(&"n5"));
    world.pass(MINUTE);
    let replaced = world.assign(&spec(3));
    assert_eq!(targets(&replaced).len(), 3);
    assert!(!targets(&replaced).contains(&"n5"));

    // Of too many the youngest goes.
    world.set_ready("n5", true);
    let young = world.nodes.get_mut("n5").unwrap();
    young.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        world.now,
    ));
    assert!(!targets(&world.assign(&spec(2))).contains(&"n5"));
}

#[test]
fn more_replicas_than_nodes() {
    let mut world = World::with_nodes(2);
    let object = object(
        "a",
        "sets: [{name: a, images: [nginx:1.27], nodes: {replicas: 5}}]",
    );
    let assignment = world.assign(&object);
    assert_eq!(
        (assignment.nodes.len(), assignment.short_of_replicas),
        (2, 3)
    );
}

#[test]
fn l14_a_node_that_returns_under_its_name_is_another_one() {
    let mut world = World::with_nodes(1);
    let object = two_at_once(&mut world);
    world.reconcile(&object);
    world.write();
    world.finish_pulls(PurgeResult::Purged);
    assert_eq!(world.reconcile(&object).nodes.ready, 1);

    world.nodes.get_mut("n000").unwrap().metadata.uid = Some("another".to_owned());
    let status = world.reconcile(&object);
    assert_eq!((status.nodes.desired, status.nodes.ready), (1, 0));
    world.write();
    assert_eq!(world.stored["n000"].spec.node_uid, "another");
    // The old report stands there still, and speaks of another node.
    assert_eq!(world.reconcile(&object).nodes.ready, 0);
    world.say("n000", IMAGE, ImageState::Ready);
    assert_eq!(world.reconcile(&object).nodes.ready, 1);
}

#[test]
fn auto_waits_for_manifests_and_goes_by_way_of_the_cache() {
    use PrefetchState::{Failed, Queued, Running};
    let mut world = World::with_nodes(1);
    let object = object("a", EVERYWHERE);
    let mut way = |state, reason| {
        world.progress(IMAGE, state, reason);
        world.assign(&object).ways[0]
    };
    assert_eq!(way(Queued, None), Way::AwaitCache);
    assert_eq!(
        way(Running, None),
        Way::Open(NodeRegistryPolicy::MirrorOnly)
    );
    for reason in [PrefetchReason::NotFound, PrefetchReason::RateLimited] {
        assert_eq!(way(Failed, Some(reason)), Way::AwaitCache);
    }
    for reason in [PrefetchReason::Unauthorized, PrefetchReason::StorageFull] {
        assert_eq!(way(Failed, Some(reason)), Way::OneAhead);
    }
}

#[test]
fn auto_without_the_cache_sends_one_node_ahead() {
    let mut world = World::with_nodes(3);
    let reference = "quay.io/x/y:1";
    let object = object(
        "a",
        &format!(
            "sets: [{{name: a, images: ['{reference}'], nodes: {{}}}}]\nrollout: {{maxConcurrentNodes: 3}}"
        ),
    );
    world.reconcile(&object);
    world.write();
    assert_eq!(world.told(reference), ["n000"]);
    world.say("n000", reference, ImageState::Failed);
    world.reconcile(&object);
    world.write();
    assert_eq!(
        world.told(reference),
        ["n000", "n001"],
        "the next one leads"
    );
    world.say("n001", reference, ImageState::Ready);
    world.reconcile(&object);
    world.write();
    assert_eq!(world.told(reference).len(), 3);
    assert!(
        policies(&world.assign(&object))
            .iter()
            .all(|policy| *policy == Some(NodeRegistryPolicy::Default))
    );
}

#[test]
fn auto_leaves_a_cache_that_is_away_for_long_one_node_first() {
    use NodeRegistryPolicy::{Default, MirrorOnly};
    let mut world = World::with_nodes(3);
    world.cached(IMAGE);
    let object = object(
        "a",
        &format!("{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 3}}"),
    );
    world.reconcile(&object);
    world.write();
    world.say("n000", IMAGE, ImageState::Ready);
    for node in ["n001", "n002"] {
        world.answer(node);
    }
    let step = |world: &mut World| {
        world.reconcile(&object);
        world.write();
        policies(&world.assign(&object))
            .into_iter()
            .map(Option::unwrap)
            .collect::<Vec<_>>()
    };
    world.cache.away = Some(MINUTE * 4);
    assert_eq!(step(&mut world), [MirrorOnly; 3]);
    world.cache.away = Some(MINUTE * 5);
    assert_eq!(step(&mut world), [MirrorOnly, Default, MirrorOnly]);
    assert_eq!(
        step(&mut world),
        [MirrorOnly, Default, MirrorOnly],
        "one, not one more each time"
    );
    world.cache.away = None;
    assert_eq!(step(&mut world), [MirrorOnly; 3], "back before it was done");
    world.cache.away = Some(MINUTE * 5);
    step(&mut world);
    world.say("n001", IMAGE, ImageState::Ready);
    assert_eq!(step(&mut world), [MirrorOnly, Default, Default]);
    world.cache.away = None;
    assert_eq!(
        step(&mut world),
        [MirrorOnly, Default, Default],
        "decided once"
    );
}

#[test]
fn explicit_policies_need_no_cache() {
    let mut world = World::with_nodes(1);
    world.cache.registries = None;
    for (policy, expected) in [
        ("Default", NodeRegistryPolicy::Default),
        ("MirrorOnly", NodeRegistryPolicy::MirrorOnly),
    ] {
        let object = object("a", &format!("{EVERYWHERE}\nregistryPolicy: {policy}"));
        assert_eq!(policies(&world.assign(&object)), [Some(expected)]);
    }
}

#[test]
fn names_that_do_not_exist() {
    let mut world = World::with_nodes(2);
    let object = object(
        "a",
        "sets: [{name: a, images: [nginx:1.27], nodes: {names: [n001, n009]}}]",
    );
    let assignment = world.assign(&object);
    assert_eq!(targets(&assignment), ["n001"]);
    assert_eq!(assignment.missing, ["n009"]);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(48))]

    /// Whatever warmers say: never more nodes at work than allowed, no grant is lost while its node stays, and in the end
    /// everything is told.
    #[test]
    fn l05_slots_hold_in_any_order(
        nodes in 1_usize..20,
        limit in 1_usize..5,
        events in proptest::collection::vec((0_usize..20, 0_u8..4), 0..60),
    ) {
        let mut world = World::with_nodes(nodes);
        world.cached(IMAGE);
        let object = object("a", &format!("{EVERYWHERE}\nrollout: {{maxConcurrentNodes: {limit}}}"));
        let mut told = BTreeSet::new();
        for (node, event) in events {
            world.reconcile(&object);
            world.write();
            let now: BTreeSet<String> = world.told(IMAGE).into_iter().map(str::to_owned).collect();
            proptest::prop_assert!(told.is_subset(&now));
            told = now;
            let assignment = world.assign(&object);
            proptest::prop_assert!(assignment.slots.busy.len() <= limit);
            let name = format!("n{:03}", node % nodes);
            if told.contains(&name) {
                let state = [ImageState::Pulling, ImageState::Ready, ImageState::Failed, ImageState::Waiting];
                world.say(&name, IMAGE, state[usize::from(event)]);
            }
        }
        for _ in 0..=nodes {
            world.finish_pulls(PurgeResult::Purged);
            world.reconcile(&object);
            world.write();
        }
        world.finish_pulls(PurgeResult::Purged);
        proptest::prop_assert_eq!(world.told(IMAGE).len(), nodes);
        proptest::prop_assert_eq!(world.reconcile(&object).nodes.ready as usize, nodes);
    }
}
