//! One `ImageCache`: the pipeline from what a user wrote to wishes and status.

use std::sync::Arc;
use std::time::Duration;

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
use crate::image_cache::assign::{Slots, assign};
use crate::image_cache::build::build;
use crate::image_cache::dereference::{CacheFacts, Surroundings};
use crate::image_cache::finalizer::Decision;
use crate::image_cache::resources::{Applied, Prepared, Resources};
use crate::image_cache::status::{self, Outcome};
use crate::image_cache::validate::{Invalid, ValidatedImageCache, validate};
use crate::image_cache::{apply, finalizer, refresh};
use crate::labels::pin_source;
use crate::node_cache::wishes::{ObjectKey, ObjectWishes};

impl Leader {
    /// Looks at an object that may be gone.
    pub(super) fn look_at_object(&mut self, key: &ObjectKey, now: Instant) {
        self.metrics.reconciles.inc();
        let Some(object) = self.world.objects.get(&key.namespace, &key.name).cloned() else {
            self.forget(key, now);
            return;
        };
        match validate(&object) {
            Ok(validated) => self.evaluate(&object, &validated, now),
            Err(mistakes) => self.keep(&object, &mistakes, now),
        }
        // Silence, patience and intervals change things without an event.
        self.due.objects.mark_at(key, now + LOOK_AGAIN);
    }

    fn evaluate(
        &mut self,
        object: &Arc<ImageCache>,
        validated: &ValidatedImageCache,
        now: Instant,
    ) {
        let key = &validated.key;
        let cache = self.cache.facts(key, now);
        let around = self.around(key, &cache, now);
        let previous = self.statuses.get(key).or(object.status.as_ref());
        let interval = self.settings.refresh_interval;
        let due = refresh::due(validated, previous, interval, around.now);
        let assignment = assign(validated, &around, &self.slots);
        let resources = build(validated, &assignment, &around, due);
        let has_finalizer = finalizer::is_on(object);
        let decision = finalizer::decide(validated, has_finalizer, around.nodes, around.now);
        self.metrics
            .grants
            .inc_by(new_grants(around.previous, &resources.wishes));
        if self.slots.record(validated, assignment.slots.clone()) {
            for waiting in self.slots.waiting() {
                self.due.objects.mark(&waiting, now);
            }
        }
        let resources = self.hand_over(resources, now);
        let around = self.around(key, &cache, now);
        let status = status::status(&Outcome {
            object: validated,
            assignment: &assignment,
            around: &around,
            resources: &resources,
            previous: self.statuses.get(key).or(object.status.as_ref()),
        });
        let warnings = status::warnings(&assignment, &status);
        self.report(object, status, warnings, now);
        self.finalize(object, &decision, now);
    }

    /// What the steps look at.
    fn around<'a>(
        &'a self,
        key: &ObjectKey,
        cache: &'a CacheFacts,
        now: Instant,
    ) -> Surroundings<'a> {
        Surroundings {
            nodes: &self.world.facts,
            cache,
            previous: self.wishes.of(key),
            verdicts: self.wishes.verdicts(key),
            now: Timestamp::now(),
            uptime: self.world.uptime(now),
        }
    }

    /// Asks nodes and the cache.
    fn hand_over(&mut self, resources: Resources<Prepared>, now: Instant) -> Resources<Applied> {
        let key = resources.wishes.object.clone();
        for node in self.wishes.set(resources.wishes.clone()) {
            self.due.nodes.mark(&node, now);
        }
        self.cache.want(&key, resources.cache.clone(), now);
        let took = self.cache.took(&key);
        resources.applied(took)
    }

    /// It cannot be evaluated: what nodes hold in its name stays, and nothing is purged.
    fn keep(&mut self, object: &Arc<ImageCache>, mistakes: &Invalid, now: Instant) {
        let key = object_key(object);
        self.wishes.keep(&key);
        self.slots.remove(&key);
        let previous = self.statuses.get(&key).or(object.status.as_ref());
        let generation = object.metadata.generation.unwrap_or_default();
        let status = status::invalid(generation, mistakes, previous, Timestamp::now());
        self.report(object, status, Vec::new(), now);
        // There is nothing to wait for, and it must not wedge its namespace.
        let deleted = object.metadata.deletion_timestamp.is_some();
        if deleted && finalizer::is_on(object) {
            self.finalize(object, &Decision::Remove { unanswered: 0 }, now);
        }
    }

    /// It is gone.
    fn forget(&mut self, key: &ObjectKey, now: Instant) {
        for node in self.wishes.remove(key) {
            self.due.nodes.mark(&node, now);
        }
        self.slots.remove(key);
        for waiting in self.slots.waiting() {
            self.due.objects.mark(&waiting, now);
        }
        let source = pin_source(&key.namespace, &key.name);
        self.cache.forget(key, source, now);
        self.statuses.remove(key);
        self.counts.remove(key);
        self.metrics.set_images(self.counts.values().copied());
        self.due.objects.forget(key);
        self.due.statuses.forget(key);
    }

    /// At the start: what nodes pull for this object takes slots before any is given away.
    pub(super) fn count_slots(&mut self, key: &ObjectKey, now: Instant) {
        let object = self.world.objects.get(&key.namespace, &key.name);
        let Some(Ok(validated)) = object.map(|object| validate(object)) else {
            return;
        };
        let cache = self.cache.facts(key, now);
        let none_free = Slots::new(0);
        let assignment = assign(&validated, &self.around(key, &cache, now), &none_free);
        self.slots.record(&validated, assignment.slots);
    }

    /// A status that is new is told, and written when its turn comes.
    fn report(
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
            for (reason, note) in news.into_iter().chain(warnings) {
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
        while self.calls.len() < MOST_CALLS {
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
            let (client, status) = (self.client.clone(), status.clone());
            let call = async move {
                let written = apply::status(&client, &key, &status).await;
                Answered::Status(key, written)
            };
            self.calls.push(call.boxed());
        }
    }

    fn finalize(&mut self, object: &Arc<ImageCache>, decision: &Decision, now: Instant) {
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

/// Images that nodes were not granted before. What the first look finds was.
fn new_grants(before: Option<&ObjectWishes>, after: &ObjectWishes) -> u64 {
    let Some(before) = before else { return 0 };
    let grants = after.nodes.iter().map(|(node, wishes)| {
        let known = before.nodes.get(node).map_or(0, Vec::len);
        wishes.len().saturating_sub(known)
    });
    u64::try_from(grants.sum::<usize>()).unwrap_or(u64::MAX)
}

fn images(status: &ImageCacheStatus) -> Images {
    let entries = &status.entries;
    let cached = entries.iter().filter(|entry| entry.cached).count();
    Images {
        wanted: i64::from(status.images),
        cached: i64::try_from(cached).unwrap_or(i64::MAX),
        ready: entries
            .iter()
            .map(|entry| i64::from(entry.ready_nodes))
            .sum(),
        failed: entries
            .iter()
            .map(|entry| i64::from(entry.failed_nodes))
            .sum(),
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

/// Without any event an object is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// While it is being written.
const AGAIN: Duration = Duration::from_millis(500);
