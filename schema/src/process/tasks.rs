//! The only spawner: every task has a name, an owner that can wait for it, and learns when the process stops.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// A handle to the tasks of a process, or of one part of it. Clones share the same tasks.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. Its log events carry `name`.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the owner that all others go through"
    )]
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let span = tracing::info_span!("task", name);
        tokio::spawn(self.tracker.track_future(future.instrument(span)))
    }

    /// Cancelled when the process stops: long-running tasks end soon after.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Tells all tasks to stop and waits for them, at most `within`. Did all of them end?
    pub async fn stop(&self, within: Duration) -> bool {
        self.stopping.cancel();
        self.tracker.close();
        tokio::time::timeout(within, self.tracker.wait())
            .await
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stop_waits_for_tasks_that_listen_and_gives_up_on_others() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        let listening = tasks.spawn("listens", async move { stopping.cancelled().await });
        assert!(tasks.stop(Duration::from_secs(5)).await);
        assert!(listening.is_finished());

        let deaf = Tasks::new();
        deaf.spawn("deaf", std::future::pending::<()>());
        assert!(!deaf.stop(Duration::from_millis(10)).await);
    }
}
