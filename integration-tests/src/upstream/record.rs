//! What was asked, and how many bytes went out for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, Method, header};

use super::When;

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `/v2/`.
    Base,
    /// A manifest by tag or digest.
    Manifest,
    /// A blob.
    Blob,
    /// A blob behind a signed URL.
    Signed,
    /// A list of tags.
    Tags,
    /// Referrers of a manifest.
    Referrers,
    /// The token service.
    Token,
    /// Anything else.
    Other,
}

/// A request as faults and counters see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What it is about.
    pub kind: Kind,
    /// Its method.
    pub method: Method,
    /// The repository, where the path names one.
    pub repository: Option<String>,
    /// The tag or digest, where the path names one.
    pub reference: Option<String>,
    /// Did it ask for a range?
    pub ranged: bool,
}

impl Target {
    pub(super) fn new(method: Method, path: &str, headers: &HeaderMap) -> Self {
        let (kind, repository, reference) = split(path);
        Self {
            kind,
            method,
            repository: repository.map(str::to_owned),
            reference: reference.map(|reference| reference.replace("%3A", ":")),
            ranged: headers.contains_key(header::RANGE),
        }
    }
}

fn split(path: &str) -> (Kind, Option<&str>, Option<&str>) {
    if path == "/token" {
        return (Kind::Token, None, None);
    }
    if let Some(signed) = path.strip_prefix("/signed/") {
        let (repository, digest) = signed.rsplit_once('/').unwrap_or(("", signed));
        return (Kind::Signed, Some(repository), Some(digest));
    }
    if path == "/v2/" || path == "/v2" {
        return (Kind::Base, None, None);
    }
    let name = path.strip_prefix("/v2/").unwrap_or_default();
    if let Some(repository) = name.strip_suffix("/tags/list") {
        return (Kind::Tags, Some(repository), None);
    }
    let known = [
        ("/manifests/", Kind::Manifest),
        ("/blobs/", Kind::Blob),
        ("/referrers/", Kind::Referrers),
    ];
    known
        .into_iter()
        .find_map(|(word, kind)| {
            let (repository, reference) = name.rsplit_once(word)?;
            Some((kind, Some(repository), Some(reference)))
        })
        .unwrap_or((Kind::Other, None, None))
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What it is about.
    pub target: Target,
    /// Path and query.
    pub uri: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Numbered from 1 in the order in which they were accepted: which requests shared one?
    pub connection: u64,
    /// The port at which it came.
    pub port: u16,
    /// The status that was sent; `None` when none was (silence, reset).
    pub status: Option<u16>,
}

impl Seen {
    /// A header's text; the empty text when it is absent.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

/// The book that all connections write into.
#[derive(Debug, Default)]
pub(super) struct Record {
    connections: AtomicU64,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// Keyed by the request's text; a test asks for few different things.
    totals: BTreeMap<String, Arc<Total>>,
    last: VecDeque<Seen>,
}

/// Everything about one target.
#[derive(Debug)]
pub(super) struct Total {
    target: Target,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Total {
    /// Body bytes that were handed to the socket.
    pub(super) fn sent(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Record {
    pub(super) fn connected(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, seen: Seen) -> Arc<Total> {
        let target = &seen.target;
        let path = seen.uri.split('?').next().unwrap_or_default();
        let key = format!("{} {path} {}", target.method, target.ranged);
        let mut book = self.book();
        let total = book.totals.entry(key).or_insert_with(|| {
            Arc::new(Total {
                target: target.clone(),
                requests: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
            })
        });
        let total = Arc::clone(total);
        total.requests.fetch_add(1, Ordering::Relaxed);
        if book.last.len() == REMEMBERED {
            book.last.pop_front();
        }
        book.last.push_back(seen);
        total
    }

    pub(super) fn seen(&self, when: &When) -> Vec<Seen> {
        let book = self.book();
        let matching = book.last.iter().filter(|seen| when.matches(&seen.target));
        matching.cloned().collect()
    }

    pub(super) fn requests(&self, when: &When) -> u64 {
        self.sum(when, |total| &total.requests)
    }

    pub(super) fn bytes(&self, when: &When) -> u64 {
        self.sum(when, |total| &total.bytes)
    }

    pub(super) fn reset(&self) {
        self.connections.store(0, Ordering::Relaxed);
        let mut book = self.book();
        // Emptied in place: bodies that are on their way go on counting into totals that are still seen.
        for total in book.totals.values() {
            total.requests.store(0, Ordering::Relaxed);
            total.bytes.store(0, Ordering::Relaxed);
        }
        book.last.clear();
    }

    fn sum(&self, when: &When, number: fn(&Total) -> &AtomicU64) -> u64 {
        let book = self.book();
        let matching = book.totals.values().filter(|t| when.matches(&t.target));
        matching.map(|t| number(t).load(Ordering::Relaxed)).sum()
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests that are kept word for word; counters go on beyond.
const REMEMBERED: usize = 20_000;
