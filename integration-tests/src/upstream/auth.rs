//! Who may read: HTTP Basic, or Bearer tokens from a token service, as the Distribution specification's
//! authentication document has them.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, header};
use tokio::time::Instant;

/// How the upstream asks who is there.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Not at all.
    #[default]
    Open,
    /// A login with every request; private repositories are all of them.
    Basic(Vec<Login>),
    /// A token with every request.
    Bearer(Bearer),
}

/// A name and a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl Login {
    /// A login.
    pub fn new(user: &str, password: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password.to_owned(),
        }
    }
}

/// A token service.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// Where tokens are to be had; `None`: `/token` at the upstream's own address.
    pub realm: Option<String>,
    /// Who may log in. Everybody may come without a login.
    pub logins: Vec<Login>,
    /// Repositories that only a login may read.
    pub private: Vec<String>,
    /// How long a token works.
    pub lifetime: Duration,
}

impl Default for Bearer {
    fn default() -> Self {
        Self {
            realm: None,
            logins: Vec::new(),
            private: Vec::new(),
            lifetime: Duration::from_mins(5),
        }
    }
}

/// The tokens that were given out.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    issued: HashMap<String, Token>,
    count: u64,
}

#[derive(Debug)]
struct Token {
    repositories: Vec<String>,
    expires: Instant,
}

impl Tokens {
    /// The JSON of the token service's answer; `None`: the login is wrong.
    pub(super) fn issue(
        &mut self,
        bearer: &Bearer,
        query: &str,
        headers: &HeaderMap,
    ) -> Option<String> {
        let login = basic(headers);
        if login.as_ref().is_some_and(|l| !bearer.logins.contains(l)) {
            return None;
        }
        // A scope that is not granted is left out; the registry then refuses the token (as Docker Hub does).
        let repositories = url_pairs(query)
            .filter(|(name, _)| name == "scope")
            .flat_map(|(_, scopes)| scopes.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|scope| {
                let repository = scope.strip_prefix("repository:")?.rsplit_once(':')?.0;
                Some(repository.to_owned())
            })
            .filter(|repository| login.is_some() || !bearer.private.contains(repository))
            .collect();
        self.count += 1;
        let token = format!("scripted-token-{}", self.count);
        let expires = Instant::now() + bearer.lifetime;
        self.issued.insert(
            token.clone(),
            Token {
                repositories,
                expires,
            },
        );
        let lifetime = bearer.lifetime.as_secs();
        Some(
            serde_json::json!({ "token": token, "access_token": token, "expires_in": lifetime })
                .to_string(),
        )
    }

    pub(super) fn revoke(&mut self) {
        self.issued.clear();
    }

    /// May a request with these headers read `repository` (`None`: only `/v2/`)?
    pub(super) fn admits(
        &self,
        auth: &Auth,
        headers: &HeaderMap,
        repository: Option<&str>,
    ) -> bool {
        match auth {
            Auth::Open => true,
            Auth::Basic(logins) => basic(headers).is_some_and(|login| logins.contains(&login)),
            Auth::Bearer(_) => bearer(headers)
                .and_then(|token| self.issued.get(token))
                .filter(|token| token.expires > Instant::now())
                .is_some_and(|token| {
                    repository.is_none_or(|wanted| token.repositories.iter().any(|r| r == wanted))
                }),
        }
    }
}

/// The `WWW-Authenticate` header of a refusal.
pub(super) fn challenge(auth: &Auth, own: &str, repository: Option<&str>) -> Option<String> {
    match auth {
        Auth::Open => None,
        Auth::Basic(_) => Some("Basic realm=\"scripted\"".to_owned()),
        Auth::Bearer(bearer) => {
            let own = format!("{own}/token");
            let realm = bearer.realm.as_ref().unwrap_or(&own);
            let scope = repository.map_or(String::new(), |repository| {
                format!(",scope=\"repository:{repository}:pull\"")
            });
            Some(format!(
                "Bearer realm=\"{realm}\",service=\"scripted\"{scope}"
            ))
        }
    }
}

fn basic(headers: &HeaderMap) -> Option<Login> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let decoded = BASE64_STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Login::new(user, password))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ")
}

/// The decoded pairs of a query.
pub(super) fn url_pairs(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    url::form_urlencoded::parse(query.as_bytes()).into_owned()
}
