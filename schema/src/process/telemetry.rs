//! Logs: lines of text or JSON on standard error, written by one thread behind a bounded buffer.
//!
//! Whoever logs never waits. When nobody reads the pipe behind standard error, the buffer fills up, further events are
//! dropped and counted, and the program goes on. Panics are events like any other.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::panic::PanicHookInfo;
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that may wait for the log thread. Twice that is used at most: it writes one buffer while the next
/// fills.
const BUFFER: usize = 1 << 20;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// An object per line.
    Json,
}

impl FromStr for Format {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(TelemetryError::Format),
        }
    }
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Neither `text` nor `json`.
    #[error("the log format is text or json")]
    Format,
    /// Not a filter as `tracing_subscriber::EnvFilter` reads it.
    #[error("the log filter {filter:?} is not like info or info,coral_registry=debug: {source}")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process has set up its logs already.
    #[error("logs are set up twice")]
    Twice,
    /// The log thread does not start.
    #[error("the log thread does not start: {0}")]
    Thread(#[from] io::Error),
}

/// The logs of this process. Keep it until the end, and [`flush`](Self::flush) it there.
#[derive(Debug)]
pub struct Telemetry {
    lines: Lines,
}

impl Telemetry {
    /// Sets up the logs of the process, for events that pass `filter`.
    pub fn init(filter: &str, format: Format) -> Result<Self, TelemetryError> {
        let filter = EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter {
            filter: filter.to_owned(),
            source,
        })?;
        let lines = Lines::start(io::stderr())?;
        let colours = io::stderr().is_terminal();
        tracing::subscriber::set_global_default(subscriber(lines.clone(), filter, format, colours))
            .map_err(|_| TelemetryError::Twice)?;
        std::panic::set_hook(Box::new(log_panic));
        Ok(Self { lines })
    }

    /// Registers `log_events_dropped_total`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "log_events_dropped",
            "Log events dropped because standard error did not take them",
            self.lines.0.dropped.clone(),
        );
    }

    /// Waits until everything logged so far is written, at most `within`. Is it?
    pub fn flush(&self, within: Duration) -> bool {
        self.lines.flush(within)
    }
}

fn subscriber(
    lines: Lines,
    filter: EnvFilter,
    format: Format,
    colours: bool,
) -> Box<dyn Subscriber + Send + Sync> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines);
    match format {
        Format::Text => Box::new(builder.with_ansi(colours).finish()),
        Format::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

/// The default hook writes to standard error itself, and would wait for a full pipe.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string);
    let message = panic.payload_as_str().unwrap_or("a panic without text");
    tracing::error!(location, "{message}");
}

/// The way to the log thread. Clones lead to the same one.
#[derive(Clone)]
struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    dropped: Counter,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    writing: bool,
}

impl State {
    fn is_written(&self) -> bool {
        !self.writing && self.waiting.is_empty()
    }
}

impl Lines {
    fn start(mut output: impl Write + Send + 'static) -> io::Result<Self> {
        let lines = Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            dropped: Counter::default(),
        }));
        let source = lines.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || source.write_to(&mut output))?;
        Ok(lines)
    }

    /// The log thread.
    fn write_to(&self, output: &mut impl Write) -> ! {
        let mut batch = Vec::new();
        let mut reported = 0;
        loop {
            self.next(&mut batch);
            if output
                .write_all(&batch)
                .and_then(|()| output.flush())
                .is_err()
            {
                // Nobody reads any more. How many events the batch holds is not worth counting exactly.
                self.0.dropped.inc();
            } else if self.0.dropped.get() > reported {
                reported = self.0.dropped.get();
                tracing::warn!(
                    reported,
                    "log events were dropped, since standard error did not take them"
                );
            }
        }
    }

    /// Waits for lines, and swaps them into `batch`.
    fn next(&self, batch: &mut Vec<u8>) {
        batch.clear();
        let mut state = self.lock();
        state.writing = false;
        self.0.changed.notify_all();
        let mut state = self
            .0
            .changed
            .wait_while(state, |state| state.waiting.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.waiting, batch);
        state.writing = true;
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.waiting.len() + line.len() > BUFFER {
            self.0.dropped.inc();
            return;
        }
        let first = state.waiting.is_empty();
        state.waiting.extend_from_slice(line);
        drop(state);
        if first {
            self.0.changed.notify_all();
        }
    }

    fn flush(&self, within: Duration) -> bool {
        let (state, _) = self
            .0
            .changed
            .wait_timeout_while(self.lock(), within, |state| !state.is_written())
            .unwrap_or_else(PoisonError::into_inner);
        state.is_written()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

/// The subscriber writes each event in one piece.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, Read as _};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn logging(lines: &Lines, format: Format, events: impl FnOnce()) {
        let filter = EnvFilter::new("info");
        tracing::subscriber::with_default(subscriber(lines.clone(), filter, format, false), events);
    }

    #[test]
    fn a_full_pipe_drops_and_counts_and_never_blocks() {
        let (reader, writer) = io::pipe().unwrap();
        let lines = Lines::start(writer).unwrap();
        let text = "x".repeat(1000);
        let events = 5000;
        logging(&lines, Format::Text, || {
            for _ in 0..events {
                tracing::info!("{text}");
            }
        });
        assert!(!lines.flush(Duration::from_millis(1)));
        let dropped = lines.0.dropped.get();
        assert!(dropped > 0);

        // Once somebody reads again, everything that was kept arrives whole, and new events are taken.
        let reading = std::thread::spawn(move || {
            io::BufReader::new(reader)
                .lines()
                .map(|line| line.unwrap())
                .take_while(|line| !line.ends_with("after"))
                .filter(|line| line.ends_with(&text))
                .count()
        });
        assert!(lines.flush(SOON));
        logging(&lines, Format::Text, || tracing::info!("after"));
        let kept = reading.join().unwrap();
        assert_eq!(kept as u64 + dropped, events);
        assert_eq!(lines.0.dropped.get(), dropped);
    }

    #[test]
    fn events_below_the_filter_are_not_written_and_json_is_json() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lines = Lines::start(writer).unwrap();
        logging(&lines, Format::Json, || {
            tracing::debug!("hidden");
            tracing::info!(answer = 42, "shown");
        });
        assert!(lines.flush(SOON));
        let mut buffer = [0; 4096];
        let length = reader.read(&mut buffer).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&buffer[..length]).unwrap();
        assert_eq!(line["message"], "shown");
        assert_eq!(line["answer"], 42);
    }

    #[test]
    fn says_what_is_wrong_with_a_filter() {
        let error = Telemetry::init("coral=loud", Format::Text).unwrap_err();
        assert!(error.to_string().contains("coral=loud"), "{error}");
    }
}
