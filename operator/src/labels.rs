//! Names that the operator writes: its field manager, its owner references, the names of owners in a `NodeCache`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

/// Field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "coral-operator";

/// Taint of nodes that wait for their images: it never keeps an image away.
pub const WARMING_TAINT: &str = "coral.dev/warming";

/// What labels of warm nodes start with, see [`scheduling`](crate::scheduling).
pub const WARM_LABELS: &str = "warm.coral.dev/";

/// The Node owns its `NodeCache`. Without `blockOwnerDeletion`: a node never waits for us.
pub fn node_owner(name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

/// Source of an object's pins at the registry.
pub fn pin_source(namespace: &str, name: &str) -> String {
    format!("operator/{namespace}/{name}")
}
