use coral_schema::admin::PrefetchState;

use super::*;
use crate::test_support::{EVERYWHERE, World, object};

fn jobs(resources: &Resources<Prepared>) -> Vec<(String, String)> {
    let jobs = resources.cache.prefetch.iter();
    jobs.map(|job| {
        let platforms: Vec<String> = job.platforms.iter().map(ToString::to_string).collect();
        (job.images.join(","), platforms.join(","))
    })
    .collect()
}

#[test]
fn l13_platforms_come_from_the_nodes() {
    let mut world = World::new();
    world.add_node("amd", &[("pool", "x")]);
    world.add_node("arm", &[("kubernetes.io/arch", "arm64"), ("pool", "y")]);
    world.add_node(
        "windows",
        &[
            ("kubernetes.io/os", "windows"),
            ("kubernetes.io/arch", "riscv64"),
        ],
    );
    let object = object(
        "a",
        "sets:
- {name: x, images: [x, both], nodes: {selector: {matchLabels: {pool: x}}}}
- {name: y, images: [y, both], nodes: {selector: {matchLabels: {pool: y}}}}
- {name: held, images: [held]}
- {name: said, images: [said], platforms: [linux/arm/v7], nodes: {}}
- {name: nobody, images: [nobody], nodes: {selector: {matchLabels: {pool: z}}}}
rollout: {priority: 7}",
    );
    let resources = world.build(&object);
    let expected = [
        ("x", "linux/amd64"),
        ("both,held,nobody", "linux/amd64,linux/arm64"),
        ("said", "linux/arm/v7"),
        ("y", "linux/arm64"),
    ];
    let mut jobs = jobs(&resources);
    jobs.sort_by(|a, b| a.1.cmp(&b.1));
    let expected = expected.map(|(images, platforms)| (images.to_owned(), platforms.to_owned()));
    assert_eq!(jobs, expected);
    assert!(
        resources
            .cache
            .prefetch
            .iter()
            .all(|job| job.priority == 7 && !job.refresh)
    );
    let pins = resources.cache.pins;
    assert_eq!(pins.source, "operator/ml/a");
    assert_eq!(pins.images, ["x", "both", "y", "held", "said", "nobody"]);
    assert_eq!(pins.expires, world.now + Pins::LIFETIME);
}

#[test]
fn a_deleted_object_asks_for_nothing() {
    let mut world = World::with_nodes(1);
    let mut object = object("a", EVERYWHERE);
    object.deleted = Some(world.now);
    let resources = world.build(&object);
    assert!(resources.wishes.nodes.is_empty() && resources.cache.prefetch.is_empty());
    assert!(resources.cache.pins.images.is_empty());
}

#[test]
fn l22_a_restart_rewrites_no_node() {
    let mut world = World::with_nodes(3);
    world.cached("nginx:1.27");
    let object = object(
        "a",
        &format!("{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 3}}"),
    );
    world.reconcile(&object);
    world.write();
    assert!(world.stored["n000"].spec.images[0].digest.is_some());
    world.wishes = crate::node_cache::wishes::Wishes::default();
    world.cache.images.clear();
    world.reconcile(&object);
    assert!(world.write().is_empty());
    world.progress("nginx:1.27", PrefetchState::Queued, None);
    world.reconcile(&object);
    assert!(world.write().is_empty());
}
