//! Client of the registry's admin API: which registries it serves, prefetch jobs and pins.
//!
//! Every call has a deadline. The token is read anew for each, since the kubelet replaces it within the hour.
//! [`follow`] decides what to ask when.

use std::path::PathBuf;
use std::time::Duration;

use coral_schema::admin::{
    AdminError, CredentialRequest, PinRequest, PrefetchAccepted, PrefetchRequest, PrefetchStatus,
    RegistryEntry,
};
use reqwest::{Certificate, Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use url::Url;

pub mod follow;

/// Where the registry is.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its admin listener.
    pub admin: Url,
    /// File of the token that it wants.
    pub token: Option<PathBuf>,
    /// PEM certificates that its certificate is checked against, instead of the public ones.
    pub ca: Option<Vec<u8>>,
}

/// Why a call did not do what it was to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No answer, or one that says nothing: it is away.
    #[error("the registry's admin listener does not answer: {0}")]
    Away(String),
    /// It does not let us in, until a person changes something.
    #[error("the registry's admin listener does not let the operator in ({status}): {reason}")]
    Denied {
        /// Its status.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// It has no such job (any more).
    #[error("the registry does not remember this job")]
    Forgotten,
    /// It cannot now.
    #[error("the registry cannot do it now ({status}): {reason}")]
    Busy {
        /// Its status.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// Logins do not go where others could read them.
    #[error(
        "pull secrets are lent over TLS only: give the registry a certificate (registry.tls in the chart)"
    )]
    Plain,
    /// It will say the same again.
    #[error("the registry refuses ({status}): {reason}")]
    Refused {
        /// Its status.
        status: u16,
        /// Its words.
        reason: String,
    },
}

/// The client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not certificates.
    #[error("--registry-ca holds no certificate in PEM form (BEGIN CERTIFICATE)")]
    Ca,
    /// Anything else.
    #[error("no HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// Speaks to one registry.
#[derive(Debug, Clone)]
pub struct Registry {
    admin: Url,
    token: Option<PathBuf>,
    http: reqwest::Client,
}

impl Registry {
    /// Does not connect yet.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let Config { admin, token, ca } = config;
        let roots = match ca {
            Some(pem) => Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|all| !all.is_empty())
                .ok_or(ConfigError::Ca)?,
            None => webpki_root_certs::TLS_SERVER_ROOT_CERTS
                .iter()
                .map(|der| Certificate::from_der(der))
                .collect::<Result<_, _>>()?,
        };
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only(roots)
            .build()?;
        Ok(Self { admin, token, http })
    }

    /// `GET /api/v1/registries`
    pub async fn registries(&self) -> Result<Vec<RegistryEntry>, RegistryError> {
        let request = self.request(Method::GET, &["registries"]);
        json(&self.send(request).await?)
    }

    /// `POST /api/v1/prefetch`; answers the job's id.
    pub async fn start(&self, wanted: &PrefetchRequest) -> Result<String, RegistryError> {
        let request = self.request(Method::POST, &["prefetch"]).json(wanted);
        let accepted: PrefetchAccepted = json(&self.send(request).await?)?;
        Ok(accepted.id)
    }

    /// `GET /api/v1/prefetch/<id>`
    pub async fn progress(&self, id: &str) -> Result<PrefetchStatus, RegistryError> {
        let request = self.request(Method::GET, &["prefetch", id]);
        json(&self.send(request).await?)
    }

    /// `PUT /api/v1/pins/<source>`
    pub async fn pin(&self, source: &str, wanted: &PinRequest) -> Result<(), RegistryError> {
        let request = self.request(Method::PUT, &of_source("pins", source));
        self.send(request.json(wanted)).await.map(drop)
    }

    /// `DELETE /api/v1/pins/<source>`
    pub async fn unpin(&self, source: &str) -> Result<(), RegistryError> {
        self.delete(&of_source("pins", source)).await
    }

    /// `PUT /api/v1/credentials/<source>`. Never over plain HTTP.
    pub async fn lend(
        &self,
        source: &str,
        wanted: &CredentialRequest,
    ) -> Result<(), RegistryError> {
        if self.admin.scheme() != "https" {
            return Err(RegistryError::Plain);
        }
        let request = self.request(Method::PUT, &of_source("credentials", source));
        self.send(request.json(wanted)).await.map(drop)
    }

    /// `DELETE /api/v1/credentials/<source>`
    pub async fn take_back(&self, source: &str) -> Result<(), RegistryError> {
        self.delete(&of_source("credentials", source)).await
    }

    /// What is not there need not go.
    async fn delete(&self, path: &[&str]) -> Result<(), RegistryError> {
        match self.send(self.request(Method::DELETE, path)).await {
            Err(RegistryError::Forgotten) => Ok(()),
            answer => answer.map(drop),
        }
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.admin.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        self.http.request(method, url)
    }

    async fn send(&self, mut request: RequestBuilder) -> Result<Vec<u8>, RegistryError> {
        if let Some(token) = self.token().await? {
            request = request.bearer_auth(token.expose_secret());
        }
        let mut response = request.send().await.map_err(away)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            if body.len() + chunk.len() > LONGEST_ANSWER {
                return Err(RegistryError::Away("its answer is too long".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            Ok(body)
        } else {
            Err(refused(status, &body))
        }
    }

    async fn token(&self) -> Result<Option<SecretString>, RegistryError> {
        let Some(path) = &self.token else {
            return Ok(None);
        };
        let text = tokio::fs::read_to_string(path).await;
        let text = text.map_err(|error| RegistryError::Denied {
            status: 0,
            reason: format!("the token file {} is not readable: {error}", path.display()),
        })?;
        Ok(Some(text.trim().into()))
    }
}

/// The path of what a source like `operator/ml/app` has under a resource.
fn of_source<'a>(resource: &'a str, source: &'a str) -> Vec<&'a str> {
    std::iter::once(resource).chain(source.split('/')).collect()
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(body).map_err(|_| {
        RegistryError::Away("this is no admin listener of a coral-registry".to_owned())
    })
}

fn refused(status: StatusCode, body: &[u8]) -> RegistryError {
    let reason = serde_json::from_slice::<AdminError>(body)
        .map_or_else(|_| "without a reason".to_owned(), |words| words.error);
    let code = status.as_u16();
    match code {
        401 | 403 => RegistryError::Denied {
            status: code,
            reason,
        },
        404 => RegistryError::Forgotten,
        429 | 503 | 507 => RegistryError::Busy {
            status: code,
            reason,
        },
        500.. => RegistryError::Away(format!("{code}: {reason}")),
        _ => RegistryError::Refused {
            status: code,
            reason,
        },
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn away(error: reqwest::Error) -> RegistryError {
    // The cause at the bottom says most: "Connection refused".
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    RegistryError::Away(cause.to_string())
}

const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// The registry answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Jobs of 256 images with all their layers take a tenth of it.
const LONGEST_ANSWER: usize = 32 << 20;

#[cfg(test)]
mod tests;
