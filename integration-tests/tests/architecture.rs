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
            "registry/src/cli/api.rs",
            "operator/src/registry.rs",
            "warmer/src/registry.rs",
        ],
    ),
    ("object_store", &["registry/src/store/bucket.rs"]),
    ("rusqlite", &["registry/src/index"]),
    ("sha2", &["schema/src/oci"]),
    ("bcrypt", &["registry/src/access"]),
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

/// A program's modules, from the top down, and what each may use besides itself: modules, or parts of them, which must
/// stand below it. The last column is what every module may use.
const PROGRAMS: &[(&str, Modules, &[&str])] = &[
    ("registry", REGISTRY, &["name"]),
    ("operator", OPERATOR, &["api", "labels"]),
    ("warmer", WARMER, &["chance"]),
];

type Modules = &'static [(&'static str, &'static [&'static str])];

const ANY: &[&str] = &["*"];

const REGISTRY: Modules = &[
    ("main", ANY),
    ("cli", ANY),
    ("app", ANY),
    ("config", ANY),
    ("server", &[]),
    ("http", &["access", "hosted", "pull", "store::UploadId"]),
    (
        "admin",
        &["hosted", "pull", "transfer", "evict", "index", "upstream"],
    ),
    (
        "pull",
        &[
            "access", "transfer", "index", "rebuild", "store", "upstream",
        ],
    ),
    ("hosted", &["access", "evict", "index", "rebuild", "store"]),
    ("access", &["index", "upstream"]),
    ("transfer", &["index", "store", "upstream"]),
    ("evict", &["index", "store"]),
    ("rebuild", &["index", "store"]),
    ("index", &[]),
    ("store", &[]),
    ("upstream", &[]),
    ("metrics", &[]),
    ("name", &[]),
];

const OPERATOR: Modules = &[
    ("main", ANY),
    ("cli", ANY),
    ("app", ANY),
    (
        "leader",
        &[
            "address",
            "events",
            "image_cache",
            "lease",
            "node_cache",
            "pods",
            "queue",
            "registry",
            "scheduling",
            "watch",
        ],
    ),
    (
        "explain",
        &[
            "image_cache",
            "node_cache::stored",
            "node_cache::wishes",
            "registry",
        ],
    ),
    (
        "uninstall",
        &["image_cache", "lease", "node_cache", "scheduling"],
    ),
    ("scheduling", &["image_cache", "node_cache::wishes"]),
    ("events", &["node_cache::wishes"]),
    // What images wait for in the cache is asked for, and answered, in the words of the pipeline.
    ("registry", &["image_cache", "node_cache::wishes"]),
    (
        "image_cache",
        &["node_cache::stored", "node_cache::wishes", "pods"],
    ),
    ("node_cache", &["pods", "shared"]),
    ("pods", &[]),
    ("crds", &[]),
    ("lease", &[]),
    ("address", &[]),
    ("watch", &[]),
    ("queue", &[]),
    ("shared", &[]),
    ("metrics", &[]),
    ("api", &[]),
    ("labels", &[]),
];

const WARMER: Modules = &[
    ("main", ANY),
    ("cli", ANY),
    ("app", ANY),
    ("report", &["cri", "disk", "execute", "mirror"]),
    ("watch", &["execute"]),
    ("mirror", &["cri", "execute", "registry"]),
    // It answers the question that `execute` asks.
    ("registry", &["execute"]),
    (
        "execute",
        &[
            "credentials",
            "cri",
            "disk",
            "pins",
            "plan",
            "presence",
            "pressure",
            "purge",
            "record",
        ],
    ),
    ("plan", &["disk", "presence", "pressure", "record"]),
    ("purge", &["cri", "presence", "record"]),
    ("pins", &["disk", "presence"]),
    ("record", &["disk", "presence"]),
    ("presence", &["cri", "disk"]),
    ("credentials", &[]),
    ("cri", &[]),
    ("disk", &[]),
    ("pressure", &[]),
    ("metrics", &[]),
    ("chance", &[]),
];

/// Parts of a folder in the order in which they run: each knows those before it, and none that comes after.
const STEPS: &[(&str, &[&str])] = &[
    (
        "operator/src/image_cache",
        &[
            "dereference",
            "validate",
            "assign",
            "refresh",
            "build",
            "apply",
            "status",
        ],
    ),
    (
        "operator/src/node_cache",
        &["stored", "wishes", "merge", "apply"],
    ),
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
    for (path, code) in production_code() {
        let Some((program, inside)) = path.split_once("/src/") else {
            continue;
        };
        let Some((_, modules, everywhere)) = PROGRAMS.iter().find(|(name, ..)| *name == program)
        else {
            continue;
        };
        let module = inside.split(['/', '.']).next().unwrap_or_default();
        if module == "lib" || module == "test_support" {
            continue;
        }
        let Some((_, allowed)) = modules.iter().find(|(name, _)| *name == module) else {
            misplaced.push(format!("{path}: {module} has no place in this file"));
            continue;
        };
        for used in paths(&code, "crate::") {
            let first = used.split("::").next().unwrap_or_default();
            let is_module = modules.iter().any(|(name, _)| *name == first);
            let mut may = allowed.iter().chain(*everywhere);
            let fine =
                first == module || may.any(|allowed| *allowed == "*" || is_within(&used, allowed));
            if is_module && !fine {
                misplaced.push(format!("{path}: crate::{used}"));
            }
        }
    }
    assert!(
        misplaced.is_empty(),
        "move this, or the rule in this file:\n{}",
        misplaced.join("\n")
    );
}

/// So no two modules need each other to be understood.
#[test]
fn every_module_stands_above_those_that_it_uses() {
    for (program, modules, everywhere) in PROGRAMS {
        for (place, (module, allowed)) in modules.iter().enumerate() {
            for used in allowed.iter().filter(|used| **used != "*") {
                let used = used.split("::").next().unwrap_or_default();
                let below = modules.iter().skip(place + 1);
                assert!(
                    below.into_iter().any(|(name, _)| *name == used),
                    "{program}: {used} does not stand below {module}"
                );
            }
        }
        for shared in *everywhere {
            let alone = modules.iter().find(|(name, _)| name == shared);
            assert!(
                alone.is_some_and(|(_, allowed)| allowed.is_empty()),
                "{program}: {shared} may use nothing, since everything may use it"
            );
        }
    }
}

#[test]
fn steps_know_only_those_before_them() {
    let mut misplaced = Vec::new();
    for (path, code) in production_code() {
        for (folder, steps) in STEPS {
            let Some(inside) = path.strip_prefix(&format!("{folder}/")) else {
                continue;
            };
            let step = inside.split(['/', '.']).next().unwrap_or_default();
            let Some(place) = steps.iter().position(|name| *name == step) else {
                continue;
            };
            let inside = format!("{}::", folder.rsplit('/').next().unwrap_or_default());
            let from_root = paths(&code, "crate::").into_iter();
            let from_root =
                from_root.filter_map(|used| Some(used.strip_prefix(&inside)?.to_owned()));
            // In a folder of the step's own, `super` is the step.
            let from_here = match path.matches('/').count() - folder.matches('/').count() {
                1 => paths(&code, "super::"),
                _ => paths(&code, "super::super::"),
            };
            for used in from_root.chain(from_here) {
                if steps[place + 1..]
                    .iter()
                    .any(|later| is_within(&used, later))
                {
                    misplaced.push(format!("{path}: {used} comes after {step}"));
                }
            }
        }
    }
    assert!(misplaced.is_empty(), "{}", misplaced.join("\n"));
}

#[test]
fn uses_are_read_out_of_code() {
    let code = "use crate::a::{self, B};\nuse crate::{\n    c::{D, e},\n    f as g,\n};\nlet x = crate::h::i();";
    let found = paths(code, "crate::");
    assert_eq!(found, ["a::self", "a::B", "c::D", "c::e", "f", "h::i"]);
    assert!(is_within("a::b::C", "a::b") && is_within("a", "a"));
    assert!(!is_within("a::bc", "a::b") && !is_within("a", "a::b"));
}

/// All paths that begin with `root`, what follows it; groups in braces taken apart.
fn paths(code: &str, root: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(root) {
        let inside_a_name = rest[..at].ends_with(|char: char| is_name(char) || char == ':');
        rest = &rest[at + root.len()..];
        if !inside_a_name {
            take_path(rest, "", &mut found);
        }
    }
    found
}

/// Takes in one path, or the paths of one group, that follow `before`; says what stands behind them.
fn take_path<'c>(code: &'c str, before: &str, found: &mut Vec<String>) -> &'c str {
    let end = code
        .find(|char: char| !is_name(char) && char != ':')
        .unwrap_or(code.len());
    let (path, rest) = code.split_at(end);
    let path = format!("{before}{path}");
    let Some(mut group) = rest
        .strip_prefix('{')
        .filter(|_| path.is_empty() || path.ends_with("::"))
    else {
        found.push(path);
        return rest;
    };
    loop {
        group = group.trim_start_matches(|char: char| char.is_whitespace() || char == ',');
        if let Some(rest) = group.strip_prefix('}') {
            return rest;
        }
        let rest = take_path(group, &path, found);
        // Whatever it is renamed to.
        let Some(next) = rest.find([',', '}']) else {
            return rest;
        };
        group = &rest[next..];
    }
}

fn is_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

/// Is it the module, or something in it?
fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Lines of production code, with their file's path from the root of the repository.
fn production_lines() -> Vec<(String, String)> {
    let files = production_code().into_iter();
    let lines = files.flat_map(|(path, code)| {
        let lines: Vec<_> = code.lines().map(str::to_owned).collect();
        lines.into_iter().map(move |line| (path.clone(), line))
    });
    lines.collect()
}

/// Files with their production code, without comments, and their paths from the root of the repository.
fn production_code() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace");
    let mut files = Vec::new();
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
            let code: Vec<_> = production
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect();
            files.push((path, code.join("\n")));
        }
    }
    assert!(files.len() > 100, "the sources were not found");
    files
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
