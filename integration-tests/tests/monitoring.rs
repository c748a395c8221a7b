//! The chart's dashboard and alerts against what the three programs count: a metric that is renamed must not leave an
//! empty panel, or an alert that never fires. Reads the sources as text: a family without series is not exposed yet.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn helm(file: &str) -> String {
    fs::read_to_string(root().join("helm").join(file)).unwrap()
}

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(fs::read_to_string(path).unwrap());
        }
    }
}

/// Families that a program registers: their names with prefix and unit.
fn families(program: &str) -> BTreeSet<String> {
    let mut texts = Vec::new();
    sources(&root().join(program).join("src"), &mut texts);
    // Every program has the families of its process.
    sources(&root().join("schema/src/process"), &mut texts);
    let mut names = BTreeSet::new();
    for text in &texts {
        for call in [".register(", ".register_with_unit("] {
            for after in text.split(call).skip(1) {
                let Some(literal) = after.trim_start().strip_prefix('"') else {
                    continue;
                };
                let name = literal.split('"').next().unwrap();
                let arguments = after.split(';').next().unwrap();
                let unit = match arguments.split_once("Unit::") {
                    Some((_, unit)) if unit.starts_with("Seconds") => "_seconds",
                    Some((_, unit)) if unit.starts_with("Bytes") => "_bytes",
                    Some((_, unit)) => panic!("another unit: {unit}"),
                    None => "",
                };
                names.insert(format!("coral_{program}_{name}{unit}"));
            }
        }
    }
    names
}

fn alerts() -> Vec<Value> {
    let rules: Value = serde_saphyr::from_str(&helm("monitoring/alerts.yaml")).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|it| it["rules"].as_array().unwrap());
    rules.cloned().collect()
}

/// All expressions of the dashboard and of the alerts.
fn expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&helm("monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let rules = alerts();
    let all = targets.chain(&rules).map(|it| it["expr"].as_str().unwrap());
    all.map(ToOwned::to_owned).collect()
}

/// Names of ours in an expression, and whether each stands in what only makes sense for counters.
fn names(expression: &str) -> Vec<(&str, bool)> {
    let starts = expression.match_indices("coral_").map(|(start, _)| start);
    let name = |start: usize| {
        let (before, rest) = expression.split_at(start);
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let counted = before.ends_with("rate(") || before.ends_with("increase(");
        (&rest[..end.unwrap_or(rest.len())], counted)
    };
    starts.map(name).collect()
}

#[test]
fn dashboard_and_alerts_use_metrics_that_exist() {
    let mut all = BTreeSet::new();
    for program in ["registry", "operator", "warmer"] {
        let families = families(program);
        assert!(families.len() > 5, "{program}: {families:?}");
        all.extend(families);
    }
    let mut wrong = Vec::new();
    for expression in expressions() {
        let names = names(&expression);
        if names.is_empty() {
            wrong.push(format!("nothing of ours is in: {expression}"));
        }
        for (name, counted) in names {
            let suffixes: &[&str] = if counted {
                &["_total", "_bucket"]
            } else {
                &[""]
            };
            let family = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
            if !family.is_some_and(|family| all.contains(family)) {
                wrong.push(format!("no program counts {name}: {expression}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_alert_leads_to_a_section_of_the_runbook() {
    let readme = helm("README.md");
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let url = alert["annotations"]["runbook_url"].as_str().unwrap();
        let anchor = url.rsplit_once("/helm/README.md#").unwrap().1;
        assert_eq!(anchor, name.to_lowercase());
        let heading = format!("\n### {name}\n");
        assert!(readme.contains(&heading), "helm/README.md lacks {name}");
    }
}
