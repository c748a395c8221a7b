//! Pull secrets for registries that the cache does not serve, where the chart allows it: what is needed of them is copied
//! into one Secret of our own namespace, which the kubelets of warmers mount. It has a key per object, with the logins for
//! the repositories of that object's images and nothing else. The chart makes and removes the Secret; we only fill it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coral_schema::crd::pull_secret_key;
use futures::FutureExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use tokio::time::Instant;

use super::calls::{Answered, RETRY};
use super::metrics::Step;
use super::{Leader, MOST_CALLS};
use crate::api::{self, ApiError};
use crate::image_cache::secrets::Lending;
use crate::labels::FIELD_MANAGER;
use crate::node_cache::wishes::ObjectKey;

/// What is copied.
#[derive(Debug, Default)]
pub(super) struct Copies {
    wanted: BTreeMap<ObjectKey, Lending>,
    /// Objects whose logins are not known yet: a Secret without them would take away what nodes have.
    unknown: BTreeSet<ObjectKey>,
    due: Option<Instant>,
    writing: bool,
}

impl Copies {
    /// What an object needs now; nothing while that is not known.
    pub(super) fn set(&mut self, key: &ObjectKey, needed: Option<Lending>, now: Instant) {
        let Some(needed) = needed else {
            if !self.wanted.contains_key(key) {
                self.unknown.insert(key.clone());
            }
            return;
        };
        self.unknown.remove(key);
        let changed = if needed.logins.is_empty() {
            self.wanted.remove(key).is_some()
        } else {
            self.wanted.insert(key.clone(), needed.clone()).as_ref() != Some(&needed)
        };
        if changed {
            self.mark(now);
        }
    }

    /// The object cannot be evaluated: what was copied for it stays.
    pub(super) fn keep(&mut self, key: &ObjectKey) {
        self.unknown.remove(key);
    }

    /// The object is gone.
    pub(super) fn forget(&mut self, key: &ObjectKey, now: Instant) {
        self.unknown.remove(key);
        if self.wanted.remove(key).is_some() {
            self.mark(now);
        }
    }

    /// It has to be written: several changes become one write.
    pub(super) fn mark(&mut self, now: Instant) {
        self.write_by(now + PAUSE);
    }

    fn write_by(&mut self, latest: Instant) {
        self.due = Some(self.due.map_or(latest, |due| due.min(latest)));
    }

    /// When it is to be written.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due
            .filter(|_| self.unknown.is_empty() && !self.writing)
    }

    fn data(&self) -> BTreeMap<String, ByteString> {
        let entries = self.wanted.iter().map(|(key, lending)| {
            let text = serde_json::to_vec(&*lending.logins);
            let text = text.expect("logins are made of JSON values");
            let key = pull_secret_key(&key.namespace, &key.name);
            (key, ByteString(text))
        });
        entries.collect()
    }
}

impl Leader {
    pub(super) fn write_copies(&mut self, now: Instant) {
        let Some(name) = self.settings.node_pull_secrets.clone() else {
            self.copies.due = None;
            return;
        };
        let due = self.copies.next().is_some_and(|due| due <= now);
        if !due || self.calls.len() >= MOST_CALLS || !self.pace.is_free(now) {
            return;
        }
        self.copies.due = None;
        self.copies.writing = true;
        self.pace.start(now);
        let (client, namespace) = (self.client.clone(), self.settings.namespace.clone());
        let data = self.copies.data();
        let call = async move { Answered::Copies(write(&client, &namespace, &name, data).await) };
        self.calls.push(call.boxed());
    }

    pub(super) fn copies_answered(&mut self, answer: Result<(), ApiError>, now: Instant) {
        self.copies.writing = false;
        let again = match answer {
            Ok(()) => AGAIN,
            Err(error) => {
                self.metrics.failed(Step::WriteCopies, error.category());
                tracing::warn!(%error, "pull secrets for nodes are copied later; warmer.pullSecrets in the chart makes their Secret");
                match error {
                    // A right that is missing is missing for long.
                    ApiError::Refused(_) => AGAIN,
                    _ => RETRY,
                }
            }
        };
        self.copies.write_by(now + again);
    }
}

/// Server-side apply: keys of objects that are gone go with it.
async fn write(
    client: &Client,
    namespace: &str,
    name: &str,
    data: BTreeMap<String, ByteString>,
) -> Result<(), ApiError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..Secret::default()
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api::call(api.patch(name, &params, &Patch::Apply(&secret)))
        .await
        .map(drop)
}

/// From the first change to the write.
const PAUSE: Duration = Duration::from_secs(2);
/// The chart may have made the Secret anew.
const AGAIN: Duration = Duration::from_mins(10);
