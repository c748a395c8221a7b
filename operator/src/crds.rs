//! Our definitions in the cluster: `helm upgrade` leaves them alone, so the operator looks whether they are the ones that
//! it was built with, and `apply-crds` writes them.

use std::time::Duration;

use coral_schema::crd::{SCHEMA_HASH_ANNOTATION, definitions};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use tokio::time::{Instant, sleep};

use crate::api::{self, ApiError};
use crate::labels::FIELD_MANAGER;

/// What to do when [`check`] fails.
pub const REMEDY: &str = "the custom resource definitions are missing or of another version: run `coral-operator apply-crds` of this version";

/// Why definitions are not in use.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// The API server did not do it.
    #[error("{name}: {source}")]
    Api {
        /// Of the definition.
        name: String,
        /// What it said.
        source: ApiError,
    },
    /// It was written, but is not served.
    #[error("{name} is written but not established; look at its conditions")]
    NotEstablished {
        /// Of the definition.
        name: String,
    },
}

/// Names of definitions that are not the ones that we were built with; none is good.
pub async fn check(client: &Client) -> Result<Vec<String>, CrdError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut other = Vec::new();
    for ours in definitions() {
        let name = ours.name_any();
        let found = api::find(api.get(&name))
            .await
            .map_err(|source| CrdError::Api {
                name: name.clone(),
                source,
            })?;
        if !found.is_some_and(|found| hash(&found) == hash(&ours) && is_established(&found)) {
            other.push(name);
        }
    }
    Ok(other)
}

/// Writes them, and waits until the API server serves them. Names of what was written.
pub async fn apply(client: &Client) -> Result<Vec<String>, CrdError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    // Forced: helm wrote them first.
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut names = Vec::new();
    for definition in definitions() {
        let name = definition.name_any();
        api::call(api.patch(&name, &params, &Patch::Apply(&definition)))
            .await
            .map_err(|source| CrdError::Api {
                name: name.clone(),
                source,
            })?;
        names.push(name);
    }
    let deadline = Instant::now() + ESTABLISHED_WITHIN;
    for name in &names {
        while !established(&api, name).await? {
            if Instant::now() > deadline {
                return Err(CrdError::NotEstablished { name: name.clone() });
            }
            sleep(POLL).await;
        }
    }
    Ok(names)
}

async fn established(api: &Api<CustomResourceDefinition>, name: &str) -> Result<bool, CrdError> {
    let found = api::call(api.get(name))
        .await
        .map_err(|source| CrdError::Api {
            name: name.to_owned(),
            source,
        })?;
    Ok(is_established(&found))
}

fn hash(definition: &CustomResourceDefinition) -> Option<&String> {
    definition.annotations().get(SCHEMA_HASH_ANNOTATION)
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let status = definition.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    conditions
        .unwrap_or_default()
        .iter()
        .any(|condition| condition.type_ == "Established" && condition.status == "True")
}

/// An API server takes seconds.
const ESTABLISHED_WITHIN: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(250);
