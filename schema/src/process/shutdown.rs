//! Signals to a stop: the first SIGTERM or SIGINT asks the process to finish, the second ends it.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::tasks::Tasks;

/// What the signals of this process have asked for.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled by the first signal: stop taking work, finish what runs. A vital task that ends may cancel it, too.
    pub stop: CancellationToken,
    /// Cancelled by the second signal: end at once.
    pub now: CancellationToken,
}

impl Shutdown {
    /// Takes over SIGTERM and SIGINT of the process.
    pub fn on_signals(tasks: &Tasks) -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::default();
        let Self { stop, now } = shutdown.clone();
        let stopping = tasks.stopping();
        tasks.spawn("signals", async move {
            for (token, meaning) in [
                (stop, "stopping; a second signal ends at once"),
                (now, "ending at once"),
            ] {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                    () = stopping.cancelled() => return,
                };
                tracing::info!("{name}: {meaning}");
                token.cancel();
            }
        });
        Ok(shutdown)
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn the_first_signal_stops_and_the_second_ends() {
        let shutdown = Shutdown::on_signals(&Tasks::new()).unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        shutdown.stop.cancelled().await;
        assert!(!shutdown.now.is_cancelled());
        kill_process(getpid(), Signal::INT).unwrap();
        shutdown.now.cancelled().await;
    }
}
