//! Pure: the `Range` header of a blob request (RFC 9110, section 14.2).

use http::HeaderMap;
use http::header::{IF_RANGE, RANGE};

use crate::pull::RangeSpec;

/// Which part of a blob a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it: there is no range, or one that may be ignored (malformed, too many, another unit).
    Whole,
    /// One range.
    Part(RangeSpec),
    /// Several, in the order of the request.
    Parts(Vec<RangeSpec>),
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
/// suite wants 416 for `500-0`. Of several ranges those that no blob can satisfy do not count.
pub fn parse(header: &str) -> Wanted {
    let Some((unit, ranges)) = header.split_once('=') else {
        return Wanted::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    let mut parts = Vec::new();
    for (place, range) in ranges.split(',').enumerate() {
        match one(range.trim()) {
            _ if place >= MOST_RANGES => return Wanted::Whole,
            Wanted::Part(part) => parts.push(part),
            Wanted::Nothing => {}
            Wanted::Whole | Wanted::Parts(_) => return Wanted::Whole,
        }
    }
    match parts.as_slice() {
        [] => Wanted::Nothing,
        [part] => Wanted::Part(*part),
        _ => Wanted::Parts(parts),
    }
}

fn one(range: &str) -> Wanted {
    let Some((first, last)) = range.split_once('-') else {
        return Wanted::Whole;
    };
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

/// First and last bytes of these ranges of a blob of `size` bytes, as far as they lie in it. In the order of the request,
/// which clients count on, unless they overlap: then what overlaps is one, and all are in the order of the blob, so that
/// nobody gets more than the whole (RFC 9110, sections 14.2 and 15.3.7.2).
pub fn resolve(parts: &[RangeSpec], size: u64) -> Vec<(u64, u64)> {
    let within = parts.iter().filter_map(|part| part.resolve(size));
    let within: Vec<_> = within.collect();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(within.len());
    let mut sorted = within.clone();
    sorted.sort_unstable();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some((_, end)) if first <= *end => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    if merged.len() == within.len() {
        within
    } else {
        merged
    }
}

/// As many as containers/image asks for at once when it looks for what changed in a zstd:chunked layer.
const MOST_RANGES: usize = 1024;

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
    #[case(
        "bytes=0-1, 3-4,-5",
        Wanted::Parts(vec![RangeSpec::Bounded(0, 1), RangeSpec::Bounded(3, 4), RangeSpec::Suffix(5)])
    )]
    #[case("bytes=5-1,3-4", Wanted::Part(RangeSpec::Bounded(3, 4)))]
    #[case("bytes=5-1,-0", Wanted::Nothing)]
    #[case("bytes=0-1,x", Wanted::Whole)]
    #[case("bytes=0-1,", Wanted::Whole)]
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
    fn too_many_ranges_are_ignored() {
        let header = |count: usize| {
            let ranges: Vec<_> = (0..count).map(|at| format!("{at}-{at}")).collect();
            format!("bytes={}", ranges.join(","))
        };
        assert!(matches!(parse(&header(MOST_RANGES)), Wanted::Parts(_)));
        assert_eq!(parse(&header(MOST_RANGES + 1)), Wanted::Whole);
    }

    #[rstest::rstest]
    #[case("bytes=8-9,0-1", &[(8, 9), (0, 1)])]
    #[case("bytes=2-3,4-5", &[(2, 3), (4, 5)])]
    #[case("bytes=5-,0-5", &[(0, 9)])]
    #[case("bytes=0-1,-4,7-20", &[(0, 1), (6, 9)])]
    #[case("bytes=0-1,10-", &[(0, 1)])]
    #[case("bytes=11-,10-", &[])]
    fn several(#[case] header: &str, #[case] expected: &[(u64, u64)]) {
        let Wanted::Parts(parts) = parse(header) else {
            panic!("several");
        };
        assert_eq!(resolve(&parts, 10), expected);
    }

    #[test]
    fn a_condition_on_other_content_means_the_whole() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted(&headers, b"\"a\""), Wanted::Whole);
        headers.insert(RANGE, HeaderValue::from_static("bytes=5-"));
        let part = Wanted::Part(RangeSpec::From(5));
        assert_eq!(wanted(&headers, b"\"a\""), part.clone());
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

        #[test]
        fn parts_are_the_bytes_that_were_asked_for(
            ranges in prop::collection::vec((0..40_u64, 0..40_u64), 1..9), size in 0..40_u64
        ) {
            let parts: Vec<_> = ranges.iter().map(|(a, b)| RangeSpec::Bounded(*a.min(b), *a.max(b))).collect();
            let found = resolve(&parts, size);
            let asked = (0..size).filter(|byte| ranges.iter().any(|(a, b)| (a.min(b)..=a.max(b)).contains(&byte)));
            let mut sent: Vec<u64> = found.iter().flat_map(|(first, last)| *first..=*last).collect();
            sent.sort_unstable();
            prop_assert_eq!(sent, asked.collect::<Vec<_>>());
        }
    }
}
