//! Leader election on a Lease: of all operators only the holder writes.
//!
//! Nobody's wall clock counts. A candidate takes the lease of another when the object did not change for the holder's
//! `leaseDurationSeconds` on the candidate's own monotonic clock. The holder stops when it could not renew for
//! [`Times::renew_within`], which is shorter: its work ends before anybody may take over. Every write carries the
//! `resourceVersion` that it is based on, so of two that write at once one is refused.
//!
//! An identity belongs to one process only: who finds its own name in the lease wrote it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::api::{self, ApiError};

/// Name of the Lease in the operator's namespace.
pub const NAME: &str = "coral-operator";

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Others wait for this long without a change before they take over. Whole seconds.
    pub duration: Duration,
    /// The holder stops when it could not renew for this long.
    pub renew_within: Duration,
    /// Between two tries, of the holder and of candidates.
    pub retry: Duration,
}

impl Default for Times {
    /// As of Kubernetes' own controllers.
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_within: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Somebody who would lead.
#[derive(Debug, Clone)]
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
    times: Times,
}

impl Candidate {
    /// `identity` is used by this process and no other, ever.
    pub fn new(api: Api<Lease>, identity: String, times: Times) -> Self {
        Self {
            api,
            identity,
            times,
        }
    }

    /// Who this is.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Waits until the lease is ours. An API server that fails is asked again, for ever.
    pub async fn acquire(&self) -> Tenure {
        let mut sighting = None;
        loop {
            match self.try_once(&mut sighting).await {
                Ok(Some(tenure)) => return tenure,
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "the lease could not be read or taken"),
            }
            sleep(self.times.retry).await;
        }
    }

    async fn try_once(&self, sighting: &mut Option<Sighting>) -> Result<Option<Tenure>, ApiError> {
        let found = api::find(self.api.get(NAME)).await?;
        let now = Instant::now();
        let version = found
            .as_ref()
            .and_then(|lease| lease.metadata.resource_version.as_deref());
        let sighting = Sighting::update(sighting, version, now);
        if !may_take(found.as_ref(), &self.identity, sighting, now) {
            return Ok(None);
        }
        self.take(found.as_ref(), now).await
    }

    /// Takes the lease from whoever holds it, and waits until the work of a holder has ended: one that runs notices at its
    /// next renewal, one that is cut off stops by itself. For what cannot wait until nobody wants to lead any more.
    pub async fn seize(&self) -> Tenure {
        loop {
            match self.seize_once().await {
                Ok(Some(tenure)) => return tenure,
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "the lease could not be read or taken"),
            }
            sleep(self.times.retry).await;
        }
    }

    async fn seize_once(&self) -> Result<Option<Tenure>, ApiError> {
        let found = api::find(self.api.get(NAME)).await?;
        let is_held = found.as_ref().is_some_and(|it| holder(it).is_some());
        let Some(mut tenure) = self.take(found.as_ref(), Instant::now()).await? else {
            return Ok(None);
        };
        if is_held {
            let lost = timeout(self.times.renew_within, tenure.keep()).await;
            return Ok(lost.is_err().then_some(tenure));
        }
        Ok(Some(tenure))
    }

    /// Writes this candidate into the lease as it was `found`, unless it changed since.
    async fn take(&self, found: Option<&Lease>, now: Instant) -> Result<Option<Tenure>, ApiError> {
        let wanted = taken(found, &self.identity, &self.times);
        let post = PostParams::default();
        let written = match found {
            None => api::call(self.api.create(&post, &wanted)).await,
            Some(_) => api::call(self.api.replace(NAME, &post, &wanted)).await,
        };
        match written {
            Ok(lease) => Ok(Some(Tenure {
                candidate: self.clone(),
                lease,
                renewed: now,
            })),
            // Another candidate was faster.
            Err(ApiError::Conflict(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The lease is ours, until [`Tenure::keep`] ends.
#[derive(Debug)]
pub struct Tenure {
    candidate: Candidate,
    lease: Lease,
    /// When the request was sent that is known to have been granted.
    renewed: Instant,
}

/// Why a lease was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Somebody else holds it, or deleted it.
    Taken,
    /// It could not be renewed in time.
    Expired,
}

impl Tenure {
    /// Renews until the lease is lost. Whoever works for the leader stops as soon as this ends.
    pub async fn keep(&mut self) -> Lost {
        let times = self.candidate.times;
        loop {
            let deadline = self.renewed + times.renew_within;
            let renewed = timeout_at(deadline, async {
                sleep(times.retry).await;
                self.renew().await
            });
            match renewed.await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Lost::Taken,
                Ok(Err(error)) => tracing::warn!(%error, "the lease was not renewed"),
                Err(_) => return Lost::Expired,
            }
        }
    }

    /// Is it still ours?
    async fn renew(&mut self) -> Result<bool, ApiError> {
        let sent = Instant::now();
        let wanted = renewed(&self.lease);
        let post = PostParams::default();
        match api::call(self.candidate.api.replace(NAME, &post, &wanted)).await {
            Ok(lease) => {
                self.lease = lease;
                self.renewed = sent;
                Ok(true)
            }
            // An earlier request of ours may have arrived, though its answer did not.
            Err(ApiError::Conflict(_)) => self.look().await,
            Err(ApiError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn look(&mut self) -> Result<bool, ApiError> {
        let Some(lease) = api::find(self.candidate.api.get(NAME)).await? else {
            return Ok(false);
        };
        let ours = holder(&lease) == Some(&self.candidate.identity);
        self.lease = lease;
        Ok(ours)
    }

    /// Lets the next candidate take over without waiting. Only after all work has ended.
    pub async fn release(self) {
        self.leave(|spec| spec.holder_identity = None).await;
    }

    /// Lets nobody take over for this long, in whole seconds.
    pub async fn bar(self, length: Duration) {
        let seconds = i32::try_from(length.as_secs()).unwrap_or(i32::MAX);
        self.leave(|spec| spec.lease_duration_seconds = Some(seconds))
            .await;
    }

    async fn leave(self, change: impl FnOnce(&mut LeaseSpec)) {
        let mut wanted = renewed(&self.lease);
        if let Some(spec) = &mut wanted.spec {
            change(spec);
        }
        let post = PostParams::default();
        if let Err(error) = api::call(self.candidate.api.replace(NAME, &post, &wanted)).await {
            tracing::debug!(%error, "the lease was not written a last time; it expires");
        }
    }
}

/// What a candidate saw, and since when it has not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sighting {
    version: Option<String>,
    since: Instant,
}

impl Sighting {
    fn update<'a>(known: &'a mut Option<Self>, version: Option<&str>, now: Instant) -> &'a Self {
        if known
            .as_ref()
            .is_none_or(|known| known.version.as_deref() != version)
        {
            *known = None;
        }
        known.get_or_insert_with(|| Self {
            version: version.map(ToOwned::to_owned),
            since: now,
        })
    }
}

/// May this candidate write itself into the lease?
fn may_take(lease: Option<&Lease>, identity: &str, sighting: &Sighting, now: Instant) -> bool {
    let Some(lease) = lease else { return true };
    match holder(lease) {
        None => true,
        Some(holder) if holder == identity => true,
        Some(_) => {
            let seconds = lease
                .spec
                .as_ref()
                .and_then(|spec| spec.lease_duration_seconds)
                .and_then(|seconds| u64::try_from(seconds).ok());
            let duration = seconds.map_or(Times::default().duration, Duration::from_secs);
            now.duration_since(sighting.since) >= duration
        }
    }
}

fn holder(lease: &Lease) -> Option<&String> {
    let spec = lease.spec.as_ref()?;
    spec.holder_identity
        .as_ref()
        .filter(|holder| !holder.is_empty())
}

/// `found` with us as its holder.
fn taken(found: Option<&Lease>, identity: &str, times: &Times) -> Lease {
    let before = found
        .and_then(|lease| lease.spec.clone())
        .unwrap_or_default();
    let now = MicroTime(Timestamp::now());
    let seconds = i32::try_from(times.duration.as_secs()).unwrap_or(i32::MAX);
    Lease {
        metadata: found.map_or_else(
            || ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            },
            |lease| lease.metadata.clone(),
        ),
        spec: Some(LeaseSpec {
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: Some(seconds),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(1)),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..before
        }),
    }
}

/// `lease` once more. The time is for people to read.
fn renewed(lease: &Lease) -> Lease {
    let mut lease = lease.clone();
    if let Some(spec) = &mut lease.spec {
        spec.renew_time = Some(MicroTime(Timestamp::now()));
    }
    lease
}

#[cfg(test)]
mod tests;
