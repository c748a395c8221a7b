//! The chart as helm renders it: objects that a real API server accepts, a configuration that our registry accepts, pods
//! that Pod Security accepts, roles that suffice, and a policy that keeps warmers to their own nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::cluster::control_plane::ControlPlane;
use crate::harness;

mod allowed_images;
mod policy;
mod rights;
mod security;

/// Where it is installed.
pub(crate) const NAMESPACE: &str = "coral-system";

/// The folder of the chart.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm")
}

/// Runs helm; `values` is a values file's text.
async fn helm(arguments: &[&str], values: &str) -> Result<String, String> {
    let scratch = harness::scratch();
    let file = harness::write(scratch.path(), "values.yaml", values);
    let program = harness::command(harness::tool("CORAL_REAL_HELM"));
    let mut command = with_files_in(program, scratch.path());
    command.args(arguments).arg("--values").arg(file);
    harness::run(command).await.result()
}

/// `program` is helm, which keeps its files in this folder.
pub(crate) fn with_files_in(mut program: Command, folder: &Path) -> Command {
    for (name, below) in [
        ("HELM_CACHE_HOME", "cache"),
        ("HELM_CONFIG_HOME", "config"),
        ("HELM_DATA_HOME", "data"),
    ] {
        program.env(name, folder.join(below));
    }
    program
}

/// The objects of a release called coral, hooks and tests included, as text.
async fn render(values: &str) -> Result<String, String> {
    let chart = folder();
    let chart = chart.to_string_lossy();
    let arguments = [
        "template",
        "coral",
        &chart,
        "--namespace",
        NAMESPACE,
        "--kube-version",
        "1.30",
    ];
    helm(&arguments, values).await
}

async fn objects(values: &str) -> Vec<Value> {
    let text = render(values).await.unwrap();
    let documents = text.split("\n---\n").filter(|text| !text.trim().is_empty());
    let objects = documents.map(|document| serde_saphyr::from_str(document).unwrap());
    objects.filter(Value::is_object).collect()
}

/// One of them.
fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.next().unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Every values file that the chart's README shows, by its number, and the defaults.
fn examples() -> Vec<(String, String)> {
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let blocks = readme.split("```yaml\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().unwrap().to_owned());
    let values = blocks.filter(|block| !block.contains("apiVersion: coral.dev"));
    let named = values.enumerate();
    let mut all: Vec<_> = named
        .map(|(number, text)| (format!("example {}", number + 1), text))
        .collect();
    assert!(all.len() >= 10, "{all:?}");
    all.insert(0, ("the defaults".to_owned(), String::new()));
    all
}

#[tokio::test]
async fn helm_finds_nothing_wrong_with_the_chart() {
    let chart = folder();
    for (name, values) in examples() {
        let chart = chart.to_string_lossy();
        let lint = ["lint", "--strict", &chart, "--kube-version", "1.30"];
        let told = helm(&lint, &values).await;
        told.unwrap_or_else(|told| panic!("{name}: {told}"));
    }
}

/// Maps whose keys are the user's.
const FREE: [&str; 4] = [
    "/nodeSelector",
    "/labels",
    "/registry/upstreams",
    "/allowedImages/namespaces",
];

/// `value` with one unknown key more, for each map in it.
fn misspelt(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    let Some(map) = value.as_object() else { return };
    if !FREE.iter().any(|free| path.ends_with(free)) {
        found.push((path.to_owned(), json!({ "misspelt": 1 })));
    }
    for (key, below) in map {
        let mut inner = Vec::new();
        misspelt(below, &format!("{path}/{key}"), &mut inner);
        let wrapped = inner
            .into_iter()
            .map(|(path, values)| (path, json!({ key: values })));
        found.extend(wrapped);
    }
}

#[tokio::test]
async fn misspelt_values_are_refused_wherever_they_stand() {
    let values = std::fs::read_to_string(folder().join("values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    let mut wrong = Vec::new();
    misspelt(&values, "", &mut wrong);
    assert!(wrong.len() > 40, "{wrong:?}");
    let upstream = |key: &str| json!({ "registry": { "upstreams": { "quay.io": { key: 1 } } } });
    wrong.push(("/registry/upstreams/quay.io".to_owned(), upstream("limit")));
    for (path, values) in wrong {
        let told = render(&values.to_string()).await.unwrap_err();
        let said = format!("at '{path}': additional properties");
        assert!(told.contains(&said), "{path}: {told}");
    }
}

#[tokio::test]
async fn values_that_cannot_work_are_refused_with_what_to_do() {
    for (values, why) in [
        (
            "registry: { tls: { secret: cert } }",
            "set registry.service.clusterIP",
        ),
        (
            "registry: { tls: { certManager: { enabled: true } } }",
            "issuer/name",
        ),
        (
            "registry: { upstreams: { docker.io: null } }",
            "is not one of registry.upstreams",
        ),
        (
            "registry: { store: { maxBytes: 10 GB } }",
            "/registry/store/maxBytes",
        ),
        (
            "registry: { access: [{ subjects: [ci], repositories: [x], verbs: [pull] }] }",
            "/registry/access/0/subjects/0",
        ),
        ("operator: { refreshInterval: hourly }", "refreshInterval"),
        (
            "allowedImages: { namespaces: { ml: [ghcr.io/team] } }",
            "allowedImages/namespaces/ml",
        ),
        ("image: { digests: { registry: latest } }", "digests"),
    ] {
        let told = render(values).await.unwrap_err();
        assert!(told.contains(why), "{values}: {told}");
    }
}

/// Helm reads numbers as floating-point ones, and would write large ones so.
#[tokio::test]
async fn numbers_stay_whole() {
    let most = 1_000_000;
    let values = json!({
        "registry": {
            "connections": most,
            "upstreams": { "quay.io": { "limits": { "requestsPerMinute": most } } },
        },
        "warmer": { "priorityQuota": most },
    });
    let text = render(&values.to_string()).await.unwrap();
    assert_eq!(text.matches("1000000").count(), 3, "{text}");
}

/// The registry's configuration, as it would find it with its files in `folder`.
fn configuration(objects: &[Value], folder: &Path) -> String {
    let text = find(objects, "ConfigMap", "coral-registry")["data"]["coral.yaml"]
        .as_str()
        .unwrap();
    let words = text.split(|letter: char| letter.is_whitespace() || ",[]{}\"".contains(letter));
    let below = ["/secrets/", "/config-maps/", "/tls/", "/kubernetes/"];
    let files = words.filter(|word| below.iter().any(|folder| word.starts_with(folder)));
    let mut here = text.to_owned();
    for file in files.collect::<BTreeSet<_>>() {
        let path = folder.join(&file[1..]);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Files of users are read when a configuration is checked.
        let is_of_users = ["/htpasswd", "/tokens.yaml"]
            .iter()
            .any(|name| file.ends_with(name));
        std::fs::write(&path, if is_of_users { "" } else { "content" }).unwrap();
        here = here.replace(file, &path.to_string_lossy());
    }
    here
}

#[tokio::test]
async fn our_registry_accepts_its_configuration() {
    for (name, values) in examples() {
        let scratch = harness::scratch();
        let text = configuration(&objects(&values).await, scratch.path());
        let mut command = Command::new(crate::coral::program());
        command.arg("check-config");
        command.arg(harness::write(scratch.path(), "coral.yaml", &text));
        let told = harness::run(command).await.result();
        let told = told.unwrap_or_else(|told| panic!("{name}: {told}\n{text}"));
        assert!(told.contains("no mistakes"), "{name}: {told}");
    }
}

#[tokio::test]
async fn l37_our_own_images_never_come_through_the_cache() {
    for (repository, upstream, below) in [
        ("ghcr.io/coral-dev", "ghcr.io", "coral-dev/"),
        ("registry.example.com:5000", "registry.example.com:5000", ""),
        ("coral", "docker.io", "coral/"),
        ("index.docker.io/coral", "docker.io", "coral/"),
    ] {
        let values = json!({
            "image": { "repository": repository },
            "registry": { "upstreams": {
                "docker.io": { "aliases": ["index.docker.io"], "deny": ["bad/*"] },
                "registry.example.com:5000": {},
            } },
        });
        let objects = objects(&values.to_string()).await;
        let config = &find(&objects, "ConfigMap", "coral-registry")["data"]["coral.yaml"];
        let config: Value = serde_saphyr::from_str(config.as_str().unwrap()).unwrap();
        let denied = config["upstreams"][upstream]["deny"].as_array().unwrap();
        for program in ["registry", "operator", "warmer"] {
            let own = format!("{below}coral-{program}");
            assert!(denied.contains(&json!(own)), "{repository}: {denied:?}");
        }
        let hub = &config["upstreams"]["docker.io"]["deny"];
        assert_eq!(hub[0], "bad/*", "what the user denies stays");
    }
}

/// An API server with our definitions and those of others that the chart can use, and the namespace.
async fn plane() -> ControlPlane {
    let plane = ControlPlane::start().await;
    let foreign = harness::tool("CORAL_REAL_DEFINITIONS");
    for definitions in [&folder().join("crds"), &foreign] {
        let definitions = definitions.to_string_lossy();
        let apply = ["apply", "--server-side", "-f", &definitions];
        plane.kubectl(&apply).await.unwrap();
    }
    let established = [
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        "--all",
    ];
    plane.kubectl(&established).await.unwrap();
    let namespace = ["create", "namespace", NAMESPACE];
    plane.kubectl(&namespace).await.unwrap();
    plane
}

/// The same with the chart's objects; nothing follows them up, since there are no controllers.
async fn installed() -> ControlPlane {
    installed_with("").await
}

async fn installed_with(values: &str) -> ControlPlane {
    let plane = plane().await;
    let mut rendered = objects(values).await;
    rendered.retain(|object| !matches!(object["kind"].as_str(), Some("Pod" | "Job")));
    plane.apply(&list(&rendered)).await.unwrap();
    plane
}

/// In one document.
fn list(objects: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string()
}

#[tokio::test]
async fn an_api_server_accepts_every_object() {
    let plane = plane().await;
    let mut accounts = objects("").await;
    accounts.retain(|object| object["kind"] == "ServiceAccount");
    plane.apply(&list(&accounts)).await.unwrap();
    // Whose pull secrets an example names.
    for team in ["ml", "web"] {
        plane.kubectl(&["create", "namespace", team]).await.unwrap();
    }
    let scratch = harness::scratch();
    for (name, values) in examples() {
        let objects = objects(&values).await;
        let mut kinds = BTreeMap::new();
        for object in &objects {
            *kinds.entry(object["kind"].to_string()).or_insert(0) += 1;
        }
        assert!(objects.len() > 25, "{name}: {kinds:?}");
        let file = harness::write(scratch.path(), "objects.json", &list(&objects));
        let file = file.to_string_lossy();
        let tried = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            &file,
        ];
        let told = plane.kubectl(&tried).await;
        let told = told.unwrap_or_else(|told| panic!("{name}: {told}"));
        assert_eq!(told.lines().count(), objects.len(), "{name}: {told}");
    }
}
