//! A mapping that is being read: it is asked for the keys it may have, and reports those that nobody asked for.

use std::path::PathBuf;

use super::item::{Item, may_hold_secret};
use super::mistake::{Findings, Position, key_path};
use super::raw::{Entry, Value};
use super::suggest::closest;

/// A mapping that is being read.
#[derive(Debug)]
pub(super) struct Section<'t> {
    entries: &'t [Entry],
    path: String,
    at: Option<Position>,
    found: &'t Findings,
    known: Vec<&'static str>,
}

impl<'t> Section<'t> {
    /// `entries`, which stand at `at` and `path`.
    pub(super) fn new(
        entries: &'t [Entry],
        path: String,
        at: Option<Position>,
        found: &'t Findings,
    ) -> Self {
        Self {
            entries,
            path,
            at,
            found,
            known: Vec::new(),
        }
    }

    /// A section that is not in the file.
    pub(super) fn absent(path: String, found: &'t Findings) -> Self {
        Self::new(&[], path, None, found)
    }

    /// A key that may be here. `None` when it is not, or has no value.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Item<'t>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        if matches!(entry.node.value, Value::Null) {
            return None;
        }
        let path = key_path(&self.path, key);
        Some(Item::new(&entry.node, path, self.found))
    }

    /// A key's value. `None` when it is absent or wrong; a wrong one is reported.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.take(key)?.value(parse)
    }

    /// The value of a key that must be there; `None` is reported.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            self.wrong(format!("{key} is missing"));
        }
        self.value(key, parse)
    }

    /// A key that is true or false.
    pub(super) fn flag(&mut self, key: &'static str) -> bool {
        self.value(key, super::value::flag).unwrap_or(false)
    }

    /// The entries of a list.
    pub(super) fn list(&mut self, key: &'static str) -> Vec<Item<'t>> {
        self.take(key).map(|item| item.list()).unwrap_or_default()
    }

    /// A section below; an empty one when it is absent.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        match self.take(key) {
            Some(item) => item.section(),
            None => Self::absent(key_path(&self.path, key), self.found),
        }
    }

    /// Two files that belong together: a certificate and its key.
    pub(super) fn file_pair(
        &mut self,
        certificate: &'static str,
        key: &'static str,
    ) -> Option<(PathBuf, PathBuf)> {
        match (self.take(certificate), self.take(key)) {
            (Some(certificate), Some(key)) => {
                let (certificate, key) = (certificate.file(), key.file());
                Some((certificate?, key?))
            }
            (Some(item), None) => {
                item.wrong(format!("stands without {key}; add it"));
                None
            }
            (None, Some(item)) => {
                item.wrong(format!("stands without {certificate}; add it"));
                None
            }
            (None, None) => None,
        }
    }

    /// Has the key a value, right or wrong?
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.key == key && !matches!(entry.node.value, Value::Null))
    }

    /// A key of a feature that is not built yet: it may be switched off, but not on.
    pub(super) fn unsupported(&mut self, key: &'static str) {
        if let Some(item) = self.take(key).filter(|item| !item.is_off()) {
            item.wrong("not supported yet; remove it");
        }
    }

    /// Reports a mistake of the section as a whole.
    pub(super) fn wrong(&self, what: impl Into<String>) {
        self.found.mistake(self.at, &self.path, what);
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(self) {
        for entry in self.entries {
            if self.known.contains(&entry.key.as_str()) {
                continue;
            }
            let meant = closest(&entry.key, &self.known);
            // In `{ username: u, hunter2 }` the secret is a key.
            let path = if meant.is_none() && may_hold_secret(&self.path) {
                self.path.clone()
            } else {
                key_path(&self.path, &entry.key)
            };
            let advice = match meant {
                Some(meant) => format!("unknown key; did you mean \"{meant}\"?"),
                None if entry.key == "<<" => {
                    "merge keys are not supported; write the keys out".to_owned()
                }
                None => format!("unknown key; the keys here are {}", self.known.join(", ")),
            };
            self.found.mistake(Some(entry.at), &path, advice);
        }
    }
}
