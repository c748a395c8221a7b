//! What the calls to one endpoint and its probe share, and how a call begins.

use std::sync::Arc;

use coral_schema::oci::RepositoryName;
use coral_schema::process::tasks::Tasks;
use http::Method;
use http::header::{ACCEPT, HeaderMap, HeaderValue};
use reqwest::Client;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::breaker::{FIRST_OPEN, PROBE, Verdict};
use super::credentials::{Credential, Credentials};
use super::exchange::{Attempt, Request};
use super::gate::{Gate, Watch};
use super::lent::Lent;
use super::limit::Slot;
use super::metrics::{Kind, Meter};
use super::resolver::Nearness;
use super::token::Tokens;
use super::{BlobCall, Call, Identity, UpstreamError, UpstreamErrorKind, transport};
use crate::name::UpstreamName;

/// What anything but a manifest is asked for with.
pub(super) const ACCEPT_ANY: &str = "*/*";

/// What its calls and its probe share.
pub(super) struct Shared {
    /// Scheme, host, port, and path if it has one; without a slash at the end.
    pub(super) url: Arc<str>,
    /// The same, to join paths to.
    pub(super) base: Url,
    /// Hosts besides its own that may receive credentials.
    pub(super) token_realms: Vec<String>,
    pub(super) clients: Clients,
    pub(super) nearness: Arc<Nearness>,
    pub(super) credentials: Credentials,
    /// The upstream's.
    pub(super) name: UpstreamName,
    pub(super) lent: Lent,
    pub(super) tokens: Tokens,
    pub(super) gate: Gate,
    pub(super) meter: Meter,
    pub(super) tasks: Tasks,
}

/// The HTTP clients of an endpoint. The one for anonymous calls presents no certificate.
///
/// Manifests and blobs share the connections: a first blob that needs no new connection arrives one to three round
/// trips sooner, which is more than HTTP/2 gains on a manifest.
pub(super) struct Clients {
    pub(super) configured: Client,
    pub(super) anonymous: Client,
    /// Do they differ?
    pub(super) has_certificate: bool,
}

impl Shared {
    pub(super) fn client(&self, identity: Identity) -> &Client {
        match identity {
            Identity::Configured => &self.clients.configured,
            Identity::Anonymous => &self.clients.anonymous,
        }
    }

    pub(super) fn error(&self, kind: UpstreamErrorKind) -> UpstreamError {
        UpstreamError {
            endpoint: Arc::clone(&self.url),
            kind,
        }
    }

    /// May our credentials go to this token service (H-19)? Its scheme was checked already.
    pub(super) fn trusts(&self, realm: &Url) -> bool {
        let Some(host) = realm.host_str() else {
            return false;
        };
        let with_port = realm.port().map(|port| format!("{host}:{port}"));
        let listed = |listed: &String| listed == host || with_port.as_ref() == Some(listed);
        self.base.host_str() == Some(host) || self.token_realms.iter().any(listed)
    }

    pub(super) fn request(&self, method: Method, path: &str, accept: &'static str) -> Request {
        let mut url = self.base.clone();
        url.set_path(&format!(
            "{}/v2/{path}",
            self.base.path().trim_end_matches('/')
        ));
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        Request {
            method,
            url,
            headers,
        }
    }

    /// `GET /v2/`: any answer that is not the server's own failure is healthy, 401 above all.
    async fn is_healthy(&self) -> bool {
        let request = self.request(Method::GET, "", ACCEPT_ANY);
        let client = self.client(Identity::Anonymous);
        let result = transport::send(client.get(request.url), PROBE).await;
        let status = result.ok().map(|response| response.status().as_u16());
        self.meter.request(Kind::Probe, status);
        status.is_some_and(|status| status < 500)
    }

    /// Probes in a task of its own, so that the result counts even when nobody waits any more.
    pub(super) fn probe(self: &Arc<Self>) -> tokio::task::JoinHandle<bool> {
        let shared = Arc::clone(self);
        self.tasks.spawn("upstream probe", async move {
            let healthy = shared.is_healthy().await;
            shared.gate.probed(healthy);
            healthy
        })
    }

    /// Lets a call in: breaker, budgets, and the credential.
    pub(super) async fn begin<'a>(
        self: &'a Arc<Self>,
        call: Call,
        kind: Kind,
        repository: &'a RepositoryName,
    ) -> Result<Attempt<'a>, UpstreamError> {
        let started = Instant::now();
        self.pass_breaker(started + call.total).await?;
        self.attempt(call, kind, repository, started).await
    }

    /// Lets a download in, which needs a place, too.
    pub(super) async fn begin_download<'a>(
        self: &'a Arc<Self>,
        call: &BlobCall,
        repository: &'a RepositoryName,
    ) -> Result<(Attempt<'a>, Slot), UpstreamError> {
        let started = Instant::now();
        let deadline = started + call.total;
        self.pass_breaker(deadline).await?;
        let slot = self.gate.place(&call.priority, deadline).await;
        let slot = slot.map_err(|kind| self.error(kind))?;
        let attempt = self.attempt(call.now(), Kind::Blob, repository, started);
        Ok((attempt.await?, slot))
    }

    async fn pass_breaker(self: &Arc<Self>, deadline: Instant) -> Result<(), UpstreamError> {
        let refuse = |retry_after| Err(self.error(UpstreamErrorKind::BreakerOpen { retry_after }));
        match self.gate.admit() {
            Verdict::Pass => Ok(()),
            Verdict::Refuse(wait) => refuse(wait),
            Verdict::Probe => match timeout_at(deadline, self.probe()).await {
                Ok(Ok(true)) => Ok(()),
                _ => refuse(FIRST_OPEN),
            },
        }
    }

    /// Logins for a repository, the first one first: ours, then lent ones that were not refused lately.
    pub(super) fn candidates(&self, repository: &RepositoryName) -> Vec<Credential> {
        let own = self.credentials.find(repository);
        let lent = self.lent.find(&self.name, repository);
        let lent = lent.into_iter().filter(|it| !self.lent.is_refused(&it.id));
        own.into_iter().chain(lent).collect()
    }

    async fn attempt<'a>(
        &'a self,
        call: Call,
        kind: Kind,
        repository: &'a RepositoryName,
        started: Instant,
    ) -> Result<Attempt<'a>, UpstreamError> {
        let turn = self.gate.turn(kind, call.priority, started + call.total);
        turn.await.map_err(|kind| self.error(kind))?;
        let credentials = match call.identity {
            Identity::Anonymous => Vec::new(),
            Identity::Configured => {
                self.credentials.refresh(call.step).await;
                self.candidates(repository)
            }
        };
        let watch = Watch::new(&self.gate, kind);
        Ok(Attempt {
            shared: self,
            call,
            kind,
            repository,
            credentials,
            started,
            watch,
        })
    }
}
