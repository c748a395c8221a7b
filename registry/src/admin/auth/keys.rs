//! Where the public keys of an issuer of tokens come from: a file, or the API server that issues them.
//!
//! This and the subcommand `prefetch` are the places outside `upstream` that name reqwest: what is asked here is no
//! registry, and knows nothing of endpoints, limits and credentials of upstreams.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use reqwest::{Client, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use url::Url;

use crate::upstream;

/// How long the issuer may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longest set of keys, and longest token, bytes. An API server has two or three keys of half a KiB.
const MAX_BYTES: usize = 256 << 10;

/// Where the keys are, and what is needed to ask for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySource {
    /// The set of keys (RFC 7517 section 5).
    pub location: Location,
    /// PEM certificates that the issuer's is checked against, besides the public ones.
    pub ca: Option<PathBuf>,
    /// Our own token, which is shown to the issuer; read anew each time.
    pub token: Option<PathBuf>,
}

/// See [`KeySource`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file.
    File(PathBuf),
    /// An `https` URL, like `https://kubernetes.default.svc/openid/v1/jwks`.
    Url(Url),
}

/// Who issues tokens, and the keys that prove it.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    pub(super) issuer: String,
    pub(super) keys: JwkSet,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file that the configuration names.
    #[error("{} cannot be read: {source}", .file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No answer.
    #[error("{url} does not answer: {reason}")]
    Silent {
        /// Where we asked.
        url: Url,
        /// What happened.
        reason: String,
    },
    /// Something else than a set of keys.
    #[error("{from} has no set of keys: {reason}")]
    Content {
        /// The file or URL.
        from: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file of authorities holds none.
    #[error("{} holds no certificate in PEM form (BEGIN CERTIFICATE)", .file.display())]
    Authority {
        /// Which.
        file: PathBuf,
    },
    /// Our own token does not say who issued it.
    #[error("{} is no token that names its issuer; set admin.auth.issuer", .file.display())]
    Issuer {
        /// Where it is.
        file: PathBuf,
    },
}

impl KeySource {
    /// Asks for everything anew; `issuer` as the configuration says it.
    pub(super) async fn read(&self, issuer: Option<&str>) -> Result<Trust, KeysError> {
        let token = match &self.token {
            Some(file) => Some(own_token(file).await?),
            None => None,
        };
        let issuer = match (issuer, &self.token, &token) {
            (Some(issuer), ..) => issuer.to_owned(),
            (None, Some(file), Some(token)) => issuer_of(token, file)?,
            // The configuration has one of both.
            _ => String::new(),
        };
        let (from, content) = match &self.location {
            Location::File(file) => (file.display().to_string(), read_file(file).await?),
            Location::Url(url) => (url.to_string(), self.fetch(url, token.as_ref()).await?),
        };
        let keys = serde_json::from_slice(&content).map_err(|error| KeysError::Content {
            from,
            reason: error.to_string(),
        })?;
        Ok(Trust { issuer, keys })
    }

    async fn fetch(&self, url: &Url, token: Option<&SecretString>) -> Result<Vec<u8>, KeysError> {
        let silent = |reason: String| KeysError::Silent {
            url: url.clone(),
            reason,
        };
        let error = |error: reqwest::Error| {
            let cause = std::error::Error::source(&error)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            silent(format!("{}{cause}", error.without_url()))
        };
        let client = self.client().await?.build().map_err(error)?;
        let mut request = client.get(url.clone());
        if let Some(token) = token {
            request = request.bearer_auth(token.expose_secret());
        }
        let mut response = request.send().await.map_err(error)?;
        let status = response.status();
        if !status.is_success() {
            return Err(silent(format!("status {}", status.as_u16())));
        }
        let mut content = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(error)? {
            content.extend_from_slice(&chunk);
            if content.len() > MAX_BYTES {
                return Err(silent(format!("more than {MAX_BYTES} bytes")));
            }
        }
        Ok(content)
    }

    async fn client(&self) -> Result<reqwest::ClientBuilder, KeysError> {
        let own = match &self.ca {
            None => Vec::new(),
            Some(file) => {
                let pem = read_file(file).await?;
                upstream::certificates(&pem)
                    .ok_or_else(|| KeysError::Authority { file: file.clone() })?
            }
        };
        Ok(Client::builder()
            .tls_certs_only(upstream::public_authorities().chain(own))
            .redirect(redirect::Policy::none())
            .timeout(ANSWER_WITHIN)
            .no_proxy())
    }
}

async fn own_token(file: &Path) -> Result<SecretString, KeysError> {
    let text = String::from_utf8(read_file(file).await?).unwrap_or_default();
    Ok(SecretString::from(text.trim()))
}

/// Nothing is trusted for what this token says: it is ours, from whoever started us.
fn issuer_of(token: &SecretString, file: &Path) -> Result<String, KeysError> {
    #[derive(Deserialize)]
    struct Issuer {
        iss: String,
    }
    jsonwebtoken::dangerous::insecure_decode_claims::<Issuer>(token.expose_secret())
        .map(|claims| claims.iss)
        .map_err(|_| KeysError::Issuer {
            file: file.to_owned(),
        })
}

async fn read_file(file: &Path) -> Result<Vec<u8>, KeysError> {
    let mut content = Vec::new();
    let read = async {
        let limit = MAX_BYTES as u64;
        tokio::fs::File::open(file)
            .await?
            .take(limit)
            .read_to_end(&mut content)
            .await
    };
    read.await.map_err(|source| KeysError::Read {
        file: file.to_owned(),
        source,
    })?;
    Ok(content)
}
