//! Writes and removes `NodeCache`s, and looks at what pods of a node name.

use std::collections::HashSet;

use coral_schema::crd::NodeCache;
use coral_schema::crd::node_cache::NodeCacheSpec;
use coral_schema::oci::ImageReference;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};

use crate::api::{self, ApiError};
use crate::labels::{FIELD_MANAGER, node_owner};
use crate::pods::{is_finished, named};

/// Server-side apply of a node's spec; the Node owns the object.
pub async fn apply(
    client: &Client,
    node: &str,
    spec: NodeCacheSpec,
) -> Result<NodeCache, ApiError> {
    let api: Api<NodeCache> = Api::all(client.clone());
    let mut object = NodeCache::new(node, spec);
    object.metadata.owner_references = Some(vec![node_owner(node, &object.spec.node_uid)]);
    // Forced: nobody else has a say in a spec.
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api::call(api.patch(node, &params, &Patch::Apply(&object))).await
}

/// The node is gone, and so is what it should hold. An object that was made anew under the name stays.
pub async fn delete(client: &Client, node: &str, uid: Option<String>) -> Result<(), ApiError> {
    let api: Api<NodeCache> = Api::all(client.clone());
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid,
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api::find(api.delete(node, &params)).await {
        Ok(_) | Err(ApiError::Conflict(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Images that pods on a node name, as the API server has them now and no cache of it: also those that did not start yet
/// (L8). What a finished pod left behind is the warmer's to see.
pub async fn images_of_pods(
    client: &Client,
    node: &str,
) -> Result<HashSet<ImageReference>, ApiError> {
    let api: Api<Pod> = Api::all(client.clone());
    let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = api::list_with(&api, on_node).await?;
    let unfinished = pods.iter().filter(|pod| !is_finished(pod));
    let specs = unfinished.filter_map(|pod| pod.spec.as_ref());
    let images = specs.flat_map(named).filter_map(|image| image.parse().ok());
    Ok(images.collect())
}
