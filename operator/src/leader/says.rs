//! What a Node says of warmth: labels, and the taint that it booted with.

use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::Reason;
use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use super::calls::{Answered, RETRY};
use super::metrics::Step;
use super::{Leader, MOST_CALLS, Writing};
use crate::api::ApiError;
use crate::scheduling::node;

impl Leader {
    /// As many as there is room for.
    pub(super) fn write_says(&mut self, now: Instant) {
        while self.calls.len() < MOST_CALLS && self.pace.is_free(now) {
            let Some(name) = self.due.says.take(now) else {
                return;
            };
            let Some(facts) = self.world.facts.get(&name).cloned() else {
                self.unseen.remove(&name);
                continue;
            };
            if let Some(&seen) = self.unseen.get(&name).filter(|seen| now < **seen) {
                self.due.says.mark_at(&name, seen);
                continue;
            }
            self.unseen.remove(&name);
            let uptime = self.world.uptime(now);
            let change = self.scheduling.change(&facts, Timestamp::now(), uptime);
            if let Some(again) = change.again {
                self.due.says.mark_at(&name, now + again);
            }
            if change.is_empty() {
                continue;
            }
            if !self.writing.insert(Writing::Says(Arc::clone(&name))) {
                self.due.says.mark_at(&name, now + AGAIN);
                continue;
            }
            self.pace.start(now);
            let client = self.client.clone();
            let call = async move {
                let state = (facts.version.as_deref(), facts.own_taints.as_slice());
                let written = node::apply(&client, &name, &change, state).await;
                Answered::Says(name, written)
            };
            self.calls.push(call.boxed());
        }
    }

    /// The watch tells what it says now.
    pub(super) fn says_answered(
        &mut self,
        name: &Arc<str>,
        answer: Result<(), ApiError>,
        now: Instant,
    ) {
        self.writing.remove(&Writing::Says(Arc::clone(name)));
        let Err(error) = answer else { return };
        self.metrics.failed(Step::WriteNode, error.category());
        let wait = match error {
            ApiError::NotFound => return,
            // Somebody else wrote: its state comes in with the watch.
            ApiError::Conflict(_) => AGAIN,
            ApiError::Refused(_) => {
                for key in self.scheduling.objects_on(name) {
                    let note = "the operator may not label Nodes and lift their taint; set \
                                operator.nodeScheduling in the chart";
                    self.tell(&key, Reason::PolicyDenied, note.to_owned());
                }
                REFUSED
            }
            _ => RETRY,
        };
        tracing::warn!(%error, node = %name, "labels or taint of a node are written later");
        self.due.says.mark_at(name, now + wait);
    }
}

/// While it is being written.
const AGAIN: Duration = Duration::from_millis(500);
/// A right that is missing is missing for long.
const REFUSED: Duration = Duration::from_mins(5);
