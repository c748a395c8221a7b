//! One `ImageCache`: the pipeline from what a user wrote to wishes and status.

use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::ImageCache;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Leader;
use super::world::object_key;
use crate::image_cache::assign::{Assignment, Slots, assign};
use crate::image_cache::build::build;
use crate::image_cache::dereference::{CacheFacts, Surroundings};
use crate::image_cache::finalizer::Decision;
use crate::image_cache::resources::{Applied, Prepared, Resources};
use crate::image_cache::secrets::{Lending, PullSecrets, copies};
use crate::image_cache::served::Registries;
use crate::image_cache::status::{self, Outcome};
use crate::image_cache::validate::{Invalid, Mistake, ValidatedImageCache, validate};
use crate::image_cache::{finalizer, pods, refresh};
use crate::labels::pin_source;
use crate::node_cache::wishes::{ObjectKey, ObjectWishes};
use crate::scheduling;

impl Leader {
    /// Looks at an object that may be gone.
    pub(super) fn look_at_object(&mut self, key: &ObjectKey, now: Instant) {
        self.metrics.reconciles.inc();
        let Some(object) = self.world.objects.get(&key.namespace, &key.name).cloned() else {
            self.forget(key, now);
            return;
        };
        match validate(&object) {
            Ok(mut validated) => match self.join_pods(&object, &mut validated, now) {
                Ok(()) => self.evaluate(&object, &validated, now),
                // Nothing to tell yet.
                Err(_) if self.world.awaits_pods(now) => self.wishes.keep(key),
                Err(mistakes) => self.keep(&object, &mistakes, now),
            },
            Err(mistakes) => self.keep(&object, &mistakes, now),
        }
        // Silence, patience and intervals change things without an event.
        self.due.objects.mark_at(key, now + LOOK_AGAIN);
    }

    /// What running pods say joins the object. The error: pods are not known.
    fn join_pods(
        &mut self,
        object: &ImageCache,
        validated: &mut ValidatedImageCache,
        now: Instant,
    ) -> Result<(), Invalid> {
        let key = &validated.key;
        if !pods::are_used(validated) {
            self.seen.remove(key);
            return Ok(());
        }
        let Some(pods) = self.world.pods(&key.namespace) else {
            return Err(Invalid(vec![Mistake {
                path: "spec.sets".to_owned(),
                message:
                    "depend on pods, which the operator cannot watch: look at its log and rights"
                        .to_owned(),
            }]));
        };
        let said = self.statuses.get(key).or(object.status.as_ref());
        let uptime = self.world.uptime(now);
        let seen = self.seen.entry(key.clone()).or_default();
        pods::join(validated, &pods, seen, said, uptime);
        Ok(())
    }

    fn evaluate(
        &mut self,
        object: &Arc<ImageCache>,
        validated: &ValidatedImageCache,
        now: Instant,
    ) {
        let key = &validated.key;
        self.secrets.want(key, &validated.pull_secrets, now);
        let secrets = self.secrets.of(key);
        let cache = self.cache.facts(key, now);
        self.copy(validated, secrets.as_ref(), cache.registries.as_ref(), now);
        let around = self.around(key, &cache, secrets.as_ref(), now);
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
        let wish = scheduling::wish(validated, &assignment);
        let uptime = self.world.uptime(now);
        for node in self.scheduling.set(key, wish, uptime) {
            self.due.says.mark(&node, now);
        }
        if self.slots.record(validated, assignment.slots.clone()) {
            for waiting in self.slots.waiting() {
                self.due.objects.mark(&waiting, now);
            }
        }
        let resources = self.hand_over(resources, &assignment, secrets.is_some(), now);
        let around = self.around(key, &cache, secrets.as_ref(), now);
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

    /// What nodes need for registries that the cache does not serve, where they may have it.
    fn copy(
        &mut self,
        object: &ValidatedImageCache,
        secrets: Option<&PullSecrets>,
        registries: Option<&Registries>,
        now: Instant,
    ) {
        if self.settings.node_pull_secrets.is_none() {
            return;
        }
        let needed = if object.pull_secrets.is_empty() || object.deleted.is_some() {
            Some(Vec::new())
        } else {
            let known = secrets.zip(registries);
            known.map(|(secrets, registries)| copies(object, secrets, registries))
        };
        let source = pin_source(&object.key.namespace, &object.key.name);
        let needed = needed.map(|logins| Lending::new(source, logins));
        self.copies.set(&object.key, needed, now);
    }

    /// What the steps look at.
    fn around<'a>(
        &'a self,
        key: &ObjectKey,
        cache: &'a CacheFacts,
        secrets: Option<&'a PullSecrets>,
        now: Instant,
    ) -> Surroundings<'a> {
        Surroundings {
            nodes: &self.world.facts,
            cache,
            previous: self.wishes.of(key),
            verdicts: self.wishes.verdicts(key),
            secrets,
            status: self.statuses.get(key).or_else(|| {
                let object = self.world.objects.get(&key.namespace, &key.name)?;
                object.status.as_ref()
            }),
            now: Timestamp::now(),
            uptime: self.world.uptime(now),
        }
    }

    /// Asks the cache and nodes. The cache is not asked before pull secrets were read: it would be refused.
    fn hand_over(
        &mut self,
        resources: Resources<Prepared>,
        assignment: &Assignment,
        secrets_read: bool,
        now: Instant,
    ) -> Resources<Applied> {
        let key = resources.wishes.object.clone();
        if secrets_read {
            self.cache.want(&key, resources.cache.clone(), now);
        }
        let took = secrets_read && self.cache.took(&key);
        let resources = resources.applied(took, assignment);
        for node in self.wishes.set(resources.wishes.clone()) {
            self.due.nodes.mark(&node, now);
        }
        resources
    }

    /// It cannot be evaluated: what nodes hold in its name stays, and nothing is purged.
    fn keep(&mut self, object: &Arc<ImageCache>, mistakes: &Invalid, now: Instant) {
        let key = object_key(object);
        self.wishes.keep(&key);
        self.copies.keep(&key);
        self.slots.remove(&key);
        for node in self.scheduling.keep(&key) {
            self.due.says.mark(&node, now);
        }
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
        self.secrets.forget(key);
        self.copies.forget(key, now);
        self.seen.remove(key);
        for node in self.scheduling.remove(key) {
            self.due.says.mark(&node, now);
        }
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
        // What depends on pods takes its slots at its first look.
        if pods::are_used(&validated) {
            return;
        }
        let cache = self.cache.facts(key, now);
        let none_free = Slots::new(0);
        let assignment = assign(&validated, &self.around(key, &cache, None, now), &none_free);
        self.slots.record(&validated, assignment.slots);
    }
}

/// Images that nodes were not granted before. What the first look finds was.
fn new_grants(before: Option<&ObjectWishes>, after: &ObjectWishes) -> u64 {
    let Some(before) = before else { return 0 };
    let grants = after.nodes.iter().map(|(node, wishes)| {
        let known = before.nodes.get(node).map_or(0, |wishes| wishes.len());
        wishes.len().saturating_sub(known)
    });
    u64::try_from(grants.sum::<usize>()).unwrap_or(u64::MAX)
}

/// Without any event an object is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
