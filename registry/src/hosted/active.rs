//! Who pushes where: a push may take longer than `gc.grace` from its first blob to its manifest.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::name::RepoKey;

/// When somebody last pushed to a repository.
#[derive(Debug)]
pub(super) struct Active {
    /// What was pushed before is not known any more.
    started: Instant,
    last: Mutex<HashMap<RepoKey, Instant>>,
}

impl Default for Active {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            last: Mutex::default(),
        }
    }
}

impl Active {
    /// Somebody pushes now.
    pub(super) fn note(&self, repo: &RepoKey) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.get_mut(repo) {
            Some(time) => *time = Instant::now(),
            None => drop(last.insert(repo.clone(), Instant::now())),
        }
    }

    /// For how long nobody has, as far as can be told.
    pub(super) fn idle(&self, repo: &RepoKey) -> Duration {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.get(repo).unwrap_or(&self.started).elapsed()
    }

    /// What was longer ago does not matter any more.
    pub(super) fn forget_older(&self, than: Duration) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|_, time| time.elapsed() < than);
    }
}
