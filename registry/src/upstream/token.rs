//! Bearer tokens: fetched from token services once for all who ask, remembered until 80 % of their life is over.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coral_schema::oci::RepositoryName;
use http::HeaderValue;
use reqwest::Client;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::challenge::{Bearer, Challenge};
use super::credentials::Login;
use super::metrics::{Kind, Meter};
use super::retry::{self, Tried};
use super::transport::{self, Unanswered};
use super::{CredentialId, UpstreamErrorKind, answer};

/// Tokens that are remembered; each has one to four KiB.
const REMEMBERED: u64 = 10_000;
/// Longest answer of a token service, bytes.
const LONGEST_ANSWER: u64 = 1 << 20;
/// Life of a token that does not say it (distribution specification, "token authentication").
const DEFAULT_LIFE: f64 = 60.0;
/// Longest life that is believed.
const LONGEST_LIFE: f64 = 24.0 * 3600.0;
/// What we are to token services.
const CLIENT_ID: &str = "coral-registry";

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
    /// With whose credential it was fetched; anonymous for the public and for realms that we do not trust.
    pub(super) credential: CredentialId,
}

/// A token as the value of an `Authorization` header, which prints as `Sensitive`.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) fetched: Instant,
    life: Duration,
}

/// The tokens of one endpoint, and how it asks for them.
#[derive(Debug)]
pub(super) struct Tokens {
    cache: moka::future::Cache<TokenKey, Token>,
    usual: ArcSwapOption<Usual>,
}

/// What the endpoint last asked for, so that the next request of any repository brings it along unasked.
#[derive(Debug)]
enum Usual {
    Basic,
    Bearer {
        bearer: Bearer,
        /// The scope before and behind the repository's name, if it holds that.
        around: Option<(String, String)>,
    },
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self {
            cache: moka::future::Cache::builder()
                .max_capacity(REMEMBERED)
                .expire_after(EndOfLife)
                .build(),
            usual: ArcSwapOption::empty(),
        }
    }

    /// Remembers how the endpoint asks.
    pub(super) fn learn(&self, challenge: &Challenge, repository: &RepositoryName) {
        let usual = match challenge {
            Challenge::Basic => Usual::Basic,
            Challenge::Bearer(bearer) => {
                let around = bearer
                    .scope
                    .as_deref()
                    .and_then(|scope| around(scope, repository));
                Usual::Bearer {
                    bearer: bearer.clone(),
                    around,
                }
            }
        };
        self.usual.store(Some(Arc::new(usual)));
    }

    /// How it will ask for this repository, as far as we know.
    pub(super) fn expect(&self, repository: &RepositoryName) -> Option<Challenge> {
        Some(match &**self.usual.load().as_ref()? {
            Usual::Basic => Challenge::Basic,
            Usual::Bearer {
                bearer,
                around: None,
            } => Challenge::Bearer(bearer.clone()),
            Usual::Bearer {
                bearer,
                around: Some((before, behind)),
            } => {
                let scope = Some(format!("{before}{repository}{behind}"));
                Challenge::Bearer(Bearer {
                    scope,
                    ..bearer.clone()
                })
            }
        })
    }

    /// The token for `key`, remembered or fetched. Everybody who asks meanwhile shares one fetch and its result.
    pub(super) async fn get(
        &self,
        key: &TokenKey,
        fetch: Fetch<'_>,
    ) -> Result<Token, UpstreamErrorKind> {
        self.cache
            .try_get_with_by_ref(key, fetch.run(key))
            .await
            .map_err(|error| UpstreamErrorKind::clone(&error))
    }

    /// Forgets a token that was refused, unless somebody replaced it already.
    pub(super) async fn forget(&self, key: &TokenKey, refused: &Token) {
        if self
            .cache
            .get(key)
            .await
            .is_some_and(|token| token.header == refused.header)
        {
            self.cache.invalidate(key).await;
        }
    }
}

/// `repository:` and `:pull`, for `repository:<name>:pull`; what stands before may end in a prefix of a store.
fn around(scope: &str, repository: &RepositoryName) -> Option<(String, String)> {
    scope
        .match_indices(repository.as_str())
        .map(|(at, name)| (&scope[..at], &scope[at + name.len()..]))
        .find(|(before, behind)| before.ends_with([':', '/']) && behind.starts_with(':'))
        .map(|(before, behind)| (before.to_owned(), behind.to_owned()))
}

#[derive(Debug)]
struct EndOfLife;

impl moka::Expiry<TokenKey, Token> for EndOfLife {
    #[expect(clippy::disallowed_types, reason = "the signature is moka's")]
    fn expire_after_create(
        &self,
        _: &TokenKey,
        token: &Token,
        _: std::time::Instant,
    ) -> Option<Duration> {
        Some(token.life)
    }
}

/// How to fetch a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetch<'a> {
    pub(super) client: &'a Client,
    pub(super) login: Option<&'a Login>,
    pub(super) step: Duration,
    pub(super) meter: &'a Meter,
}

impl Fetch<'_> {
    async fn run(self, key: &TokenKey) -> Result<Token, UpstreamErrorKind> {
        let fetched = Instant::now();
        let mut result = self.send(key).await;
        if let Err(Unanswered::Broken(_)) = result {
            result = self.send(key).await;
        }
        let response = result.map_err(Unanswered::kind)?;
        let status = response.status().as_u16();
        if status != 200 {
            let wait = answer::text(response.headers(), &http::header::RETRY_AFTER);
            let wait = retry::retry_after(wait, jiff::Timestamp::now());
            // Its 404 says nothing about the image.
            let tried = if status == 404 {
                Tried::Elsewhere(status)
            } else {
                Tried::Registry(status)
            };
            return Err(retry::failure(tried, wait));
        }
        let body = transport::body(response, LONGEST_ANSWER, self.step).await?;
        let (header, life) = parse(&body)
            .ok_or_else(|| UpstreamErrorKind::Protocol("its token service sent no token".into()))?;
        Ok(Token {
            header,
            fetched,
            life,
        })
    }

    async fn send(self, key: &TokenKey) -> Result<reqwest::Response, Unanswered> {
        // Scopes are separated by spaces in a challenge, and parameters of their own in a request.
        let scopes = key
            .scope
            .iter()
            .flat_map(|scope| scope.split_ascii_whitespace());
        let service = key
            .service
            .iter()
            .map(|service| ("service", service.as_str()));
        let request = match self.login {
            Some(Login::Refresh(token)) => {
                let scope = key.scope.as_deref().map(|scope| ("scope", scope));
                let grant = [
                    ("grant_type", "refresh_token"),
                    ("client_id", CLIENT_ID),
                    ("refresh_token", token.expose_secret()),
                ];
                let form: Vec<_> = grant.into_iter().chain(service).chain(scope).collect();
                self.client.post(key.realm.clone()).form(&form)
            }
            login => {
                let mut url = key.realm.clone();
                url.query_pairs_mut()
                    .extend_pairs(service)
                    .extend_pairs(scopes.map(|scope| ("scope", scope)));
                let request = self.client.get(url);
                match login {
                    Some(Login::Password { username, password }) => {
                        request.basic_auth(username, Some(password.expose_secret()))
                    }
                    _ => request,
                }
            }
        };
        let result = transport::send(request, self.step).await;
        self.meter.request(
            Kind::Token,
            result
                .as_ref()
                .ok()
                .map(|response| response.status().as_u16()),
        );
        result
    }
}

/// The token of an answer, and how long to use it.
fn parse(body: &[u8]) -> Option<(HeaderValue, Duration)> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let given = |field: &str| {
        answer
            .get(field)?
            .as_str()
            .filter(|token| !token.is_empty())
    };
    let header = bearer(&given("token").or_else(|| given("access_token"))?.into())?;
    let seconds = answer
        .get("expires_in")
        .and_then(Value::as_f64)
        .filter(|seconds| *seconds > 0.0);
    let life = seconds.unwrap_or(DEFAULT_LIFE).clamp(1.0, LONGEST_LIFE);
    Some((header, Duration::from_secs_f64(life * 0.8)))
}

/// `Authorization` with a bearer token; `None` if no header can hold it.
pub(super) fn bearer(token: &SecretString) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {}", token.expose_secret()))
}

/// `Authorization` with user and password.
pub(super) fn basic(username: &str, password: &SecretString) -> Option<HeaderValue> {
    let encoded = STANDARD.encode(format!("{username}:{}", password.expose_secret()));
    sensitive(&format!("Basic {encoded}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(r#"{"token":"a"}"#, Some(("Bearer a", 48.0)))]
    #[case(r#"{"access_token":"b","expires_in":300}"#, Some(("Bearer b", 240.0)))]
    #[case(r#"{"token":"","access_token":"b","expires_in":0}"#, Some(("Bearer b", 48.0)))]
    #[case(r#"{"token":"a","expires_in":1e30}"#, Some(("Bearer a", 69120.0)))]
    #[case(r#"{"token":"a","expires_in":"300"}"#, Some(("Bearer a", 48.0)))]
    #[case(r#"{"token":"a\nb"}"#, None)]
    #[case(r#"{"token":7}"#, None)]
    #[case("{}", None)]
    #[case("<html>", None)]
    fn reads_answers(#[case] body: &str, #[case] expected: Option<(&str, f64)>) {
        let found = parse(body.as_bytes());
        let found = found
            .as_ref()
            .map(|(header, life)| (header.to_str().unwrap(), life.as_secs_f64()));
        assert_eq!(found, expected);
    }

    #[rstest::rstest]
    #[case(Some("repository:team/app:pull"), Some("repository:other:pull"))]
    #[case(
        Some("repository:store/team/app:pull"),
        Some("repository:store/other:pull")
    )]
    #[case(
        Some("repository:app:team/app:pull"),
        Some("repository:app:other:pull")
    )]
    #[case(Some("aws"), Some("aws"))]
    #[case(None, None)]
    fn expects_the_scope_of_another_repository(
        #[case] scope: Option<&str>,
        #[case] expected: Option<&str>,
    ) {
        let tokens = Tokens::new();
        let challenge = |scope: Option<&str>| {
            Challenge::Bearer(Bearer {
                realm: "https://auth.example/token".parse().unwrap(),
                service: Some("s".to_owned()),
                scope: scope.map(str::to_owned),
            })
        };
        let other = "other".parse().unwrap();
        assert_eq!(tokens.expect(&other), None);
        tokens.learn(&challenge(scope), &"team/app".parse().unwrap());
        assert_eq!(tokens.expect(&other), Some(challenge(expected)));
    }

    #[test]
    fn debug_shows_no_token() {
        let (header, life) = parse(br#"{"token":"hidden"}"#).unwrap();
        assert!(
            !format!(
                "{:?}",
                Token {
                    header,
                    fetched: Instant::now(),
                    life
                }
            )
            .contains("hidden")
        );
    }
}
