//! Runs one job: image after image, a few blobs of each at a time.

use std::fmt::Display;
use std::time::Duration;

use coral_schema::admin::{
    self, PrefetchImage, PrefetchLayer, PrefetchReason, PrefetchState, PrefetchStatus,
};
use coral_schema::oci::manifest::ChildKind;
use coral_schema::oci::{Digest, ImageReference, Manifest, ManifestRef, Platform};
use futures::StreamExt as _;
use tokio::time::{Instant, sleep, timeout};

use super::walk::{Blob, Walk, no_image_for};
use super::{Inner, Job, Problem};
use crate::access::cap::ReadCap;
use crate::pull::failure::transfer_error;
use crate::pull::{Ensure, Kind, ManifestAnswer, PullError, Want};
use crate::transfer::rate::Rate;
use crate::transfer::reader::Follower;
use crate::transfer::{Phase, Progress};

/// Runs `job` and keeps its status.
pub(super) async fn run(inner: &Inner, job: &Job) {
    job.status
        .send_modify(|status| status.state = PrefetchState::Running);
    for (place, image) in job.images.iter().enumerate() {
        let image_job = ImageJob { inner, job, place };
        image_job.update(|status| status.state = PrefetchState::Running);
        let result = image_job.fetch(image).await;
        if let Err(problem) = &result {
            let error = &problem.message;
            tracing::warn!(id = %job.id, %image, error, "an image could not be prefetched");
        }
        image_job.update(|status| match result {
            Ok(()) => status.state = PrefetchState::Done,
            Err(problem) => {
                status.state = PrefetchState::Failed;
                note(status, problem);
            }
        });
    }
}

/// One image of a job.
#[derive(Clone, Copy)]
struct ImageJob<'a> {
    inner: &'a Inner,
    job: &'a Job,
    /// Of the image in the job.
    place: usize,
}

impl ImageJob<'_> {
    async fn fetch(&self, image: &ImageReference) -> Result<(), Problem> {
        let cap = (self.inner.admit)(image.clone()).await?.in_background();
        let blobs = self.walk(&cap, image.manifest_ref()).await?;
        self.update(|status| {
            status.layers = blobs.iter().map(layer).collect();
            add_up(status);
        });
        let mut results = futures::stream::iter(blobs.into_iter().enumerate())
            .map(|(place, blob)| self.blob(&cap, place, blob))
            .buffer_unordered(BLOBS_AT_ONCE);
        // One failed blob fails the image, but the others are worth having.
        let mut first_error = Ok(());
        while let Some(result) = results.next().await {
            first_error = first_error.and(result);
        }
        first_error
    }

    /// Fetches the manifests; answers with the blobs that they name.
    async fn walk(&self, cap: &ReadCap, root: ManifestRef) -> Result<Vec<Blob>, Problem> {
        let mut walk = Walk::new(root, &self.job.platforms);
        let mut blobs = Vec::new();
        let mut at_root = true;
        while let Some(reference) = walk.next() {
            let answer = self.manifest(cap, &reference).await;
            let answer = answer.map_err(|error| problem(&error, "manifest", &reference))?;
            if std::mem::take(&mut at_root) {
                self.update(|status| show_root(status, &answer));
            }
            let body = answer.body.unwrap_or_default();
            let manifest = Manifest::parse(&body, Some(&answer.media_type)).map_err(|error| {
                because(
                    PrefetchReason::InvalidImage,
                    format!("manifest {reference}: {error}"),
                )
            })?;
            blobs.extend(walk.visit(&manifest)?);
            let image = manifest
                .children
                .iter()
                .filter(|child| child.kind != ChildKind::Manifest);
            let size = image.map(|child| child.size).fold(0, u64::saturating_add);
            self.update(|status| status.size_bytes = status.size_bytes.max(size));
        }
        let missing = walk.missing()?;
        self.update(|status| show_missing(status, missing));
        Ok(blobs)
    }

    async fn manifest(
        &self,
        cap: &ReadCap,
        reference: &ManifestRef,
    ) -> Result<ManifestAnswer, PullError> {
        let mut attempt = 0;
        loop {
            let puller = &self.inner.puller;
            let result = match reference {
                ManifestRef::Tag(tag) if self.job.refresh => puller.refreshed(cap, tag).await,
                _ => puller.manifest(cap, reference, Want::Body).await,
            };
            match result
                .as_ref()
                .err()
                .and_then(|error| pause(error, attempt))
            {
                Some(pause) => sleep(pause).await,
                None => return result,
            }
            attempt += 1;
        }
    }

    async fn blob(&self, cap: &ReadCap, place: usize, blob: Blob) -> Result<(), Problem> {
        let result = match self.ensure(cap, blob).await {
            Ok(Ensure::Held) => Ok(()),
            Ok(Ensure::Running(follower)) => self.follow(place, blob, follower).await,
            Err(error) => Err(problem(&error, "blob", &blob.digest)),
        };
        self.update_layer(place, |layer| {
            layer.state = if result.is_ok() {
                layer.done = layer.size;
                admin::TransferState::Published
            } else {
                admin::TransferState::Failed
            };
            layer.rate = 0;
            layer.seconds_left = None;
        });
        result
    }

    async fn ensure(&self, cap: &ReadCap, blob: Blob) -> Result<Ensure, PullError> {
        let mut attempt = 0;
        loop {
            let result = self.inner.puller.ensure_blob(cap, &blob.digest).await;
            match result
                .as_ref()
                .err()
                .and_then(|error| pause(error, attempt))
            {
                Some(pause) => sleep(pause).await,
                None => return result,
            }
            attempt += 1;
        }
    }

    /// Follows a transfer to its end.
    async fn follow(
        &self,
        place: usize,
        blob: Blob,
        mut follower: Follower,
    ) -> Result<(), Problem> {
        let progress = &mut follower.progress;
        let mut rate = Rate::new(progress.borrow().watermark, Instant::now());
        loop {
            let seen = progress.borrow_and_update().clone();
            rate.observe(seen.watermark, Instant::now());
            self.update_layer(place, |layer| show(layer, &seen, rate));
            match seen.phase {
                Phase::Published => return Ok(()),
                Phase::Failed(why) => {
                    return Err(problem(
                        &transfer_error(&why, Kind::Blob),
                        "blob",
                        &blob.digest,
                    ));
                }
                Phase::Detached(_) | Phase::Unpublished => {
                    let message = "the store of the cache takes no more".to_owned();
                    return Err(because(PrefetchReason::StorageFull, message));
                }
                Phase::Connecting | Phase::Running | Phase::Verifying | Phase::Verified => {}
            }
            match timeout(SILENCE, progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    let message = format!("blob {}: its transfer was given up", blob.digest);
                    return Err(because(PrefetchReason::Interrupted, message));
                }
                Err(_) => {
                    let (digest, minutes) = (blob.digest, SILENCE.as_secs() / 60);
                    let message = format!("blob {digest}: no progress for {minutes} min");
                    return Err(because(PrefetchReason::UpstreamUnavailable, message));
                }
            }
        }
    }

    fn update(&self, change: impl FnOnce(&mut PrefetchImage)) {
        let place = self.place;
        self.job
            .status
            .send_modify(|status: &mut PrefetchStatus| change(&mut status.images[place]));
    }

    fn update_layer(&self, place: usize, change: impl FnOnce(&mut PrefetchLayer)) {
        self.update(|image| {
            change(&mut image.layers[place]);
            add_up(image);
        });
    }
}

fn note(image: &mut PrefetchImage, problem: Problem) {
    image.reason = Some(problem.reason);
    image.message = Some(problem.message);
}

/// What the reference means, and whether that could be checked.
fn show_root(image: &mut PrefetchImage, answer: &ManifestAnswer) {
    image.digest = Some(answer.digest);
    image.upstream_digest = answer.moved_to;
    if let Some(warning) = &answer.warning {
        note(image, because(PrefetchReason::Stale, warning.clone()));
    }
}

/// That nobody could be asked is the more important thing to say.
fn show_missing(image: &mut PrefetchImage, missing: Vec<Platform>) {
    if image.reason.is_none() && !missing.is_empty() {
        note(image, no_image_for(&missing));
    }
    image.missing_platforms = missing;
}

fn add_up(image: &mut PrefetchImage) {
    let sum =
        |of: fn(&PrefetchLayer) -> u64| image.layers.iter().map(of).fold(0, u64::saturating_add);
    (image.bytes_done, image.bytes_total) = (sum(|layer| layer.done), sum(|layer| layer.size));
}

fn because(reason: PrefetchReason, message: String) -> Problem {
    Problem { reason, message }
}

/// `what` of this reference could not be had.
fn problem(error: &PullError, what: &str, reference: &dyn Display) -> Problem {
    let reason = match error {
        PullError::NotFound(_) => PrefetchReason::NotFound,
        PullError::Refused(_) => PrefetchReason::Unauthorized,
        PullError::RateLimited { .. } => PrefetchReason::RateLimited,
        PullError::Timeout(_) | PullError::BadGateway(_) | PullError::Unavailable { .. } => {
            PrefetchReason::UpstreamUnavailable
        }
        PullError::RangeNotSatisfiable { .. }
        | PullError::Unservable(_)
        | PullError::TooLarge { .. } => PrefetchReason::InvalidImage,
    };
    because(reason, format!("{what} {reference}: {error}"))
}

fn layer(blob: &Blob) -> PrefetchLayer {
    let Blob { digest, size } = *blob;
    let digest: Digest = digest;
    PrefetchLayer {
        digest,
        size,
        done: 0,
        rate: 0,
        seconds_left: None,
        state: admin::TransferState::Queued,
    }
}

fn show(layer: &mut PrefetchLayer, progress: &Progress, rate: Rate) {
    layer.done = progress.watermark;
    layer.rate = rate.per_second();
    layer.seconds_left = rate.seconds_left(layer.size.saturating_sub(progress.watermark));
    layer.state = progress.phase.state();
}

/// Nobody waits, so a job can wait for an upstream: how long, after a failure that may pass; `None` to give up.
fn pause(error: &PullError, attempt: usize) -> Option<Duration> {
    if attempt + 1 >= ATTEMPTS {
        return None;
    }
    match error {
        PullError::RateLimited { retry_after } | PullError::Unavailable { retry_after, .. } => {
            Some((*retry_after).clamp(PAUSE, LONGEST_PAUSE))
        }
        PullError::Timeout(_) | PullError::BadGateway(_) => Some(PAUSE),
        PullError::NotFound(_)
        | PullError::Refused(_)
        | PullError::RangeNotSatisfiable { .. }
        | PullError::Unservable(_)
        | PullError::TooLarge { .. } => None,
    }
}

/// Blobs of one job at a time: enough to hide the round trips between them, few enough to leave room for clients.
const BLOBS_AT_ONCE: usize = 4;
/// Requests for one manifest or blob, with pauses in between.
const ATTEMPTS: usize = 5;
/// Shortest pause: lets a short outage pass.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest pause: what is asked beyond it is better asked by a later job.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How long a transfer may show no progress. It has shorter limits of its own, but may queue behind clients.
const SILENCE: Duration = Duration::from_mins(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_what_may_pass() {
        let limited = |seconds| PullError::RateLimited {
            retry_after: Duration::from_secs(seconds),
        };
        assert_eq!(pause(&limited(20), 0), Some(Duration::from_secs(20)));
        assert_eq!(pause(&limited(0), 0), Some(PAUSE));
        assert_eq!(pause(&limited(86_400), 0), Some(LONGEST_PAUSE));
        assert_eq!(pause(&PullError::Timeout(String::new()), 3), Some(PAUSE));
        assert_eq!(
            pause(&PullError::Timeout(String::new()), ATTEMPTS - 1),
            None
        );
        assert_eq!(pause(&PullError::NotFound(Kind::Blob), 0), None);
    }

    #[test]
    fn progress_shows() {
        let mut shown = layer(&Blob {
            digest: Digest::sha256(b""),
            size: 3000,
        });
        let start = Instant::now();
        let mut rate = Rate::new(0, start);
        rate.observe(1000, start + Duration::from_secs(1));
        let progress = Progress {
            watermark: 1000,
            size: Some(3000),
            phase: Phase::Running,
        };
        show(&mut shown, &progress, rate);
        assert_eq!(
            (shown.done, shown.rate, shown.seconds_left),
            (1000, 1000, Some(2))
        );
        assert_eq!(shown.state, admin::TransferState::Running);
    }
}
