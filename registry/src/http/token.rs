//! Challenges, and the endpoint that they name: a login becomes a token for a few minutes (the token specification of the
//! Distribution project). Clients bring Basic by GET, or a form by POST (`OAuth2`, as containerd does first), or nothing:
//! then the token is an anonymous one, good for what is public.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use coral_schema::mirror_config::HostPort;
use http::header::{AUTHORIZATION, CACHE_CONTROL, HOST};
use http::{HeaderMap, HeaderValue, Method, Uri};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;
use url::form_urlencoded;

use super::answer::Answer;
use super::error::Failure;
use super::route::RouteError;
use super::{Asked, Http};
use crate::access::token::{LIFE, SERVICE};
use crate::access::{AccessError, Caller, Scopes, Verb};
use crate::pull::Outcome;

/// Where this registry is, as far as it knows by itself.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Where the listener is bound.
    pub bound: SocketAddr,
    /// Does it speak TLS?
    pub is_tls: bool,
}

/// As clients expect it; `token` for most, `access_token` for those that know `OAuth2`.
#[derive(Serialize)]
struct Grant<'a> {
    token: &'a str,
    access_token: &'a str,
    expires_in: u64,
    issued_at: Timestamp,
}

/// GET or POST of `/token`.
pub(super) async fn token(http: &Http, asked: &mut Asked<'_>) -> Result<Answer, Failure> {
    if !http.access.gives_tokens() {
        return Err(Failure::Route(RouteError::Unknown));
    }
    let (caller, texts) = match *asked.method {
        Method::POST => post(http, asked).await?,
        _ => (
            asked.caller.clone(),
            pairs(asked.query.0.as_bytes(), "scope"),
        ),
    };
    let words = || texts.iter().flat_map(|text| text.split_whitespace());
    if words().count() > MOST_SCOPES {
        return Err(Failure::Parameter(
            "a token is for 32 scopes at most; ask for several",
        ));
    }
    let resolve = |name: &str| http.access.resolve(None, name).ok();
    let scopes = Scopes::parse(words(), resolve);
    let now = Timestamp::now();
    let token = http.access.token(&caller, &scopes, now)?;
    asked.entry.caller = Some(caller.subject().clone());
    let grant = Grant {
        token: &token,
        access_token: &token,
        expires_in: LIFE.as_secs(),
        issued_at: now,
    };
    let body = serde_json::to_vec(&grant).expect("plain data serialises");
    let mut answer = Answer::json("application/json", Outcome::Hit, body);
    let headers = &mut answer.headers;
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// `grant_type=password` (RFC 6749, section 4.3); what else a form can say is refused, and clients come back with Basic.
async fn post(http: &Http, asked: &mut Asked<'_>) -> Result<(Caller, Vec<String>), Failure> {
    let body = asked.take_body().unwrap_or_else(Body::empty);
    let read = timeout(FORM_WITHIN, axum::body::to_bytes(body, LONGEST_FORM)).await;
    let form = read.ok().and_then(Result::ok).ok_or(Failure::Parameter(
        "a form of at most 16 KiB is expected, within ten seconds",
    ))?;
    let fields: HashMap<_, _> = form_urlencoded::parse(&form).collect();
    let field = |name| fields.get(name).map(AsRef::as_ref);
    let (Some("password"), Some(user), Some(password)) =
        (field("grant_type"), field("username"), field("password"))
    else {
        return Err(Failure::Parameter(
            "only grant_type=password with username and password is known here; or GET with Basic",
        ));
    };
    let caller = http.access.log_in(user, password.into()).await?;
    Ok((caller, pairs(&form, "scope")))
}

/// The values of `name`; unlike in a query of ours, `+` is a blank there.
fn pairs(text: &[u8], name: &str) -> Vec<String> {
    let pairs = form_urlencoded::parse(text).filter(|(key, _)| key == name);
    pairs.map(|(_, value)| value.into_owned()).collect()
}

/// The `Authorization` of a request; of several, none is believed.
pub(super) fn authorization(headers: &HeaderMap) -> Option<&[u8]> {
    let mut sent = headers.get_all(AUTHORIZATION).iter();
    let first = sent.next()?;
    Some(if sent.next().is_some() {
        b""
    } else {
        first.as_bytes()
    })
}

/// What a 401 says about how to log in.
pub(super) fn challenge(
    http: &Http,
    failure: &Failure,
    headers: &HeaderMap,
    uri: &Uri,
) -> HeaderValue {
    let configured = http
        .access
        .snapshot()
        .users
        .as_ref()
        .and_then(|users| users.config().realm.clone());
    let realm = configured.map_or_else(|| realm(http.place, headers, uri), String::from);
    let text = format!(
        "Bearer realm=\"{realm}\",service=\"{SERVICE}\"{}",
        parameters(failure)
    );
    HeaderValue::try_from(text).expect("hosts, URLs and names are printable ASCII")
}

/// The host that the client has asked: the only address of which it is known that the client reaches it. What proxies add
/// (`Forwarded`) is not believed, since anybody can send it; behind one `users.realm` says it.
fn realm(place: Place, headers: &HeaderMap, uri: &Uri) -> String {
    let named = headers.get(HOST).and_then(|host| host.to_str().ok());
    let named = uri.authority().map(http::uri::Authority::as_str).or(named);
    let host = named.and_then(|host| host.parse().ok());
    let host = host.unwrap_or_else(|| HostPort::from(place.bound));
    let scheme = if place.is_tls { "https" } else { "http" };
    format!("{scheme}://{host}/token")
}

fn parameters(failure: &Failure) -> String {
    let scope = |repo, verb| {
        let actions = match verb {
            Verb::Pull => "pull",
            // Who pushes looks first whether it is there.
            Verb::Push => "pull,push",
            Verb::Delete => "pull,delete",
        };
        format!(",scope=\"repository:{repo}:{actions}\"")
    };
    match failure {
        Failure::Access(AccessError::LoginNeeded(Some((repo, verb)))) => scope(repo, *verb),
        // RFC 6750, section 3.1
        Failure::Access(AccessError::Scope { repo, verb }) => {
            scope(repo, *verb) + ",error=\"insufficient_scope\""
        }
        Failure::Access(AccessError::WrongToken) => ",error=\"invalid_token\"".to_owned(),
        _ => String::new(),
    }
}

/// Docker asks for two: what it pushes to, and what it mounts from.
const MOST_SCOPES: usize = 32;
/// Bytes; a real one has some hundred.
const LONGEST_FORM: usize = 16 << 10;
const FORM_WITHIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::RepoKey;

    fn realm_of(host: Option<&str>, uri: &str, is_tls: bool) -> String {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-host", HeaderValue::from_static("evil.example"));
        headers.insert(
            "forwarded",
            HeaderValue::from_static("host=evil.example;proto=https"),
        );
        if let Some(host) = host {
            headers.insert(HOST, host.parse().unwrap());
        }
        let bound = SocketAddr::from(([127, 0, 0, 1], 5000));
        realm(Place { bound, is_tls }, &headers, &uri.parse().unwrap())
    }

    #[rstest::rstest]
    #[case(
        Some("cache.example:5000"),
        "/v2/",
        false,
        "http://cache.example:5000/token"
    )]
    #[case(Some("cache.example"), "/v2/", true, "https://cache.example/token")]
    #[case(Some("[::1]:5000"), "/v2/", false, "http://[::1]:5000/token")]
    #[case(None, "https://cache.example/v2/", true, "https://cache.example/token")]
    #[case(None, "/v2/", false, "http://127.0.0.1:5000/token")]
    #[case(Some("a\",service=\"b"), "/v2/", false, "http://127.0.0.1:5000/token")]
    #[case(Some("evil.example/x"), "/v2/", false, "http://127.0.0.1:5000/token")]
    #[case(
        Some("user@evil.example"),
        "/v2/",
        false,
        "http://127.0.0.1:5000/token"
    )]
    fn the_realm_is_where_the_client_is(
        #[case] host: Option<&str>,
        #[case] uri: &str,
        #[case] is_tls: bool,
        #[case] expected: &str,
    ) {
        assert_eq!(realm_of(host, uri, is_tls), expected);
    }

    #[test]
    fn a_challenge_says_what_is_missing() {
        let repo: RepoKey = "team/app".parse().unwrap();
        let said = |error: AccessError| parameters(&error.into());
        let pull = AccessError::LoginNeeded(Some((repo.clone(), Verb::Pull)));
        assert_eq!(said(pull), ",scope=\"repository:team/app:pull\"");
        let verb = Verb::Push;
        let expected = ",scope=\"repository:team/app:pull,push\",error=\"insufficient_scope\"";
        assert_eq!(said(AccessError::Scope { repo, verb }), expected);
        assert_eq!(said(AccessError::WrongToken), ",error=\"invalid_token\"");
        assert_eq!(said(AccessError::LoginNeeded(None)), "");
        assert_eq!(said(AccessError::WrongLogin), "");
    }

    #[test]
    fn two_logins_are_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(authorization(&headers), None);
        headers.append(AUTHORIZATION, HeaderValue::from_static("Basic a"));
        assert_eq!(authorization(&headers), Some(b"Basic a".as_slice()));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer b"));
        assert_eq!(authorization(&headers), Some(b"".as_slice()));
    }

    #[test]
    fn scopes_are_read_as_forms_write_them() {
        let text = b"scope=repository%3Aa%3Apull+repository:b:push&service=x&scope=c";
        assert_eq!(
            pairs(text, "scope"),
            ["repository:a:pull repository:b:push", "c"]
        );
    }
}
