//! One HTTP exchange with reqwest: a deadline on each silent step, errors without URLs, bounded bodies.

use std::error::Error as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt as _};
use reqwest::{RequestBuilder, Response};
use tokio::time::{sleep, timeout};

use super::limit::{Bucket, Slot, lock};
use super::metrics::Meter;
use super::{UpstreamError, UpstreamErrorKind};

/// Longest explanation of a broken connection, characters: it goes to logs and clients.
const LONGEST_CAUSE: usize = 300;

/// Longest body that is read only to keep its connection, bytes: explanations of a 401, links of a redirect.
const SHORT: usize = 64 << 10;
/// How long that may take.
const SETTLE: Duration = Duration::from_millis(100);

/// Why an exchange gave no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The connection was there and broke.
    Broken(UpstreamErrorKind),
    /// Anything else; asking again at once would not help.
    Failed(UpstreamErrorKind),
}

impl Unanswered {
    pub(super) fn kind(self) -> UpstreamErrorKind {
        match self {
            Self::Broken(kind) | Self::Failed(kind) => kind,
        }
    }
}

/// Sends a request and waits for the headers of the answer, at most `step`.
pub(super) async fn send(request: RequestBuilder, step: Duration) -> Result<Response, Unanswered> {
    let Ok(result) = timeout(step, request.send()).await else {
        return Err(Unanswered::Failed(UpstreamErrorKind::Timeout(
            "response headers",
        )));
    };
    result.map_err(|error| {
        if error.is_timeout() {
            Unanswered::Failed(UpstreamErrorKind::Timeout("connecting"))
        } else if error.is_connect() || error.is_builder() {
            Unanswered::Failed(UpstreamErrorKind::Connection(cause(error)))
        } else {
            Unanswered::Broken(UpstreamErrorKind::Connection(cause(error)))
        }
    })
}

/// The chain of causes, without the URL, which may hold a signature.
fn cause(error: reqwest::Error) -> Arc<str> {
    let error = error.without_url();
    let mut text = String::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = cause.source();
    }
    if text.is_empty() {
        text = error.to_string();
    }
    if text.contains("invalid peer certificate") {
        text.push_str("; if its authority is private, name it under tls.ca of this upstream");
    }
    text.chars().take(LONGEST_CAUSE).collect::<String>().into()
}

/// The next piece of a body; `None` at its end.
async fn chunk(
    response: &mut Response,
    step: Duration,
) -> Result<Option<Bytes>, UpstreamErrorKind> {
    match timeout(step, response.chunk()).await {
        Err(_) => Err(UpstreamErrorKind::Timeout("response body")),
        Ok(Err(error)) => Err(UpstreamErrorKind::Connection(cause(error))),
        Ok(Ok(chunk)) => Ok(chunk),
    }
}

/// A whole body of at most `limit` bytes.
pub(super) async fn body(
    mut response: Response,
    limit: u64,
    step: Duration,
) -> Result<Bytes, UpstreamErrorKind> {
    let announced = super::answer::length(response.headers());
    if announced.is_some_and(|length| length > limit) {
        return Err(UpstreamErrorKind::TooLarge(limit));
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = chunk(&mut response, step).await? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(UpstreamErrorKind::TooLarge(limit));
        }
        body.extend_from_slice(&chunk);
    }
    if announced.is_some_and(|length| length != body.len() as u64) {
        return Err(UpstreamErrorKind::Protocol(
            "it is not as long as it said".into(),
        ));
    }
    Ok(body.freeze())
}

/// The same answer with its body read, if it is short, so that its connection can carry the next request.
pub(super) async fn settled(mut response: Response) -> Response {
    let mut body = BytesMut::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > SHORT {
                break;
            }
        }
    };
    // A body that does not come costs a connection, not the time of a client.
    let _ = timeout(SETTLE, read).await;
    let mut settled = http::Response::new(body.freeze());
    *settled.status_mut() = response.status();
    *settled.headers_mut() = std::mem::take(response.headers_mut());
    Response::from(settled)
}

/// What a blob's body needs while it arrives.
pub(super) struct Flow {
    pub(super) endpoint: Arc<str>,
    /// Bytes that have to come, when they were announced.
    pub(super) length: Option<u64>,
    pub(super) step: Duration,
    pub(super) bandwidth: Option<Arc<Mutex<Bucket>>>,
    pub(super) meter: Meter,
    #[expect(dead_code, reason = "its place is taken until the body is dropped")]
    pub(super) slot: Slot,
}

/// A blob's body as a stream that ends cleanly only after exactly the announced length.
pub(super) fn flow(
    response: Response,
    flow: Flow,
) -> BoxStream<'static, Result<Bytes, UpstreamError>> {
    stream::unfold(Some((response, flow, 0)), |state| async move {
        let (mut response, flow, received) = state?;
        match flow.next(&mut response, received).await {
            Ok(None) => None,
            Ok(Some(chunk)) => {
                let received = received + chunk.len() as u64;
                Some((Ok(chunk), Some((response, flow, received))))
            }
            Err(kind) => Some((
                Err(UpstreamError {
                    endpoint: flow.endpoint,
                    kind,
                }),
                None,
            )),
        }
    })
    .boxed()
}

impl Flow {
    async fn next(
        &self,
        response: &mut Response,
        received: u64,
    ) -> Result<Option<Bytes>, UpstreamErrorKind> {
        let Some(chunk) = chunk(response, self.step).await? else {
            return match self.length {
                Some(length) if received < length => Err(UpstreamErrorKind::Connection(
                    "it ended before the announced length".into(),
                )),
                _ => Ok(None),
            };
        };
        self.meter.received(chunk.len());
        if self
            .length
            .is_some_and(|length| received + chunk.len() as u64 > length)
        {
            return Err(UpstreamErrorKind::Protocol(
                "it is longer than it said".into(),
            ));
        }
        if let Some(bandwidth) = &self.bandwidth {
            let now = tokio::time::Instant::now();
            // Not reading is what slows the sender down, so there is no limit to the wait.
            let wait = lock(bandwidth).take(chunk.len() as u64, Duration::MAX, now);
            sleep(wait.unwrap_or_default()).await;
        }
        Ok(Some(chunk))
    }
}
