//! Collects what hosted repositories do not need any more, while they are used.
//!
//! A pass looks at all of them: blobs that no manifest of their repository names, and, where `deleteUntaggedAfter` says so,
//! manifests without a tag that nothing with a tag leads to. What it finds is marked, with the time. A later pass takes
//! away what was marked long enough ago and is still not needed: the row first, in one step with a last look, then the
//! record, then the bytes, unless somebody else has or names them. A crash in between leaves what was taken on a list, and
//! the next pass finishes it.
//!
//! Nothing that a client counts on goes (H-02). Whoever pushes a blob, mounts it, or learns that it is there, removes its
//! mark before the answer, so that it stays for `gc.grace` at least; and while somebody pushes to a repository nothing of
//! it goes at all, for up to `gc.uploads`. A pass and a push of a manifest take turns.

use std::time::Duration;

use coral_schema::admin::{GcItem, GcKind, GcReport, GcState};
use coral_schema::process::tasks::Tasks;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{Hosted, HostedError, Shared};
use crate::index::{Role, Taken, Unneeded};
use crate::name::RepoKey;
use crate::store::key::Entry;

/// When passes run, and how long what they mark stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcConfig {
    /// Between two passes; `None`: only when somebody asks for one.
    pub interval: Option<Duration>,
    /// Between the last use of something that is not needed, and its end.
    pub grace: Duration,
    /// How long an upload may rest before it is forgotten. No push takes longer.
    pub uploads: Duration,
}

impl Default for GcConfig {
    fn default() -> Self {
        Self {
            interval: Some(Duration::from_hours(1)),
            grace: Duration::from_hours(1),
            uploads: Duration::from_hours(24),
        }
    }
}

impl Hosted {
    /// Starts the task.
    pub fn start_collecting(&self, tasks: &Tasks) -> JoinHandle<()> {
        let (hosted, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("gc", async move {
            stopping.run_until_cancelled(hosted.collect_forever()).await;
        })
    }

    async fn collect_forever(&self) {
        loop {
            let begun = Instant::now();
            let left = || {
                let interval = self.0.settings.load().gc.interval;
                interval.map(|interval| interval.saturating_sub(begun.elapsed()))
            };
            while left() != Some(Duration::ZERO) {
                // A changed interval is noticed soon.
                sleep(left().unwrap_or(LOOK).min(LOOK)).await;
            }
            // A pass that failed says so itself.
            let _ = self.collect().await;
        }
    }

    /// One pass: marks, and takes away. Two never run at once.
    pub async fn collect(&self) -> Result<GcReport, HostedError> {
        let shared = self.0.clone();
        let work = async move {
            let _only = shared.collecting.lock().await;
            let mut pass = Pass::new(&shared, false);
            let done = pass.run().await;
            let report = pass.report;
            let GcReport {
                removed,
                marked,
                freed_bytes,
                ..
            } = report;
            shared.parts.metrics.passed(&report, done.is_ok());
            match &done {
                Ok(()) if removed + marked > 0 => tracing::info!(
                    removed,
                    bytes = freed_bytes,
                    marked,
                    "collected what hosted repositories do not need"
                ),
                Ok(()) => tracing::debug!("hosted repositories need what they have"),
                Err(error) => tracing::warn!(
                    %error, removed, bytes = freed_bytes, marked, "collecting ended early; it goes on later"
                ),
            }
            done.map(|()| report)
        };
        self.finish_in_any_case(work).await
    }

    /// What a pass would do now, without doing it.
    pub async fn garbage(&self) -> Result<GcReport, HostedError> {
        let mut pass = Pass::new(&self.0, true);
        pass.run().await?;
        Ok(pass.report)
    }
}

/// One pass.
struct Pass<'a> {
    shared: &'a Shared,
    config: GcConfig,
    dry_run: bool,
    report: GcReport,
}

impl<'a> Pass<'a> {
    fn new(shared: &'a Shared, dry_run: bool) -> Self {
        Self {
            shared,
            config: shared.settings.load().gc,
            dry_run,
            report: GcReport {
                dry_run,
                ..GcReport::default()
            },
        }
    }

    async fn run(&mut self) -> Result<(), HostedError> {
        let Shared { parts, active, .. } = self.shared;
        active.forget_older(self.config.grace);
        // Even when this time nothing new goes.
        let finished = self.finish().await;
        let mut last: Option<RepoKey> = None;
        while let Some(repo) = parts.index.next_hosted(last.as_ref()).await? {
            let snapshot = parts.access.snapshot();
            // What the configuration does not call hosted any more is left as it is.
            if let Some(config) = snapshot.hosted.of(&repo) {
                if let Some(after) = config.delete_untagged_after {
                    let wait = after.max(self.config.grace);
                    self.look(&repo, Role::Manifest, wait).await?;
                }
                self.look(&repo, Role::Blob, self.config.grace).await?;
                self.finish().await?;
            }
            last = Some(repo);
        }
        finished
    }

    async fn look(
        &mut self,
        repo: &RepoKey,
        role: Role,
        wait: Duration,
    ) -> Result<(), HostedError> {
        let index = &self.shared.parts.index;
        let mut after = None;
        loop {
            // Without all records everything looks as if nobody needed it.
            self.shared.may_delete().await?;
            let page = index.needs(repo, role, after).await?;
            if !self.dry_run && !page.needed.is_empty() {
                index.unmark(repo, page.needed).await?;
            }
            let mut fresh = Vec::new();
            for found in page.unneeded {
                self.go_on()?;
                let now = index.now();
                let since = found.since.unwrap_or(now);
                let until = self.due(repo, since, wait, now);
                let is_due = found.since.is_some() && until <= now;
                let taken = Taken {
                    repo: repo.clone(),
                    digest: found.digest,
                    role,
                };
                if is_due && (self.dry_run || self.take(&taken, now - wait).await?) {
                    self.note(&taken, found, None);
                } else {
                    fresh.extend(found.since.is_none().then_some(found.digest));
                    self.note(&taken, found, Some(until.max(now)));
                }
            }
            if !self.dry_run && !fresh.is_empty() {
                index.mark(repo, role, fresh).await?;
            }
            after = page.last;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Whatever is left can wait for the next pass.
    fn go_on(&self) -> Result<(), HostedError> {
        if self.shared.parts.tasks.stopping().is_cancelled() {
            let reason = "this registry stops";
            return Err(HostedError::Unavailable(reason.to_owned()));
        }
        Ok(())
    }

    fn due(&self, repo: &RepoKey, since: Timestamp, wait: Duration, now: Timestamp) -> Timestamp {
        let idle = self.shared.active.idle(repo);
        let busy = self.config.grace.saturating_sub(idle);
        due(since, wait, (now + busy, self.config.uploads))
    }

    async fn take(&self, taken: &Taken, since: Timestamp) -> Result<bool, HostedError> {
        let _turn = self.shared.turn(&taken.repo).await;
        let index = &self.shared.parts.index;
        Ok(index.take(taken, since, self.config.grace).await?)
    }

    fn note(&mut self, taken: &Taken, found: Unneeded, until: Option<Timestamp>) {
        let state = match (until, found.since) {
            (None, _) => {
                self.report.removed += 1;
                GcState::Removed
            }
            (Some(_), Some(_)) => {
                self.report.waiting += 1;
                GcState::Waiting
            }
            (Some(_), None) => {
                self.report.marked += 1;
                GcState::Marked
            }
        };
        if self.report.items.len() >= MOST_ITEMS {
            self.report.more = true;
            return;
        }
        self.report.items.push(GcItem {
            repository: taken.repo.to_string(),
            kind: match taken.role {
                Role::Blob => GcKind::Blob,
                Role::Manifest => GcKind::Manifest,
            },
            digest: taken.digest,
            size: found.size,
            state,
            until: until.map(|until| until.to_string()),
        });
    }

    /// Records and bytes of what was taken, by this pass or by one that did not end.
    async fn finish(&mut self) -> Result<(), HostedError> {
        let Shared { parts, .. } = self.shared;
        while !self.dry_run {
            let taken = parts.index.taken().await?;
            if taken.is_empty() {
                break;
            }
            for taken in taken {
                self.go_on()?;
                self.shared.remove_taken(&taken).await?;
                self.report.freed_bytes += parts.evictor.remove_unnamed(&taken.digest).await;
                parts.index.forget_taken(&taken).await?;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// The record of something that was taken, unless it was pushed again since.
    async fn remove_taken(&self, taken: &Taken) -> Result<(), HostedError> {
        let _turn = self.turn(&taken.repo).await;
        if self.parts.index.is_taken(taken).await? {
            let entry = match taken.role {
                Role::Blob => Entry::Blob(taken.digest),
                Role::Manifest => Entry::Manifest(taken.digest),
            };
            self.remove(&taken.repo, entry).await?;
        }
        Ok(())
    }
}

/// When something goes that was marked at `since` and has to `wait`, in a repository that somebody pushes to, as far as can
/// be told, until `busy`, and for no longer than `most` counts. Pure.
fn due(since: Timestamp, wait: Duration, (busy, most): (Timestamp, Duration)) -> Timestamp {
    let after = |time: Duration| since.saturating_add(time).unwrap_or(Timestamp::MAX);
    after(wait).max(busy.min(after(most)))
}

/// What a person reads; the totals count all.
const MOST_ITEMS: usize = 1000;

/// A changed configuration is in use after this time.
const LOOK: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("idle", 0, 10, 0, 10)]
    #[case("pushed to until later", 0, 10, 15, 15)]
    #[case("pushed to for very long", 0, 10, 200, 100)]
    #[case("waits longer than any push", 5, 300, 250, 305)]
    fn h02_waits_for_whoever_pushes(
        #[case] name: &str,
        #[case] since: i64,
        #[case] wait: u64,
        #[case] busy: i64,
        #[case] expected: i64,
    ) {
        let second = |second| Timestamp::from_second(second).unwrap();
        let most = Duration::from_secs(100);
        let found = due(
            second(since),
            Duration::from_secs(wait),
            (second(busy), most),
        );
        assert_eq!(found, second(expected), "{name}");
    }
}
