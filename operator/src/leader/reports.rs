//! What is said of an `ImageCache`: its status, its events, and its finalizer.

use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::image_cache::Entry;
use coral_schema::crd::{ConditionType, ImageCache, ImageCacheStatus, Reason};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio::time::Instant;

use super::calls::{self, Answered};
use super::metrics::Images;
use super::world::object_key;
use super::{Leader, MOST_CALLS, Writing};
use crate::events::Happening;
use crate::image_cache::apply;
use crate::image_cache::finalizer::Decision;
use crate::node_cache::wishes::ObjectKey;

impl Leader {
    /// A status that is new is told, and written when its turn comes.
    pub(super) fn report(
        &mut self,
        object: &ImageCache,
        status: ImageCacheStatus,
        warnings: Vec<(Reason, String)>,
        now: Instant,
    ) {
        let key = object_key(object);
        self.counts.insert(key.clone(), images(&status));
        self.metrics.set_images(self.counts.values().copied());
        let before = self.statuses.get(&key).or(object.status.as_ref());
        if before != Some(&status) {
            let news = ready(&status)
                .filter(|ready| before.and_then(ready_of) != Some(ready.reason.as_str()));
            let news = news.map(|ready| (reason(&ready.reason), ready.message.clone()));
            // Of one reason the first is told: the sentence with the image and the remedy, not the one that counts.
            for (reason, note) in warnings.into_iter().chain(news) {
                self.tell(&key, reason, note);
            }
        }
        if object.status.as_ref() != Some(&status) {
            self.due.statuses.mark(&key, now);
        }
        self.statuses.insert(key, status);
    }

    /// An event, if there is room and it was not told lately.
    pub(super) fn tell(&mut self, key: &ObjectKey, reason: Reason, note: String) {
        let object = self.world.objects.get(&key.namespace, &key.name);
        let Some(object) = object.filter(|_| self.calls.len() < MOST_CALLS) else {
            return;
        };
        if self.told.admit(key, reason, Instant::now()) {
            let happening = Happening { reason, note };
            let instance = self.settings.candidate.identity().to_owned();
            let call = calls::tell(&self.client, Arc::clone(object), happening, instance);
            self.calls.push(call);
        }
    }

    /// As many as there is room for.
    pub(super) fn write_statuses(&mut self, now: Instant) {
        while self.calls.len() < MOST_CALLS && self.pace.is_free(now) {
            let Some(key) = self.due.statuses.take(now) else {
                return;
            };
            let object = self.world.objects.get(&key.namespace, &key.name);
            let (Some(object), Some(status)) = (object, self.statuses.get(&key)) else {
                continue;
            };
            if object.status.as_ref() == Some(status) {
                continue;
            }
            if !self.writing.insert(Writing::Object(key.clone())) {
                self.due.statuses.mark_at(&key, now + AGAIN);
                continue;
            }
            self.metrics.status_writes.inc();
            self.pace.start(now);
            let (client, status) = (self.client.clone(), status.clone());
            let call = async move {
                let written = apply::status(&client, &key, &status).await;
                Answered::Status(key, written)
            };
            self.calls.push(call.boxed());
        }
    }

    pub(super) fn finalize(&mut self, object: &Arc<ImageCache>, decision: &Decision, now: Instant) {
        let key = object_key(object);
        let wanted = match *decision {
            Decision::Keep => return,
            Decision::Wait { nodes: _, until } => {
                let left = until.duration_since(Timestamp::now());
                let left = Duration::try_from(left).unwrap_or_default();
                self.due.objects.mark_at(&key, now + left);
                return;
            }
            Decision::Add => true,
            Decision::Remove { unanswered } => {
                if unanswered > 0 {
                    let note = format!(
                        "{unanswered} nodes did not say in time whether they removed the images"
                    );
                    self.tell(&key, Reason::Timeout, note);
                }
                false
            }
        };
        if self.calls.len() >= MOST_CALLS || !self.writing.insert(Writing::Object(key.clone())) {
            self.due.objects.mark_at(&key, now + AGAIN);
            return;
        }
        let (client, object) = (self.client.clone(), Arc::clone(object));
        let call = async move {
            let written = apply::finalizer(&client, &object, wanted).await;
            Answered::Finalizer(key, written)
        };
        self.calls.push(call.boxed());
    }
}

fn images(status: &ImageCacheStatus) -> Images {
    let entries = &status.entries;
    let cached = entries.iter().filter(|entry| entry.cached).count();
    let sum = |count: fn(&Entry) -> u32| entries.iter().map(|entry| i64::from(count(entry))).sum();
    Images {
        wanted: i64::from(status.images),
        cached: i64::try_from(cached).unwrap_or(i64::MAX),
        ready: sum(|entry| entry.ready_nodes),
        failed: sum(|entry| entry.failed_nodes),
        drifted: sum(|entry| entry.drifted_nodes),
    }
}

fn ready(status: &ImageCacheStatus) -> Option<&Condition> {
    let mut conditions = status.conditions.iter();
    conditions.find(|condition| condition.type_ == ConditionType::Ready.as_str())
}

fn ready_of(status: &ImageCacheStatus) -> Option<&str> {
    ready(status).map(|condition| condition.reason.as_str())
}

fn reason(text: &str) -> Reason {
    let known = Reason::ALL.iter().find(|reason| reason.as_str() == text);
    known.copied().unwrap_or(Reason::Unknown)
}

/// While it is being written.
const AGAIN: Duration = Duration::from_millis(500);
