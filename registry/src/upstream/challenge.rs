//! Pure parser of `WWW-Authenticate` (RFC 9110, section 11.6.1), for the two schemes that registries use.
//!
//! Total: whatever bytes come, the answer is a list of challenges, which may be empty. Unknown schemes are skipped.

use url::Url;

/// One way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A token from a token service (distribution specification, "token authentication").
    Bearer(Bearer),
    /// User and password with each request.
    Basic,
}

/// Where to get a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// The token service.
    pub realm: Url,
    /// What the token is for; sent back as it came.
    pub service: Option<String>,
    /// What it must allow; sent back as it came.
    pub scope: Option<String>,
}

/// The challenges of one header, in order.
pub fn parse(header: &[u8]) -> Vec<Challenge> {
    let mut rest = header;
    let mut challenges = Vec::new();
    loop {
        rest = skip(rest, |byte| is_space(byte) || byte == b',');
        if rest.is_empty() {
            return challenges;
        }
        let scheme = token(&mut rest);
        if scheme.is_empty() {
            // Not a place where a challenge starts: go on behind the next comma.
            rest = skip(rest, |byte| byte != b',');
            continue;
        }
        let parameters = parameters(&mut rest);
        challenges.extend(challenge(scheme, parameters));
    }
}

fn challenge(scheme: &[u8], parameters: Vec<(String, String)>) -> Option<Challenge> {
    if scheme.eq_ignore_ascii_case(b"basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    let mut bearer = (None, None, None);
    for (name, value) in parameters {
        match name.as_str() {
            "realm" => bearer.0 = Url::parse(&value).ok(),
            "service" => bearer.1 = Some(value),
            "scope" => bearer.2 = Some(value),
            _ => {}
        }
    }
    let (realm, service, scope) = bearer;
    Some(Challenge::Bearer(Bearer {
        realm: realm?,
        service,
        scope,
    }))
}

/// `name=value` pairs up to the next scheme: a token that no `=` follows.
fn parameters(rest: &mut &[u8]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    loop {
        let mut ahead = skip(rest, |byte| is_space(byte) || byte == b',');
        let name = token(&mut ahead);
        ahead = skip(ahead, is_space);
        if name.is_empty() || ahead.first() != Some(&b'=') {
            return found;
        }
        ahead = skip(&ahead[1..], is_space);
        let value = if ahead.first() == Some(&b'"') {
            quoted(&mut ahead)
        } else {
            bare(&mut ahead)
        };
        found.push((text(name).to_ascii_lowercase(), value));
        *rest = ahead;
    }
}

/// Registries send unquoted URLs, too, which are no tokens: up to the next comma or space.
fn bare(rest: &mut &[u8]) -> String {
    let end = rest
        .iter()
        .position(|byte| *byte == b',' || is_space(*byte))
        .unwrap_or(rest.len());
    let (value, after) = rest.split_at(end);
    *rest = after;
    text(value)
}

/// A quoted string with backslash escapes; one that never ends goes to the end.
fn quoted(rest: &mut &[u8]) -> String {
    let mut value = Vec::new();
    let mut bytes = rest[1..].iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => break,
            b'\\' => value.extend(bytes.next()),
            byte => value.push(*byte),
        }
    }
    *rest = bytes.as_slice();
    text(&value)
}

fn token<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let end = rest
        .iter()
        .position(|byte| !is_token(byte))
        .unwrap_or(rest.len());
    let (token, after) = rest.split_at(end);
    *rest = after;
    token
}

fn skip(bytes: &[u8], unwanted: impl Fn(u8) -> bool) -> &[u8] {
    let start = bytes
        .iter()
        .position(|byte| !unwanted(*byte))
        .unwrap_or(bytes.len());
    &bytes[start..]
}

fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: realm.parse().unwrap(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[rstest::rstest]
    #[case(
        r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        vec![bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"))]
    )]
    #[case(r#"bearer REALM = "https://a/t" , error="invalid_token""#, vec![bearer("https://a/t", None, None)])]
    #[case("Bearer realm=https://a/t,service=s", vec![bearer("https://a/t", Some("s"), None)])]
    #[case(r#"Basic realm="Registry, \"ours\"", Bearer realm="https://a/t""#, vec![Challenge::Basic, bearer("https://a/t", None, None)])]
    #[case(r#"Negotiate, Digest nonce="x", basic"#, vec![Challenge::Basic])]
    #[case(r#"Negotiate abc==, Basic realm="x""#, vec![Challenge::Basic])]
    #[case(r#"Bearer service="s""#, vec![])]
    #[case(r#"Bearer realm="not a url""#, vec![])]
    #[case(r#"Bearer realm="https://a/t"#, vec![bearer("https://a/t", None, None)])]
    #[case(r#"Bearer realm="https://a/t\"#, vec![bearer("https://a/t", None, None)])]
    #[case("", vec![])]
    #[case("=,\"", vec![])]
    fn reads(#[case] header: &str, #[case] expected: Vec<Challenge>) {
        assert_eq!(parse(header.as_bytes()), expected);
    }

    proptest! {
        #[test]
        fn total(header in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&header);
        }

        #[test]
        fn total_near_real_headers(header in "((Bearer|Basic|x)?[ ,=\"\\\\]{0,3}(realm|scope|a)?[=\" ,]{0,3}){0,8}") {
            parse(header.as_bytes());
        }

        #[test]
        fn reads_back_what_was_quoted(service in "[ -~]{0,30}", scope in "[ -~]{0,30}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!(r#"Bearer realm="https://a/t",service="{}",scope="{}""#, quote(&service), quote(&scope));
            prop_assert_eq!(parse(header.as_bytes()), vec![bearer("https://a/t", Some(&service), Some(&scope))]);
        }
    }
}
