//! Pages of lists: `n`, `last` and the `Link` to the next page (distribution specification, "Listing tags").

use std::fmt::Write as _;

use http::header::LINK;
use http::{HeaderMap, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::error::Failure;
use super::route::Query;

/// Longest page, entries.
pub(super) const MAX_PAGE: usize = 1000;

/// RFC 3986, unreserved characters
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The `n` parameter, at most [`MAX_PAGE`].
pub(super) fn limit(query: Query<'_>) -> Result<Option<usize>, Failure> {
    let Some(text) = query.get("n") else {
        return Ok(None);
    };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Failure::Parameter(
            "the parameter n must be the number of entries wanted, in digits",
        ));
    }
    Ok(Some(
        text.parse().map_or(MAX_PAGE, |n: usize| n.min(MAX_PAGE)),
    ))
}

/// Adds the link to the page after this one: a relative URL, since clients name this cache in ways that it cannot know.
pub(super) fn set_next(headers: &mut HeaderMap, path: &str, parameters: &[(&str, Option<&str>)]) {
    let mut link = format!("<{path}");
    let given = parameters
        .iter()
        .filter_map(|(name, value)| Some((name, (*value)?)));
    for (separator, (name, value)) in std::iter::once('?')
        .chain(std::iter::repeat('&'))
        .zip(given)
    {
        let value = utf8_percent_encode(value, ENCODED);
        write!(link, "{separator}{name}={value}").expect("writing to a String does not fail");
    }
    link.push_str(">; rel=\"next\"");
    // A path that is no header value cannot have named a repository.
    if let Ok(link) = HeaderValue::try_from(link) {
        headers.insert(LINK, link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("", None)]
    #[case("n=0", Some(0))]
    #[case("n=10&last=a", Some(10))]
    #[case("n=100000", Some(MAX_PAGE))]
    #[case("n=99999999999999999999999", Some(MAX_PAGE))]
    fn limits(#[case] query: &str, #[case] expected: Option<usize>) {
        assert_eq!(limit(Query(query)).unwrap(), expected);
    }

    #[rstest::rstest]
    fn no_limits(#[values("n=", "n", "n=-1", "n=+1", "n=ten")] query: &str) {
        assert!(limit(Query(query)).is_err());
    }

    #[test]
    fn the_link_comes_back_as_the_same_parameters() {
        let mut headers = HeaderMap::new();
        let parameters = [("n", Some("2")), ("last", Some("a&b=c/ü")), ("ns", None)];
        set_next(&mut headers, "/v2/a/b/tags/list", &parameters);
        let link = headers[LINK].to_str().unwrap();
        assert_eq!(
            link,
            "</v2/a/b/tags/list?n=2&last=a%26b%3Dc%2F%C3%BC>; rel=\"next\""
        );
        let (_, query) = link
            .trim_end_matches(">; rel=\"next\"")
            .split_once('?')
            .unwrap();
        assert_eq!(Query(query).get("last").as_deref(), Some("a&b=c/ü"));
    }
}
