//! The shape of the file: a tree in which everything knows its place, and every leaf is text as it was written.
//!
//! Not read into typed structs by serde: serde stops at the first wrong type, loses places below flattened parts, and
//! reads `1.10` as a number. So the tree is built from the parser's events, and `settings` and its siblings walk it.
//! Bounded: length, nesting, and nodes (aliases count as what they stand for).

use std::collections::HashMap;

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, ScanError, Span};

use super::mistake::{Findings, Position, key_path};

/// Longest file, bytes. A configuration with a thousand upstreams is well below.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Most nodes of a tree.
const MAX_NODES: usize = 20_000;
/// Deepest nesting, for each of the two notations. The deepest key of ours is at 5.
const MAX_NESTING: usize = 32;

/// A node and where it starts.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Position,
    pub(super) node: Node,
}

/// The tree of `text`. What YAML allows and we do not is noted in `found`; only what is no YAML is an error.
pub(super) fn parse(text: &str, found: &Findings) -> Result<Node, (Option<Position>, String)> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_NESTING,
        block_nesting_limit: MAX_NESTING,
    };
    let mut builder = Builder {
        found,
        open: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        root: None,
    };
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| syntax(&error))?;
        builder.event(event, &span)?;
    }
    Ok(builder.root.unwrap_or(Node {
        at: Position { line: 1, column: 1 },
        value: Value::Null,
    }))
}

type SyntaxError = (Option<Position>, String);

fn syntax(error: &ScanError) -> SyntaxError {
    let at = Position {
        line: error.marker().line(),
        column: error.marker().col() + 1,
    };
    (Some(at), format!("this is not YAML: {}", error.kind()))
}

/// A list or a map that has begun.
struct Open {
    at: Position,
    anchor: usize,
    content: OpenContent,
}

enum OpenContent {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        /// Read, its value not yet. Its key is `None` when it is not text.
        pending: Option<(Option<String>, Position)>,
    },
}

struct Builder<'f> {
    found: &'f Findings,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), SyntaxError> {
        let at = Position {
            line: span.start.line(),
            column: span.start.col() + 1,
        };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some(), at);
                let value = if style == ScalarStyle::Plain && is_null(&text) {
                    Value::Null
                } else {
                    Value::Text(text.into_owned())
                };
                self.complete(Node { at, value }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_tag(tag.is_some(), at);
                self.begin(at, anchor, OpenContent::List(Vec::new()));
                Ok(())
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_tag(tag.is_some(), at);
                let (entries, pending) = (Vec::new(), None);
                self.begin(at, anchor, OpenContent::Map { entries, pending });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(anchor, at),
            _ => Ok(()),
        }
    }

    fn refuse_tag(&self, is_tagged: bool, at: Position) {
        if is_tagged {
            self.found
                .mistake(Some(at), "", "YAML tags mean nothing here; remove the tag");
        }
    }

    fn begin(&mut self, at: Position, anchor: usize, content: OpenContent) {
        self.open.push(Open {
            at,
            anchor,
            content,
        });
    }

    fn end(&mut self) -> Result<(), SyntaxError> {
        let Some(Open {
            at,
            anchor,
            content,
        }) = self.open.pop()
        else {
            return Ok(());
        };
        let value = match content {
            OpenContent::List(items) => Value::List(items),
            OpenContent::Map { entries, .. } => Value::Map(entries),
        };
        self.complete(Node { at, value }, anchor)
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<(), SyntaxError> {
        let Some(node) = self.anchors.get(&anchor).cloned() else {
            let what = "an anchor cannot be used inside itself".to_owned();
            return Err((Some(at), what));
        };
        // Counted before it is attached; `complete` counts its top once more, which does not matter for a bound.
        self.nodes += node.count();
        self.complete(node, 0)
    }

    /// Path of the value that comes next.
    fn path(&self) -> String {
        self.open
            .iter()
            .fold(String::new(), |path, open| match &open.content {
                OpenContent::List(items) => format!("{path}[{}]", items.len()),
                OpenContent::Map { pending, .. } => match pending {
                    Some((Some(key), _)) => key_path(&path, key),
                    Some((None, _)) | None => path,
                },
            })
    }

    /// Attaches a finished node to what is open, or makes it the root.
    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let what = format!("more than {MAX_NODES} values; this is not a configuration");
            return Err((Some(node.at), what));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let path = self.path();
        match self.open.last_mut().map(|open| &mut open.content) {
            Some(OpenContent::List(items)) => items.push(node),
            Some(OpenContent::Map { entries, pending }) => match pending.take() {
                None => *pending = Some((key_text(&node), node.at)),
                Some((Some(key), at)) => add(self.found, &path, entries, Entry { key, at, node }),
                Some((None, at)) => self.found.mistake(Some(at), "", "a key is a word"),
            },
            None if self.root.is_none() => self.root = Some(node),
            None => self.found.mistake(
                Some(node.at),
                "",
                "a second YAML document; a configuration is one document",
            ),
        }
        Ok(())
    }
}

fn add(found: &Findings, path: &str, entries: &mut Vec<Entry>, entry: Entry) {
    if let Some(first) = entries.iter().find(|first| first.key == entry.key) {
        let what = format!(
            "this key stands here twice, first in line {}; remove one",
            first.at.line
        );
        found.mistake(Some(entry.at), path, what);
    } else {
        entries.push(entry);
    }
}

fn key_text(node: &Node) -> Option<String> {
    match &node.value {
        Value::Text(text) => Some(text.clone()),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

/// The core schema's words for nothing (YAML 1.2.2, 10.3.2).
fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

impl Node {
    fn count(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Text(_) => 0,
            Value::List(items) => items.iter().map(Self::count).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.count()).sum(),
        }
    }
}
