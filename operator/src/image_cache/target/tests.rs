use rstest::rstest;

use crate::image_cache::validate::validate;
use crate::test_support::{World, image_cache, object};

fn matches(nodes: &str, change: impl FnOnce(&mut World)) -> bool {
    let mut world = World::new();
    world.add_node("n", &[("pool", "gpu"), ("gen", "2")]);
    change(&mut world);
    let object = object(
        "a",
        &format!("sets: [{{name: a, images: [nginx], nodes: {nodes}}}]"),
    );
    !world.assign(&object).nodes.is_empty()
}

#[rstest]
#[case("{}", true)]
#[case("{selector: {}}", true)]
#[case("{selector: {matchLabels: {pool: gpu}}}", true)]
#[case("{selector: {matchLabels: {pool: gpu, gen: '3'}}}", false)]
#[case(
    "{selector: {matchExpressions: [{key: pool, operator: In, values: [cpu, gpu]}]}}",
    true
)]
#[case(
    "{selector: {matchExpressions: [{key: pool, operator: In, values: [cpu]}]}}",
    false
)]
#[case(
    "{selector: {matchExpressions: [{key: pool, operator: NotIn, values: [cpu]}]}}",
    true
)]
#[case(
    "{selector: {matchExpressions: [{key: pool, operator: NotIn, values: [gpu]}]}}",
    false
)]
#[case(
    "{selector: {matchExpressions: [{key: none, operator: NotIn, values: [gpu]}]}}",
    true
)]
#[case(
    "{selector: {matchExpressions: [{key: none, operator: In, values: [gpu]}]}}",
    false
)]
#[case(
    "{selector: {matchExpressions: [{key: pool, operator: Exists}]}}",
    true
)]
#[case(
    "{selector: {matchExpressions: [{key: none, operator: Exists}]}}",
    false
)]
#[case(
    "{selector: {matchExpressions: [{key: pool, operator: DoesNotExist}]}}",
    false
)]
#[case(
    "{selector: {matchExpressions: [{key: none, operator: DoesNotExist}]}}",
    true
)]
#[case(
    "{selector: {matchLabels: {pool: gpu}, matchExpressions: [{key: gen, operator: In, values: ['1']}]}}",
    false
)]
#[case("{names: [n, other]}", true)]
#[case("{names: [other]}", false)]
fn selectors(#[case] nodes: &str, #[case] expected: bool) {
    assert_eq!(matches(nodes, |_| ()), expected);
}

#[test]
fn only_linux() {
    let windows = |world: &mut World| world.add_node("n", &[("kubernetes.io/os", "windows")]);
    assert!(!matches("{}", windows) && !matches("{names: [n]}", windows));
}

#[rstest]
#[case("NoSchedule", "{}", false)]
#[case("NoExecute", "{}", false)]
#[case("PreferNoSchedule", "{}", true)]
#[case("NoSchedule", "{taintPolicy: Ignore}", true)]
#[case("NoSchedule", "{tolerations: [{key: k, operator: Exists}]}", true)]
#[case("NoSchedule", "{tolerations: [{key: k, value: '5'}]}", true)]
#[case(
    "NoSchedule",
    "{tolerations: [{key: k, operator: Equal, value: '6'}]}",
    false
)]
#[case(
    "NoSchedule",
    "{tolerations: [{key: k, operator: Exists, effect: NoExecute}]}",
    false
)]
#[case("NoSchedule", "{tolerations: [{key: other, operator: Exists}]}", false)]
#[case("NoSchedule", "{tolerations: [{operator: Exists}]}", true)]
#[case("NoSchedule", "{tolerations: [{operator: Equal, value: '5'}]}", false)]
#[case(
    "NoSchedule",
    "{tolerations: [{key: k, operator: Gt, value: '4'}]}",
    true
)]
#[case(
    "NoSchedule",
    "{tolerations: [{key: k, operator: Lt, value: '4'}]}",
    false
)]
#[case(
    "NoSchedule",
    "{tolerations: [{key: k, operator: Resembles, value: '5'}]}",
    false
)]
fn taints(#[case] effect: &str, #[case] nodes: &str, #[case] expected: bool) {
    let taint = |world: &mut World| {
        let taint =
            serde_json::json!({ "taints": [{ "key": "k", "value": "5", "effect": effect }] });
        world.nodes.get_mut("n").unwrap().spec = Some(serde_json::from_value(taint).unwrap());
    };
    assert_eq!(matches(nodes, taint), expected);
}

#[rstest]
#[case("{}", false)]
#[case("{taintPolicy: Ignore}", true)]
#[case(
    "{tolerations: [{key: node.kubernetes.io/unschedulable, operator: Exists}]}",
    true
)]
fn unschedulable_counts_as_a_taint(#[case] nodes: &str, #[case] expected: bool) {
    let cordon = |world: &mut World| {
        let spec = serde_json::json!({ "unschedulable": true });
        world.nodes.get_mut("n").unwrap().spec = Some(serde_json::from_value(spec).unwrap());
    };
    assert_eq!(matches(nodes, cordon), expected);
}

#[test]
fn taints_of_a_nodes_health_do_not_count() {
    for key in super::CONDITION_TAINTS {
        let taint = |world: &mut World| {
            let taint = serde_json::json!({ "taints": [{ "key": key, "effect": "NoExecute" }] });
            world.nodes.get_mut("n").unwrap().spec = Some(serde_json::from_value(taint).unwrap());
        };
        assert!(matches("{}", taint), "{key}");
    }
}

#[test]
fn mistakes_have_paths() {
    let object = image_cache(
        "a",
        "sets:
- {name: a, images: [nginx], nodes: {selector: {matchExpressions: [{key: a, operator: Near}, {key: b, operator: In}]}}}
- {name: b, images: ['', nginx], platforms: [amd64], nodes: {taintPolicy: Bend}}
- name: c
  discover: {podSelector: {matchExpressions: [{key: a, operator: In}]}}
  nodes: {podSelector: {matchExpressions: [{key: a, operator: Exists}, {key: b, operator: Near}]}}
refresh: {tagPolicy: Chase, onEviction: Sometimes}
rollout: {maxConcurrentNodes: 0%, order: Sideways}
retention: {deletionPolicy: Burn}",
    );
    let mistakes = validate(&object).unwrap_err();
    let paths: Vec<&str> = mistakes
        .0
        .iter()
        .map(|mistake| mistake.path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            "spec.refresh.onEviction",
            "spec.refresh.tagPolicy",
            "spec.rollout.order",
            "spec.retention.deletionPolicy",
            "spec.sets[0].nodes.selector.matchExpressions[0]",
            "spec.sets[0].nodes.selector.matchExpressions[1]",
            "spec.sets[1].images[0]",
            "spec.sets[1].platforms[0]",
            "spec.sets[1].nodes.taintPolicy",
            "spec.sets[2].discover.podSelector.matchExpressions[0]",
            "spec.sets[2].nodes.podSelector.matchExpressions[1]",
            "spec.rollout.maxConcurrentNodes",
        ]
    );
}

#[test]
fn l16a_spellings_are_parsed_and_kept() {
    let object = object(
        "a",
        "sets: [{name: a, images: [nginx, 'docker.io/library/nginx:latest'], nodes: {}}]",
    );
    let spellings: Vec<&str> = object.images.iter().map(|image| &*image.spelling).collect();
    assert_eq!(spellings, ["nginx", "docker.io/library/nginx:latest"]);
    assert_eq!(object.images[0].reference, object.images[1].reference);
}
