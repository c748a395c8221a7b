//! Pure: the `Range` header of a blob request (RFC 9110, section 14.2).

use http::HeaderMap;
use http::header::{IF_RANGE, RANGE};

use crate::pull::RangeSpec;

/// Which part of a blob a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All of it: there is no range, or one that may be ignored (malformed, several, another unit).
    Whole,
    /// One range.
    Part(RangeSpec),
    /// A range that no blob can satisfy: 416 once the blob is known to be there.
    Nothing,
}

/// What the headers ask for; `etag` is the blob's, with its quotes.
///
/// A range with a condition that names other content is ignored, so that a client never puts two contents together.
pub fn wanted(headers: &HeaderMap, etag: &[u8]) -> Wanted {
    let mut ranges = headers.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else {
        return Wanted::Whole;
    };
    if headers
        .get(IF_RANGE)
        .is_some_and(|condition| condition.as_bytes() != etag)
    {
        return Wanted::Whole;
    }
    range.to_str().map_or(Wanted::Whole, parse)
}

/// Reads the value of a `Range` header. An inverted range counts as unsatisfiable, not as malformed: the conformance
/// suite wants 416 for `500-0`.
pub fn parse(header: &str) -> Wanted {
    let Some((unit, range)) = header.split_once('=') else {
        return Wanted::Whole;
    };
    let Some((first, last)) = range.trim().split_once('-') else {
        return Wanted::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    match (first, last) {
        ("", length) => match number(length) {
            None => Wanted::Whole,
            Some(0) => Wanted::Nothing,
            Some(length) => Wanted::Part(RangeSpec::Suffix(length)),
        },
        (first, "") => {
            number(first).map_or(Wanted::Whole, |first| Wanted::Part(RangeSpec::From(first)))
        }
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => {
                Wanted::Part(RangeSpec::Bounded(first, last))
            }
            (Some(_), Some(_)) => Wanted::Nothing,
            _ => Wanted::Whole,
        },
    }
}

/// Digits only. What is too big for a blob stays too big.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    #[rstest::rstest]
    #[case("bytes=500-1499", Wanted::Part(RangeSpec::Bounded(500, 1499)))]
    #[case("bytes=0-0", Wanted::Part(RangeSpec::Bounded(0, 0)))]
    #[case("bytes=500-", Wanted::Part(RangeSpec::From(500)))]
    #[case("bytes=-500", Wanted::Part(RangeSpec::Suffix(500)))]
    #[case("Bytes = 1-2 ", Wanted::Part(RangeSpec::Bounded(1, 2)))]
    #[case(
        "bytes=0-99999999999999999999",
        Wanted::Part(RangeSpec::Bounded(0, u64::MAX))
    )]
    #[case("bytes=99999999999999999999-", Wanted::Part(RangeSpec::From(u64::MAX)))]
    #[case("bytes=500-0", Wanted::Nothing)]
    #[case("bytes=-0", Wanted::Nothing)]
    #[case("bytes=0-1,3-4", Wanted::Whole)]
    #[case("bytes=-", Wanted::Whole)]
    #[case("bytes=+1-2", Wanted::Whole)]
    #[case("bytes=1 - 2", Wanted::Whole)]
    #[case("bytes=a-b", Wanted::Whole)]
    #[case("bytes=", Wanted::Whole)]
    #[case("bytes", Wanted::Whole)]
    #[case("items=1-2", Wanted::Whole)]
    #[case("", Wanted::Whole)]
    fn table(#[case] header: &str, #[case] expected: Wanted) {
        assert_eq!(parse(header), expected);
    }

    #[test]
    fn a_condition_on_other_content_means_the_whole() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted(&headers, b"\"a\""), Wanted::Whole);
        headers.insert(RANGE, HeaderValue::from_static("bytes=5-"));
        let part = Wanted::Part(RangeSpec::From(5));
        assert_eq!(wanted(&headers, b"\"a\""), part);
        headers.insert(IF_RANGE, HeaderValue::from_static("\"a\""));
        assert_eq!(wanted(&headers, b"\"a\""), part);
        for other in ["\"b\"", "W/\"a\"", "Sat, 29 Oct 1994 19:43:31 GMT"] {
            headers.insert(IF_RANGE, HeaderValue::from_static(other));
            assert_eq!(wanted(&headers, b"\"a\""), Wanted::Whole);
        }
        headers.remove(IF_RANGE);
        headers.append(RANGE, HeaderValue::from_static("bytes=6-"));
        assert_eq!(wanted(&headers, b"\"a\""), Wanted::Whole, "two headers");
    }

    proptest! {
        #[test]
        fn total(header in "(bytes)?=?[-0-9, a=]{0,24}|.{0,20}") {
            if let Wanted::Part(RangeSpec::Bounded(first, last)) = parse(&header) {
                prop_assert!(first <= last);
            }
        }
    }
}
