//! Pure reading of response headers and small bodies: what an answer says, and whether it can be right.

use std::time::Duration;

use coral_schema::oci::media_type;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    LINK,
};
use serde_json::Value;
use tokio::time::Instant;

use super::limit::Budget;
use super::{ByteRange, ManifestHead};

/// How long a budget without a window is believed.
const DEFAULT_WINDOW: Duration = Duration::from_hours(1);
/// Longest window that is believed.
const LONGEST_WINDOW: Duration = Duration::from_hours(24);

/// The text of a header, if it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Can it be content at all? Coded bodies (H-17) and the pages of portals and proxies (H-06) cannot.
pub(super) fn check(headers: &HeaderMap) -> Result<(), &'static str> {
    let coding = text(headers, &CONTENT_ENCODING)
        .unwrap_or("identity")
        .trim();
    if !coding.is_empty() && !coding.eq_ignore_ascii_case("identity") {
        return Err("the body has a content coding that was not asked for");
    }
    if text(headers, &CONTENT_TYPE).is_some_and(|value| media_type::essence(value) == "text/html") {
        return Err("it is an HTML page");
    }
    Ok(())
}

/// `Content-Length`.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.trim().parse().ok()
}

/// The headers of a manifest.
pub(super) fn manifest_head(headers: &HeaderMap) -> ManifestHead {
    ManifestHead {
        digest: text(headers, &HeaderName::from_static("docker-content-digest"))
            .and_then(|digest| digest.trim().parse().ok()),
        media_type: text(headers, &CONTENT_TYPE)
            .map(media_type::essence)
            .unwrap_or_default(),
        size: length(headers),
        etag: text(headers, &ETAG).map(str::to_owned),
    }
}

/// Where a blob's body starts, how long it is, and how long the whole blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u64,
    pub(super) length: Option<u64>,
    pub(super) total: Option<u64>,
}

/// The extent that a 200 or 206 announces (RFC 9110, section 14.4), checked against what was asked.
pub(super) fn extent(
    status: u16,
    headers: &HeaderMap,
    asked: Option<ByteRange>,
) -> Result<Extent, &'static str> {
    let length = length(headers);
    if status == 200 {
        return Ok(Extent {
            start: 0,
            length,
            total: length,
        });
    }
    let asked = asked.ok_or("it is a part, but the whole was asked for")?;
    let (start, end, total) = text(headers, &CONTENT_RANGE)
        .and_then(content_range)
        .ok_or("it has no valid Content-Range")?;
    if start != asked.start
        || asked.end.is_some_and(|last| end > last)
        || total.is_some_and(|total| end >= total)
    {
        return Err("it is another range than was asked for");
    }
    let announced = end - start + 1;
    if length.is_some_and(|length| length != announced) {
        return Err("Content-Range and Content-Length differ");
    }
    Ok(Extent {
        start,
        length: Some(announced),
        total,
    })
}

fn content_range(header: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.trim().split_once('-')?;
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (start <= end && end < u64::MAX).then_some((start, end, total))
}

/// The upstream's own budget, if it speaks of one.
pub(super) fn budget(headers: &HeaderMap, now: Instant) -> Option<Budget> {
    let (remaining, window) = quota(text(
        headers,
        &HeaderName::from_static("ratelimit-remaining"),
    )?)?;
    let limit = text(headers, &HeaderName::from_static("ratelimit-limit")).and_then(quota);
    let window = window
        .or(limit.and_then(|(_, window)| window))
        .unwrap_or(DEFAULT_WINDOW);
    Some(Budget {
        limit: limit.map(|(limit, _)| limit),
        remaining,
        until: now + window.min(LONGEST_WINDOW),
    })
}

/// `100;w=21600`
fn quota(header: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = header.split(';');
    let amount = parts.next()?.trim().parse().ok()?;
    let window = parts.find_map(|part| part.trim().strip_prefix("w=")?.parse().ok());
    Some((amount, window.map(Duration::from_secs)))
}

/// The target of `Link: <…>; rel="next"` (RFC 8288), wherever it stands in the list.
pub(super) fn next_link(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(LINK)
        .iter()
        .filter_map(|header| header.to_str().ok())
        .find_map(|header| {
            let mut rest = header;
            while let Some((_, link)) = rest.split_once('<') {
                let (target, parameters) = link.split_once('>')?;
                let own = parameters
                    .split_once(',')
                    .map_or(parameters, |(own, _)| own);
                let is_next = own.split(';').any(|parameter| {
                    parameter
                        .trim()
                        .split_once('=')
                        .is_some_and(|(name, value)| {
                            name.trim().eq_ignore_ascii_case("rel")
                                && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
                        })
                });
                if is_next {
                    return Some(target);
                }
                rest = parameters;
            }
            None
        })
}

/// The list in `field` of a JSON object; an absent one is empty, as some registries leave it out or send null.
pub(super) fn list(body: &[u8], field: &str) -> Result<Vec<Value>, &'static str> {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(body) else {
        return Err("it is no JSON object");
    };
    match object.remove(field) {
        Some(Value::Array(entries)) => Ok(entries),
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(_) => Err("the list is of another type"),
    }
}

/// Does the body of a 400 say that the name cannot exist? Other reasons for a 400 are not "does not exist".
pub(super) fn says_invalid_name(body: &[u8]) -> bool {
    let errors = list(body, "errors").unwrap_or_default();
    errors
        .iter()
        .filter_map(|error| error.get("code")?.as_str())
        .any(|code| {
            matches!(
                code,
                "NAME_INVALID"
                    | "NAME_UNKNOWN"
                    | "TAG_INVALID"
                    | "DIGEST_INVALID"
                    | "MANIFEST_UNKNOWN"
                    | "BLOB_UNKNOWN"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[rstest::rstest]
    #[case(&[], true)]
    #[case(&[("content-encoding", "identity")], true)]
    #[case(&[("content-encoding", "gzip")], false)]
    #[case(&[("content-encoding", "Zstd")], false)]
    #[case(&[("content-type", "Text/HTML; charset=utf-8")], false)]
    #[case(&[("content-type", "application/octet-stream")], true)]
    fn h17_h06_checks(#[case] lines: &[(&'static str, &str)], #[case] good: bool) {
        assert_eq!(check(&headers(lines)).is_ok(), good);
    }

    #[rstest::rstest]
    #[case(200, &[("content-length", "10")], None, Some((0, Some(10), Some(10))))]
    #[case(200, &[], None, Some((0, None, None)))]
    #[case(200, &[("content-length", "10")], Some((5, None)), Some((0, Some(10), Some(10))))]
    #[case(206, &[("content-range", "bytes 5-9/10"), ("content-length", "5")], Some((5, None)), Some((5, Some(5), Some(10))))]
    #[case(206, &[("content-range", "bytes 5-9/*")], Some((5, None)), Some((5, Some(5), None)))]
    #[case(206, &[("content-range", "bytes 5-6/10")], Some((5, Some(8))), Some((5, Some(2), Some(10))))]
    #[case(206, &[("content-range", "bytes 5-9/10")], Some((5, Some(8))), None)]
    #[case(206, &[("content-range", "bytes 4-9/10")], Some((5, None)), None)]
    #[case(206, &[("content-range", "bytes 5-9/10"), ("content-length", "6")], Some((5, None)), None)]
    #[case(206, &[("content-range", "bytes 5-10/10")], Some((5, None)), None)]
    #[case(206, &[("content-range", "bytes 9-5/10")], Some((9, None)), None)]
    #[case(206, &[("content-range", "bytes 0-18446744073709551615/*")], Some((0, None)), None)]
    #[case(206, &[], Some((5, None)), None)]
    #[case(206, &[("content-range", "bytes 0-9/10")], None, None)]
    fn h06_extents(
        #[case] status: u16,
        #[case] lines: &[(&'static str, &str)],
        #[case] asked: Option<(u64, Option<u64>)>,
        #[case] expected: Option<(u64, Option<u64>, Option<u64>)>,
    ) {
        let asked = asked.map(|(start, end)| ByteRange { start, end });
        let expected = expected.map(|(start, length, total)| Extent {
            start,
            length,
            total,
        });
        assert_eq!(extent(status, &headers(lines), asked).ok(), expected);
    }

    #[test]
    fn reads_docker_hubs_budget() {
        let now = Instant::now();
        let lines = [
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", "76;w=21600"),
        ];
        let expected = Budget {
            limit: Some(100),
            remaining: 76,
            until: now + Duration::from_hours(6),
        };
        assert_eq!(budget(&headers(&lines), now), Some(expected));
        assert_eq!(
            budget(&headers(&[("ratelimit-remaining", "many")]), now),
            None
        );
    }

    #[rstest::rstest]
    #[case(
        "</v2/a/tags/list?n=2&last=b>; rel=\"next\"",
        Some("/v2/a/tags/list?n=2&last=b")
    )]
    #[case("</x>; rel=prev, </y?a=1,2>; foo; REL=next", Some("/y?a=1,2"))]
    #[case("</x>; rel=prev", None)]
    #[case("</x", None)]
    #[case("", None)]
    fn finds_the_next_page(#[case] header: &str, #[case] expected: Option<&str>) {
        assert_eq!(next_link(&headers(&[("link", header)])), expected);
    }

    #[test]
    fn reads_lists_leniently() {
        assert_eq!(list(br#"{"tags":["a"]}"#, "tags"), Ok(vec!["a".into()]));
        assert_eq!(list(br#"{"tags":null}"#, "tags"), Ok(vec![]));
        assert_eq!(list(b"{}", "tags"), Ok(vec![]));
        assert!(list(b"[]", "tags").is_err());
        assert!(list(br#"{"tags":7}"#, "tags").is_err());
        assert!(says_invalid_name(
            br#"{"errors":[{"code":"NAME_INVALID"}]}"#
        ));
        assert!(!says_invalid_name(
            br#"{"errors":[{"code":"SIZE_INVALID"}]}"#
        ));
        assert!(!says_invalid_name(
            b"The plain HTTP request was sent to HTTPS port"
        ));
    }
}
