//! Writes to `ImageCache`s: their status, and the finalizer of those that purge.

use coral_schema::crd::{ImageCache, ImageCacheStatus, PURGE_FINALIZER};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::json;

use crate::api::{self, ApiError};
use crate::labels::FIELD_MANAGER;
use crate::node_cache::wishes::ObjectKey;

/// Server-side apply of the whole status: what it does not say goes.
pub async fn status(
    client: &Client,
    key: &ObjectKey,
    status: &ImageCacheStatus,
) -> Result<ImageCache, ApiError> {
    let patch = json!({
        "apiVersion": ImageCache::api_version(&()),
        "kind": ImageCache::kind(&()),
        "metadata": { "name": key.name },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api::call(api(client, key).patch_status(&key.name, &params, &Patch::Apply(&patch))).await
}

/// Adds or removes the finalizer. Refused when the object changed since it was read: others have finalizers, too.
pub async fn finalizer(
    client: &Client,
    object: &ImageCache,
    wanted: bool,
) -> Result<ImageCache, ApiError> {
    let others = object
        .finalizers()
        .iter()
        .filter(|it| *it != PURGE_FINALIZER);
    let mut finalizers: Vec<String> = others.cloned().collect();
    if wanted {
        finalizers.push(PURGE_FINALIZER.to_owned());
    }
    let patch = json!({ "metadata": {
        "resourceVersion": object.resource_version(),
        "finalizers": finalizers,
    }});
    let key = ObjectKey {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    };
    let params = PatchParams::default();
    api::call(api(client, &key).patch(&key.name, &params, &Patch::Merge(&patch))).await
}

fn api(client: &Client, key: &ObjectKey) -> Api<ImageCache> {
    Api::namespaced(client.clone(), &key.namespace)
}
