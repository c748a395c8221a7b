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
    /// Are all endpoints before it left alone for now? Only such an answer moves a known tag: a mirror that lags must
    /// not move it backwards because of one lost answer.
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

/// Asks the endpoints in order, as [`race`] does. With `only_ready`, for who holds a stale answer, endpoints that are
/// left alone or did not answer lately are not asked.
pub async fn first<'a, T, F>(
    upstream: &'a Upstream,
    only_ready: bool,
    op: impl Fn(&'a Arc<dyn Endpoint>) -> F,
) -> Result<Answer<T>, Failure>
where
    F: Future<Output = Result<T, UpstreamError>>,
{
    let mut errors = Vec::new();
    let mut candidates = Vec::new();
    for (index, endpoint) in upstream.endpoints.iter().enumerate() {
        match not_ready(endpoint.as_ref()).filter(|_| only_ready) {
            Some(error) => errors.push((index, error)),
            None => candidates.push((index, endpoint)),
        }
    }
    let ask = |(index, endpoint)| {
        let answer = op(endpoint);
        async move {
            let answer = answer.await;
            answer
                .map(|value| (index, value))
                .map_err(|error| (index, error))
        }
    };
    let (won, lost) = race(candidates, ask).await;
    errors.extend(lost);
    match won {
        Some((index, value)) => Ok(Answer {
            value,
            endpoint: index,
            first_healthy: upstream.endpoints[..index]
                .iter()
                .all(|before| before.available().is_err()),
        }),
        None => Err(Failure::of(errors).expect("an upstream has at least one endpoint")),
    }
}

/// Asks the candidates in order: the next one after 3 s of silence or at once when one failed. The first success wins,
/// and who has not answered by then is dropped. Gives the errors that came before it, too.
pub async fn race<C, T, E, F>(candidates: Vec<C>, ask: impl Fn(C) -> F) -> (Option<T>, Vec<E>)
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = candidates.into_iter();
    let mut asked = FuturesUnordered::new();
    let mut errors = Vec::new();
    loop {
        if let Some(candidate) = waiting.next() {
            asked.push(ask(candidate));
        }
        let finished = tokio::select! {
            biased;
            finished = asked.next() => finished,
            () = sleep(PATIENCE), if waiting.len() > 0 => continue,
        };
        match finished {
            Some(Ok(value)) => return (Some(value), errors),
            Some(Err(error)) => errors.push(error),
            None => return (None, errors),
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
