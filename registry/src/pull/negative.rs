//! Refusals that are remembered for a while: 404 for seconds, so that a fresh push is seen soon (H-14), 401 and 403 for
//! a minute, per repository, reference and login.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;

use super::PullError;
use crate::access::cap::ReadCap;

/// See the module.
#[derive(Debug)]
pub(super) struct Negative(Cache<Arc<str>, (Instant, PullError)>);

impl Default for Negative {
    fn default() -> Self {
        Self(
            Cache::builder()
                .max_capacity(100_000)
                .time_to_live(REFUSED_TTL)
                .build(),
        )
    }
}

impl Negative {
    /// The remembered refusal, if there is one that is not too old.
    pub(super) fn check(
        &self,
        cap: &ReadCap,
        reference: &str,
        not_found_ttl: Duration,
    ) -> Option<PullError> {
        let (when, error) = self.0.get(&*key(cap, reference))?;
        let ttl = if matches!(error, PullError::NotFound(_)) {
            not_found_ttl
        } else {
            REFUSED_TTL
        };
        (when.elapsed() < ttl).then_some(error)
    }

    /// Remembers `error` if it is a refusal.
    pub(super) fn note(&self, cap: &ReadCap, reference: &str, error: &PullError) {
        if matches!(error, PullError::NotFound(_) | PullError::Refused(_)) {
            self.0
                .insert(key(cap, reference), (Instant::now(), error.clone()));
        }
    }
}

fn key(cap: &ReadCap, reference: &str) -> Arc<str> {
    let repo = cap.repo();
    let credential = cap
        .upstream()
        .endpoints
        .first()
        .map(|endpoint| endpoint.credential_id(repo.repository()));
    let credential = credential.as_ref().map_or("", |credential| &credential.0);
    format!("{repo} {reference} {credential}").into()
}

const REFUSED_TTL: Duration = Duration::from_mins(1);
