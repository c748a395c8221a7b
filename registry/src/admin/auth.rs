//! Who may use the admin API when more than this machine reaches its listener: callers with a service-account token of
//! the cluster (configuration `admin.auth`).
//!
//! A token is a JWT (RFC 7519) that the cluster's API server signed, checked here without asking anybody: signature by
//! one of the issuer's public keys ([`keys`]), issuer, audience, time, and the subject against a list. Probes and metrics
//! stay open: a kubelet has no token, and metrics name no repository.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use coral_schema::admin::AdminError;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::keys::{KeySource, Trust};

pub mod keys;

/// Keys are read again at this age, since an issuer replaces them now and then.
const MAX_AGE: Duration = Duration::from_mins(10);
/// Between two readings of the keys: whoever sends tokens with invented keys must not make us ask more often.
const MIN_AGE: Duration = Duration::from_secs(10);
/// The clock of whoever issued a token may differ from ours by this much, seconds (H-30).
const LEEWAY: u64 = 60;

/// Configuration `admin.auth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// Who issues tokens (`iss`); without it, whoever issued our own token ([`KeySource::token`]).
    pub issuer: Option<String>,
    /// Whom a token must be meant for (`aud`).
    pub audience: String,
    /// Who may use the API (`sub`), like `system:serviceaccount:coral-system:coral-operator`.
    pub subjects: Vec<String>,
    /// The issuer's public keys.
    pub keys: KeySource,
}

/// Lets requests to `router` pass when their token is good.
pub fn authenticated(router: Router, config: AuthConfig) -> Router {
    let authenticator = Arc::new(Authenticator {
        config,
        cached: Mutex::default(),
    });
    router.layer(middleware::from_fn_with_state(authenticator, authenticate))
}

async fn authenticate(
    State(authenticator): State<Arc<Authenticator>>,
    request: Request,
    next: Next,
) -> Response {
    let checked = match bearer(request.headers()) {
        Some(token) => authenticator.check(token).await,
        None => Err(Denial::Unknown("there is none".to_owned())),
    };
    match checked {
        Ok(()) => next.run(request).await,
        Err(denial) => denial.into_response(&authenticator.config.audience),
    }
}

/// The token of `Authorization: Bearer …` (RFC 6750 section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .trim()
        .split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim_start())
}

/// Why a request does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Denial {
    /// No token, or a bad one: what is the matter with it, without any of it.
    Unknown(String),
    /// A good token of somebody who is not listed.
    Subject(String),
    /// The issuer's keys cannot be had.
    NoKeys(String),
}

impl Denial {
    fn into_response(self, audience: &str) -> Response {
        let (status, error) = match self {
            Self::Unknown(why) => (
                StatusCode::UNAUTHORIZED,
                format!(
                    "send a service-account token for the audience {audience:?} as Authorization: Bearer, as `kubectl \
                     create token` makes one: {why}"
                ),
            ),
            Self::Subject(subject) => (
                StatusCode::FORBIDDEN,
                format!("{subject} is not listed in admin.auth.subjects of the configuration"),
            ),
            Self::NoKeys(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("tokens cannot be checked now: {why}"),
            ),
        };
        let body = Json(AdminError { error });
        if status == StatusCode::UNAUTHORIZED {
            // RFC 6750 section 3: the challenge says how.
            let challenge = [(WWW_AUTHENTICATE, "Bearer realm=\"coral\"")];
            return (status, challenge, body).into_response();
        }
        (status, body).into_response()
    }
}

struct Authenticator {
    config: AuthConfig,
    cached: Mutex<Cached>,
}

/// What the last readings of the keys gave.
#[derive(Default)]
struct Cached {
    trust: Option<Arc<Trust>>,
    /// When they were read last.
    read: Option<Instant>,
    /// What was wrong when reading failed last.
    problem: String,
}

#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
}

impl Authenticator {
    async fn check(&self, token: &str) -> Result<(), Denial> {
        let unknown = |why: &dyn fmt::Display| Denial::Unknown(why.to_string());
        let header = jsonwebtoken::decode_header(token).map_err(|_| unknown(&"it is no JWT"))?;
        let key_id = header.kid.ok_or_else(|| unknown(&"it names no key"))?;
        let trust = self.trust(&key_id).await?;
        let key = trust
            .keys
            .find(&key_id)
            .ok_or_else(|| unknown(&"its key is none of the issuer's"))?;
        let key = DecodingKey::from_jwk(key).map_err(|error| unknown(&error))?;
        let validation = self.validation(header.alg, &trust.issuer)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation)
            .map_err(|error| unknown(&error))?
            .claims;
        if self.config.subjects.contains(&claims.sub) {
            Ok(())
        } else {
            Err(Denial::Subject(claims.sub))
        }
    }

    fn validation(&self, algorithm: Algorithm, issuer: &str) -> Result<Validation, Denial> {
        // A public key is no secret: with HMAC, whoever knows it could sign (RFC 8725 section 2.1).
        if algorithm.family() == AlgorithmFamily::Hmac {
            return Err(Denial::Unknown("it is not signed by a key pair".to_owned()));
        }
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.config.audience]);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        Ok(validation)
    }

    /// What the issuer says of itself, read again when that is old or lacks `key_id`. While it cannot be read, what was
    /// read before counts on: an API server that is away takes nobody's rights away.
    async fn trust(&self, key_id: &str) -> Result<Arc<Trust>, Denial> {
        let mut cached = self.cached.lock().await;
        let is_known = cached
            .trust
            .as_ref()
            .is_some_and(|trust| trust.keys.find(key_id).is_some());
        let limit = if is_known { MAX_AGE } else { MIN_AGE };
        if cached.read.is_none_or(|read| read.elapsed() >= limit) {
            match self.config.keys.read(self.config.issuer.as_deref()).await {
                Ok(trust) => cached.trust = Some(Arc::new(trust)),
                Err(error) => {
                    tracing::warn!(%error, "the keys of admin.auth cannot be read");
                    cached.problem = error.to_string();
                }
            }
            cached.read = Some(Instant::now());
        }
        let trust = cached.trust.clone();
        trust.ok_or_else(|| Denial::NoKeys(cached.problem.clone()))
    }
}

#[cfg(test)]
mod tests;
