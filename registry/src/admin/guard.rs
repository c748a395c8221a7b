//! Keeps browsers out of the admin listener: a page from anywhere may send requests to this machine.
//!
//! A page that rebinds its own host name to our address sends that name as `Host`; a page that just posts sends its own
//! `Origin`, or a form's `Content-Type`. Programs send none of these and pass.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use coral_schema::oci::media_type;
use http::header::{CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use http::{HeaderMap, Method, StatusCode, Uri};

use super::Refusal;

/// Puts the guard before everything in `router`. `hosts`: names besides addresses and `localhost` that clients may use
/// for us, lower case, without a port (configuration `admin.hosts`).
pub fn guarded(router: Router, hosts: Vec<String>) -> Router {
    router.layer(middleware::from_fn_with_state(Arc::new(hosts), guard))
}

async fn guard(State(hosts): State<Arc<Vec<String>>>, request: Request, next: Next) -> Response {
    match check(request.method(), request.uri(), request.headers(), &hosts) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

fn check(method: &Method, uri: &Uri, headers: &HeaderMap, hosts: &[String]) -> Result<(), Refusal> {
    // HTTP/2 has no Host header but an authority.
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let host = authority
        .or_else(|| text(headers, HOST))
        .unwrap_or_default();
    if !is_our_name(host, hosts) {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "the admin listener answers to IP addresses, localhost, and the names in admin.hosts of the configuration",
        ));
    }
    if headers.contains_key(ORIGIN) && !is_same_origin(text(headers, ORIGIN), host) {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "the admin listener does not answer pages of another origin",
        ));
    }
    let content_type = text(headers, CONTENT_TYPE).map(media_type::essence);
    let has_body = method == Method::POST || method == Method::PUT;
    if has_body && content_type.as_deref() != Some("application/json") {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send the request with the header Content-Type: application/json",
        ));
    }
    Ok(())
}

fn is_our_name(host: &str, hosts: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|listed| name.eq_ignore_ascii_case(listed))
}

/// `None`, too, when the header is not text.
fn is_same_origin(origin: Option<&str>, host: &str) -> bool {
    origin
        .and_then(|origin| origin.split_once("://"))
        .is_some_and(|(scheme, authority)| {
            matches!(scheme, "http" | "https") && authority.eq_ignore_ascii_case(host)
        })
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(method: &Method, headers: &[(HeaderName, &str)]) -> u16 {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect();
        let hosts = ["cache.example".to_owned()];
        let result = check(
            method,
            &Uri::from_static("/api/v1/status"),
            &headers,
            &hosts,
        );
        result.map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[rstest::rstest]
    #[case("127.0.0.1:9090", 200)]
    #[case("10.1.2.3", 200)]
    #[case("[::1]:9090", 200)]
    #[case("localhost:9090", 200)]
    #[case("LOCALHOST", 200)]
    #[case("Cache.Example:9090", 200)]
    #[case("evil.example:9090", 403)]
    #[case("127.0.0.1.evil.example", 403)]
    #[case("localhost.evil.example", 403)]
    #[case("", 403)]
    fn hosts(#[case] host: &str, #[case] status: u16) {
        assert_eq!(verdict(&Method::GET, &[(HOST, host)]), status);
    }

    #[test]
    fn the_authority_of_http2_counts() {
        let check = |uri| check(&Method::GET, &Uri::from_static(uri), &HeaderMap::new(), &[]);
        assert!(check("http://127.0.0.1:9090/livez").is_ok());
        assert!(check("http://evil.example/livez").is_err());
        assert!(check("/livez").is_err(), "neither");
    }

    #[rstest::rstest]
    #[case("http://localhost:9090", 200)]
    #[case("https://localhost:9090", 200)]
    #[case("http://localhost:9091", 403)]
    #[case("http://evil.example", 403)]
    #[case("null", 403)]
    #[case("", 403)]
    fn origins(#[case] origin: &str, #[case] status: u16) {
        let headers = [(HOST, "localhost:9090"), (ORIGIN, origin)];
        assert_eq!(verdict(&Method::GET, &headers), status);
    }

    #[rstest::rstest]
    #[case("application/json", 200)]
    #[case("Application/JSON; charset=utf-8", 200)]
    #[case("text/plain", 415)]
    #[case("application/x-www-form-urlencoded", 415)]
    #[case("application/json-patch+json", 415)]
    fn content_types(#[case] content_type: &str, #[case] status: u16) {
        let headers = [(HOST, "localhost"), (CONTENT_TYPE, content_type)];
        for method in [Method::POST, Method::PUT] {
            assert_eq!(verdict(&method, &headers), status);
            assert_eq!(verdict(&method, &headers[..1]), 415);
        }
        assert_eq!(verdict(&Method::GET, &headers[..1]), 200);
    }

    #[tokio::test]
    async fn nothing_is_served_in_front_of_the_guard() {
        use tower::ServiceExt as _;
        let inner = Router::new().route("/metrics", axum::routing::get(|| async { "secret" }));
        let router = guarded(inner, Vec::new());
        for (host, status) in [("evil.example", 403), ("127.0.0.1", 200)] {
            let request = Request::get("/metrics").header(HOST, host);
            let request = request.body(axum::body::Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status().as_u16(), status);
        }
    }
}
