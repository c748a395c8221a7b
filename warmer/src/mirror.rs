//! Points the runtime's mirror settings at the cache while it answers, and takes them away when it does not: a node must
//! never be worse off than without a cache.
//!
//! Only files with our marker are written or removed, and only where no file of an administrator changes its meaning by
//! that. A file that stands is no proof that the runtime reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::Reason;
use coral_schema::crd::node_cache::Mirror;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::cri::Version;
use crate::execute::Wishes;
use crate::registry::Cache;

mod containerd;
mod crio;
mod decide;
mod files;
pub mod gate;
pub mod probe;

use self::decide::{Decision, Wanted, decide, is_crio, standing};
use self::probe::Probes;

/// Between two probes of the cache; also how soon a file that somebody removed is back.
pub const PERIOD: Duration = Duration::from_secs(5);

/// Where the settings stand. Published when it changes.
#[derive(Debug, Clone, Default)]
pub struct MirrorState {
    /// `Written`, `Removed`, `NotOurs` or `Internal`; `None` until it is known whether the cache answers.
    pub reason: Option<Reason>,
    /// The same in a sentence, with the lines to paste where an administrator's files were left alone.
    pub message: String,
    /// Registries for which the runtime is told to ask the cache first, by us or by an administrator.
    pub leads: BTreeSet<String>,
    /// The cache, if the spec names one.
    pub cache: Option<Arc<Cache>>,
}

impl PartialEq for MirrorState {
    fn eq(&self, other: &Self) -> bool {
        let same_cache = match (&self.cache, &other.cache) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same_cache
            && self.reason == other.reason
            && self.message == other.message
            && self.leads == other.leads
    }
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    written: BTreeSet<String>,
    foreign: BTreeMap<String, Foreign>,
    problems: Vec<String>,
    /// What has to happen beside the files before the runtime follows them.
    note: Option<String>,
    /// Files of ours that were not wanted were there.
    removed: bool,
}

/// An administrator's settings for a registry.
#[derive(Debug, PartialEq, Eq)]
struct Foreign {
    /// The file or folder by which we know.
    what: String,
    /// The lines to paste, if their settings do not lead to the cache yet.
    paste: Option<String>,
}

impl Outcome {
    fn written(&mut self, registry: String) {
        self.written.insert(registry);
    }

    fn foreign(&mut self, registry: String, what: String, paste: Option<String>) {
        self.foreign.insert(registry, Foreign { what, paste });
    }

    fn failed(&mut self, registry: &str, error: &io::Error) {
        self.problems.push(format!("{registry}: {error}"));
    }
}

/// Removes every file of ours in the runtime's folder, whatever runtime it is of. Were there any? Blocks.
pub fn cleanup(folder: &Path) -> io::Result<bool> {
    let below = containerd::apply(folder, None)?;
    let beside = crio::apply(folder, None)?;
    match below.problems.first() {
        Some(problem) => Err(io::Error::other(problem.clone())),
        None => Ok(below.removed || beside.removed),
    }
}

/// See the module.
#[derive(Debug)]
pub struct Mirrors {
    /// The runtime's folder; `None`: its settings are not touched.
    folder: Option<PathBuf>,
    period: Duration,
    /// What the spec said last, and the client made of it.
    spec: Option<Mirror>,
    cache: Option<Arc<Cache>>,
    /// Why there is no client.
    unusable: Option<String>,
    probes: Probes,
    state: watch::Sender<MirrorState>,
}

impl Mirrors {
    /// For the runtime that reads `folder`, with a probe every `period` ([`PERIOD`] but in tests). The receiver always has
    /// the latest state.
    pub fn new(folder: Option<PathBuf>, period: Duration) -> (Self, watch::Receiver<MirrorState>) {
        let (state, receiver) = watch::channel(MirrorState::default());
        let mirrors = Self {
            folder,
            period,
            spec: None,
            cache: None,
            unusable: None,
            probes: Probes::default(),
            state,
        };
        (mirrors, receiver)
    }

    /// Works until `stopping`. The files stay then: the next start goes on with them.
    pub async fn run(
        mut self,
        mut wishes: watch::Receiver<Option<Arc<Wishes>>>,
        runtime: watch::Receiver<Option<Version>>,
        stopping: CancellationToken,
    ) {
        let mut ticks = interval(self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probed: Option<Instant> = None;
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = ticks.tick() => {}
                changed = wishes.changed() => if changed.is_err() { return },
            }
            let changed = self.follow(wishes.borrow_and_update().as_deref());
            // A change of something else in the spec is no reason to count another probe.
            let due = changed || probed.is_none_or(|last| last.elapsed() >= self.period);
            if due && let Some(cache) = self.cache.clone() {
                probed = Some(Instant::now());
                let version = runtime.borrow().clone();
                let patience =
                    version.map_or(u32::MAX, |who| probe::patience(&who.name, &who.version));
                let answered = cache.is_alive().await;
                self.probes.record(answered, patience);
            }
            let version = runtime.borrow().clone();
            let state = self.settle(version.as_ref()).await;
            self.publish(state);
        }
    }

    /// Takes over what the spec says. Did it change?
    fn follow(&mut self, wishes: Option<&Wishes>) -> bool {
        let spec = wishes.and_then(|wishes| wishes.spec.mirror.clone());
        if spec == self.spec {
            return false;
        }
        let address = |spec: &Option<Mirror>| spec.as_ref().map(|mirror| mirror.url.clone());
        if address(&spec) != address(&self.spec) {
            self.probes = Probes::default();
        }
        (self.cache, self.unusable) = match spec.as_ref().map(Cache::new) {
            None => (None, None),
            Some(Ok(cache)) => (Some(Arc::new(cache)), None),
            Some(Err(error)) => (None, Some(error.to_string())),
        };
        self.spec = spec;
        true
    }

    /// Makes the files what they should be now.
    async fn settle(&self, runtime: Option<&Version>) -> MirrorState {
        let nothing = MirrorState {
            cache: self.cache.clone(),
            ..MirrorState::default()
        };
        let Some(folder) = self.folder.clone() else {
            let message = "the warmer was started without --mirror-config";
            return nothing.because(Reason::NotOurs, message);
        };
        let decision = match (&self.unusable, &self.spec) {
            (Some(problem), _) => Decision::Withdraw(Reason::Internal, problem.clone()),
            (None, spec) => decide(spec.as_ref(), self.probes.alive()),
        };
        let wanted = match &decision {
            Decision::Wait => return nothing,
            Decision::Withdraw(..) => None,
            Decision::Write(wanted) => Some(wanted.clone()),
        };
        let shown = folder.display().to_string();
        let is_crio = is_crio(&folder, runtime);
        let applying = tokio::task::spawn_blocking(move || {
            if is_crio {
                crio::apply(&folder, wanted.as_ref())
            } else {
                containerd::apply(&folder, wanted.as_ref())
            }
        });
        let outcome = match applying.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => {
                return nothing.because(Reason::Internal, format!("{shown}: {error}"));
            }
            Err(error) => return nothing.because(Reason::Internal, error.to_string()),
        };
        match (outcome.problems.first(), decision) {
            (_, Decision::Write(_)) => standing(&outcome, nothing),
            (Some(problem), _) => nothing.because(Reason::Internal, problem.clone()),
            (None, Decision::Withdraw(reason, message)) => nothing.because(reason, message),
            (None, Decision::Wait) => nothing,
        }
    }

    fn publish(&self, state: MirrorState) {
        self.state.send_if_modified(|known| {
            let changed = *known != state;
            if changed {
                tracing::info!(
                    reason = state.reason.map(Reason::as_str),
                    "mirror settings: {}",
                    state.message
                );
                *known = state;
            }
            changed
        });
    }
}

impl MirrorState {
    fn because(self, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason: Some(reason),
            message: message.into(),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleanup_takes_ours_and_leaves_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = Wanted {
            cache: "http://10.96.0.10:5000".parse().unwrap(),
            authority: None,
            registries: ["docker.io".parse().unwrap()].into(),
        };
        containerd::apply(folder.path(), Some(&wanted)).unwrap();
        crio::apply(folder.path(), Some(&wanted)).unwrap();
        std::fs::write(folder.path().join("theirs.conf"), "").unwrap();
        assert!(cleanup(folder.path()).unwrap());
        assert!(!cleanup(folder.path()).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
