//! What is wrong with a configuration file: where, which key, why, and what to do about it.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;

/// A place in the file, both counted from 1; columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// One mistake. Holds no secret: values are quoted only where none can stand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// `None` for what no single place is to blame for, such as a flag.
    pub at: Option<Position>,
    /// The key's path, like `upstreams."docker.io".timeouts.connect`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what to do.
    pub what: String,
}

/// All mistakes of one file, in its order; at least one. Prints one per line: `file:line:column: key: what`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes {
    file: String,
    list: Vec<Mistake>,
}

/// Nobody repairs more at once, and a log line has an end.
const SHOWN: usize = 200;

impl Mistakes {
    /// Mistakes of `file`, in any order.
    pub(super) fn new(file: impl Into<String>, mut list: Vec<Mistake>) -> Self {
        list.sort();
        list.dedup();
        Self {
            file: file.into(),
            list,
        }
    }

    /// One mistake that has no place in the file.
    pub(super) fn whole(file: impl Into<String>, what: impl Into<String>) -> Self {
        let mistake = Mistake {
            at: None,
            key: String::new(),
            what: what.into(),
        };
        Self::new(file, vec![mistake])
    }

    /// They, in the order of the file.
    pub fn list(&self) -> &[Mistake] {
        &self.list
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.list.iter().take(SHOWN).enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            f.write_str(&self.file)?;
            if let Some(at) = mistake.at {
                write!(f, ":{}:{}", at.line, at.column)?;
            }
            if !mistake.key.is_empty() {
                write!(f, ": {}", mistake.key)?;
            }
            write!(f, ": {}", mistake.what)?;
        }
        match self.list.len().checked_sub(SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\n{}: and {more} more mistakes", self.file),
        }
    }
}

/// A file that the configuration names: it has to be there and to be readable.
#[derive(Debug)]
pub(super) struct NamedFile {
    pub(super) at: Option<Position>,
    pub(super) key: String,
    pub(super) path: PathBuf,
}

/// Collects what reading the tree finds. Shared by reference: every part of the tree adds to it.
#[derive(Debug, Default)]
pub(super) struct Findings {
    mistakes: RefCell<Vec<Mistake>>,
    files: RefCell<Vec<NamedFile>>,
}

impl Findings {
    pub(super) fn mistake(&self, at: Option<Position>, key: &str, what: impl Into<String>) {
        self.mistakes.borrow_mut().push(Mistake {
            at,
            key: key.to_owned(),
            what: what.into(),
        });
    }

    pub(super) fn file(&self, file: NamedFile) {
        self.files.borrow_mut().push(file);
    }

    pub(super) fn into_parts(self) -> (Vec<Mistake>, Vec<NamedFile>) {
        (self.mistakes.into_inner(), self.files.into_inner())
    }
}

/// `path` and one key more; a key that is not a plain word is quoted, and one that looks like a login is left out.
pub(super) fn key_path(path: &str, key: &str) -> String {
    let key = if key.contains('@') { "…" } else { key };
    let is_word = !key.is_empty()
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    let key = if is_word && key.len() <= LONGEST_KEY {
        key.to_owned()
    } else {
        let short: String = key.chars().take(LONGEST_KEY).collect();
        format!("\"{}\"", short.escape_debug())
    };
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

/// A host name with its port fits.
const LONGEST_KEY: usize = 80;
