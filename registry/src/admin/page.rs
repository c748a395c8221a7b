//! `GET /ui/`: one static page over the admin API and the metrics.
//!
//! Everything is in one answer: no framework, nothing from another host, nothing stored in the browser. Its sources are
//! `page/`; [`Page::new`] puts them together. The policy admits exactly this style and this script by their hashes, and no
//! markup made from strings: a repository's name or an upstream's error message stays text.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use coral_schema::oci::Digest;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, StatusCode};

/// `/ui/`, and what leads there. To be served behind [`super::guard::guarded`] but not behind [`super::auth`]: a browser
/// has no token to send for it, and the page, which holds nothing of the cache, asks for one.
pub fn router() -> Router {
    Router::new()
        .route("/ui/", get(show))
        .route("/ui", get(to_the_page))
        .route("/", get(to_the_page))
        .with_state(Arc::new(Page::new()))
}

async fn show(State(page): State<Arc<Page>>, headers: HeaderMap) -> Response {
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|tags| tags.to_str().ok());
    let is_known = known.is_some_and(|tags| matches(tags, &page.etag));
    let head = [
        // Asked for each time, answered in a few bytes: a new version shows at once.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, &page.policy),
        (ETAG, &page.etag),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    if is_known {
        return (StatusCode::NOT_MODIFIED, head).into_response();
    }
    let kind = [(CONTENT_TYPE, "text/html; charset=utf-8")];
    (head, kind, page.html.clone()).into_response()
}

/// Relative, so that it also leads there behind a proxy that puts us under a path of its own.
async fn to_the_page() -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, "ui/")]).into_response()
}

/// Does a list of entity tags (RFC 9110, section 13.1.2) name this one? Weak comparison.
fn matches(tags: &str, etag: &str) -> bool {
    let mut tags = tags.split(',').map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// What every look at it is answered with.
#[derive(Debug)]
struct Page {
    html: Bytes,
    policy: String,
    etag: String,
}

impl Page {
    fn new() -> Self {
        let html = MARKUP
            .replacen(STYLE_PLACE, &format!("<style>{STYLE}</style>"), 1)
            .replacen(SCRIPT_PLACE, &format!("<script>{SCRIPT}</script>"), 1);
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
            source(SCRIPT),
            source(STYLE)
        );
        Self {
            etag: format!("\"{}\"", Digest::sha256(html.as_bytes()).hex()),
            html: html.into(),
            policy,
        }
    }
}

/// Inline content as a policy names it (Content Security Policy Level 3, section 2.3.1).
fn source(content: &str) -> String {
    let hash = STANDARD.encode(Digest::sha256(content.as_bytes()).bytes());
    format!("'sha256-{hash}'")
}

const MARKUP: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
/// In the order in which they build on one another.
const SCRIPT: &str = concat!(
    include_str!("page/base.js"),
    include_str!("page/panels.js"),
    include_str!("page/images.js"),
    include_str!("page/poll.js")
);
const STYLE_PLACE: &str = "<style></style>";
const SCRIPT_PLACE: &str = "<script></script>";

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(path: &str, known: Option<&str>) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::get(path);
        if let Some(known) = known {
            request = request.header(IF_NONE_MATCH, known);
        }
        let request = request.body(Body::empty()).unwrap();
        let (head, body) = router().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        (head.status, head.headers, text)
    }

    fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
        let (_, rest) = text.split_once(start).unwrap();
        rest.split_once(end).unwrap().0
    }

    #[tokio::test]
    async fn the_policy_admits_this_style_and_this_script_and_nothing_else() {
        let (status, headers, page) = ask("/ui/", None).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[REFERRER_POLICY], "no-referrer");
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
        for (directive, tag) in [("script-src", "script"), ("style-src", "style")] {
            let content = between(&page, &format!("<{tag}>"), &format!("</{tag}>"));
            let admitted = between(policy, &format!("{directive} "), ";");
            assert_eq!(admitted, source(content));
            assert!(content.len() > 1000, "the {tag} is in its place");
            assert_eq!(page.matches(&format!("<{tag}")).count(), 1, "one {tag}");
        }
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
        // A carriage return would be read as a line feed, and the hash would be another.
        assert!(!page.contains('\r') && !page.contains(" style="));
    }

    #[tokio::test]
    async fn nothing_comes_from_another_host_or_stays_in_the_browser() {
        let (_, _, page) = ask("/ui/", None).await;
        let page = page.replace("http://www.w3.org/2000/svg", "");
        for foreign in ["://", "url(", "@import", "src=", "import("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        for link in page.split("href=\"").skip(1) {
            let inside = ["#", "../", "data:"];
            assert!(inside.iter().any(|start| link.starts_with(start)), "{link}");
        }
        for storage in ["localStorage", "sessionStorage", "indexedDB", "cookie"] {
            assert!(!page.contains(storage), "{storage}");
        }
        for markup in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!page.contains(markup), "{markup}");
        }
    }

    #[tokio::test]
    async fn what_a_browser_has_is_not_sent_again() {
        let (_, headers, _) = ask("/ui/", None).await;
        let etag = headers[ETAG].to_str().unwrap();
        assert_eq!(headers[CACHE_CONTROL], "no-cache");
        for known in [etag, "*", &format!("\"old\", W/{etag}")] {
            let (status, headers, body) = ask("/ui/", Some(known)).await;
            assert_eq!((status, body.as_str()), (StatusCode::NOT_MODIFIED, ""));
            assert_eq!(headers[ETAG], etag);
        }
        assert_eq!(ask("/ui/", Some("\"old\"")).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn other_ways_lead_there_also_behind_a_proxy() {
        for path in ["/", "/ui"] {
            let (status, headers, _) = ask(path, None).await;
            assert_eq!(status, StatusCode::TEMPORARY_REDIRECT);
            assert_eq!(headers[LOCATION], "ui/");
        }
        assert_eq!(ask("/ui/other", None).await.0, StatusCode::NOT_FOUND);
    }
}
