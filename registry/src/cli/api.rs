//! The admin API of a running registry, as a client program sees it.
//!
//! This is the one place outside `upstream` that names reqwest, besides `admin::auth`: the commands that use it share nothing
//! with the server but the binary.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use coral_schema::admin::AdminError;
use coral_schema::process::ADMIN_PORT;
pub(super) use reqwest::StatusCode;
use reqwest::{Certificate, Client, Method, RequestBuilder};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::upstream;

/// Which registry is asked, and how it knows who asks.
#[derive(Debug, Args)]
pub struct AdminFlags {
    /// The admin listener of the running registry
    #[arg(long, env = "CORAL_ADMIN", value_name = "URL", default_value_t = default_admin())]
    pub admin: Url,
    /// File of the token for an admin listener that asks for one
    #[arg(long, env = "CORAL_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// PEM certificates that the admin listener's is checked against, besides the machine's
    #[arg(long, env = "CORAL_ADMIN_CA", value_name = "FILE")]
    pub admin_ca: Option<PathBuf>,
}

fn default_admin() -> Url {
    format!("http://127.0.0.1:{ADMIN_PORT}")
        .parse()
        .expect("an address and a port make a URL")
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// None came.
    #[error(
        "no registry answers at {admin}: {reason}; start one, or say with --admin where its admin listener is"
    )]
    Silent {
        /// Where we asked.
        admin: Url,
        /// What happened.
        reason: String,
    },
    /// A file of the command line.
    #[error("{} cannot be used: {reason}; {flag} names it", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What is wrong with it, without any of its content.
        reason: String,
        /// Who names it.
        flag: &'static str,
    },
    /// The registry refuses.
    #[error("the registry at {admin} answers {status}: {reason}")]
    Refused {
        /// Where we asked.
        admin: Url,
        /// Its status.
        status: StatusCode,
        /// Its words.
        reason: String,
    },
}

/// A client of the admin API.
pub(super) struct Api {
    admin: Url,
    client: Client,
    token: Option<SecretString>,
}

impl Api {
    /// Each of its questions takes at most this time.
    pub(super) async fn new(flags: &AdminFlags, within: Duration) -> Result<Self, ApiError> {
        let admin = &flags.admin;
        let own = match &flags.admin_ca {
            None => Vec::new(),
            Some(file) => authorities(file).await?,
        };
        let builder = || Client::builder().no_proxy().timeout(within);
        // In a container without files of public authorities only our own count.
        let client = builder()
            .tls_certs_merge(own.iter().cloned())
            .build()
            .or_else(|_| builder().tls_certs_only(own).build())
            .map_err(|error| silent(admin, &error))?;
        let token = match &flags.admin_token_file {
            None => None,
            Some(file) => Some(token(file).await?),
        };
        Ok(Self {
            admin: admin.clone(),
            client,
            token,
        })
    }

    /// What is at `/api/v1/<path>`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ApiError> {
        self.call(self.request(Method::GET, path)).await
    }

    /// Posts JSON to `/api/v1/<path>`.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let request = self.request(Method::POST, path).query(query).json(body);
        self.call(request).await
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.admin.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        self.client.request(method, url)
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ApiError> {
        let silent = |error| silent(&self.admin, &error);
        let request = match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        };
        let response = request.send().await.map_err(silent)?;
        let status = response.status();
        let body = response.bytes().await.map_err(silent)?;
        let refused = |reason| ApiError::Refused {
            admin: self.admin.clone(),
            status,
            reason,
        };
        if status.is_success() {
            serde_json::from_slice(&body).map_err(|error| refused(error.to_string()))
        } else {
            let words = serde_json::from_slice::<AdminError>(&body);
            Err(refused(words.map_or_else(
                |_| "this is not the admin listener of a coral-registry".to_owned(),
                |words| words.error,
            )))
        }
    }
}

async fn authorities(file: &Path) -> Result<Vec<Certificate>, ApiError> {
    let content = read(file, "--admin-ca").await?;
    upstream::certificates(&content).ok_or_else(|| ApiError::File {
        file: file.to_owned(),
        reason: "there is no PEM certificate in it".to_owned(),
        flag: "--admin-ca",
    })
}

async fn token(file: &Path) -> Result<SecretString, ApiError> {
    let content = read(file, "--admin-token-file").await?;
    let text = String::from_utf8(content).unwrap_or_default();
    Ok(SecretString::from(text.trim()))
}

async fn read(file: &Path, flag: &'static str) -> Result<Vec<u8>, ApiError> {
    let content = tokio::fs::read(file).await;
    content.map_err(|error| ApiError::File {
        file: file.to_owned(),
        reason: error.to_string(),
        flag,
    })
}

fn silent(admin: &Url, error: &reqwest::Error) -> ApiError {
    // The cause at the bottom says most: "Connection refused".
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    ApiError::Silent {
        admin: admin.clone(),
        reason: cause.to_string(),
    }
}
