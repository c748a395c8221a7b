//! The status of this node's `NodeCache`: written by server-side apply when something changed, seldom enough for
//! thousands of nodes, and at once when an image became Ready or Failed.

use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::{NodeCache, NodeCacheStatus};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::chance;
use crate::cri::Version;
use crate::execute::{NodeState, Wishes};
use crate::mirror::MirrorState;

mod pace;
mod status;

use self::pace::Pace;
use self::status::{Facts, is_news, is_same, status};

/// Who owns the fields of the status.
pub const FIELD_MANAGER: &str = "coral-warmer";

/// For one call to the API server.
const DEADLINE: Duration = Duration::from_secs(10);
/// After a call that failed: the first pause, doubled each time, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// When the API server returns, all nodes have something to say. Spread over so many intervals, and half of it at least,
/// they are not more than the interval allows.
const INTERVALS: u32 = 2;
/// Nothing to do until something changes.
const IDLE: Duration = Duration::from_hours(1);

/// What the status is made of.
#[derive(Debug)]
pub struct Sources {
    /// What is wished for.
    pub wishes: watch::Receiver<Option<Arc<Wishes>>>,
    /// What became of it.
    pub node: watch::Receiver<Arc<NodeState>>,
    /// The runtime's mirror settings.
    pub mirror: watch::Receiver<MirrorState>,
    /// Who answers on the runtime's socket.
    pub runtime: watch::Receiver<Option<Version>>,
}

/// See the module.
#[derive(Debug)]
pub struct Reporter {
    api: Api<NodeCache>,
    node: String,
    sources: Sources,
    /// What the API server holds; `None` until it was asked.
    written: Option<NodeCacheStatus>,
    pace: Pace,
    failures: u32,
    /// After a failure.
    not_before: Instant,
}

impl Reporter {
    /// For the node of this name.
    pub fn new(client: Client, node: String, sources: Sources) -> Self {
        let now = Instant::now();
        Self {
            api: Api::all(client),
            node,
            sources,
            written: None,
            pace: Pace::new(now),
            failures: 0,
            not_before: now,
        }
    }

    /// Reports until `stopping`.
    pub async fn run(mut self, stopping: CancellationToken) {
        stopping
            .run_until_cancelled(async {
                loop {
                    let sleep = self.round().await;
                    let sources = &mut self.sources;
                    let changed = tokio::select! {
                        changed = sources.wishes.changed() => changed,
                        changed = sources.node.changed() => changed,
                        changed = sources.mirror.changed() => changed,
                        changed = sources.runtime.changed() => changed,
                        () = tokio::time::sleep(sleep) => Ok(()),
                    };
                    if changed.is_err() {
                        return;
                    }
                }
            })
            .await;
    }

    /// Writes if there is something to say and its time has come. Returns how long there is nothing to do.
    async fn round(&mut self) -> Duration {
        let wishes = self.sources.wishes.borrow_and_update().clone();
        let node = Arc::clone(&self.sources.node.borrow_and_update());
        let mirror = self.sources.mirror.borrow_and_update().clone();
        let runtime = self.sources.runtime.borrow_and_update().clone();
        let Some(wishes) = wishes else {
            self.written = None;
            return IDLE;
        };
        // The executor is about to say what it makes of the new wishes.
        if node.generation != Some(wishes.generation) {
            return IDLE;
        }
        let now = Instant::now();
        if now < self.not_before {
            return self.not_before.duration_since(now);
        }
        let interval = wishes.spec.report_interval.0;
        let before = match self.before(&wishes.spec.node_uid).await {
            Ok(before) => before,
            Err(problem) => return self.failed(&problem, interval),
        };
        let facts = Facts {
            wishes: &wishes,
            node: &node,
            mirror: &mirror,
            runtime: runtime.as_ref(),
        };
        let next = status(facts, &before, Timestamp::now());
        if is_same(&before, &next) {
            return IDLE;
        }
        if let Err(wait) = self.pace.take(is_news(&before, &next), interval, now) {
            return wait;
        }
        match self.write(&next).await {
            Ok(()) => {
                self.failures = 0;
                self.written = Some(next);
                IDLE
            }
            Err(problem) => self.failed(&problem, interval),
        }
    }

    /// What was written last, by this process or the one before. A status of another node's UID is void.
    async fn before(&mut self, node_uid: &str) -> Result<NodeCacheStatus, String> {
        let known = match self.written.take() {
            Some(known) => known,
            None => within(self.api.get(&self.node))
                .await?
                .status
                .unwrap_or_default(),
        };
        self.written = Some(known.clone());
        Ok(match known.node_uid.as_deref() {
            Some(uid) if uid == node_uid => known,
            _ => NodeCacheStatus::default(),
        })
    }

    async fn write(&self, status: &NodeCacheStatus) -> Result<(), String> {
        let object = json!({
            "apiVersion": "coral.dev/v1alpha1",
            "kind": "NodeCache",
            "metadata": { "name": self.node },
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(object);
        let written = self.api.patch_status(&self.node, &parameters, &patch);
        within(written).await.map(|_| ())
    }

    fn failed(&mut self, problem: &str, interval: Duration) -> Duration {
        if self.failures == 0 {
            tracing::warn!("the status cannot be written: {problem}");
        }
        let pause = pause(self.failures, interval, chance::any());
        self.failures = self.failures.saturating_add(1);
        // Whether a write that failed took effect is not known.
        self.written = None;
        self.not_before = Instant::now() + pause;
        pause
    }
}

/// How long to wait after so many failures and one. `jitter` is any number.
fn pause(failures: u32, interval: Duration, jitter: u64) -> Duration {
    let longest = LONGEST_PAUSE.max(interval.saturating_mul(INTERVALS));
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.min(16));
    chance::shortened(doubled.min(longest), jitter)
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match timeout(DEADLINE, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 5000 nodes report every 100 s. After an outage all of them have something to say.
    #[test]
    fn l18_the_return_of_the_api_server_is_no_storm() {
        let interval = Duration::from_secs(100);
        let waits: Vec<Duration> = (0..5_000)
            .map(|node| pause(9, interval, node * 7))
            .collect();
        for second in 0..=200 {
            let due = |wait: &&Duration| wait.as_secs() == second;
            let writes = waits.iter().filter(due).count();
            assert!(writes <= 55, "{writes} writes in second {second}");
        }
        assert!(waits.iter().all(|wait| *wait >= interval));
        assert!(pause(0, interval, 0) >= FIRST_PAUSE / 2);
        assert!(pause(99, Duration::from_secs(5), 1023) <= LONGEST_PAUSE);
    }
}
