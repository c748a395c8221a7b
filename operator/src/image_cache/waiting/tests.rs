use std::time::Duration;

use coral_schema::crd::node_cache::ImageState;

use crate::test_support::{World, object};

#[test]
fn every_image_and_node_says_what_it_waits_for() {
    let mut world = World::with_nodes(7);
    world.cached("nginx:1.27");
    let object = object(
        "a",
        "sets: [{name: a, images: [nginx:1.27], nodes: {}}, {name: b, images: ['redis:7'], nodes: {names: [n000, n099]}}]
rollout: {maxConcurrentNodes: 4}",
    );
    world.reconcile(&object);
    world.write();
    world.look();
    for node in ["n000", "n001", "n002", "n004", "n005", "n006"] {
        world.answer(node);
    }
    world.say("n000", "nginx:1.27", ImageState::Ready);
    world.say("n001", "nginx:1.27", ImageState::Pulling);
    world.say("n002", "nginx:1.27", ImageState::Failed);
    world.pass(Duration::from_mins(3));
    world.set_ready("n006", false);
    insta::assert_snapshot!(world.explain(&object).join("\n"));
}
