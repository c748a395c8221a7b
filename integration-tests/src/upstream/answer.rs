//! The right answer to each request, before any fault is applied to it.

use std::ops::Range;

use http::{HeaderMap, Method, header};

use super::auth::{self, Auth, url_pairs};
use super::record::{Kind, Target};
use super::{Settings, Shared};
use crate::images::{Blob, Content};

/// A request, its body read and dropped.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) target: Target,
    /// Path and query.
    pub(super) uri: String,
    pub(super) headers: HeaderMap,
}

impl Request {
    fn query(&self) -> &str {
        self.uri.split_once('?').map_or("", |(_, query)| query)
    }

    fn parameter(&self, name: &str) -> Option<String> {
        url_pairs(self.query()).find_map(|(key, value)| (key == name).then_some(value))
    }

    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// An answer; for HEAD the body is what GET would send.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Without `Content-Length`, which depends on how the body is sent.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Content,
    /// Which part of the body is sent.
    pub(super) range: Range<u64>,
}

impl Answer {
    pub(super) fn new(status: u16, body: Content) -> Self {
        Self {
            status,
            headers: Vec::new(),
            range: 0..body.len(),
            body,
        }
    }

    pub(super) fn with(mut self, name: &str, value: &(impl ToString + ?Sized)) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    fn json(status: u16, text: String) -> Self {
        Self::new(status, Content::of(text)).with("content-type", "application/json")
    }

    /// The Distribution API's envelope.
    pub(super) fn error(status: u16) -> Self {
        let code = match status {
            401 => "UNAUTHORIZED",
            403 => "DENIED",
            404 => "NOT_FOUND",
            429 => "TOOMANYREQUESTS",
            _ => "UNKNOWN",
        };
        let error = serde_json::json!({ "code": code, "message": "scripted" });
        Self::json(status, serde_json::json!({ "errors": [error] }).to_string())
    }
}

/// The answer as things stand. `ignore_range` is the one fault that changes what is the right answer.
pub(super) fn answer(shared: &Shared, request: &Request, ignore_range: bool) -> Answer {
    let settings = shared.settings();
    let ranges = settings.ranges && !ignore_range;
    let target = &request.target;
    let repository = target.repository.as_deref();
    match target.kind {
        Kind::Token => return token(shared, &settings, request),
        Kind::Signed => return signed(shared, request, ranges),
        Kind::Other => return Answer::error(404),
        _ if target.method != Method::GET && target.method != Method::HEAD => {
            return Answer::error(405);
        }
        _ => {}
    }
    let admitted = shared
        .tokens()
        .admits(&settings.auth, &request.headers, repository);
    if !admitted {
        let challenge = auth::challenge(&settings.auth, &shared.url, repository);
        return Answer::error(401).with("www-authenticate", &challenge.unwrap_or_default());
    }
    let answer = match target.kind {
        Kind::Base => Answer::json(200, "{}".to_owned()),
        Kind::Manifest => manifest(shared, &settings, request),
        Kind::Blob => blob(shared, &settings, request, ranges),
        Kind::Tags => tags(shared, &settings, request),
        _ => referrers(shared, &settings, request),
    };
    answer.with("docker-distribution-api-version", "registry/2.0")
}

fn token(shared: &Shared, settings: &Settings, request: &Request) -> Answer {
    let Auth::Bearer(bearer) = &settings.auth else {
        return Answer::error(404);
    };
    let issued = shared
        .tokens()
        .issue(bearer, request.query(), &request.headers);
    issued.map_or_else(|| Answer::error(401), |json| Answer::json(200, json))
}

fn manifest(shared: &Shared, settings: &Settings, request: &Request) -> Answer {
    let found = with_repository(shared, request, |repository, reference| {
        repository.manifest(reference)
    });
    let Some(manifest) = found else {
        return Answer::error(404);
    };
    let etag = format!("\"{}\"", manifest.digest);
    if settings.etags && request.header(header::IF_NONE_MATCH) == Some(&etag) {
        return Answer::new(304, Content::of(""))
            .with("etag", &etag)
            .with("docker-content-digest", &manifest.digest);
    }
    let answer = Answer::new(200, manifest.content)
        .with("content-type", &manifest.media_type)
        .with("docker-content-digest", &manifest.digest);
    if settings.etags {
        answer.with("etag", &etag)
    } else {
        answer
    }
}

fn blob(shared: &Shared, settings: &Settings, request: &Request, ranges: bool) -> Answer {
    let found = held_blob(shared, request);
    match (found, &settings.signed_urls) {
        (None, _) => Answer::error(404),
        (Some(blob), None) => ranged(&blob, request, ranges),
        (Some(blob), Some(signed_urls)) => {
            let signature = shared.signatures().sign(signed_urls.uses);
            let repository = request.target.repository.as_deref().unwrap_or_default();
            let location = format!(
                "{}/signed/{repository}/{}?X-Signature={signature}",
                signed_urls.base, blob.digest
            );
            Answer::new(307, Content::of("")).with("location", &location)
        }
    }
}

/// Like S3: the signature is all the authorisation there is, and a second one is an error.
fn signed(shared: &Shared, request: &Request, ranges: bool) -> Answer {
    if request.headers.contains_key(header::AUTHORIZATION) {
        return Answer::error(400);
    }
    let signature = request.parameter("X-Signature").unwrap_or_default();
    if !shared.signatures().accept(&signature) {
        return Answer::error(403);
    }
    match held_blob(shared, request) {
        None => Answer::error(404),
        Some(blob) => ranged(&blob, request, ranges),
    }
}

fn held_blob(shared: &Shared, request: &Request) -> Option<Blob> {
    with_repository(shared, request, |repository, digest| {
        repository.blobs.get(digest).cloned()
    })
}

fn with_repository<T>(
    shared: &Shared,
    request: &Request,
    look: impl FnOnce(&mut super::library::Repository, &str) -> Option<T>,
) -> Option<T> {
    let repository = request.target.repository.as_deref()?;
    let reference = request.target.reference.as_deref().unwrap_or_default();
    look(shared.library().existing(repository)?, reference)
}

fn ranged(blob: &Blob, request: &Request, ranges: bool) -> Answer {
    let size = blob.size();
    let wanted = request.header(header::RANGE).filter(|_| ranges);
    let answer = |status| {
        Answer::new(status, blob.content.clone())
            .with("content-type", "application/octet-stream")
            .with("docker-content-digest", &blob.digest)
            .with("accept-ranges", if ranges { "bytes" } else { "none" })
    };
    match wanted.and_then(|range| parse_range(range, size)) {
        None => answer(200),
        Some(range) if range.is_empty() => {
            Answer::error(416).with("content-range", &format!("bytes */{size}"))
        }
        Some(range) => Answer {
            range: range.clone(),
            ..answer(206).with(
                "content-range",
                &format!("bytes {}-{}/{size}", range.start, range.end - 1),
            )
        },
    }
}

/// One range of RFC 9110 section 14; an empty one cannot be satisfied, `None` is not understood and ignored.
fn parse_range(header: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let suffix: u64 = last.parse().ok()?;
        return Some(size.saturating_sub(suffix)..size);
    }
    let first: u64 = first.parse().ok()?;
    let end = match last {
        "" => size,
        last => last.parse::<u64>().ok()?.saturating_add(1).min(size),
    };
    Some(first..end.max(first)).map(|range| if first >= size { 0..0 } else { range })
}

fn tags(shared: &Shared, settings: &Settings, request: &Request) -> Answer {
    let name = request.target.repository.as_deref().unwrap_or_default();
    let mut library = shared.library();
    let Some(repository) = library.existing(name) else {
        return Answer::error(404);
    };
    let asked = request.parameter("n").and_then(|n| n.parse().ok());
    let limit = asked.unwrap_or(usize::MAX).min(settings.page);
    let last = request.parameter("last").unwrap_or_default();
    let (tags, more) = repository.tags(&last, limit);
    let body = serde_json::json!({ "name": name, "tags": tags }).to_string();
    let answer = Answer::json(200, body);
    match tags.last().filter(|_| more) {
        None => answer,
        Some(last) => answer.with(
            "link",
            &format!("</v2/{name}/tags/list?n={limit}&last={last}>; rel=\"next\""),
        ),
    }
}

fn referrers(shared: &Shared, settings: &Settings, request: &Request) -> Answer {
    if !settings.referrers {
        return Answer::error(404);
    }
    let artifact_type = request.parameter("artifactType");
    let found = with_repository(shared, request, |repository, digest| {
        Some(repository.referrers(digest, artifact_type.as_deref()))
    });
    let empty = || super::library::Repository::default().referrers("", None);
    let index = Content::of(found.unwrap_or_else(empty));
    let answer =
        Answer::new(200, index).with("content-type", coral_schema::oci::media_type::OCI_INDEX);
    match artifact_type {
        Some(_) => answer.with("oci-filters-applied", "artifactType"),
        None => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clipped_and_impossible_ones_are_empty() {
        assert_eq!(parse_range("bytes=2-5", 10), Some(2..6));
        assert_eq!(parse_range("bytes=2-", 10), Some(2..10));
        assert_eq!(parse_range("bytes=2-99", 10), Some(2..10));
        assert_eq!(parse_range("bytes=-3", 10), Some(7..10));
        assert!(parse_range("bytes=10-", 10).is_some_and(|range| range.is_empty()));
        assert!(parse_range("bytes=5-2", 10).is_some_and(|range| range.is_empty()));
        assert_eq!(parse_range("lines=1-2", 10), None);
    }
}
