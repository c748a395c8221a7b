//! `prefetch`: has a running registry fetch images, and shows how far it is.
//!
//! Speaks the admin API over HTTP. This is the one place outside `upstream` that names reqwest, besides `admin::auth`: it is a client program
//! of its own, which shares nothing with the server but the binary.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use coral_schema::admin::{
    AdminError, PrefetchAccepted, PrefetchRequest, PrefetchState, PrefetchStatus,
};
use coral_schema::oci::Platform;
use coral_schema::process::ADMIN_PORT;
use reqwest::{Certificate, Client, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};
use url::Url;

use super::progress::Screen;
use crate::upstream;

/// Between two questions.
const POLL: Duration = Duration::from_millis(500);
/// How long one question may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long the registry may be silent before we give up watching. The job itself goes on there.
const PATIENCE: Duration = Duration::from_secs(30);

/// The arguments of `prefetch`.
#[derive(Debug, Args)]
pub struct Prefetch {
    /// Images, as `docker pull` takes them
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Which platforms of an image, like linux/arm64; default: the registry's own
    #[arg(long = "platform", value_name = "OS/ARCH")]
    pub platforms: Vec<Platform>,
    /// Ask the upstream what each tag means now, also where the registry knows it
    #[arg(long)]
    pub refresh: bool,
    /// The admin listener of the running registry
    #[arg(long, env = "CORAL_ADMIN", value_name = "URL", default_value_t = default_admin())]
    pub admin: Url,
    /// File of the token for an admin listener that asks for one
    #[arg(long, env = "CORAL_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// PEM certificates that the admin listener's is checked against, besides the machine's
    #[arg(long, env = "CORAL_ADMIN_CA", value_name = "FILE")]
    pub admin_ca: Option<PathBuf>,
    /// Only start it, and print the id of the job
    #[arg(long)]
    pub detach: bool,
}

fn default_admin() -> Url {
    format!("http://127.0.0.1:{ADMIN_PORT}")
        .parse()
        .expect("an address and a port make a URL")
}

/// Why not all images are held now.
#[derive(Debug, thiserror::Error)]
pub enum PrefetchError {
    /// No answer.
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
    /// It restarted or the job ended long ago.
    #[error(
        "the registry does not know this job any more: it was restarted, or the job ended long ago; start it again"
    )]
    Forgotten,
    /// Some images could not be fetched.
    #[error("not fetched: {}", .0.join("; "))]
    Failed(Vec<String>),
    /// We cannot print.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// Starts the job, and watches it to its end.
pub async fn run(command: &Prefetch) -> Result<(), PrefetchError> {
    let api = Api::new(command).await?;
    let mut screen = Screen::on_stdout();
    let id = api.start(command).await?;
    if command.detach {
        return Ok(screen.say(&id)?);
    }
    loop {
        let status = api.status(&id).await?;
        screen.show(&status, Instant::now())?;
        if status.state.is_over() {
            return outcome(&status);
        }
        sleep(POLL).await;
    }
}

fn outcome(status: &PrefetchStatus) -> Result<(), PrefetchError> {
    let failed: Vec<String> = status
        .images
        .iter()
        .filter(|image| image.state == PrefetchState::Failed)
        .map(|image| {
            let reason = image.message.as_deref().unwrap_or("no reason given");
            format!("{}: {reason}", image.reference)
        })
        .collect();
    if failed.is_empty() && status.state == PrefetchState::Done {
        Ok(())
    } else {
        Err(PrefetchError::Failed(failed))
    }
}

struct Api {
    admin: Url,
    client: Client,
    token: Option<SecretString>,
}

impl Api {
    async fn new(command: &Prefetch) -> Result<Self, PrefetchError> {
        let admin = &command.admin;
        let own = match &command.admin_ca {
            None => Vec::new(),
            Some(file) => authorities(file).await?,
        };
        let builder = || Client::builder().no_proxy().timeout(ANSWER_WITHIN);
        // In a container without files of public authorities only our own count.
        let client = builder()
            .tls_certs_merge(own.iter().cloned())
            .build()
            .or_else(|_| builder().tls_certs_only(own).build())
            .map_err(|error| silent(admin, &error))?;
        let token = match &command.admin_token_file {
            None => None,
            Some(file) => Some(token(file).await?),
        };
        Ok(Self {
            admin: admin.clone(),
            client,
            token,
        })
    }

    async fn start(&self, command: &Prefetch) -> Result<String, PrefetchError> {
        let request = PrefetchRequest {
            images: command.images.clone(),
            platforms: command.platforms.clone(),
            priority: 0,
            refresh: command.refresh,
        };
        let post = self.client.post(self.url("")).json(&request);
        let accepted: PrefetchAccepted = self.call(post).await?;
        Ok(accepted.id)
    }

    /// Asks again while the registry does not answer: it may be restarting.
    async fn status(&self, id: &str) -> Result<PrefetchStatus, PrefetchError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.call(self.client.get(self.url(id))).await {
                Err(PrefetchError::Silent { .. }) if Instant::now() < deadline => {
                    sleep(POLL).await;
                }
                Err(PrefetchError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => {
                    return Err(PrefetchError::Forgotten);
                }
                answer => return answer,
            }
        }
    }

    fn url(&self, id: &str) -> Url {
        let mut url = self.admin.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v1", "prefetch"]);
            if !id.is_empty() {
                path.push(id);
            }
        }
        url
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, PrefetchError> {
        let silent = |error| silent(&self.admin, &error);
        let request = match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        };
        let response = request.send().await.map_err(silent)?;
        let status = response.status();
        let body = response.bytes().await.map_err(silent)?;
        let refused = |reason| PrefetchError::Refused {
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

async fn authorities(file: &Path) -> Result<Vec<Certificate>, PrefetchError> {
    let content = read(file, "--admin-ca").await?;
    upstream::certificates(&content).ok_or_else(|| PrefetchError::File {
        file: file.to_owned(),
        reason: "there is no PEM certificate in it".to_owned(),
        flag: "--admin-ca",
    })
}

async fn token(file: &Path) -> Result<SecretString, PrefetchError> {
    let content = read(file, "--admin-token-file").await?;
    let text = String::from_utf8(content).unwrap_or_default();
    Ok(SecretString::from(text.trim()))
}

async fn read(file: &Path, flag: &'static str) -> Result<Vec<u8>, PrefetchError> {
    let content = tokio::fs::read(file).await;
    content.map_err(|error| PrefetchError::File {
        file: file.to_owned(),
        reason: error.to_string(),
        flag,
    })
}

fn silent(admin: &Url, error: &reqwest::Error) -> PrefetchError {
    // The cause at the bottom says most: "Connection refused".
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    PrefetchError::Silent {
        admin: admin.clone(),
        reason: cause.to_string(),
    }
}
