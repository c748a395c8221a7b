//! What pods name, and whether they run or ever will.

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Does it run, somewhere?
pub fn is_running(pod: &Pod) -> bool {
    let node = pod.spec.as_ref().and_then(|it| it.node_name.as_ref());
    phase(pod) == Some("Running") && node.is_some()
}

/// Will it never run again?
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), Some("Succeeded" | "Failed"))
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// Images that a pod names: of its containers of all kinds, and of its volumes.
pub fn named(spec: &PodSpec) -> impl Iterator<Item = &String> {
    let init = spec.init_containers.iter().flatten();
    let containers = init
        .chain(&spec.containers)
        .filter_map(|it| it.image.as_ref());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let volumes = spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|it| it.image.as_ref());
    containers
        .chain(ephemeral.filter_map(|it| it.image.as_ref()))
        .chain(volumes.filter_map(|it| it.reference.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l08_every_place_of_a_pod_that_names_an_image() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "initContainers": [{"name": "a", "image": "init"}],
            "containers": [{"name": "b", "image": "main"}, {"name": "c", "image": "side"}],
            "ephemeralContainers": [{"name": "d", "image": "debug"}],
            "volumes": [{"name": "e", "image": {"reference": "volume"}}, {"name": "f", "emptyDir": {}}],
        }))
        .unwrap();
        let found: Vec<&str> = named(&spec).map(String::as_str).collect();
        assert_eq!(found, ["init", "main", "side", "debug", "volume"]);
    }
}
