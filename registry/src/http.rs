//! The OCI listener: one entry for everything under `/v2/`, read-only.
//!
//! ```text
//! request → route (pure) → access: may it be read? → pull: an answer → headers → body, counted and logged to its end
//! ```
//!
//! Nothing here decides about content. What this layer promises: the headers of the specification on every answer, the
//! status table of `error` and no other, a body that never ends cleanly when it is not complete, and one access-log
//! event per request. Request bodies are not read.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use coral_schema::process::serve::{FileSender, Peer};
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use prometheus_client::registry::Registry;

use self::access_log::{AccessLog, Entry};
use self::answer::{Answer, Content};
use self::body::LoggedBody;
use self::error::Failure;
use self::route::{Query, Route};
use crate::access::cap::ReadCap;
use crate::access::{Access, Probe};
use crate::pull::{Outcome, Puller};

mod access_log;
mod answer;
mod blob;
mod body;
mod cached;
mod catalog;
mod error;
mod manifest;
mod paging;
pub mod range;
mod referrers;
pub mod route;
mod tags;

/// Longest time to the headers of an answer, whatever happens below: every part has shorter deadlines of its own (10 s),
/// clients give up at 30 s.
const HEADERS_DEADLINE: Duration = Duration::from_secs(20);

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// The service of the OCI listener. Registers its metrics in `registry`, whose prefix is the caller's.
pub fn router(access: Arc<Access>, puller: Puller, registry: &mut Registry) -> Router {
    let log = Arc::new(AccessLog::new(registry));
    let http = Arc::new(Http {
        access,
        puller,
        log,
    });
    Router::new().fallback(handle).with_state(http)
}

/// What the handlers work with.
#[derive(Debug)]
struct Http {
    access: Arc<Access>,
    puller: Puller,
    log: Arc<AccessLog>,
}

impl Http {
    /// May the caller read `probe` in the repository that `path` means?
    async fn admit(
        &self,
        asked: &mut Asked<'_>,
        path: &str,
        probe: Probe<'_>,
    ) -> Result<ReadCap, Failure> {
        let repo = self.access.resolve(asked.ns.as_deref(), path)?;
        asked.entry.repo = Some(repo.clone());
        let cap = if asked.only_if_cached() {
            let known = self.access.read_if_known(repo).await?;
            known.ok_or(Failure::NotCached)?
        } else {
            self.access.read(repo, probe).await?
        };
        Ok(match asked.client {
            Some(client) => cap.with_client(client),
            None => cap,
        })
    }
}

/// One request.
#[derive(Debug)]
struct Asked<'a> {
    head: bool,
    headers: &'a HeaderMap,
    query: Query<'a>,
    /// Where the client is.
    client: Option<IpAddr>,
    /// Sends files on its connection, where that can.
    files: Option<FileSender>,
    /// The registry that a mirror request means.
    ns: Option<Cow<'a, str>>,
    entry: Entry,
}

impl Asked<'_> {
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
            Self::Other => "other",
        }
    }
}

async fn handle(State(http): State<Arc<Http>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let query = Query(parts.uri.query().unwrap_or_default());
    let mut asked = Asked {
        head: parts.method == Method::HEAD,
        headers: &parts.headers,
        query,
        client: parts.extensions.get().map(|Peer(address)| address.ip()),
        files: parts.extensions.get().cloned(),
        ns: query.get("ns"),
        entry: Entry::new(Arc::clone(&http.log), parts.method.clone()),
    };
    let dispatched = dispatch(&http, &mut asked, &parts.method, parts.uri.path());
    let result = tokio::time::timeout(HEADERS_DEADLINE, dispatched)
        .await
        .unwrap_or(Err(Failure::Deadline));
    let answer = result.unwrap_or_else(|failure| {
        error::error_answer(&failure, asked.entry.kind, asked.ns.is_some()).into_answer(&failure)
    });
    respond(answer, asked)
}

async fn dispatch(
    http: &Http,
    asked: &mut Asked<'_>,
    method: &Method,
    path: &str,
) -> Result<Answer, Failure> {
    let route = route::route(method, path)?;
    asked.entry.kind = RequestKind::of(&route);
    asked.entry.reference = route.reference();
    match route {
        Route::Ping => Ok(Answer::json(
            "application/json",
            Outcome::Hit,
            b"{}".to_vec(),
        )),
        Route::Catalog => catalog::catalog(http, asked).await,
        Route::Manifest { path, reference } => {
            manifest::manifest(http, asked, path, &reference).await
        }
        Route::Blob { path, digest } => blob::blob(http, asked, path, &digest).await,
        Route::Tags { path } => tags::tags(http, asked, path).await,
        Route::Referrers { path, digest } => referrers::referrers(http, asked, path, &digest).await,
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
        head,
        headers: _,
        query: _,
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
    let content = if head || status == StatusCode::NOT_MODIFIED {
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
