//! An API server in memory, without sockets, so that a test's clock may be paused: lists, watches, applies and deletes
//! objects of any kind, and keeps what it was asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

/// Plural, namespace (empty for cluster-wide ones), name.
type Key = (String, String, String);

#[derive(Clone)]
pub(super) struct Server(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    latest: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    events: Vec<(&'static str, Key, Value)>,
    asked: Vec<(Instant, String)>,
    /// Requests that hold this are refused with 500.
    broken: Option<&'static str>,
    /// And those that hold this with 403.
    forbidden: Option<&'static str>,
}

type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// What a path means.
struct Target {
    plural: String,
    namespace: String,
    name: Option<String>,
    part: &'static str,
}

impl Server {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            latest: watch::channel(0).0,
        }))
    }

    pub(super) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Makes an object, or changes parts of it as a merge patch would.
    pub(super) fn put(&self, plural: &str, namespace: &str, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let key = key(plural, namespace, name);
        let mut whole = self.state().objects.get(&key).cloned().unwrap_or_default();
        merge(&mut whole, object);
        self.store(&key, whole);
    }

    pub(super) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state()
            .objects
            .get(&key(plural, namespace, name))
            .cloned()
    }

    pub(super) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let key = key(plural, namespace, name);
        let Some(mut object) = self.state().objects.get(&key).cloned() else {
            return;
        };
        if object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
        {
            object["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::now().to_string());
            self.store(&key, object);
        } else {
            self.remove(&key);
        }
    }

    /// When requests were made that hold this text, like `PATCH /apis/…`.
    pub(super) fn asked(&self, text: &str) -> Vec<Instant> {
        let state = self.state();
        let asked = state.asked.iter().filter(|(_, asked)| asked.contains(text));
        asked.map(|(at, _)| *at).collect()
    }

    /// All requests that change something.
    pub(super) fn writes(&self) -> Vec<String> {
        let state = self.state();
        let asked = state.asked.iter().map(|(_, asked)| asked);
        asked
            .filter(|it| !it.starts_with("GET "))
            .cloned()
            .collect()
    }

    /// Notes of the events with this reason.
    pub(super) fn told(&self, namespace: &str, reason: &str) -> Vec<String> {
        let state = self.state();
        let events = state.objects.iter().filter(|((plural, of, _), event)| {
            plural == "events" && of == namespace && event["reason"] == reason
        });
        let notes = events.map(|(_, event)| event["note"].as_str().unwrap().to_owned());
        notes.collect()
    }

    pub(super) fn break_down(&self, what: Option<&'static str>) {
        self.state().broken = what;
    }

    pub(super) fn refuse(&self, what: &'static str) {
        self.state().forbidden = Some(what);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn store(&self, key: &Key, mut object: Value) -> Value {
        let mut state = self.state();
        let known = state.objects.get(key).cloned().unwrap_or_default();
        if known == object {
            return object;
        }
        let version = state.events.len() + 1;
        let generation = known["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = known["spec"] != object["spec"];
        let metadata = &mut object["metadata"];
        metadata["generation"] = json!(generation + i64::from(changed));
        metadata["resourceVersion"] = json!(version.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{version}"));
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let kind = if known.is_null() { "ADDED" } else { "MODIFIED" };
        state.objects.insert(key.clone(), object.clone());
        state.events.push((kind, key.clone(), object.clone()));
        drop(state);
        self.0.latest.send_modify(|latest| *latest += 1);
        object
    }

    fn remove(&self, key: &Key) {
        let mut state = self.state();
        if let Some(mut object) = state.objects.remove(key) {
            let version = state.events.len() + 1;
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            state.events.push(("DELETED", key.clone(), object));
            drop(state);
            self.0.latest.send_modify(|latest| *latest += 1);
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (head, body) = request.into_parts();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let asked = format!("{} {}?{query}", head.method, head.uri.path());
        let refused = {
            let mut state = self.state();
            let holds = |what: Option<&str>| what.is_some_and(|what| asked.contains(what));
            let broken = holds(state.broken).then_some(StatusCode::INTERNAL_SERVER_ERROR);
            let refused = broken.or(holds(state.forbidden).then_some(StatusCode::FORBIDDEN));
            state.asked.push((Instant::now(), asked));
            refused
        };
        if let Some(code) = refused {
            return refuse(code);
        }
        let target = Target::read(head.uri.path());
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        match (&head.method, &target.name) {
            (&Method::GET, None) if query.contains("watch=true") => self.watch(target, &query),
            (&Method::GET, None) => respond(&self.list(&target, &query)),
            (&Method::POST, _) => {
                self.put(&target.plural, &target.namespace, &body);
                respond(&body)
            }
            (&Method::GET, Some(name)) => {
                let found = self.get(&target.plural, &target.namespace, name);
                found.map_or_else(|| refuse(StatusCode::NOT_FOUND), |found| respond(&found))
            }
            (&Method::DELETE, Some(name)) => {
                self.delete(&target.plural, &target.namespace, name);
                respond(&json!({ "kind": "Status", "status": "Success" }))
            }
            (_, Some(name)) => {
                let key = key(&target.plural, &target.namespace, name);
                respond(&self.patch(&key, &body, target.part))
            }
            (_, None) => refuse(StatusCode::METHOD_NOT_ALLOWED),
        }
    }

    /// Applies replace a part as a whole; metadata is merged, as by a merge patch.
    fn patch(&self, key: &Key, patch: &Value, part: &str) -> Value {
        let known = self.state().objects.get(key).cloned();
        let mut object = known.unwrap_or_else(|| json!({ "metadata": {} }));
        merge(&mut object["metadata"], &patch["metadata"]);
        for part in [part, "data"] {
            if !patch[part].is_null() {
                object[part] = patch[part].clone();
            }
        }
        for constant in ["apiVersion", "kind"] {
            if let Some(text) = patch.get(constant) {
                object[constant] = text.clone();
            }
        }
        let metadata = &object["metadata"];
        let held = metadata["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
        if !metadata["deletionTimestamp"].is_null() && !held {
            self.remove(key);
            return object;
        }
        self.store(key, object)
    }

    fn list(&self, target: &Target, query: &str) -> Value {
        let state = self.state();
        let objects = state.objects.iter();
        let items: Vec<&Value> = objects
            .filter(|(key, object)| target.means(key) && is_selected(object, query))
            .map(|(_, object)| object)
            .collect();
        let version = state.events.len().to_string();
        json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": version }, "items": items })
    }

    fn watch(&self, target: Target, query: &str) -> Response<Answer> {
        let from = query
            .split('&')
            .find_map(|part| part.strip_prefix("resourceVersion="))
            .and_then(|version| version.parse::<usize>().ok())
            .unwrap_or_default();
        let latest = self.0.latest.subscribe();
        let server = self.clone();
        let events = stream::unfold((server, target, from, latest), next_event);
        let body = StreamBody::new(events);
        Response::new(body.boxed_unsync())
    }
}

type Watching = (Server, Target, usize, watch::Receiver<u64>);

async fn next_event(
    (server, target, mut at, mut latest): Watching,
) -> Option<(Result<Frame<Bytes>, Infallible>, Watching)> {
    loop {
        let event = server.state().events.get(at).cloned();
        let Some((kind, key, object)) = event else {
            latest.changed().await.ok()?;
            continue;
        };
        at += 1;
        if target.means(&key) {
            let line = format!("{}\n", json!({ "type": kind, "object": object }));
            let frame = Frame::data(Bytes::from(line));
            return Some((Ok(frame), (server, target, at, latest)));
        }
    }
}

impl Target {
    fn read(path: &str) -> Self {
        let mut parts = path.split('/').skip(1);
        // Core objects have no group.
        let versions = if parts.next() == Some("api") { 1 } else { 2 };
        let mut parts = parts.skip(versions).peekable();
        let namespace = if parts.peek() == Some(&"namespaces") {
            parts.nth(1).unwrap_or_default()
        } else {
            ""
        };
        Self {
            plural: parts.next().unwrap_or_default().to_owned(),
            namespace: namespace.to_owned(),
            name: parts.next().map(ToOwned::to_owned),
            part: if parts.next() == Some("status") {
                "status"
            } else {
                "spec"
            },
        }
    }

    fn means(&self, key: &Key) -> bool {
        let (plural, namespace, _) = key;
        self.plural == *plural && (self.namespace.is_empty() || self.namespace == *namespace)
    }
}

/// `spec.nodeName=` is all that is selected by.
fn is_selected(object: &Value, query: &str) -> bool {
    let wanted = query.split("spec.nodeName%3D").nth(1);
    let wanted = wanted.and_then(|rest| rest.split('&').next());
    wanted.is_none_or(|node| object["spec"]["nodeName"] == node)
}

fn key(plural: &str, namespace: &str, name: &str) -> Key {
    (plural.to_owned(), namespace.to_owned(), name.to_owned())
}

fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (field, value) in patch {
        merge(&mut object[field], value);
    }
}

fn respond(value: &Value) -> Response<Answer> {
    Response::new(whole(serde_json::to_vec(value).unwrap()))
}

fn refuse(code: StatusCode) -> Response<Answer> {
    let status = kube::core::Status::failure("no", "No").with_code(code.as_u16());
    let body = whole(serde_json::to_vec(&status).unwrap());
    Response::builder().status(code).body(body).unwrap()
}

fn whole(body: Vec<u8>) -> Answer {
    Full::new(Bytes::from(body)).boxed_unsync()
}
