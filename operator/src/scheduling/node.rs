//! Writes labels and the startup taint of a Node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use super::Change;
use crate::api::{self, ApiError};
use crate::labels::{FIELD_MANAGER, WARM_LABELS, WARMING_TAINT};

/// Changes a Node. With the taint's list of others goes the version that they were read in: refused when somebody else
/// wrote meanwhile.
pub async fn apply(
    client: &Client,
    name: &str,
    change: &Change,
    (version, taints): (Option<&str>, &[Taint]),
) -> Result<(), ApiError> {
    let labels: BTreeMap<&String, Value> = change
        .labels
        .iter()
        .map(|(label, add)| (label, if *add { json!("true") } else { Value::Null }))
        .collect();
    let mut patch = json!({ "metadata": { "labels": labels } });
    if change.lift {
        let others = taints.iter().filter(|taint| taint.key != WARMING_TAINT);
        patch["metadata"]["resourceVersion"] = json!(version);
        patch["spec"] = json!({ "taints": others.collect::<Vec<_>>() });
    }
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api: Api<Node> = Api::all(client.clone());
    api::call(api.patch_metadata(name, &params, &Patch::Merge(&patch)))
        .await
        .map(drop)
}

/// Takes everything of ours away from a Node.
pub async fn clean(client: &Client, node: &Node) -> Result<(), ApiError> {
    let ours = node
        .labels()
        .keys()
        .filter(|it| it.starts_with(WARM_LABELS));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let taints = taints.unwrap_or_default();
    let change = Change {
        labels: ours.map(|label| (label.clone(), false)).collect(),
        lift: taints.iter().any(|taint| taint.key == WARMING_TAINT),
        again: None,
    };
    if change.is_empty() {
        return Ok(());
    }
    let version = node.metadata.resource_version.as_deref();
    apply(client, &node.name_any(), &change, (version, taints)).await
}
