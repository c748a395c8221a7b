//! One prefetch job: whether it does what is asked for, and when to look at it again.

use std::time::Duration;

use coral_schema::admin::{PrefetchImage, PrefetchRequest, PrefetchState, PrefetchStatus};
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: PrefetchRequest,
    pub(super) id: Option<String>,
    pub(super) over: bool,
    /// The registry took it with `refresh`.
    pub(super) refreshed: bool,
    /// Jobs in a row that ended with a failure.
    pub(super) failures: u32,
    /// When to ask the next thing about it; nothing when it is done.
    pub(super) due: Option<Instant>,
    pub(super) images: Vec<PrefetchImage>,
}

impl Job {
    pub(super) fn new(request: PrefetchRequest, now: Instant) -> Self {
        Self {
            request,
            id: None,
            over: false,
            refreshed: false,
            failures: 0,
            due: Some(now),
            images: Vec::new(),
        }
    }

    /// What earlier jobs said of the same images stands until this one says otherwise.
    pub(super) fn replacing(before: &[Self], request: PrefetchRequest, now: Instant) -> Self {
        let known = before
            .iter()
            .filter(|job| job.request.platforms == request.platforms)
            .flat_map(|job| &job.images)
            .filter(|image| request.images.contains(&image.reference));
        Self {
            images: known.cloned().collect(),
            ..Self::new(request, now)
        }
    }

    /// Is this what it does, or did?
    pub(super) fn answers(&self, request: &PrefetchRequest) -> bool {
        self.request.images == request.images && self.request.platforms == request.platforms
    }

    /// Goes on, unless the upstream is to be asked anew.
    pub(super) fn reuse(mut self, request: PrefetchRequest, now: Instant) -> Self {
        if request.refresh && !self.request.refresh {
            self.id = None;
            self.due = Some(now);
            self.refreshed = false;
        }
        self.request = request;
        self
    }

    /// It has got logins: what failed without them need not wait.
    pub(super) fn try_again(&mut self, now: Instant) {
        if self.failures > 0 && self.id.is_none() {
            self.due = Some(now);
        }
    }

    pub(super) fn progress(&mut self, status: PrefetchStatus, now: Instant) -> bool {
        let PrefetchStatus {
            id: _,
            state,
            images,
        } = status;
        let images: Vec<PrefetchImage> = images
            .into_iter()
            .map(|mut image| {
                // Only their sums are looked at.
                image.layers = Vec::new();
                image
            })
            .collect();
        let changed = self.images != images || self.over != state.is_over();
        self.images = images;
        self.over = state.is_over();
        self.due = match state {
            PrefetchState::Queued | PrefetchState::Running => Some(now + LOOK),
            PrefetchState::Done => {
                self.failures = 0;
                None
            }
            PrefetchState::Failed => {
                self.id = None;
                self.failures = self.failures.saturating_add(1);
                Some(now + pause(self.failures))
            }
        };
        changed
    }
}

/// Before a failed job starts again.
fn pause(failures: u32) -> Duration {
    let doubled = AFTER_FAILURE * 2_u32.saturating_pow(failures.saturating_sub(1).min(10));
    doubled.min(AFTER_FAILURES)
}

/// The same image for other platforms.
pub(super) fn join(known: &mut PrefetchImage, other: &PrefetchImage) {
    let worse = |state| match state {
        PrefetchState::Failed => 0,
        PrefetchState::Queued => 1,
        PrefetchState::Running => 2,
        PrefetchState::Done => 3,
    };
    if worse(other.state) < worse(known.state) {
        known.state = other.state;
        known.reason = other.reason;
        known.message.clone_from(&other.message);
    }
    known.digest = known.digest.or(other.digest);
    known.upstream_digest = known.upstream_digest.or(other.upstream_digest);
    known
        .missing_platforms
        .extend(other.missing_platforms.iter().cloned());
    known.size_bytes = known.size_bytes.max(other.size_bytes);
    known.bytes_done += other.bytes_done;
    known.bytes_total += other.bytes_total;
}

/// From the start of a job to the first look: what is held is reported within this time.
pub(super) const FIRST_LOOK: Duration = Duration::from_millis(500);
/// Between two looks at a job.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// After the first failure of a job.
const AFTER_FAILURE: Duration = Duration::from_secs(15);
/// The longest wait after failures: upstreams that limit requests are not hammered.
const AFTER_FAILURES: Duration = Duration::from_mins(5);
