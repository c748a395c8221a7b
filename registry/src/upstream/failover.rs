//! Asks the endpoints of an upstream in order until one succeeds, and makes one failure of many.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::sleep;

use super::breaker::FIRST_OPEN;
use super::{Endpoint, Upstream, UpstreamError, UpstreamErrorKind};

/// After so long a silence the next endpoint is asked, too.
const PATIENCE: Duration = Duration::from_secs(3);

/// What an endpoint answered.
#[derive(Debug)]
pub struct Answer<T> {
    /// The answer.
    pub value: T,
    /// Which of [`Upstream::endpoints`] gave it.
    pub endpoint: usize,
    /// No endpoint before it gave an answer of its own (a 404 is one): only such an answer moves a known tag.
    pub first_healthy: bool,
}

/// Why no endpoint gave an answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{telling}")]
pub struct Failure {
    /// The one that says most about what to do.
    pub telling: UpstreamError,
    /// All, by endpoint; one only for endpoints that were asked.
    pub errors: Vec<(usize, UpstreamError)>,
}

impl Failure {
    /// Makes one failure of those of all endpoints that were asked. Only if every one says "not found" is it that:
    /// one that did not answer may have it. `None` for an empty list.
    pub fn of(mut errors: Vec<(usize, UpstreamError)>) -> Option<Self> {
        errors.sort_by_key(|(endpoint, _)| *endpoint);
        let telling = errors
            .iter()
            .min_by_key(|(_, error)| rank(&error.kind))?
            .1
            .clone();
        Some(Self { telling, errors })
    }
}

/// Lower says more. Refusals and "not found" hold only if nobody else may know better.
fn rank(kind: &UpstreamErrorKind) -> u8 {
    match kind {
        UpstreamErrorKind::TooLarge(_) => 0,
        UpstreamErrorKind::RateLimited { .. } => 1,
        UpstreamErrorKind::Timeout(_) => 2,
        UpstreamErrorKind::Status(_) => 3,
        UpstreamErrorKind::Connection(_) => 4,
        UpstreamErrorKind::Protocol(_) => 5,
        UpstreamErrorKind::QueueFull { .. } => 6,
        UpstreamErrorKind::BreakerOpen { .. } => 7,
        UpstreamErrorKind::Refused { .. } => 8,
        UpstreamErrorKind::NotFound => 9,
    }
}

/// Did the endpoint itself answer?
fn is_answer(kind: &UpstreamErrorKind) -> bool {
    matches!(
        kind,
        UpstreamErrorKind::NotFound
            | UpstreamErrorKind::Refused { .. }
            | UpstreamErrorKind::RateLimited { .. }
            | UpstreamErrorKind::TooLarge(_)
    )
}

/// Asks the endpoints in order: the next one after 3 s of silence or at once when one failed. The first success wins,
/// and the others are dropped. With `only_ready`, for who holds a stale answer, endpoints that are left alone or did
/// not answer lately are not asked.
pub async fn first<'a, T, F>(
    upstream: &'a Upstream,
    only_ready: bool,
    op: impl Fn(&'a Arc<dyn Endpoint>) -> F,
) -> Result<Answer<T>, Failure>
where
    F: Future<Output = Result<T, UpstreamError>>,
{
    let mut errors = Vec::new();
    let mut waiting = Vec::new();
    for (index, endpoint) in upstream.endpoints.iter().enumerate() {
        match not_ready(endpoint.as_ref()).filter(|_| only_ready) {
            Some(error) => errors.push((index, error)),
            None => waiting.push((index, endpoint)),
        }
    }
    let mut waiting = waiting.into_iter();
    let mut asked = FuturesUnordered::new();
    loop {
        if let Some((index, endpoint)) = waiting.next() {
            let answer = op(endpoint);
            asked.push(async move { (index, answer.await) });
        }
        let finished = tokio::select! {
            biased;
            finished = asked.next() => finished,
            () = sleep(PATIENCE), if waiting.len() > 0 => continue,
        };
        match finished {
            Some((index, Ok(value))) => {
                let earlier = |(endpoint, error): &(usize, UpstreamError)| {
                    *endpoint < index && is_answer(&error.kind)
                };
                return Ok(Answer {
                    value,
                    endpoint: index,
                    first_healthy: !errors.iter().any(earlier),
                });
            }
            Some((index, Err(error))) => errors.push((index, error)),
            None => return Err(Failure::of(errors).expect("an upstream has at least one endpoint")),
        }
    }
}

/// Why who holds a stale answer does not wait for this endpoint.
fn not_ready(endpoint: &dyn Endpoint) -> Option<UpstreamError> {
    let retry_after = match endpoint.available() {
        Err(retry_after) => retry_after,
        Ok(()) if !endpoint.responsive() => FIRST_OPEN,
        Ok(()) => return None,
    };
    Some(UpstreamError {
        endpoint: endpoint.url().into(),
        kind: UpstreamErrorKind::BreakerOpen { retry_after },
    })
}
