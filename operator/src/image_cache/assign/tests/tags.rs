//! Tags that move: what nodes are sent for under each policy.

use super::*;
use crate::image_cache::validate::validate;
use crate::test_support::image_cache;

const FOLLOW: &str = "rollout: {maxConcurrentNodes: 2}\nrefresh: {tagPolicy: Follow}";

/// Five nodes that hold what the cache has.
fn warm(policy: &str) -> (World, ValidatedImageCache, String) {
    let mut world = World::with_nodes(5);
    let object = object("a", &format!("{EVERYWHERE}\n{policy}"));
    let digest = world.moved(IMAGE, "first");
    for _ in 0..3 {
        world.reconcile(&object);
        world.write();
        for node in NODES {
            if world.told(IMAGE).contains(&node) {
                world.pulled(node, IMAGE, &digest);
            }
        }
    }
    let status = world.reconcile(&object);
    assert_eq!(
        (status.nodes.ready, status.entries[0].drifted_nodes),
        (5, 0)
    );
    assert!(world.write().is_empty());
    (world, object, digest)
}

const NODES: [&str; 5] = ["n000", "n001", "n002", "n003", "n004"];

fn revisions(world: &World) -> Vec<u64> {
    NODES.iter().map(|node| world.sent(node, IMAGE).0).collect()
}

#[test]
fn l04_newer_content_is_followed_in_waves() {
    let (mut world, object, first) = warm(FOLLOW);
    let second = world.moved(IMAGE, "second");
    let status = world.reconcile(&object);
    assert_eq!((status.nodes.ready, status.nodes.waiting), (0, 5));
    assert_eq!(status.entries[0].drifted_nodes, 5);
    assert_eq!(world.write(), ["n000", "n001"], "nobody else is written");
    assert_eq!(world.sent("n001", IMAGE), (1, Some(&*second)));
    assert_eq!(world.sent("n002", IMAGE), (0, Some(&*first)));

    // Held in the older content, asked for the newer one: the slot stays taken.
    for node in ["n000", "n001"] {
        world.answer(node);
    }
    world.reconcile(&object);
    assert!(world.write().is_empty());
    world.say("n000", IMAGE, ImageState::Pulling);
    world.reconcile(&object);
    assert!(world.write().is_empty());

    for node in NODES {
        world.reconcile(&object);
        world.write();
        world.pulled(node, IMAGE, &second);
    }
    let status = world.reconcile(&object);
    assert_eq!(
        (status.nodes.ready, status.entries[0].drifted_nodes),
        (5, 0)
    );
    assert_eq!(revisions(&world), [1; 5]);
}

/// The wave is read back from the `NodeCache`s.
#[test]
fn l22_a_leader_that_starts_goes_on_with_the_wave() {
    let (mut world, object, _) = warm(FOLLOW);
    let second = world.moved(IMAGE, "second");
    world.reconcile(&object);
    world.write();
    world.wishes = crate::node_cache::wishes::Wishes::default();
    world.slots = Slots::new(100);
    // The registry said nothing yet.
    let known = world.cache.images.remove(IMAGE).unwrap();
    world.reconcile(&object);
    assert!(world.write().is_empty());
    world.cache.images.insert(IMAGE.to_owned(), known);
    world.reconcile(&object);
    assert!(world.write().is_empty(), "two nodes are on their way");
    world.pulled("n000", IMAGE, &second);
    world.reconcile(&object);
    assert_eq!(world.write(), ["n002"]);
}

#[test]
fn l12_a_node_that_brings_something_else_is_not_sent_for_ever() {
    let (mut world, object, _) = warm(FOLLOW);
    world.moved(IMAGE, "second");
    for node in NODES {
        world.reconcile(&object);
        world.write();
        world.pulled(node, IMAGE, "sha256:of a runtime that counts otherwise");
    }
    let status = world.reconcile(&object);
    assert!(world.write().is_empty());
    assert_eq!(
        (status.nodes.ready, status.entries[0].drifted_nodes),
        (5, 5)
    );
    assert_eq!(revisions(&world), [1; 5]);

    // A person may send them once more.
    let mut asked = image_cache("a", &format!("{EVERYWHERE}\n{FOLLOW}"));
    let annotations = asked.metadata.annotations.get_or_insert_default();
    annotations.insert("coral.dev/refresh".to_owned(), "now".to_owned());
    let asked = validate(&asked).unwrap();
    for _ in 0..2 {
        world.reconcile(&asked);
        world.write();
    }
    assert_eq!(revisions(&world), [2; 5]);
}

#[test]
fn l04_a_node_that_cannot_get_the_newer_content_frees_its_slot() {
    let (mut world, object, second) = warm(FOLLOW);
    world.moved(IMAGE, "third");
    world.reconcile(&object);
    world.write();
    for node in ["n000", "n001"] {
        // It holds the older one, and says why it does not get the newer one.
        let image = &mut world.answer(node).images[0];
        assert_eq!(image.digest.as_ref(), Some(&second));
        image.attempts = 1;
        image.reason = Some(coral_schema::crd::Reason::RateLimited);
    }
    let status = world.reconcile(&object);
    assert_eq!(world.write(), ["n002", "n003"]);
    assert_eq!(status.failures[0].reason.as_str(), "RateLimited");
}

#[rstest]
#[case("refresh: {tagPolicy: Keep}")]
#[case("refresh: {tagPolicy: Freeze}")]
fn nodes_keep_what_they_hold(#[case] policy: &str) {
    let (mut world, object, first) = warm(&format!("rollout: {{maxConcurrentNodes: 5}}\n{policy}"));
    let second = world.moved(IMAGE, "second");
    let status = world.reconcile(&object);
    assert!(world.write().is_empty(), "not even a word");
    assert_eq!(status.nodes.ready, 5);
    let frozen = policy.contains("Freeze");
    let (digest, drifted) = if frozen { (&first, 0) } else { (&second, 5) };
    assert_eq!(status.entries[0].digest.as_ref(), Some(digest));
    assert_eq!(status.entries[0].drifted_nodes, drifted);
    // A node that joins gets what the cache has.
    world.add_node("n005", &[]);
    world.reconcile(&object);
    world.write();
    assert_eq!(world.sent("n005", IMAGE), (0, Some(&**digest)));
}

#[test]
fn an_older_object_decides_whether_a_tag_is_followed() {
    let (mut world, keeps, _) = warm("rollout: {maxConcurrentNodes: 5}");
    let mut follows = object("b", &format!("{EVERYWHERE}\n{FOLLOW}"));
    follows.created = keeps.created + jiff::SignedDuration::from_hours(1);
    world.moved(IMAGE, "second");
    for _ in 0..3 {
        world.reconcile(&follows);
        world.write();
        world.reconcile(&keeps);
    }
    assert_eq!(revisions(&world), [0; 5]);
    let status = world.reconcile(&follows);
    assert_eq!(status.failures[0].reason.as_str(), "Conflict");
    assert_eq!(status.nodes.ready, 5, "it takes no slots");
    // The other one goes: its wish is followed.
    world.wishes.remove(&keeps.key);
    for _ in 0..2 {
        world.reconcile(&follows);
        world.write();
    }
    assert!(revisions(&world).contains(&1));
}

#[test]
fn l12_nodes_that_differ_among_themselves_are_drift() {
    let (mut world, object, first) = warm("rollout: {maxConcurrentNodes: 5}");
    // The cache does not know it.
    world.cache.images.clear();
    world.statuses.clear();
    world.wishes = crate::node_cache::wishes::Wishes::default();
    for stored in world.stored.values_mut() {
        stored.spec.images[0].digest = None;
    }
    let status = world.reconcile(&object);
    assert_eq!(
        (status.entries[0].drifted_nodes, status.entries[0].contents),
        (0, 0)
    );
    world.pulled("n003", IMAGE, "sha256:other");
    let status = world.reconcile(&object);
    assert_eq!(
        (status.entries[0].drifted_nodes, status.entries[0].contents),
        (1, 2)
    );
    let drifted = status.conditions.last().unwrap();
    assert!(drifted.message.contains("n003"), "{}", drifted.message);
    assert_ne!(first, "sha256:other");
}
