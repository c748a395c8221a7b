//! GET and HEAD of a blob (end-2): streamed while it arrives, whole or in part.

use coral_schema::oci::{Digest, media_type};
use coral_schema::process::serve::FileSender;
use http::header::{ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};

use super::answer::{Answer, Content, EntityTag};
use super::error::Failure;
use super::multipart::set_parts;
use super::range::{Wanted, resolve, wanted};
use super::{Asked, Http, Readable};
use crate::access::Probe;
use crate::pull::{BlobAnswer, BlobBody, BlobHead, Outcome, PullError, StoredPart};

/// A range matters for a GET only (RFC 9110, section 14.2).
pub(super) async fn blob(
    http: &Http,
    asked: &mut Asked<'_>,
    path: &str,
    digest: &Digest,
) -> Result<Answer, Failure> {
    let cap = http.admit(asked, path, Probe::Blob(digest)).await?;
    let tag = EntityTag::of(digest);
    if tag.is_held(asked.headers) {
        let head = head(http, asked, &cap, digest).await?;
        let mut answer = Answer::new(StatusCode::NOT_MODIFIED, head.outcome);
        answer.set_digest(&tag, true);
        return Ok(answer);
    }
    if asked.is_head() {
        let head = head(http, asked, &cap, digest).await?;
        return Ok(head_answer(head, &tag));
    }
    let mut several = Vec::new();
    let range = match wanted(asked.headers, tag.as_bytes()) {
        Wanted::Whole => None,
        Wanted::Part(range) => Some(range),
        Wanted::Parts(ranges) => {
            several = ranges;
            None
        }
        Wanted::Nothing => {
            let BlobHead { size, .. } = head(http, asked, &cap, digest).await?;
            return Err(PullError::RangeNotSatisfiable { size }.into());
        }
    };
    let blob = match cap {
        Readable::Hosted(cap) => http.puller.hosted_blob(&cap, digest, range).await?,
        Readable::Proxied(cap) if asked.only_if_cached() => {
            let cached = http.puller.cached_blob(&cap, digest, range).await?;
            cached.ok_or(Failure::NotCached)?
        }
        Readable::Proxied(cap) => http.puller.blob(&cap, digest, range).await?,
    };
    match &blob.body {
        BlobBody::Stored(stored) if !several.is_empty() => {
            let parts = resolve(&several, stored.size());
            parts_answer(stored, &parts, blob.outcome, (digest, &tag))
        }
        // While it arrives, who wants several parts gets the whole: the last of them would have to wait for it anyway.
        _ => Ok(get_answer(blob, asked.files.take(), &tag)),
    }
}

/// Parts of a blob that is here; one is no list (RFC 9110, section 15.3.7.2).
fn parts_answer(
    stored: &StoredPart,
    parts: &[(u64, u64)],
    outcome: Outcome,
    (digest, tag): (&Digest, &EntityTag),
) -> Result<Answer, Failure> {
    let size = stored.size();
    match parts {
        [] => Err(PullError::RangeNotSatisfiable { size }.into()),
        [part] => {
            let blob = BlobAnswer {
                size: Some(size),
                range: Some(*part),
                body: stored.part(*part),
                outcome,
            };
            Ok(get_answer(blob, None, tag))
        }
        parts => {
            let mut answer = Answer::new(StatusCode::OK, outcome);
            set_headers(&mut answer, tag);
            let parts = parts.iter().map(|part| (*part, stored.part(*part)));
            set_parts(&mut answer, digest, size, parts.collect());
            Ok(answer)
        }
    }
}

async fn head(
    http: &Http,
    asked: &Asked<'_>,
    cap: &Readable,
    digest: &Digest,
) -> Result<BlobHead, Failure> {
    match cap {
        Readable::Hosted(cap) => Ok(http.puller.head_hosted_blob(cap, digest).await?),
        Readable::Proxied(cap) if asked.only_if_cached() => {
            let cached = http.puller.cached_head(cap, digest).await;
            cached.ok_or(Failure::NotCached)
        }
        Readable::Proxied(cap) => Ok(http.puller.head_blob(cap, digest).await?),
    }
}

fn head_answer(head: BlobHead, tag: &EntityTag) -> Answer {
    let mut answer = Answer::new(StatusCode::OK, head.outcome);
    set_headers(&mut answer, tag);
    answer.set_length(head.size);
    answer
}

fn get_answer(blob: BlobAnswer, files: Option<FileSender>, tag: &EntityTag) -> Answer {
    let mut answer = Answer::new(StatusCode::OK, blob.outcome);
    set_headers(&mut answer, tag);
    match (blob.range, blob.size) {
        (Some((first, last)), size) => {
            answer.status = StatusCode::PARTIAL_CONTENT;
            let size = size.map_or("*".to_owned(), |size| size.to_string());
            let range = HeaderValue::try_from(format!("bytes {first}-{last}/{size}"));
            let range = range.expect("digits are valid in a header");
            answer.headers.insert(CONTENT_RANGE, range);
            answer.set_length(last - first + 1);
        }
        (None, Some(size)) => answer.set_length(size),
        (None, None) => {}
    }
    answer.set_content(Content::Stream(blob.body.into_stream(files)));
    answer
}

fn set_headers(answer: &mut Answer, tag: &EntityTag) {
    answer.set_digest(tag, true);
    let headers = &mut answer.headers;
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(media_type::OCTET_STREAM),
    );
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use http::header::{CACHE_CONTROL, CONTENT_LENGTH};

    fn blob(size: Option<u64>, range: Option<(u64, u64)>) -> Answer {
        let blob = BlobAnswer {
            size,
            range,
            body: BlobBody::Arriving(futures::stream::empty().boxed()),
            outcome: Outcome::Join,
        };
        get_answer(blob, None, &EntityTag::of(&Digest::sha256(b"")))
    }

    #[test]
    fn whole() {
        let answer = blob(Some(10), None);
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers[CONTENT_LENGTH], "10");
        assert_eq!(answer.headers[ACCEPT_RANGES], "bytes");
        assert_eq!(answer.headers[CACHE_CONTROL], "max-age=31536000, immutable");
        assert!(!answer.headers.contains_key(CONTENT_RANGE));

        let head = BlobHead {
            size: 10,
            outcome: Outcome::Hit,
        };
        let head = head_answer(head, &EntityTag::of(&Digest::sha256(b"")));
        assert_eq!(head.headers, answer.headers);
    }

    #[test]
    fn part() {
        let answer = blob(Some(10), Some((2, 9)));
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.headers[CONTENT_RANGE], "bytes 2-9/10");
        assert_eq!(answer.headers[CONTENT_LENGTH], "8");
    }

    #[test]
    fn an_unknown_length_is_not_announced() {
        let answer = blob(None, None);
        assert!(!answer.headers.contains_key(CONTENT_LENGTH));
        assert_eq!(answer.length, None);
    }
}
