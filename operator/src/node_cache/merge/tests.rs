use coral_schema::crd::node_cache::{ImageState, PurgeResult};
use rstest::rstest;

use super::*;
use crate::image_cache::finalizer::{Decision, decide};
use crate::image_cache::validate::ValidatedImageCache;
use crate::test_support::{EVERYWHERE, World, object};

const IMAGE: &str = "nginx:1.27";
const PURGE: &str = "retention: {deletionPolicy: PurgeUnused}";

fn purging(name: &str) -> ValidatedImageCache {
    object(name, &format!("{EVERYWHERE}\n{PURGE}"))
}

fn retaining(name: &str) -> ValidatedImageCache {
    object(name, EVERYWHERE)
}

fn deleted(world: &World, object: &ValidatedImageCache) -> ValidatedImageCache {
    ValidatedImageCache {
        deleted: Some(world.now),
        ..object.clone()
    }
}

/// A node that holds the image for these objects.
fn holding(objects: &[&ValidatedImageCache]) -> World {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    for object in objects {
        world.reconcile(object);
    }
    world.write();
    world.finish_pulls(PurgeResult::Purged);
    world
}

fn purged(world: &World) -> Vec<&str> {
    let wishes = world.stored["n000"].spec.purge.iter();
    wishes.map(|wish| wish.reference.as_str()).collect()
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (a, b) = (purging("a"), retaining("b"));
    let mut world = holding(&[&a, &b]);
    assert!(world.write().is_empty());
    let bytes = serde_json::to_string(&world.merge("n000").spec).unwrap();
    // The objects in another order, and everything looked at anew.
    world.wishes = Wishes::default();
    world.reconcile(&b);
    world.reconcile(&a);
    assert_eq!(
        serde_json::to_string(&world.merge("n000").spec).unwrap(),
        bytes
    );
    insta::assert_snapshot!(bytes);
}

#[test]
fn l08_purged_when_the_last_owner_leaves_and_says_so() {
    let (a, b) = (retaining("a"), purging("b"));
    let mut world = holding(&[&a, &b]);
    world.wishes.remove(&a.key);
    world.write();
    assert_eq!(world.told(IMAGE), ["n000"], "another owner is left");
    assert!(purged(&world).is_empty());

    let gone = deleted(&world, &b);
    world.reconcile(&gone);
    world.write();
    assert!(world.told(IMAGE).is_empty());
    assert_eq!(purged(&world), [IMAGE]);
}

#[test]
fn l09_a_pin_lasts_as_long_as_an_owner_asks_for_it() {
    let a = retaining("a");
    let b = object(
        "b",
        &format!("{EVERYWHERE}\nretention: {{gcProtection: Pin}}"),
    );
    let mut world = holding(&[&a, &b]);
    let protected = |world: &World| world.stored["n000"].spec.images[0].protect;
    assert!(protected(&world), "whoever decides the rest");
    world.wishes.remove(&b.key);
    world.write();
    assert!(!protected(&world));
    assert_eq!(world.told(IMAGE), ["n000"]);
}

#[test]
fn l08_the_last_owner_retains() {
    let (a, b) = (purging("a"), retaining("b"));
    let mut world = holding(&[&a, &b]);
    let gone = deleted(&world, &a);
    world.reconcile(&gone);
    world.write();
    world.wishes.remove(&b.key);
    world.write();
    assert!(world.told(IMAGE).is_empty() && purged(&world).is_empty());
}

#[test]
fn l08_of_owners_that_leave_together_all_have_to_say_so() {
    let (a, b) = (purging("a"), retaining("b"));
    let mut world = holding(&[&a, &b]);
    let gone = deleted(&world, &a);
    world.reconcile(&gone);
    world.wishes.remove(&b.key);
    world.write();
    assert!(purged(&world).is_empty());
}

#[test]
fn l08_what_left_the_spec_is_purged_and_the_rest_stays() {
    let before = object(
        "a",
        &format!("sets: [{{name: a, images: [nginx:1.27, 'redis:7'], nodes: {{}}}}]\n{PURGE}"),
    );
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    world.cached("redis:7");
    world.reconcile(&before);
    world.write();
    world.reconcile(&purging("a"));
    world.write();
    assert_eq!(
        (purged(&world), world.told(IMAGE)),
        (vec!["redis:7"], vec!["n000"])
    );

    // Wished again: withdrawn.
    world.reconcile(&before);
    world.write();
    assert!(purged(&world).is_empty());
    assert_eq!(world.told("redis:7"), ["n000"]);
}

#[test]
fn l08_a_pod_names_it_under_another_spelling() {
    let a = purging("a");
    let mut world = holding(&[&a]);
    world
        .pods
        .insert("docker.io/library/nginx:1.27".parse().unwrap());
    let gone = deleted(&world, &a);
    world.reconcile(&gone);
    let merged = world.merge("n000");
    assert_eq!(merged.in_use, [(IMAGE.to_owned(), vec![a.key.clone()])]);
    world.write();
    assert!(world.told(IMAGE).is_empty() && purged(&world).is_empty());
}

#[test]
fn l08_without_a_list_of_pods_everything_stays() {
    let a = purging("a");
    let mut world = holding(&[&a]);
    let gone = deleted(&world, &a);
    world.reconcile(&gone);
    let cluster = Cluster::default();
    let stored = world.kept("n000");
    let around = Circumstances {
        uid: "uid-n000",
        paused: false,
        stored: stored.as_ref(),
        pods: None,
        cluster: &cluster,
        now: world.now,
    };
    let merged = merge("n000", &world.wishes, &around);
    assert_eq!(merged.undecided, [IMAGE]);
    assert_eq!(merged.spec.images, world.stored["n000"].spec.images);
}

#[rstest]
#[case(false)]
#[case(true)]
fn an_object_that_cannot_be_evaluated_keeps_its_wishes(#[case] restarted: bool) {
    let (a, b) = (purging("a"), purging("b"));
    let mut world = holding(&[&a, &b]);
    if restarted {
        world.wishes = Wishes::default();
    }
    world.wishes.keep(&a.key);
    let gone = deleted(&world, &b);
    world.reconcile(&gone);
    world.write();
    assert_eq!(world.told(IMAGE), ["n000"]);
    assert_eq!(world.stored["n000"].spec.images[0].owners, ["ml/a/a"]);
    assert!(purged(&world).is_empty());
}

#[test]
fn the_more_important_object_decides_and_the_other_is_told() {
    let a = object("a", &format!("{EVERYWHERE}\nretry: {{limit: 3}}"));
    let b = object(
        "b",
        &format!("{EVERYWHERE}\nrollout: {{priority: 1}}\nretry: {{limit: 9}}"),
    );
    let mut world = holding(&[&a, &b]);
    let image = &world.stored["n000"].spec.images[0];
    assert_eq!((image.priority, image.retry.limit), (1, Some(9)));
    assert_eq!(image.owners, ["ml/a/a", "ml/b/a"]);
    let status = world.reconcile(&a);
    let failure = &status.failures[0];
    assert_eq!(failure.reason, coral_schema::crd::Reason::Conflict);
    assert!(failure.message.contains("ml/b"), "{}", failure.message);
    assert!(world.reconcile(&b).failures.is_empty());

    // Among equals the older one decides.
    let older = ValidatedImageCache {
        priority: 1,
        created: a.created - jiff::SignedDuration::from_hours(1),
        ..a.clone()
    };
    world.reconcile(&older);
    world.write();
    assert_eq!(world.stored["n000"].spec.images[0].retry.limit, Some(3));
}

#[test]
fn more_owners_than_fit() {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    for index in 0..20 {
        world.reconcile(&retaining(&format!("a{index:02}")));
    }
    let replicas = object(
        "z",
        "sets: [{name: r, images: [nginx:1.27], nodes: {replicas: 1}}]",
    );
    world.reconcile(&replicas);
    world.write();
    let image = &world.stored["n000"].spec.images[0];
    assert_eq!((image.owners.len(), image.more_owners), (16, 5));
    assert_eq!(image.owners[0], "ml/z/r");
}

#[test]
fn a_full_list_leaves_out_by_priority_and_says_so() {
    let list = |name: &str, count: usize, priority: i32| {
        let images: Vec<String> = (0..count)
            .map(|index| format!("{name}/i{index:03}:1"))
            .collect();
        let images = images.join(", ");
        object(
            name,
            &format!(
                "sets: [{{name: a, images: [{images}], nodes: {{}}}}]\nregistryPolicy: Default\nrollout: {{priority: {priority}}}"
            ),
        )
    };
    let (low, high) = (list("low", 200, 0), list("high", 100, 1));
    let mut world = World::with_nodes(1);
    world.reconcile(&low);
    world.reconcile(&high);
    world.write();
    let images = &world.stored["n000"].spec.images;
    assert_eq!(images.len(), MOST_IMAGES);
    assert_eq!(
        images
            .iter()
            .filter(|image| image.reference.starts_with("high"))
            .count(),
        100
    );
    let status = world.reconcile(&low);
    assert_eq!(status.failures.len(), 20);
    assert!(
        status
            .failures
            .iter()
            .all(|failure| failure.reason == coral_schema::crd::Reason::NodeListFull)
    );
    assert_eq!(
        status
            .entries
            .iter()
            .filter(|entry| entry.failed_nodes == 1)
            .count(),
        44
    );
    assert!(
        world.write().is_empty(),
        "what is left out does not come and go"
    );
    world.reconcile(&high);
    assert!(world.reconcile(&high).failures.is_empty());
    assert!(world.reconcile(&low).failures.len() == 20);
}

#[rstest]
#[case(None, 1, 5)]
#[case(None, 5000, 100)]
#[case(Some(5), 251, 5)] // 6 s would be right
#[case(Some(5), 500, 10)] // off by two
#[case(Some(100), 2501, 100)]
#[case(Some(100), 2500, 50)]
fn report_intervals(#[case] now: Option<u64>, #[case] nodes: usize, #[case] expected: u64) {
    let stored = now.map(|seconds| {
        let world = holding(&[&retaining("a")]);
        let mut stored = world.kept("n000").unwrap();
        stored.spec.report_interval = HumanDuration::from_secs(seconds);
        stored
    });
    assert_eq!(
        report_interval(stored.as_ref(), nodes),
        HumanDuration::from_secs(expected)
    );
}

#[test]
fn l16a_the_spelling_is_kept() {
    let mut world = World::with_nodes(1);
    let spellings = [
        "nginx:1.27",
        "docker.io/library/nginx:1.27",
        "library/nginx:1.27",
    ];
    let object = object(
        "a",
        &format!(
            "sets: [{{name: a, images: ['{}'], nodes: {{}}}}]\nregistryPolicy: Default",
            spellings.join("', '")
        ),
    );
    world.reconcile(&object);
    world.write();
    for spelling in spellings {
        assert_eq!(world.told(spelling), ["n000"]);
    }
}

#[test]
fn l23_the_finalizer_goes_when_nodes_answered_or_the_time_is_over() {
    let a = purging("a");
    let mut world = holding(&[&a]);
    let now = world.now;
    assert_eq!(decide(&a, false, world.look(), now), Decision::Add);
    let kept = retaining("a");
    assert_eq!(
        decide(&kept, true, world.look(), now),
        Decision::Remove { unanswered: 0 }
    );

    let gone = deleted(&world, &a);
    let until = world.now + Duration::from_mins(10);
    let wait = Decision::Wait { nodes: 1, until };
    assert_eq!(
        decide(&gone, true, world.look(), now),
        wait,
        "not yet taken off the list"
    );
    world.reconcile(&gone);
    world.write();
    assert_eq!(
        decide(&gone, true, world.look(), now),
        wait,
        "not yet answered"
    );
    assert_eq!(
        decide(&gone, true, world.look(), until),
        Decision::Remove { unanswered: 1 }
    );
    world.finish_pulls(PurgeResult::InUse);
    let done = Decision::Remove { unanswered: 0 };
    assert_eq!(
        decide(&gone, true, world.look(), now),
        done,
        "InUse is final"
    );
    world.write();
    assert!(
        purged(&world).is_empty(),
        "an answered wish leaves the list"
    );
    assert_eq!(decide(&gone, true, world.look(), now), done);
}

#[test]
fn l23_a_node_that_vanished_is_not_waited_for() {
    let a = purging("a");
    let mut world = holding(&[&a]);
    let gone = deleted(&world, &a);
    world.reconcile(&gone);
    world.write();
    world.nodes.clear();
    let now = world.now;
    assert_eq!(
        decide(&gone, true, world.look(), now),
        Decision::Remove { unanswered: 0 }
    );
}

#[test]
fn a_wish_to_purge_ends() {
    let a = purging("a");
    let mut world = holding(&[&a]);
    let gone = deleted(&world, &a);
    world.reconcile(&gone);
    world.write();
    let until = world.stored["n000"].spec.purge[0].not_after.0;
    assert_eq!(until, world.now + Duration::from_mins(10));
    world.pass(Duration::from_mins(9));
    assert!(world.write().is_empty());
    world.pass(Duration::from_mins(1));
    world.write();
    assert!(purged(&world).is_empty());
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(48))]

    /// Whoever comes and goes: while somebody wants it, it is on the list and not in purge; nothing is in both.
    #[test]
    fn l08_never_purged_while_wanted(steps in proptest::collection::vec((0_usize..3, proptest::bool::ANY), 1..30)) {
        let objects = [purging("a"), purging("b"), retaining("c")];
        let mut world = World::with_nodes(1);
        world.cached(IMAGE);
        let mut wanted = [false; 3];
        for (index, wants) in steps {
            wanted[index] = wants;
            let object = if wants { objects[index].clone() } else { deleted(&world, &objects[index]) };
            world.reconcile(&object);
            world.write();
            world.say_if_told("n000", IMAGE, ImageState::Ready);
            let told = !world.told(IMAGE).is_empty();
            proptest::prop_assert_eq!(told, wanted.contains(&true));
            proptest::prop_assert!(!told || purged(&world).is_empty());
        }
    }
}

/// Only the winner decides how an image is pulled, but anybody may ask for another try.
#[test]
fn another_try_is_made_whoever_asks() {
    let (winner, loser) = (retaining("a"), retaining("b"));
    let mut world = holding(&[&winner, &loser]);
    let mut wishes = world.wishes.of(&loser.key).unwrap().clone();
    let told = wishes.nodes.get_mut("n000").unwrap();
    Arc::make_mut(told)[0].revision = 1;
    world.wishes.set(wishes);
    assert_eq!(world.merge("n000").spec.images[0].revision, 1);
}
