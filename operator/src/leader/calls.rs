//! Calls on their way, and what their answers mean.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::admin::CredentialRequest;
use coral_schema::crd::{ImageCache, NodeCache};
use coral_schema::oci::ImageReference;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::Client;
use tokio::time::Instant;

use super::metrics::Step;
use super::secrets::{self, SecretKey};
use super::world::{Seen, object_key};
use super::{Leader, Writing};
use crate::api::ApiError;
use crate::events::{self, Happening};
use crate::node_cache::wishes::ObjectKey;
use crate::registry::follow::{Answer, LENT_FOR, Question};
use crate::registry::{Registry, RegistryError};

/// A call on its way.
pub(super) type Call = BoxFuture<'static, Answered>;

/// What came back.
#[derive(Debug)]
pub(super) enum Answered {
    Node(Arc<str>, Result<Option<NodeCache>, ApiError>),
    Pods(Arc<str>, Result<HashSet<ImageReference>, ApiError>),
    Status(ObjectKey, Result<ImageCache, ApiError>),
    Finalizer(ObjectKey, Result<ImageCache, ApiError>),
    Event(Result<(), ApiError>),
    Says(Arc<str>, Result<(), ApiError>),
    Secret(SecretKey, secrets::Read),
    Copies(Result<(), ApiError>),
    Registry(Question, Result<Answer, RegistryError>),
}

pub(super) fn ask(registry: &Registry, question: Question) -> Call {
    let registry = registry.clone();
    async move {
        let answer = match &question {
            Question::Registries => registry.registries().await.map(Answer::Registries),
            Question::Start(_, wanted) => registry.start(wanted).await.map(Answer::Started),
            Question::Progress(_, id) => registry.progress(id).await.map(Answer::Progress),
            Question::Pin(_, source, wanted) => {
                registry.pin(source, wanted).await.map(|()| Answer::Done)
            }
            Question::Unpin(source) => registry.unpin(source).await.map(|()| Answer::Done),
            Question::Lend(_, lending) => {
                let expires = Timestamp::now().saturating_add(LENT_FOR);
                let wanted = CredentialRequest {
                    entries: lending.logins.to_vec(),
                    expires: expires.unwrap_or(Timestamp::MAX).to_string(),
                };
                let lent = registry.lend(&lending.source, &wanted).await;
                lent.map(|()| Answer::Done)
            }
            Question::TakeBack(source) => registry.take_back(source).await.map(|()| Answer::Done),
        };
        Answered::Registry(question, answer)
    }
    .boxed()
}

pub(super) fn read_secret(client: &Client, key: SecretKey) -> Call {
    let client = client.clone();
    async move {
        let read = secrets::read(&client, &key).await;
        Answered::Secret(key, read)
    }
    .boxed()
}

pub(super) fn tell(
    client: &Client,
    object: Arc<ImageCache>,
    happening: Happening,
    instance: String,
) -> Call {
    let client = client.clone();
    async move { Answered::Event(events::publish(&client, &object, &happening, &instance).await) }
        .boxed()
}

impl Leader {
    pub(super) fn answered(&mut self, answer: Answered) {
        let now = Instant::now();
        match answer {
            Answered::Node(node, answer) => {
                self.pace.ended(&answer, now);
                self.node_answered(&node, answer, now);
            }
            Answered::Pods(node, answer) => {
                self.writing.remove(&Writing::Node(Arc::clone(&node)));
                match answer {
                    Ok(pods) => self.write_node(&node, Some(&pods)),
                    Err(error) => self.node_failed(&node, Step::ListPods, &error, now),
                }
            }
            Answered::Status(key, answer) => {
                self.pace.ended(&answer, now);
                self.object_answered(&key, Step::WriteStatus, answer, now);
            }
            Answered::Finalizer(key, answer) => {
                self.object_answered(&key, Step::WriteFinalizer, answer, now);
            }
            Answered::Event(answer) => {
                if let Err(error) = answer {
                    self.metrics.failed(Step::WriteEvent, error.category());
                    tracing::debug!(%error, "an event was not written");
                }
            }
            Answered::Says(node, answer) => {
                self.pace.ended(&answer, now);
                self.says_answered(&node, answer, now);
            }
            Answered::Secret(key, answer) => {
                if let Err(error) = &answer {
                    self.metrics.failed(Step::ReadSecret, error.category());
                }
                for object in self.secrets.answer(&key, answer, now) {
                    self.due.objects.mark(&object, now);
                }
            }
            Answered::Copies(answer) => {
                self.pace.ended(&answer, now);
                self.copies_answered(answer, now);
            }
            Answered::Registry(question, answer) => {
                self.questions = self.questions.saturating_sub(1);
                let affected = self.cache.answer(&question, answer, now);
                self.registry_said(affected);
            }
        }
    }

    fn node_answered(
        &mut self,
        node: &Arc<str>,
        answer: Result<Option<NodeCache>, ApiError>,
        now: Instant,
    ) {
        self.writing.remove(&Writing::Node(Arc::clone(node)));
        match answer {
            Ok(written) => {
                let marks = written.map(|cache| self.world.written(cache, now));
                self.mark(marks.unwrap_or_default());
            }
            Err(error) => self.node_failed(node, Step::WriteNodeCache, &error, now),
        }
    }

    fn node_failed(&mut self, node: &Arc<str>, step: Step, error: &ApiError, now: Instant) {
        self.metrics.failed(step, error.category());
        tracing::warn!(%error, %node, ?step, "a node's spec is written later");
        self.due.nodes.mark_at(node, now + RETRY);
    }

    fn object_answered(
        &mut self,
        key: &ObjectKey,
        step: Step,
        answer: Result<ImageCache, ApiError>,
        now: Instant,
    ) {
        self.writing.remove(&Writing::Object(key.clone()));
        match answer {
            Ok(object) => {
                debug_assert_eq!(object_key(&object), *key);
                // One without finalizers that is being deleted is gone already; the watch tells.
                if object.metadata.deletion_timestamp.is_none() {
                    let seen = Seen::Object(kube::runtime::watcher::Event::Apply(object));
                    let marks = self.world.take_in(seen, now);
                    self.mark(marks);
                }
            }
            Err(ApiError::NotFound) => {}
            Err(error) => {
                self.metrics.failed(step, error.category());
                tracing::warn!(%error, object = %key, ?step, "an ImageCache is written later");
                self.due.objects.mark_at(key, now + RETRY);
                self.due.statuses.mark_at(key, now + RETRY);
            }
        }
    }
}

/// After a call of the API server failed.
pub(super) const RETRY: Duration = Duration::from_secs(5);
