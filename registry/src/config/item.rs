//! A value of the tree that is being read, with the path that leads to it: what it should be is asked of it, and what it
//! is not is reported in its place.

use std::path::PathBuf;

use super::mistake::{Findings, NamedFile, Position, key_path};
use super::raw::{Entry, Node, Value};
use super::section::Section;

/// A node with its path, and where to report what is wrong with it.
#[derive(Debug, Clone)]
pub(super) struct Item<'t> {
    node: &'t Node,
    at: Position,
    path: String,
    found: &'t Findings,
}

impl<'t> Item<'t> {
    /// The node that `path` leads to; an empty one to the whole file.
    pub(super) fn new(node: &'t Node, path: String, found: &'t Findings) -> Self {
        Self {
            node,
            at: node.at,
            path,
            found,
        }
    }

    /// Reports a mistake here.
    pub(super) fn wrong(&self, what: impl Into<String>) {
        self.found.mistake(Some(self.at), &self.path, what);
    }

    /// Reports that the value `problem`, quoting it if it cannot be a secret.
    pub(super) fn wrong_value(&self, problem: &str) {
        match self.quotable() {
            Some(text) => self.wrong(format!("\"{}\" {problem}", text.escape_debug())),
            None => self.wrong(format!("the value {problem}")),
        }
    }

    /// Its keys; nothing is an empty mapping.
    pub(super) fn section(&self) -> Section<'t> {
        Section::new(self.entries(), self.path.clone(), Some(self.at), self.found)
    }

    fn entries(&self) -> &'t [Entry] {
        match &self.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            Value::Text(_) | Value::List(_) => {
                self.wrong(format!(
                    "a mapping of keys is expected, not {}",
                    self.kind()
                ));
                &[]
            }
        }
    }

    /// Its keys, whatever they are called. Mistakes of each are reported at its key.
    pub(super) fn named(&self) -> Vec<(&'t str, Self)> {
        let item = |entry: &'t Entry| Self {
            node: &entry.node,
            at: entry.at,
            path: key_path(&self.path, &entry.key),
            found: self.found,
        };
        let entries = self.entries().iter();
        entries
            .map(|entry| (entry.key.as_str(), item(entry)))
            .collect()
    }

    /// Its entries; nothing is an empty list.
    pub(super) fn list(&self) -> Vec<Self> {
        match &self.node.value {
            Value::List(nodes) => nodes
                .iter()
                .enumerate()
                .map(|(index, node)| Self::new(node, format!("{}[{index}]", self.path), self.found))
                .collect(),
            Value::Null => Vec::new(),
            Value::Text(_) | Value::Map(_) => {
                self.wrong(format!(
                    "a list is expected, not {}; write [ … ]",
                    self.kind()
                ));
                Vec::new()
            }
        }
    }

    /// Its text.
    pub(super) fn text(&self) -> Option<&'t str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.wrong(format!("a single value is expected, not {}", self.kind()));
                None
            }
        }
    }

    /// Its text as what `parse` makes of it. An error of `parse` goes on after the value: "is not …; write …".
    pub(super) fn value<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(self.text()?)
            .map_err(|problem| self.wrong_value(&problem))
            .ok()
    }

    /// The path of a file that has to be there and to be readable.
    pub(super) fn file(&self) -> Option<PathBuf> {
        let path = self.value(super::value::path)?;
        self.found.file(NamedFile {
            at: Some(self.at),
            key: self.path.clone(),
            path: path.clone(),
        });
        Some(path)
    }

    /// Is it what stands for "not used"?
    pub(super) fn is_off(&self) -> bool {
        match &self.node.value {
            Value::Null => true,
            Value::Text(text) => text == "false",
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
        }
    }

    fn kind(&self) -> &'static str {
        match &self.node.value {
            Value::Null => "nothing",
            Value::Text(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// The text, unless it is long or may hold a secret: by the name of its key, or because it looks like a login.
    fn quotable(&self) -> Option<&'t str> {
        let Value::Text(text) = &self.node.value else {
            return None;
        };
        let may_be_secret = may_hold_secret(&self.path) || text.contains('@');
        (!may_be_secret && text.chars().count() <= LONGEST_QUOTE).then_some(text.as_str())
    }
}

/// Does the path name something that may be a secret?
pub(super) fn may_hold_secret(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| path.contains(word))
}

/// Where one of these is part of the path, values are not repeated.
const SECRET_WORDS: [&str; 7] = [
    "pass",
    "token",
    "secret",
    "key",
    "auth",
    "credential",
    "proxy",
];
/// Longer values make a message hard to read.
const LONGEST_QUOTE: usize = 80;
