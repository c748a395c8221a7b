use coral_schema::crd::node_cache::{ImageState, PurgeResult};

use super::*;
use crate::test_support::{EVERYWHERE, World, object};

const IMAGE: &str = "nginx:1.27";
const LABEL: &str = "warm.coral.dev/ml.a";

/// A world with nodes `n000` and `n001`, and an object.
struct Scene {
    world: World,
    scheduling: Scheduling,
    object: ValidatedImageCache,
}

impl Scene {
    fn new(scheduling: &str) -> Self {
        let mut world = World::with_nodes(2);
        world.cached(IMAGE);
        Self {
            world,
            scheduling: Scheduling::default(),
            object: object(
                "a",
                &format!(
                    "{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 2}}\nscheduling: {scheduling}"
                ),
            ),
        }
    }

    fn taint(&mut self, name: &str, key: &str) {
        let node = self.world.nodes.get_mut(name).unwrap();
        let spec = node.spec.get_or_insert_default();
        let taint = serde_json::json!({ "key": key, "effect": "PreferNoSchedule" });
        let taints = spec.taints.get_or_insert_default();
        taints.push(serde_json::from_value(taint).unwrap());
    }

    /// Looks at the object, and writes what a node should say.
    fn look(&mut self, name: &str) -> Change {
        self.world.reconcile(&self.object);
        self.world.write();
        let assignment = self.world.assign(&self.object);
        let wish = wish(&self.object, &assignment);
        self.scheduling
            .set(&self.object.key, wish, self.world.uptime);
        let (now, uptime) = (self.world.now, self.world.uptime);
        let change = self
            .scheduling
            .change(&self.world.look()[name], now, uptime);
        let node = self.world.nodes.get_mut(name).unwrap();
        let labels = node.metadata.labels.get_or_insert_default();
        for (label, add) in &change.labels {
            if *add {
                labels.insert(label.clone(), "true".to_owned());
            } else {
                labels.remove(label);
            }
        }
        if change.lift {
            let taints = node.spec.as_mut().and_then(|spec| spec.taints.as_mut());
            taints.unwrap().retain(|taint| taint.key != WARMING_TAINT);
        }
        change
    }

    fn is_labelled(&self, name: &str) -> bool {
        let labels = self.world.nodes[name].metadata.labels.as_ref().unwrap();
        labels.get(LABEL).is_some_and(|value| value == "true")
    }
}

const MINUTE: Duration = Duration::from_mins(1);

#[test]
fn l02_a_label_comes_at_once_and_goes_late() {
    let mut scene = Scene::new("{nodeLabel: true}");
    assert!(scene.look("n000").is_empty());
    scene.world.finish_pulls(PurgeResult::Purged);
    scene.look("n000");
    assert!(scene.is_labelled("n000") && !scene.is_labelled("n001"));
    assert!(scene.look("n000").is_empty(), "once");

    // Collected, and back within ten minutes.
    for minutes in [3, 9] {
        scene.world.say("n000", IMAGE, ImageState::Waiting);
        let change = scene.look("n000");
        assert!(change.is_empty() && change.again == Some(COLD_FOR));
        scene.world.pass(MINUTE * minutes);
        assert!(scene.look("n000").is_empty());
        scene.world.say("n000", IMAGE, ImageState::Ready);
        assert!(scene.look("n000").is_empty());
    }
    // Nothing is heard of it: nothing is known.
    scene.world.set_ready("n000", false);
    scene.look("n000");
    scene.world.pass(MINUTE * 60);
    assert!(scene.look("n000").is_empty());
    scene.world.set_ready("n000", true);

    scene.world.say("n000", IMAGE, ImageState::Pulling);
    scene.look("n000");
    scene.world.pass(COLD_FOR);
    scene.look("n000");
    assert!(!scene.is_labelled("n000"));
}

#[test]
fn l14_labels_of_objects_that_are_gone_go_and_those_of_broken_ones_stay() {
    let mut scene = Scene::new("{nodeLabel: true}");
    scene.look("n000");
    scene.world.finish_pulls(PurgeResult::Purged);
    scene.look("n000");
    let (now, uptime) = (scene.world.now, scene.world.uptime);
    let key = scene.object.key.clone();
    assert_eq!(scene.scheduling.keep(&key).len(), 2);
    let node = Arc::clone(&scene.world.look()["n000"]);
    assert!(scene.scheduling.change(&node, now, uptime).is_empty());
    scene.scheduling.remove(&key);
    let change = scene.scheduling.change(&node, now, uptime);
    assert_eq!(change.labels, [(LABEL.to_owned(), false)].into());
    // Nobody but us writes there.
    let mut others = Scheduling::default();
    assert!(others.set(&key, None, uptime).is_empty());
}

#[test]
fn l15_the_startup_taint_goes_when_the_node_is_warm() {
    let mut scene = Scene::new("{startupTaint: true}");
    scene
        .world
        .nodes
        .get_mut("n000")
        .unwrap()
        .metadata
        .creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        scene.world.now,
    ));
    scene.taint("n000", WARMING_TAINT);
    let change = scene.look("n000");
    assert!(!change.lift && change.again == Some(MINUTE * 10));
    scene.world.say("n000", IMAGE, ImageState::Pulling);
    scene.world.pass(MINUTE);
    assert!(!scene.look("n000").lift);
    scene.world.say("n000", IMAGE, ImageState::Ready);
    assert!(scene.look("n000").lift);
    assert!(!scene.look("n000").lift, "it is gone");
}

#[test]
fn l15_the_startup_taint_fails_open() {
    let mut scene = Scene::new("{startupTaint: true, startupDeadline: 3m}");
    scene
        .world
        .nodes
        .get_mut("n000")
        .unwrap()
        .metadata
        .creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        scene.world.now,
    ));
    scene.taint("n000", WARMING_TAINT);
    scene.taint("n000", "dedicated");
    scene.look("n000");
    scene.world.pass(Duration::from_secs(179));
    let change = scene.look("n000");
    assert_eq!(
        (change.lift, change.again),
        (false, Some(Duration::from_secs(1)))
    );
    scene.world.pass(Duration::from_secs(1));
    assert!(scene.look("n000").lift);

    // An old node, and one that no object asks for.
    scene.taint("n001", WARMING_TAINT);
    assert!(scene.look("n001").lift);
    let mut scene = Scene::new("{nodeLabel: true}");
    scene.taint("n000", WARMING_TAINT);
    assert!(scene.look("n000").lift);
}

#[test]
fn labels_are_labels() {
    let key = |namespace: &str, name: &str| ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    assert_eq!(label(&key("ml", "a")), LABEL);
    let long = |last: &str| label(&key(&"n".repeat(63), &format!("{}{last}", "o".repeat(200))));
    let name = long("a");
    let name = name.strip_prefix(WARM_LABELS).unwrap();
    assert_eq!(name.len(), 63);
    assert!(
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
    );
    assert_ne!(long("a"), long("b"));
}
