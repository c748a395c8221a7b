//! Which code may name which library, and which module may use which: a swap of a library, or of a module, then touches
//! one folder. Reads the sources as text, so a re-export does not hide anything.

use std::fs;
use std::path::{Path, PathBuf};

/// A library, and the places that may name it (paths from the root that start so).
const LIBRARIES: &[(&str, &[&str])] = &[
    (
        "axum",
        &[
            "registry/src/http",
            "registry/src/admin",
            "schema/src/process",
        ],
    ),
    ("hyper", &["schema/src/process/serve"]),
    ("hyper_util", &["schema/src/process/serve"]),
    (
        "rustls",
        &[
            "registry/src/server/tls",
            "registry/src/main.rs",
            "operator/src/main.rs",
            "warmer/src/main.rs",
        ],
    ),
    ("tokio_rustls", &["registry/src/server/tls"]),
    (
        "reqwest",
        &[
            "registry/src/upstream",
            "registry/src/admin/auth",
            "registry/src/cli/prefetch.rs",
            "operator/src/registry.rs",
            "warmer/src/registry.rs",
        ],
    ),
    ("object_store", &["registry/src/store/bucket.rs"]),
    ("rusqlite", &["registry/src/index"]),
    ("sha2", &["schema/src/oci"]),
    ("tracing_subscriber", &["schema/src/process/telemetry"]),
    (
        "clap",
        &[
            "registry/src/cli",
            "registry/src/main.rs",
            "operator/src/cli",
            "operator/src/main.rs",
            "warmer/src/cli",
            "warmer/src/main.rs",
            "schema/src/process/entry.rs",
        ],
    ),
    (
        "webpki_root_certs",
        &[
            "registry/src/upstream/tls.rs",
            "registry/src/admin/auth",
            "operator/src/registry.rs",
            "warmer/src/registry.rs",
        ],
    ),
    ("tonic", &["warmer/src/cri"]),
    ("prost", &["warmer/src/cri"]),
    (
        "kube",
        &[
            "schema/src/crd",
            "operator/src",
            "warmer/src/app.rs",
            "warmer/src/watch.rs",
            "warmer/src/report.rs",
        ],
    ),
];

/// A module of the registry, and the modules beside `name` that it may use.
const MODULES: &[(&str, &[&str])] = &[
    ("http", &["access", "pull"]),
    ("admin", &["pull", "transfer", "evict", "index", "upstream"]),
    ("access", &["index", "upstream"]),
    (
        "pull",
        &[
            "access", "transfer", "index", "rebuild", "store", "upstream",
        ],
    ),
    ("transfer", &["index", "store", "upstream"]),
    ("evict", &["index", "store"]),
    ("rebuild", &["index", "store"]),
    ("index", &[]),
    ("store", &[]),
    ("upstream", &[]),
    ("server", &[]),
    ("name", &[]),
    ("metrics", &[]),
];

#[test]
fn libraries_are_named_where_they_belong() {
    let mut misplaced = Vec::new();
    for (path, line) in production_lines() {
        for (library, places) in LIBRARIES {
            let named =
                line.contains(&format!("{library}::")) && !line.contains(&format!("_{library}::"));
            if named && !places.iter().any(|place| path.starts_with(place)) {
                misplaced.push(format!("{path}: {line}"));
            }
        }
    }
    assert!(
        misplaced.is_empty(),
        "move this, or the rule in this file:\n{}",
        misplaced.join("\n")
    );
}

#[test]
fn modules_use_only_what_stands_below_them() {
    let mut misplaced = Vec::new();
    for (path, line) in production_lines() {
        let Some(inside) = path.strip_prefix("registry/src/") else {
            continue;
        };
        let module = inside.split(['/', '.']).next().unwrap_or_default();
        let Some((_, allowed)) = MODULES.iter().find(|(name, _)| *name == module) else {
            continue;
        };
        for used in line.split("crate::").skip(1) {
            let used: String = used
                .chars()
                .take_while(|char| char.is_ascii_alphanumeric() || *char == '_')
                .collect();
            let is_module =
                MODULES.iter().any(|(name, _)| *name == used) || used == "app" || used == "config";
            if is_module && used != module && used != "name" && !allowed.contains(&used.as_str()) {
                misplaced.push(format!("{path}: {line}"));
            }
        }
    }
    assert!(
        misplaced.is_empty(),
        "move this, or the rule in this file:\n{}",
        misplaced.join("\n")
    );
}

/// Lines of production code, with their file's path from the root of the repository.
fn production_lines() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace");
    let mut lines = Vec::new();
    for folder in ["registry/src", "schema/src", "operator/src", "warmer/src"] {
        for file in sources(&root.join(folder)) {
            let path = file
                .strip_prefix(root)
                .expect("below the root")
                .display()
                .to_string();
            if path.ends_with("tests.rs") || path.contains("/tests/") {
                continue;
            }
            let text = fs::read_to_string(&file).expect("sources are readable");
            let production = text
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or_default();
            let code = production
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            lines.extend(code.map(|line| (path.clone(), line.to_owned())));
        }
    }
    assert!(lines.len() > 1000, "the sources were not found");
    lines
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
