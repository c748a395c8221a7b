//! Looks at the file again and again, and hands out what it says as one snapshot after the other (H-36).
//!
//! A change is taken as a whole or not at all: a file with mistakes, or one that changes what only a start can change,
//! is refused, logged once per content, and shown in the status; what is in force stays. The file is compared by
//! content, since Kubernetes swaps a symbolic link above it and keeps no times. A refused file is tried at every look,
//! because a file that it names may arrive after it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Config, Loaded, Mistake, Mistakes, Overrides};

/// How often the file is looked at.
pub const PERIOD: Duration = Duration::from_secs(5);

/// Does what is in force stand in the file?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadState {
    /// There is no file.
    Defaults,
    /// Yes.
    Current,
    /// No: the file is refused, for these reasons, and what was in force before still is.
    Refused(String),
}

/// The configuration in force, for as long as the process lives.
#[derive(Debug)]
pub struct ConfigWatch {
    config: watch::Sender<Arc<Config>>,
    state: watch::Sender<ReloadState>,
    reloads: Family<ReloadLabels, Counter>,
}

/// What to look at.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// What wins over it.
    pub overrides: Overrides,
    /// How often: [`PERIOD`].
    pub period: Duration,
}

/// Tries out what the file says before it is in force: what is wrong, in sentences that name the key. May block.
pub type Trial = Arc<dyn Fn(&Config) -> Result<(), String> + Send + Sync>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: ReloadResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ReloadResult {
    Applied,
    Refused,
}

impl EncodeLabelValue for ReloadResult {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
        }
        .encode(encoder)
    }
}

impl ConfigWatch {
    /// `config` is in force. `metrics` gets `config_reloads`.
    pub fn new(config: Config, state: ReloadState, metrics: &mut Registry) -> Self {
        let reloads = Family::<ReloadLabels, Counter>::default();
        for result in [ReloadResult::Applied, ReloadResult::Refused] {
            reloads.get_or_create(&ReloadLabels { result }).inc_by(0);
        }
        metrics.register(
            "config_reloads",
            "Changes of the configuration file, by what became of them",
            reloads.clone(),
        );
        Self {
            config: watch::Sender::new(Arc::new(config)),
            state: watch::Sender::new(state),
            reloads,
        }
    }

    /// What is in force now, and when it changes. A request takes one snapshot and keeps it.
    pub fn config(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// For the status.
    pub fn state(&self) -> watch::Receiver<ReloadState> {
        self.state.subscribe()
    }

    /// Looks at the file until `stopping`. A file system that hangs only delays the next look.
    pub async fn run(self: Arc<Self>, source: Source, trial: Trial, stopping: CancellationToken) {
        let mut ticks = tokio::time::interval(source.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Seen {
            file_name: source.file.display().to_string(),
            settled: None,
            refused: None,
        };
        loop {
            let look = async {
                ticks.tick().await;
                look(source.clone(), Arc::clone(&trial), seen.settled.clone()).await
            };
            let Some(found) = stopping.run_until_cancelled(look).await else {
                return;
            };
            if let Some((content, result)) = found {
                self.take(&mut seen, content, result);
            }
        }
    }

    /// What to do with what the file says now.
    fn take(&self, seen: &mut Seen, content: Content, result: Result<Loaded, Mistakes>) {
        let in_force = self.config.borrow().clone();
        let result = result.and_then(|loaded| {
            let keys = needs_restart(&in_force, &loaded.config);
            if keys.is_empty() {
                Ok(loaded)
            } else {
                Err(restart_mistakes(&seen.file_name, &keys))
            }
        });
        match result {
            Ok(loaded) => {
                seen.refused = None;
                seen.settled = Some(content);
                self.apply(loaded, &in_force);
            }
            Err(mistakes) => {
                let is_new = seen.refused.as_ref() != Some(&content);
                seen.refused = Some(content);
                seen.settled = None;
                self.refuse(&mistakes, is_new);
            }
        }
    }

    fn apply(&self, loaded: Loaded, in_force: &Config) {
        let was_refused = matches!(*self.state.borrow(), ReloadState::Refused(_));
        if loaded.config != *in_force {
            self.count(ReloadResult::Applied);
            self.config.send_replace(Arc::new(loaded.config));
            tracing::info!("the changed configuration is in force");
            for warning in loaded.warnings {
                tracing::warn!("{warning}");
            }
        } else if was_refused {
            tracing::info!("the configuration file says what is in force again");
        }
        self.state.send_replace(ReloadState::Current);
    }

    fn refuse(&self, mistakes: &Mistakes, is_new: bool) {
        if is_new {
            self.count(ReloadResult::Refused);
            tracing::error!(
                "the changed configuration is refused and the old one stays:\n{mistakes}"
            );
        }
        self.state
            .send_replace(ReloadState::Refused(mistakes.to_string()));
    }

    fn count(&self, result: ReloadResult) {
        self.reloads.get_or_create(&ReloadLabels { result }).inc();
    }
}

/// The bytes of the file, or why there are none.
type Content = Arc<Result<Vec<u8>, String>>;

/// What earlier looks led to.
#[derive(Debug)]
struct Seen {
    file_name: String,
    /// What is in force; it is not read again, even if a file that it names has gone since.
    settled: Option<Content>,
    /// What was refused last.
    refused: Option<Content>,
}

/// What the file says, unless that is `settled`.
async fn look(
    source: Source,
    trial: Trial,
    settled: Option<Content>,
) -> Option<(Content, Result<Loaded, Mistakes>)> {
    let looked = tokio::task::spawn_blocking(move || {
        let name = source.file.display().to_string();
        let content = Arc::new(super::read(&source.file).map_err(|error| error.to_string()));
        if settled.as_ref() == Some(&content) {
            return None;
        }
        let result = match content.as_ref() {
            Ok(bytes) => super::from_bytes(&name, bytes, &source.overrides),
            Err(error) => Err(Mistakes::whole(&name, format!("cannot be read: {error}"))),
        };
        let result = result.and_then(|loaded| match trial(&loaded.config) {
            Ok(()) => Ok(loaded),
            Err(problem) => Err(Mistakes::whole(&name, problem)),
        });
        Some((content, result))
    });
    looked.await.ok().flatten()
}

/// The keys that differ and that only a start can change: what is bound, locked or opened once.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let Config {
        listen,
        address: _,
        admin,
        data,
        tls,
        connections: _,
        shutdown_grace: _,
        store,
        upstreams: _,
        default_upstream: _,
        hosted: _,
        gc: _,
        anonymous_push: _,
        users: _,
        access: _,
        manifest_max_bytes: _,
        cache: _,
    } = old;
    let changed = [
        ("listen", *listen != new.listen),
        ("admin.listen", admin.listen != new.admin.listen),
        ("admin.tls", admin.tls != new.admin.tls),
        ("admin.auth", admin.auth != new.admin.auth),
        ("data", *data != new.data),
        ("tls", *tls != new.tls),
        ("store", *store != new.store),
    ];
    let keys = changed.into_iter().filter(|(_, changed)| *changed);
    keys.map(|(key, _)| key).collect()
}

fn restart_mistakes(file: &str, keys: &[&str]) -> Mistakes {
    let mistake = |key: &&str| {
        Mistake {
        at: None,
        key: (*key).to_owned(),
        what: "this change needs a restart, and nothing of the new file is in force until then; restart, or change \
               it back"
            .to_owned(),
    }
    };
    Mistakes::new(file, keys.iter().map(mistake).collect())
}

#[cfg(test)]
mod tests;
