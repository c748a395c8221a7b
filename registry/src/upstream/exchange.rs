//! One request to an endpoint: with the authorization that it wants, over the redirects that it sends.

use coral_schema::oci::RepositoryName;
use http::Method;
use http::header::{AUTHORIZATION, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::Response;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::authorize::Sent;
use super::credentials::Credential;
use super::gate::Watch;
use super::lent::is_lent;
use super::metrics::Kind;
use super::redirect::{self, MAX_HOPS};
use super::retry::{self, Next, Spent, Tried};
use super::shared::Shared;
use super::transport::{self, Unanswered};
use super::{Call, UpstreamError, UpstreamErrorKind, answer};

/// Longest error body that is looked into, bytes.
const LONGEST_ERROR: u64 = 16 << 10;

/// A call that was let in.
pub(super) struct Attempt<'a> {
    pub(super) shared: &'a Shared,
    pub(super) call: Call,
    pub(super) kind: Kind,
    pub(super) repository: &'a RepositoryName,
    /// To be tried in this order; none is the public's way.
    pub(super) credentials: Vec<Credential>,
    pub(super) started: Instant,
    pub(super) watch: Watch<'a>,
}

/// What to ask.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
}

impl Attempt<'_> {
    /// Runs `work`, at most until the call's deadline.
    pub(super) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, UpstreamErrorKind>>,
    ) -> Result<T, UpstreamErrorKind> {
        let deadline = self.started + self.call.total;
        let result = timeout_at(deadline, work).await;
        result.unwrap_or(Err(UpstreamErrorKind::Timeout("the whole answer")))
    }

    /// Records how the call ended.
    pub(super) fn end<T>(self, result: Result<T, UpstreamErrorKind>) -> Result<T, UpstreamError> {
        self.watch.end(result.as_ref().err());
        result.map_err(|kind| self.shared.error(kind))
    }

    /// Sends a request; an answer with one of the `expected` statuses that can be right is handed on.
    pub(super) async fn request(
        &self,
        request: &Request,
        expected: &[u16],
    ) -> Result<Response, UpstreamErrorKind> {
        let (response, tried) = self.with_any(request).await?;
        let status = response.status().as_u16();
        if expected.contains(&status) {
            return match answer::check(response.headers()) {
                Ok(()) => Ok(response),
                Err(reason) => Err(UpstreamErrorKind::Protocol(reason.into())),
            };
        }
        if tried == Tried::Registry(400) {
            let body = transport::body(response, LONGEST_ERROR, self.call.step).await?;
            let invalid = answer::says_invalid_name(&body);
            return Err(if invalid {
                UpstreamErrorKind::NotFound
            } else {
                UpstreamErrorKind::Status(400)
            });
        }
        let wait = retry::retry_after(
            answer::text(response.headers(), &RETRY_AFTER),
            jiff::Timestamp::now(),
        );
        Err(retry::failure(tried, wait))
    }

    /// With the first login that is not refused; the public's way, where all were that are not our own.
    async fn with_any(&self, request: &Request) -> Result<(Response, Tried), UpstreamErrorKind> {
        let mut last = None;
        for credential in &self.credentials {
            let result = self.authorized(request, Some(credential)).await;
            let refused = match &result {
                Ok((_, tried)) => matches!(tried, Tried::Registry(401 | 403)),
                Err(kind) => matches!(kind, UpstreamErrorKind::Refused { .. }),
            };
            if !refused {
                return result;
            }
            self.shared.lent.note_refused(&credential.id);
            last = Some(result);
        }
        // Whoever configured a login wants it used; a lent one must not keep the public's content away.
        let all_lent = self.credentials.iter().all(|it| is_lent(&it.id));
        match last.filter(|_| !all_lent) {
            Some(result) => result,
            None => self.authorized(request, None).await,
        }
    }

    async fn authorized(
        &self,
        request: &Request,
        credential: Option<&Credential>,
    ) -> Result<(Response, Tried), UpstreamErrorKind> {
        let mut spent = Spent::default();
        let mut authorization = self.expected_authorization(credential).await?;
        loop {
            let (response, tried) = match self.follow(request, authorization.as_ref()).await {
                Ok((response, true)) => {
                    let tried = Tried::Registry(response.status().as_u16());
                    (response, tried)
                }
                Ok((response, false)) => {
                    let tried = Tried::Elsewhere(response.status().as_u16());
                    (response, tried)
                }
                Err(Unanswered::Broken(kind)) => match spent.next(Tried::Broken) {
                    Next::Again => continue,
                    Next::Take | Next::Authenticate => return Err(kind),
                },
                Err(Unanswered::Failed(kind)) => return Err(kind),
            };
            match spent.next(tried) {
                Next::Take => return Ok((response, tried)),
                Next::Again => {}
                Next::Authenticate => {
                    let response = transport::settled(response).await;
                    match self
                        .answer_challenge(&response, credential, authorization)
                        .await?
                    {
                        Some(next) => authorization = Some(next),
                        None => return Ok((response, tried)),
                    }
                }
            }
        }
    }

    /// Sends the request and follows redirects. The flag says whether the answer is the registry's own.
    async fn follow(
        &self,
        request: &Request,
        sent: Option<&Sent>,
    ) -> Result<(Response, bool), Unanswered> {
        let forbidden = |reason: &str| {
            Unanswered::Failed(UpstreamErrorKind::Protocol(
                format!("its redirect is not followed: {reason}").into(),
            ))
        };
        let (mut url, mut own) = (request.url.clone(), true);
        for _ in 0..=MAX_HOPS {
            let client = self.shared.client(self.call.identity);
            let mut builder = client
                .request(request.method.clone(), url.clone())
                .headers(request.headers.clone());
            if let Some(sent) = sent.filter(|_| own) {
                builder = builder.header(AUTHORIZATION, sent.header.clone());
            }
            let result = transport::send(builder, self.call.step).await;
            self.shared.meter.request(
                self.kind,
                result
                    .as_ref()
                    .ok()
                    .map(|response| response.status().as_u16()),
            );
            let response = result?;
            self.watch.heard();
            if let Some(budget) = answer::budget(response.headers(), Instant::now()).filter(|_| own)
            {
                self.shared.gate.learn(budget);
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, own));
            }
            let response = transport::settled(response).await;
            let location = response.headers().get(LOCATION);
            let location = location.ok_or_else(|| forbidden("it has no Location"))?;
            let hop = redirect::follow(&url, self.shared.nearness.get(), location.as_bytes())
                .map_err(forbidden)?;
            own &= hop.same_origin;
            url = hop.url;
        }
        Err(forbidden("there are too many in a row"))
    }
}
