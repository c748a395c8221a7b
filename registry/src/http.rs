//! The OCI listener: one entry for everything under `/v2/`.
//!
//! ```text
//! request → route (pure) → access: may it be read? → pull: an answer → headers → body, counted and logged to its end
//!                          access: may it be changed? → hosted ↗
//! ```
//!
//! Nothing here decides about content. What this layer promises: the headers of the specification on every answer, the
//! status table of `error` and no other, a body that never ends cleanly when it is not complete, and one access-log
//! event per request. Only pushes read the body of a request.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use coral_schema::process::serve::{FileSender, Peer};
use http::header::{HeaderName, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use prometheus_client::registry::Registry;

use self::access_log::{AccessLog, Entry};
use self::answer::{Answer, Content};
use self::body::LoggedBody;
use self::error::Failure;
use self::route::{Query, Route, RouteError};
use crate::access::cap::{HostedCap, ReadCap, WriteCap};
use crate::access::{Access, Caller, Probe, Verb};
use crate::hosted::Hosted;
use crate::pull::{Outcome, Puller};

mod access_log;
mod answer;
mod blob;
mod body;
mod cached;
mod catalog;
mod error;
mod manifest;
mod multipart;
mod paging;
mod push;
pub mod range;
mod referrers;
pub mod route;
mod tags;
mod token;
mod upload;

pub use self::token::Place;

/// Longest time to the headers of an answer, whatever happens below: every part has shorter deadlines of its own (10 s),
/// clients give up at 30 s.
const HEADERS_DEADLINE: Duration = Duration::from_secs(20);

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// The service of the OCI listener. Registers its metrics in `registry`, whose prefix is the caller's.
pub fn router(
    access: Arc<Access>,
    puller: Puller,
    hosted: Hosted,
    place: Place,
    registry: &mut Registry,
) -> Router {
    let log = Arc::new(AccessLog::new(registry));
    let http = Arc::new(Http {
        access,
        puller,
        hosted,
        place,
        log,
    });
    Router::new().fallback(handle).with_state(http)
}

/// What the handlers work with.
#[derive(Debug)]
struct Http {
    access: Arc<Access>,
    puller: Puller,
    hosted: Hosted,
    place: Place,
    log: Arc<AccessLog>,
}

/// The caller may read it, and this is where it is.
#[derive(Debug)]
enum Readable {
    /// Upstream, or cached.
    Proxied(ReadCap),
    /// Here, or nowhere.
    Hosted(HostedCap),
}

impl Http {
    /// May the caller read `probe` in the repository that `path` means?
    async fn admit(
        &self,
        asked: &mut Asked<'_>,
        path: &str,
        probe: Probe<'_>,
    ) -> Result<Readable, Failure> {
        let repo = self.access.resolve(asked.ns.as_deref(), path)?;
        asked.entry.repo = Some(repo.clone());
        if repo.is_hosted() {
            let cap = self.access.read_hosted(&asked.caller, repo)?;
            return Ok(Readable::Hosted(cap));
        }
        let cap = if asked.only_if_cached() {
            let known = self.access.read_if_known(&asked.caller, repo).await?;
            known.ok_or(Failure::NotCached)?
        } else {
            self.access.read(&asked.caller, repo, probe).await?
        };
        Ok(Readable::Proxied(match asked.client {
            Some(client) => cap.with_client(client),
            None => cap,
        }))
    }

    /// May the caller change the repository that `path` means?
    fn admit_change(
        &self,
        asked: &mut Asked<'_>,
        path: &str,
        verb: Verb,
    ) -> Result<WriteCap, Failure> {
        let repo = self.access.resolve(asked.ns.as_deref(), path)?;
        asked.entry.repo = Some(repo.clone());
        Ok(self.access.write(&asked.caller, repo, verb)?)
    }
}

/// One request.
#[derive(Debug)]
struct Asked<'a> {
    method: &'a Method,
    /// Read by pushes only. Never locked: only the mutex makes it `Sync`.
    body: Mutex<Option<Body>>,
    headers: &'a HeaderMap,
    query: Query<'a>,
    /// Who sent it; nobody in particular until that is looked at.
    caller: Caller,
    /// Where the client is.
    client: Option<IpAddr>,
    /// Sends files on its connection, where that can.
    files: Option<FileSender>,
    /// The registry that a mirror request means.
    ns: Option<Cow<'a, str>>,
    entry: Entry,
}

impl Asked<'_> {
    /// The body, the first time.
    fn take_body(&mut self) -> Option<Body> {
        let body = self.body.get_mut();
        body.unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Does the client want a manifest or a blob only if it is here? Lists are answered as ever.
    fn only_if_cached(&self) -> bool {
        matches!(self.entry.kind, RequestKind::Manifest | RequestKind::Blob)
            && cached::only_if_cached(self.headers)
    }
}

/// The `kind` label, and what "unknown" means in an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RequestKind {
    Ping,
    Catalog,
    Manifest,
    Blob,
    Tags,
    Referrers,
    Upload,
    Token,
    /// No route.
    Other,
}

impl RequestKind {
    fn of(route: &Route<'_>) -> Self {
        match route {
            Route::Ping => Self::Ping,
            Route::Catalog => Self::Catalog,
            Route::Manifest { .. } => Self::Manifest,
            Route::Blob { .. } => Self::Blob,
            Route::Tags { .. } => Self::Tags,
            Route::Referrers { .. } => Self::Referrers,
            Route::Uploads { .. } | Route::Upload { .. } => Self::Upload,
            Route::Token => Self::Token,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Catalog => "catalog",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Upload => "upload",
            Self::Token => "token",
            Self::Other => "other",
        }
    }
}

async fn handle(State(http): State<Arc<Http>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = Query(parts.uri.query().unwrap_or_default());
    let mut asked = Asked {
        method: &parts.method,
        body: Mutex::new(Some(body)),
        headers: &parts.headers,
        query,
        caller: Caller::anonymous(),
        client: parts.extensions.get().map(|Peer(address)| address.ip()),
        files: parts.extensions.get().cloned(),
        ns: query.get("ns"),
        entry: Entry::new(Arc::clone(&http.log), parts.method.clone()),
    };
    let result = dispatch(&http, &mut asked, parts.uri.path()).await;
    let answer = result.unwrap_or_else(|failure| {
        let answer = error::error_answer(&failure, asked.entry.kind, asked.ns.is_some());
        let mut answer = answer.into_answer(&failure);
        if answer.status == StatusCode::UNAUTHORIZED {
            let challenge = token::challenge(&http, &failure, &parts.headers, &parts.uri);
            answer.headers.insert(WWW_AUTHENTICATE, challenge);
        }
        answer
    });
    if answer.status.is_client_error() {
        push::drain(&mut asked).await;
    }
    respond(answer, asked)
}

async fn dispatch(http: &Http, asked: &mut Asked<'_>, path: &str) -> Result<Answer, Failure> {
    let route = route::route(asked.method, path)?;
    asked.entry.kind = RequestKind::of(&route);
    asked.entry.reference = route.reference();
    identify(http, asked).await?;
    if matches!(*asked.method, Method::GET | Method::HEAD) {
        let read = read(http, asked, route);
        let answered = tokio::time::timeout(HEADERS_DEADLINE, read).await;
        return answered.unwrap_or(Err(Failure::Deadline));
    }
    // A body takes as long as it takes; whoever reads it looks after silence.
    match route {
        Route::Manifest { path, reference } => push::manifest(http, asked, path, reference).await,
        Route::Blob { path, digest } => push::blob(http, asked, path, digest).await,
        Route::Uploads { path } => upload::begin(http, asked, path).await,
        Route::Upload { path, id } => upload::go_on(http, asked, path, id).await,
        Route::Token => token::token(http, asked).await,
        Route::Ping | Route::Catalog | Route::Tags { .. } | Route::Referrers { .. } => {
            Err(Failure::Route(RouteError::Unknown))
        }
    }
}

/// Before all else: a wrong login gets nothing, not even what is public.
async fn identify(http: &Http, asked: &mut Asked<'_>) -> Result<(), Failure> {
    let sent = token::authorization(asked.headers);
    if sent.is_some() {
        asked.caller = http.access.identify(sent).await?;
        asked.entry.caller = Some(asked.caller.subject().clone());
    }
    Ok(())
}

async fn read(http: &Http, asked: &mut Asked<'_>, route: Route<'_>) -> Result<Answer, Failure> {
    match route {
        Route::Ping => {
            http.access.greet(&asked.caller)?;
            let body = b"{}".to_vec();
            Ok(Answer::json("application/json", Outcome::Hit, body))
        }
        Route::Token => token::token(http, asked).await,
        Route::Catalog => catalog::catalog(http, asked).await,
        Route::Manifest { path, reference } => {
            manifest::manifest(http, asked, path, &reference).await
        }
        Route::Blob { path, digest } => blob::blob(http, asked, path, &digest).await,
        Route::Tags { path } => tags::tags(http, asked, path).await,
        Route::Referrers { path, digest } => referrers::referrers(http, asked, path, &digest).await,
        Route::Upload { path, id } => upload::status(http, asked, path, id).await,
        Route::Uploads { .. } => Err(Failure::Route(RouteError::Unknown)),
    }
}

/// Adds what every answer has, and the log entry that ends with the body.
fn respond(answer: Answer, asked: Asked<'_>) -> Response {
    let Answer {
        status,
        mut headers,
        content,
        length,
        outcome,
        error,
    } = answer;
    let Asked {
        method,
        body: _,
        headers: _,
        query: _,
        caller: _,
        client: _,
        files: _,
        ns,
        mut entry,
    } = asked;
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    let used = ns.filter(|_| entry.repo.is_some());
    if let Some(ns) = used.and_then(|ns| HeaderValue::try_from(ns.as_ref()).ok()) {
        headers.insert(OCI_NAMESPACE, ns);
    }
    entry.status = Some(status);
    entry.outcome = outcome;
    entry.error = error;
    let content = if method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        Content::Empty
    } else {
        content
    };
    let mut response = Response::new(Body::new(LoggedBody::new(content, length, entry)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests;
