//! The definitions in `helm/crds/` are those of the types, and keep the promises that hold for all of them.

use std::fs;
use std::path::Path;

use coral_schema::crd::{definition_files, definitions};
use serde_json::Value;

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/crds"))
}

#[test]
fn the_files_are_what_the_types_say() {
    let written = definition_files();
    for (name, content) in &written {
        let found = fs::read_to_string(folder().join(name)).unwrap_or_default();
        assert!(
            found == *content,
            "helm/crds/{name} is not current: cargo run -p coral-schema --features crd --bin crdgen"
        );
    }
    assert_eq!(fs::read_dir(folder()).unwrap().count(), written.len());
}

/// Objects stay small (L17): no list and no text without a bound, and a status whose lists do not grow with the nodes.
#[test]
fn l17_everything_has_a_bound() {
    let mut unbounded = Vec::new();
    for definition in definitions() {
        let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
        look(&definition.spec.names.kind, &schema, &mut unbounded);
    }
    assert_eq!(unbounded, Vec::<String>::new());
}

fn look(path: &str, schema: &Value, unbounded: &mut Vec<String>) {
    let bound = match schema.get("type").and_then(Value::as_str) {
        Some("array") => "maxItems",
        Some("string") if schema.get("enum").is_none() && schema.get("format").is_none() => {
            "maxLength"
        }
        _ => "type",
    };
    // Labels of a selector are bounded by the node that has them.
    if schema.is_object() && schema.get("type").is_some() && schema.get(bound).is_none() {
        unbounded.push(path.to_owned());
    }
    match schema {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, field)| look(&format!("{path}.{name}"), field, unbounded)),
        Value::Array(items) => items.iter().for_each(|item| look(path, item, unbounded)),
        _ => {}
    }
}
