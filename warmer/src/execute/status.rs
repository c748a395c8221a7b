//! Where every image stands, in the words of the `NodeCache`.

use std::collections::BTreeMap;
use std::sync::Arc;

use coral_schema::crd::node_cache::{ImageState, NodeImage, NodeImageStatus};
use coral_schema::crd::{NodeCacheSpec, Reason};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Executor, NodeState, short};
use crate::plan::{Step, Wait};
use crate::presence::digest_of;
use crate::record::FirstReady;

/// When each image came into its state.
pub(super) type Transitions = BTreeMap<String, (ImageState, Timestamp)>;

impl Executor {
    pub(super) fn report(
        &mut self,
        spec: &NodeCacheSpec,
        steps: &[(&NodeImage, Step)],
        now: Timestamp,
    ) {
        let mut by_spelling: BTreeMap<&str, &Step> = steps
            .iter()
            .map(|(image, step)| (image.reference.as_str(), step))
            .collect();
        let mut images = Vec::with_capacity(spec.images.len());
        for image in &spec.images {
            if let Some(step) = by_spelling.remove(image.reference.as_str()) {
                let mut status = self.status_of(image, step);
                status.last_transition = Some(Time(self.transition(&status, now)));
                images.push(status);
            }
        }
        self.transitions
            .retain(|spelling, _| spec.images.iter().any(|image| image.reference == *spelling));
        let all_ready = images.iter().all(|image| image.state == ImageState::Ready);
        let uid = &spec.node_uid;
        let mut first_ready = self
            .record
            .first_ready
            .take()
            .filter(|first| first.node_uid == *uid);
        if all_ready && !images.is_empty() {
            first_ready.get_or_insert_with(|| FirstReady {
                node_uid: uid.clone(),
                time: now,
            });
        }
        self.record.first_ready = first_ready;
        self.publish(NodeState {
            generation: self.wishes.as_ref().map(|wishes| wishes.generation),
            images,
            purge: self.settled.clone(),
            space: self.space,
            runtime_error: self.runtime_error.clone(),
            first_ready: self.record.first_ready.as_ref().map(|first| first.time),
            capabilities: if self.told.listening {
                vec!["ImageEvents", "Pin"]
            } else {
                Vec::new()
            },
        });
    }

    pub(super) fn publish(&self, state: NodeState) {
        self.metrics.state(&state);
        self.state.send_if_modified(|known| {
            let changed = **known != state;
            if changed {
                *known = Arc::new(state);
            }
            changed
        });
    }

    fn transition(&mut self, status: &NodeImageStatus, now: Timestamp) -> Timestamp {
        let known = self
            .transitions
            .entry(status.reference.clone())
            .or_insert((status.state, now));
        if known.0 != status.state {
            *known = (status.state, now);
        }
        known.1
    }

    fn status_of(&self, image: &NodeImage, step: &Step) -> NodeImageStatus {
        let facts = self.found.get(&image.reference).and_then(Option::as_ref);
        let entry = self.record.images.get(&image.reference);
        let failure = entry.and_then(|entry| entry.failure.as_ref());
        let mut status = NodeImageStatus {
            reference: image.reference.clone(),
            digest: facts.and_then(|facts| digest_of(&image.reference, facts)),
            size_bytes: facts.map(|facts| facts.size_bytes),
            pulled_by_us: entry.is_some_and(|entry| entry.ours.is_some()),
            revision: entry.map_or(0, |entry| entry.revision),
            attempts: failure.map_or(0, |failure| failure.attempts),
            evictions: entry.map_or(0, |entry| entry.evictions.total),
            ..NodeImageStatus::default()
        };
        match step {
            Step::Held => status.state = ImageState::Ready,
            // A question that is not on its way yet, or a pull of this round.
            Step::Ask => status.state = ImageState::Waiting,
            Step::Running | Step::Pull(_) => status.state = ImageState::Pulling,
            Step::Unseen => {
                status.state = ImageState::Unknown;
                if let Some(error) = &self.runtime_error {
                    status.reason = Some(Reason::RuntimeUnavailable);
                    status.message = Some(short(&error.message));
                }
            }
            Step::Wait(wait) => waiting(&mut status, wait),
        }
        // Held is held: a pull for the sake of a raised revision may wait or fail meanwhile, and the revision tells.
        if facts.is_some() && status.state != ImageState::Pulling {
            status.state = ImageState::Ready;
        }
        status
    }
}

fn waiting(status: &mut NodeImageStatus, wait: &Wait) {
    status.state = wait.state;
    status.reason = wait.reason;
    status.message = Some(short(&wait.message));
    // What waits for something else asks for it every few seconds; that is nobody's business, and no reason to write.
    let is_told = matches!(wait.state, ImageState::Failed | ImageState::Evicted);
    status.next_attempt = wait.until.filter(|_| is_told).map(Time);
}
