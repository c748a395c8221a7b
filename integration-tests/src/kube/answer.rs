//! From requests to answers.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Key, World};

const LONGEST_BODY: usize = 4 << 20;

/// What a path names.
#[derive(Debug, Clone)]
struct Target {
    group_version: String,
    plural: String,
    namespace: String,
    name: Option<String>,
    subresource: Option<String>,
}

impl Target {
    /// `/api/v1/…` or `/apis/<group>/<version>/…`, then `[namespaces/<namespace>/]<plural>[/<name>[/<subresource>]]`.
    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_start_matches('/').split('/').map(str::to_owned);
        let group_version = match parts.next()?.as_str() {
            "api" => parts.next()?,
            "apis" => format!("{}/{}", parts.next()?, parts.next()?),
            _ => return None,
        };
        let rest: Vec<String> = parts.collect();
        let (namespace, rest) = match rest.as_slice() {
            [word, namespace, rest @ ..] if word == "namespaces" && !rest.is_empty() => {
                (namespace.clone(), rest)
            }
            rest => (String::new(), rest),
        };
        Some(Self {
            group_version,
            namespace,
            plural: rest.first()?.clone(),
            name: rest.get(1).cloned(),
            subresource: rest.get(2).cloned(),
        })
    }

    fn key(&self) -> Option<Key> {
        let name = self.name.clone()?;
        Some((self.plural.clone(), self.namespace.clone(), name))
    }

    /// Is the object among those that a list or watch is about?
    fn covers(&self, uri: &Uri, (plural, namespace, name): &Key) -> bool {
        let selected = parameter(uri, "fieldSelector");
        let selected = selected
            .as_deref()
            .and_then(|text| text.strip_prefix("metadata.name="));
        *plural == self.plural
            && (self.namespace.is_empty() || *namespace == self.namespace)
            && selected.is_none_or(|wanted| wanted == name)
    }
}

fn parameter(uri: &Uri, wanted: &str) -> Option<String> {
    let query = uri.query().unwrap_or_default();
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find_map(|(name, value)| (name == wanted).then(|| value.into_owned()))
}

/// Answers one request.
pub(super) async fn answer(world: Arc<World>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let asked = format!("{} {}", parts.method, parts.uri);
    world.state().requests.push(asked);
    world.answering().await;
    let Some(target) = Target::parse(parts.uri.path()) else {
        return refusal(StatusCode::NOT_FOUND);
    };
    match (&parts.method, target.key()) {
        (&Method::GET, Some(key)) => found(world.state().objects.get(&key).cloned()),
        (&Method::GET, None) if parameter(&parts.uri, "watch").is_some() => {
            watching(world, target, parts.uri)
        }
        (&Method::GET, None) => list(&world, &target, &parts.uri),
        (&Method::DELETE, Some(key)) => found(world.delete(&key)),
        (&Method::PATCH, Some(key)) => {
            let Ok(body) = to_bytes(body, LONGEST_BODY).await else {
                return refusal(StatusCode::BAD_REQUEST);
            };
            // What our programs apply is JSON, which is YAML, too.
            let Ok(applied) = serde_json::from_slice(&body) else {
                return refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE);
            };
            apply(&world, &target, &key, &applied)
        }
        _ => refusal(StatusCode::METHOD_NOT_ALLOWED),
    }
}

fn apply(world: &World, target: &Target, key: &Key, applied: &Value) -> Response {
    let part = target.subresource.as_deref().unwrap_or("spec");
    // A subresource does not make its object.
    if target.subresource.is_some() && !world.state().objects.contains_key(key) {
        return refusal(StatusCode::NOT_FOUND);
    }
    found(Some(world.put(key, applied, part)))
}

fn list(world: &World, target: &Target, uri: &Uri) -> Response {
    let state = world.state();
    let items = state.objects.iter();
    let items: Vec<&Value> = items
        .filter(|(key, _)| target.covers(uri, key))
        .map(|(_, object)| object)
        .collect();
    let version = state.events.len().to_string();
    axum::Json(json!({
        "kind": "List",
        "apiVersion": target.group_version,
        "metadata": { "resourceVersion": version },
        "items": items,
    }))
    .into_response()
}

/// Events after the version that the client names, until the connection ends.
fn watching(world: Arc<World>, target: Target, uri: Uri) -> Response {
    let since = parameter(&uri, "resourceVersion").and_then(|version| version.parse().ok());
    let changes = world.latest.subscribe();
    let lines = stream::unfold((since.unwrap_or(0), changes), move |(sent, mut changes)| {
        let (world, target, uri) = (Arc::clone(&world), target.clone(), uri.clone());
        async move {
            wait_beyond(&mut changes, sent).await?;
            world.answering().await;
            let mut text = String::new();
            let state = world.state();
            for (kind, key, object) in state.events.iter().skip(sent) {
                if target.covers(&uri, key) {
                    text += &json!({ "type": kind, "object": object }).to_string();
                    text.push('\n');
                }
            }
            Some((text, (state.events.len(), changes)))
        }
    });
    let body = Body::from_stream(lines.map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn wait_beyond(changes: &mut watch::Receiver<u64>, sent: usize) -> Option<()> {
    let newer = changes.wait_for(|latest| *latest > sent as u64).await;
    newer.ok().map(|_| ())
}

fn found(object: Option<Value>) -> Response {
    match object {
        Some(object) => axum::Json(object).into_response(),
        None => refusal(StatusCode::NOT_FOUND),
    }
}

/// As Kubernetes says it.
fn refusal(code: StatusCode) -> Response {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": code.canonical_reason(),
        "reason": code.canonical_reason().map(|reason| reason.replace(' ', "")),
        "code": code.as_u16(),
    });
    (code, axum::Json(status)).into_response()
}
