use serde_json::json;

use super::*;
use crate::test_support::{World, object};

const DISCOVER: &str = "sets: [{name: a, discover: {podSelector: {matchLabels: {app: web}}, max: 3, keepFor: 1h}, nodes: {}}]";

fn pod(name: &str, app: &str, node: &str, images: &[&str]) -> Pod {
    let containers = images
        .iter()
        .map(|image| json!({ "name": "c", "image": image }));
    serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "ml", "labels": { "app": app } },
        "spec": { "nodeName": node, "containers": containers.collect::<Vec<_>>() },
        "status": { "phase": "Running" },
    }))
    .unwrap()
}

fn joined(spec: &str, pods: &[Pod], seen: &mut Seen, minutes: u64) -> ValidatedImageCache {
    let mut object = object("a", spec);
    let pods: Vec<&Pod> = pods.iter().collect();
    join(&mut object, &pods, seen, None, Duration::from_mins(minutes));
    object
}

fn images(object: &ValidatedImageCache) -> Vec<&str> {
    let images = object.sets[0].images.iter();
    images
        .map(|index| &*object.images[*index].spelling)
        .collect()
}

#[test]
fn images_of_running_pods_join_in_every_place_that_names_one() {
    let mut all = pod("p", "web", "n000", &["main"]);
    let spec: k8s_openapi::api::core::v1::PodSpec = serde_json::from_value(json!({
        "nodeName": "n000",
        "initContainers": [{ "name": "a", "image": "init" }],
        "containers": [{ "name": "b", "image": "main" }],
        "ephemeralContainers": [{ "name": "d", "image": "debug" }],
        "volumes": [{ "name": "e", "image": { "reference": "volume" } }],
    }))
    .unwrap();
    all.spec = Some(spec);
    let mut pending = pod("q", "web", "n000", &["pending"]);
    pending.status.as_mut().unwrap().phase = Some("Pending".to_owned());
    let others = [all, pending, pod("r", "db", "n000", &["other"])];
    let spec = DISCOVER.replace("max: 3", "max: 9");
    let found = joined(&spec, &others, &mut Seen::new(), 0);
    assert_eq!(images(&found), ["debug", "init", "main", "volume"]);
}

#[test]
fn an_image_stays_for_a_while_and_those_in_use_go_first() {
    let mut seen = Seen::new();
    let at = |seen: &mut Seen, running: &[&str], minutes| -> Vec<String> {
        let found = joined(DISCOVER, &[pod("p", "web", "n", running)], seen, minutes);
        images(&found).into_iter().map(str::to_owned).collect()
    };
    assert_eq!(at(&mut seen, &["z1", "z2"], 0), ["z1", "z2"]);
    assert_eq!(at(&mut seen, &["b"], 10), ["b", "z1", "z2"]);
    assert_eq!(
        at(&mut seen, &["b", "c", "d"], 20),
        ["b", "c", "d"],
        "three at most"
    );
    assert_eq!(at(&mut seen, &["b"], 59), ["b", "c", "d"]);
    assert_eq!(at(&mut seen, &["b"], 79), ["b", "c", "d"]);
    assert_eq!(at(&mut seen, &["b"], 80), ["b"]);
}

#[test]
fn l16a_only_what_is_included_joins_as_pods_spell_it() {
    let spec = "sets: [{name: a, images: [listed], discover: {podSelector: {}, include: ['docker.io/library/*', 'ghcr.io/team/**']}}]";
    let running = [
        "nginx",
        "listed",
        "ghcr.io/team/a/b:1",
        "quay.io/x/y",
        "NOT//one",
    ];
    let found = joined(spec, &[pod("p", "web", "n", &running)], &mut Seen::new(), 0);
    assert_eq!(images(&found), ["listed", "ghcr.io/team/a/b:1", "nginx"]);
}

#[test]
fn l22_another_process_keeps_what_stands_in_the_status() {
    let mut world = World::with_nodes(1);
    let mut object = object("a", DISCOVER);
    let running = pod("p", "web", "n000", &["nginx"]);
    join(
        &mut object,
        &[&running],
        &mut Seen::new(),
        None,
        Duration::ZERO,
    );
    let said = world.reconcile(&object);
    assert_eq!(said.entries.len(), 1);

    let again = |minutes| {
        let mut object = crate::test_support::object("a", DISCOVER);
        let uptime = Duration::from_mins(minutes);
        join(&mut object, &[], &mut Seen::new(), Some(&said), uptime);
        object.sets[0].images.len()
    };
    assert_eq!((again(0), again(59), again(60)), (1, 1, 0));
}

#[test]
fn nodes_where_pods_run() {
    let mut world = World::with_nodes(3);
    let spec =
        "sets: [{name: a, images: [nginx], nodes: {podSelector: {matchLabels: {app: web}}}}]";
    let pods = [
        pod("p", "web", "n001", &["x"]),
        pod("q", "db", "n002", &["x"]),
    ];
    let found = joined(spec, &pods, &mut Seen::new(), 0);
    let assignment = world.assign(&found);
    let nodes: Vec<&str> = assignment.nodes.iter().map(|it| &*it.node.name).collect();
    assert_eq!(nodes, ["n001"]);
    let none = joined(spec, &[], &mut Seen::new(), 0);
    assert_eq!(world.assign(&none).unmatched, ["a"]);
}
