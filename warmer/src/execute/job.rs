//! What runs beside the rounds: pulls, and questions to the cache.

use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::Reason;
use coral_schema::crd::node_cache::NodeImage;
use coral_schema::oci::docker_config::DockerLogin;
use coral_schema::oci::{Digest, ImageReference};
use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Cache, Executor, Held, QUESTIONS};
use crate::chance;
use crate::cri::{CriError, ImageFacts, Runtime};
use crate::plan::{Answer, Asked, Charge};
use crate::presence::look_at;

/// A positive answer stays good while an image waits for its turn.
const GOOD_FOR: Duration = Duration::from_mins(1);
/// A negative one, and half of it at least: soon enough to follow a prefetch.
const ASKED_AGAIN: Duration = Duration::from_secs(10);

/// A pull that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) charge: Charge,
    pub(super) cancel: CancellationToken,
    /// Bytes in use when it started, as long as nothing else is pulled.
    pub(super) alone_since: Option<u64>,
}

/// Something came to its end.
#[derive(Debug)]
pub(super) enum Ended {
    Pull(Box<PullEnd>),
    Question { spelling: String, answer: Answer },
}

#[derive(Debug)]
pub(super) struct PullEnd {
    pub(super) image: NodeImage,
    pub(super) took: Duration,
    pub(super) outcome: Outcome,
    /// [`Logins::mark`](crate::credentials::Logins) of what was tried.
    pub(super) logins: Option<Digest>,
}

#[derive(Debug)]
pub(super) enum Outcome {
    /// The runtime holds it now; `None` in `before` means that our pull brought it.
    Held {
        before: Option<ImageFacts>,
        after: ImageFacts,
    },
    /// Somebody else was faster.
    AlreadyThere(ImageFacts),
    Failed(CriError),
    Cancelled,
}

impl Executor {
    /// Starts a pull.
    pub(super) fn pull(&mut self, image: &NodeImage, charge: Charge) {
        let alone = self.running.is_empty();
        for running in self.running.values_mut() {
            running.alone_since = None;
        }
        let cancel = CancellationToken::new();
        self.running.insert(
            image.reference.clone(),
            Running {
                charge,
                cancel: cancel.clone(),
                alone_since: self.space.filter(|_| alone).map(|space| space.used),
            },
        );
        let raised = self
            .record
            .images
            .get(&image.reference)
            .is_some_and(|entry| entry.revision < image.revision);
        let (runtime, image) = (Arc::clone(&self.runtime), image.clone());
        let credentials = self.config.credentials.clone();
        let job = async move {
            let started = Instant::now();
            let logins = credentials.of(&image).await;
            let pull = pull(runtime.as_ref(), &logins.tries, &image, raised);
            let outcome = cancel.run_until_cancelled_owned(pull).await;
            Ended::Pull(Box::new(PullEnd {
                image,
                took: started.elapsed(),
                outcome: outcome.unwrap_or(Outcome::Cancelled),
                logins: logins.mark,
            }))
        };
        self.jobs.push(job.boxed());
    }

    /// Asks the cache, unless enough questions are on their way: then a later round does.
    pub(super) fn ask(&mut self, spelling: &str) {
        let asking = |asked: &&Asked| matches!(asked, Asked::Asking);
        if self.asked.values().filter(asking).count() >= QUESTIONS {
            return;
        }
        self.asked.insert(spelling.to_owned(), Asked::Asking);
        let (cache, spelling) = (Arc::clone(&self.cache), spelling.to_owned());
        let job = async move {
            let answer = ask(cache.as_ref(), &spelling).await;
            Ended::Question { spelling, answer }
        };
        self.jobs.push(job.boxed());
    }

    pub(super) fn ended(&mut self, ended: Ended) {
        match ended {
            Ended::Pull(end) => self.pull_ended(*end),
            // The wish may have gone meanwhile.
            Ended::Question { spelling, answer } => {
                if let Some(asked) = self.asked.get_mut(&spelling) {
                    let good_for = match answer {
                        Answer::Held => GOOD_FOR,
                        Answer::Absent | Answer::NotMirrored | Answer::Unreachable(_) => {
                            chance::shortened(ASKED_AGAIN, chance::any())
                        }
                    };
                    let until = Timestamp::now() + good_for;
                    *asked = Asked::Answered { answer, until };
                }
            }
        }
    }
}

/// The runtime resolves at a registry whenever it is told to pull: it is asked first whether it has to.
async fn pull(
    runtime: &dyn Runtime,
    logins: &[DockerLogin],
    image: &NodeImage,
    raised: bool,
) -> Outcome {
    let spelling = image.reference.as_str();
    let before = match look_at(runtime, spelling).await {
        Ok(Some(facts)) if !raised => return Outcome::AlreadyThere(facts),
        Ok(before) => before,
        Err(error) => return Outcome::Failed(error),
    };
    let pull = try_all(runtime, spelling, logins);
    let pulled = match image.retry.timeout {
        Some(timeout) => tokio::time::timeout(timeout.0, pull)
            .await
            .unwrap_or_else(|_| Err(failed(Reason::Timeout, format!("given up after {timeout}")))),
        None => pull.await,
    };
    if let Err(error) = pulled {
        return Outcome::Failed(error);
    }
    match look_at(runtime, spelling).await {
        Ok(Some(after)) => Outcome::Held { before, after },
        Ok(None) => {
            let message = "the runtime pulled it and does not know it under this spelling";
            Outcome::Failed(failed(Reason::Internal, message.to_owned()))
        }
        Err(error) => Outcome::Failed(error),
    }
}

/// As the kubelet does: with each login until one is good; the last refusal counts.
async fn try_all(
    runtime: &dyn Runtime,
    spelling: &str,
    logins: &[DockerLogin],
) -> Result<(), CriError> {
    let Some((last, others)) = logins.split_last() else {
        return runtime.pull(spelling, None).await;
    };
    for login in others {
        match runtime.pull(spelling, Some(login)).await {
            Err(error) if is_refusal(error.reason) => {}
            ended => return ended,
        }
    }
    runtime.pull(spelling, Some(last)).await
}

/// Registries also say that what they do not show does not exist.
pub(super) fn is_refusal(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Unauthorized | Reason::Forbidden | Reason::NotFound
    )
}

fn failed(reason: Reason, message: String) -> CriError {
    CriError {
        reason,
        refused: false,
        message,
    }
}

async fn ask(cache: &dyn Cache, spelling: &str) -> Answer {
    let image: ImageReference = match spelling.parse() {
        Ok(image) => image,
        Err(error) => return Answer::Unreachable(format!("{error}")),
    };
    match cache.holds(&image).await {
        Ok(Held::Complete | Held::Filling) => Answer::Held,
        Ok(Held::Absent) => Answer::Absent,
        Ok(Held::NotMirrored) => Answer::NotMirrored,
        Err(error) => Answer::Unreachable(error.to_string()),
    }
}
