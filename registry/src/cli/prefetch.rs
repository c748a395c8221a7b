//! `prefetch`: has a running registry fetch images, and shows how far it is.

use std::io;
use std::time::Duration;

use clap::Args;
use coral_schema::admin::{PrefetchAccepted, PrefetchRequest, PrefetchState, PrefetchStatus};
use coral_schema::oci::Platform;
use tokio::time::{Instant, sleep};

use super::api::{AdminFlags, Api, ApiError, StatusCode};
use super::progress::Screen;

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
    /// Which registry.
    #[command(flatten)]
    pub server: AdminFlags,
    /// Only start it, and print the id of the job
    #[arg(long)]
    pub detach: bool,
}

/// Why not all images are held now.
#[derive(Debug, thiserror::Error)]
pub enum PrefetchError {
    /// No answer.
    #[error(transparent)]
    Api(#[from] ApiError),
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
    let api = Api::new(&command.server, ANSWER_WITHIN).await?;
    let mut screen = Screen::on_stdout();
    let id = start(&api, command).await?;
    if command.detach {
        return Ok(screen.say(&id)?);
    }
    loop {
        let status = status(&api, &id).await?;
        screen.show(&status, Instant::now())?;
        if status.state.is_over() {
            return outcome(&status);
        }
        sleep(POLL).await;
    }
}

async fn start(api: &Api, command: &Prefetch) -> Result<String, ApiError> {
    let request = PrefetchRequest {
        images: command.images.clone(),
        platforms: command.platforms.clone(),
        priority: 0,
        refresh: command.refresh,
    };
    let accepted: PrefetchAccepted = api.post(&["prefetch"], &[], &request).await?;
    Ok(accepted.id)
}

/// Asks again while the registry does not answer: it may be restarting.
async fn status(api: &Api, id: &str) -> Result<PrefetchStatus, PrefetchError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match api.get(&["prefetch", id]).await {
            Err(ApiError::Silent { .. }) if Instant::now() < deadline => sleep(POLL).await,
            Err(ApiError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => {
                return Err(PrefetchError::Forgotten);
            }
            answer => return Ok(answer?),
        }
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
