//! The resources of group `coral.dev`, version `v1alpha1`: what users write, what nodes are told, what both are answered.
//!
//! | Kind | Scope | Written by | Says |
//! |---|---|---|---|
//! | [`ImageCache`] | namespaced | users | which images the cluster's cache holds, and which nodes hold them |
//! | [`NodeCache`] | cluster | operator (spec), warmer (status) | what one node should hold, and what it holds |
//!
//! The API server checks the form (pattern, list types, bounds) and what spans fields (CEL). Readers of another version
//! ignore fields that they do not know, and read an unknown word of an enum as `Unknown`: a program of version N works
//! beside those of N±1.

#![allow(
    unreachable_pub,
    reason = "KubeSchema repeats each struct, as public as it is, inside the function that it derives"
)]
#![allow(
    clippy::duplicated_attributes,
    reason = "one printcolumn per column repeats the names of its parts"
)]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResourceExt as _, ResourceExt as _};
use schemars::Schema;

use crate::oci::Digest;

pub mod condition;
pub mod image_cache;
pub mod node_cache;
pub mod node_target;

pub use self::condition::{ConditionType, Reason};
pub use self::image_cache::{ImageCache, ImageCacheSpec, ImageCacheStatus};
pub use self::node_cache::{NodeCache, NodeCacheSpec, NodeCacheStatus};

/// The API group.
pub const GROUP: &str = "coral.dev";
/// Finalizer of objects whose images are removed from the nodes when they go.
pub const PURGE_FINALIZER: &str = "coral.dev/purge";
/// Annotation of an `ImageCache`: verify everything once more whenever its value differs from
/// `status.lastHandledRefresh`.
pub const REFRESH_ANNOTATION: &str = "coral.dev/refresh";
/// Annotation of a Node: its warmer pulls and removes nothing while this is `true`.
pub const PAUSED_ANNOTATION: &str = "coral.dev/paused";
/// Annotation of our definitions: the digest of their content, see [`definitions`].
pub const SCHEMA_HASH_ANNOTATION: &str = "coral.dev/schema-hash";

/// The key of an `ImageCache` in the Secret of pull secrets that nodes mount: its namespace, which has no dot, and its name;
/// where that is too long for a key, a digest of it.
pub fn pull_secret_key(namespace: &str, name: &str) -> String {
    let key = format!("{namespace}.{name}");
    if key.len() <= LONGEST_KEY {
        key
    } else {
        Digest::sha256(key.as_bytes()).hex()
    }
}

/// Characters of a key in a Secret.
const LONGEST_KEY: usize = 253;

/// Images in all sets of one `ImageCache`, and in one `NodeCache`.
pub const MOST_IMAGES: usize = 256;

/// The definitions to install, each annotated with the hash of its content: a program compares the one it was built with
/// to the one it finds.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    [ImageCache::crd(), NodeCache::crd()]
        .into_iter()
        .map(|mut definition| {
            let hash = schema_hash(&definition);
            definition
                .annotations_mut()
                .insert(SCHEMA_HASH_ANNOTATION.to_owned(), hash);
            definition
        })
        .collect()
}

/// The same as files for `helm/crds/`: name and content.
pub fn definition_files() -> Vec<(String, String)> {
    definitions()
        .iter()
        .map(|definition| {
            let yaml =
                serde_saphyr::to_string(definition).expect("a definition is made of JSON values");
            let name = format!("{}.yaml", definition.spec.names.plural);
            (
                name,
                format!("# Written by crdgen (cargo run -p coral-schema --features crd).\n{yaml}"),
            )
        })
        .collect()
}

/// Sixteen hexadecimal digits over what a definition says.
fn schema_hash(definition: &CustomResourceDefinition) -> String {
    let content =
        serde_json::to_vec(&definition.spec).expect("a definition is made of JSON values");
    Digest::sha256(&content).hex()[..16].to_owned()
}

/// Numbers that are not written when they say nothing.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Bounds for types that others define: every list and every text that states none.
fn bounded(schema: &mut Schema) {
    if let Some(object) = schema.as_object_mut() {
        bound(object);
    }
}

fn bound(object: &mut serde_json::Map<String, serde_json::Value>) {
    match object.get("type").and_then(serde_json::Value::as_str) {
        Some("array") => _ = object.entry("maxItems").or_insert_with(|| 64.into()),
        // A prefixed label key is the longest that a selector or a toleration may say.
        Some("string") => _ = object.entry("maxLength").or_insert_with(|| 317.into()),
        _ => {}
    }
    for child in object.values_mut() {
        match child {
            serde_json::Value::Object(object) => bound(object),
            serde_json::Value::Array(items) => items
                .iter_mut()
                .filter_map(serde_json::Value::as_object_mut)
                .for_each(bound),
            _ => {}
        }
    }
}
