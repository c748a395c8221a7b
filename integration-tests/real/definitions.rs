//! Our definitions as a real API server reads them: each rule with one object that it accepts and one that it refuses.

use coral_operator::crds;
use coral_schema::crd::ImageCache;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::discovery::ApiResource;
use serde_json::{Value, json};

use crate::cluster::control_plane::ControlPlane;
use crate::operator::client;

/// Tries objects without storing them.
struct Judge {
    api: Api<DynamicObject>,
    _plane: ControlPlane,
}

impl Judge {
    async fn new() -> Self {
        let plane = ControlPlane::start().await;
        let client = client(plane.kubeconfig()).await;
        let names = crds::apply(&client).await.unwrap();
        assert_eq!(names.len(), 2);
        assert_eq!(crds::check(&client).await.unwrap(), [""; 0]);
        Self {
            api: Api::namespaced_with(client, "default", &ApiResource::erase::<ImageCache>(&())),
            _plane: plane,
        }
    }

    async fn judge(&self, spec: &Value) -> Result<(), String> {
        let object = json!({
            "apiVersion": "coral.dev/v1alpha1", "kind": "ImageCache",
            "metadata": { "name": "tried" }, "spec": spec,
        });
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let object = serde_json::from_value(object).unwrap();
        let answer = self.api.create(&dry_run, &object).await;
        answer.map(drop).map_err(|error| error.to_string())
    }
}

/// A spec of one set, with one field more.
fn spec(field: &str, value: &Value) -> Value {
    let mut spec = json!({ "sets": [{ "name": "all", "images": ["nginx"] }] });
    spec[field] = value.clone();
    spec
}

/// A spec of one set with one field more.
fn set(field: &str, value: &Value) -> Value {
    let mut set = json!({ "name": "all", "images": ["nginx"] });
    set[field] = value.clone();
    json!({ "sets": [set] })
}

fn images(count: usize) -> Value {
    let all: Vec<String> = (0..count)
        .map(|number| format!("registry.example.com/team/app:{number}"))
        .collect();
    let sets = all.chunks(200).enumerate();
    let sets =
        sets.map(|(number, images)| json!({ "name": format!("s{number}"), "images": images }));
    json!({ "sets": sets.collect::<Vec<_>>() })
}

/// What is accepted, what is refused, and a part of the reason.
#[expect(clippy::too_many_lines, reason = "a table")]
fn rules() -> Vec<(Value, Value, &'static str)> {
    let selector = json!({ "selector": { "matchLabels": { "pool": "gpu" } } });
    let field = |field: &str, good: Value, bad: Value, why: &'static str| {
        (spec(field, &good), spec(field, &bad), why)
    };
    let target =
        |good: Value, bad: Value, why: &'static str| (set("nodes", &good), set("nodes", &bad), why);
    vec![
        (images(256), images(257), "more than 256 images"),
        (
            spec("imagePullSecrets", &json!([{ "name": "a" }])),
            spec("imagePullSecrets", &json!([{ "name": "" }])),
            "imagePullSecrets",
        ),
        (
            spec(
                "scheduling",
                &json!({ "nodeLabel": true, "startupDeadline": "3m" }),
            ),
            spec("scheduling", &json!({ "startupDeadline": "soon" })),
            "scheduling",
        ),
        (set("name", &json!("a-b")), set("name", &json!("A")), "name"),
        (
            set("platforms", &json!(["linux/arm/v7"])),
            set("platforms", &json!(["arm"])),
            "platforms",
        ),
        (
            set("images", &json!(["nginx", "nginx:1.27"])),
            set("images", &json!(["nginx", "nginx"])),
            "Duplicate value",
        ),
        (
            set("images", &json!(["[::1]:5000/a:b"])),
            set("images", &json!(["https://a.b/c"])),
            "images",
        ),
        (
            spec(
                "sets",
                &json!([{ "name": "a", "discover": { "podSelector": {} } }]),
            ),
            spec("sets", &json!([{ "name": "a" }])),
            "list images, or discover them",
        ),
        target(
            selector.clone(),
            json!({ "selector": {}, "names": ["a"] }),
            "only one of selector, names and podSelector",
        ),
        target(
            json!({ "names": ["a"] }),
            json!({ "names": ["a"], "podSelector": {} }),
            "only one of selector, names and podSelector",
        ),
        target(
            json!({ "replicas": 2, "topologyKey": "rack" }),
            json!({ "topologyKey": "rack" }),
            "give replicas, too",
        ),
        target(
            json!({ "tolerations": [{ "operator": "Exists" }] }),
            json!({ "taintPolicy": "Ignore", "tolerations": [{ "operator": "Exists" }] }),
            "mean nothing when taints are ignored",
        ),
        field(
            "refresh",
            json!({ "interval": "0s" }),
            json!({ "interval": "59s" }),
            "at least 1m",
        ),
        field(
            "refresh",
            json!({ "tagPolicy": "Follow" }),
            json!({ "tagPolicy": "Chase" }),
            "tagPolicy",
        ),
        field(
            "refresh",
            json!({ "interval": "1h30m", "tagPolicy": "Freeze" }),
            json!({ "interval": "90 minutes" }),
            "interval",
        ),
        field(
            "rollout",
            json!({ "maxConcurrentNodes": 3 }),
            json!({ "maxConcurrentNodes": 0 }),
            "number from 1",
        ),
        field(
            "rollout",
            json!({ "maxConcurrentNodes": "10%" }),
            json!({ "maxConcurrentNodes": "0%" }),
            "share like 10%",
        ),
        field(
            "rollout",
            json!({ "window": { "schedule": "0 22 * * *", "duration": "6h" }, "priority": -1000 }),
            json!({ "window": { "schedule": "0 22 * * *", "duration": "59s" } }),
            "at least 1m",
        ),
        field(
            "rollout",
            json!({ "order": "Sequential" }),
            json!({ "priority": 1001 }),
            "priority",
        ),
        field(
            "retry",
            json!({ "initialBackoff": "1s" }),
            json!({ "initialBackoff": "500ms" }),
            "at least 1s",
        ),
        field(
            "retry",
            json!({ "maxBackoff": "5s" }),
            json!({ "maxBackoff": "4s" }),
            "at least initialBackoff",
        ),
        field(
            "retry",
            json!({ "timeout": "10s" }),
            json!({ "timeout": "9s" }),
            "at least 10s",
        ),
        field(
            "retention",
            json!({ "purgeTimeout": "10s" }),
            json!({ "purgeTimeout": "9s" }),
            "at least 10s",
        ),
    ]
}

#[tokio::test]
async fn each_rule_accepts_one_object_and_refuses_another() {
    let judge = Judge::new().await;
    let mut wrong = Vec::new();
    for (good, bad, why) in rules() {
        if let Err(error) = judge.judge(&good).await {
            wrong.push(format!("refused: {good}: {error}"));
        }
        match judge.judge(&bad).await {
            Ok(()) => wrong.push(format!("accepted: {bad}")),
            Err(error) if !error.contains(why) => {
                wrong.push(format!("{bad}: {why:?} is not in: {error}"));
            }
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
