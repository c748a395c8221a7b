//! Pure: does a request want only what is here?

use http::HeaderMap;
use http::header::CACHE_CONTROL;

/// Is `only-if-cached` among the directives (RFC 9111, section 5.2.1.7)?
pub(super) fn only_if_cached(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(CACHE_CONTROL).into_iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|directive| directive.trim().eq_ignore_ascii_case("only-if-cached"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(&[], false)]
    #[case(&["only-if-cached"], true)]
    #[case(&["max-stale=60, Only-If-Cached"], true)]
    #[case(&["no-transform", "only-if-cached"], true)]
    #[case(&["no-cache"], false)]
    #[case(&["x-only-if-cached"], false)]
    fn directives(#[case] lines: &[&str], #[case] expected: bool) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, line.parse().unwrap());
        }
        assert_eq!(only_if_cached(&headers), expected);
    }
}
