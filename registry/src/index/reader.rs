//! The threads that read: each with a connection of its own, which it opens again when the file was replaced.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::mpsc;

use super::IndexError;
use super::file::{connect_reader, database};
use super::worker::Shared;
use super::writer::Fault;

/// One question. Calls the reporter if it meets damage, then answers its asker.
pub(super) type Read = Box<dyn FnOnce(Result<&Connection, ReadFailure>, &dyn Fn()) + Send>;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum ReadFailure {
    /// The file is damaged.
    Damaged(IndexError),
    /// The file is not there: the writer has not seen it yet.
    Gone(IndexError),
    /// Anything else.
    Other(IndexError),
}

impl ReadFailure {
    pub(super) fn of(error: rusqlite::Error) -> Self {
        if error.sqlite_error_code() == Some(ErrorCode::CannotOpen) {
            return Self::Gone(database(error));
        }
        match Fault::of(&error) {
            Fault::File => Self::Damaged(database(error)),
            Fault::Environment | Fault::Statement => Self::Other(database(error)),
        }
    }

    pub(super) fn into_error(self) -> IndexError {
        match self {
            Self::Damaged(error) | Self::Gone(error) | Self::Other(error) => error,
        }
    }
}

/// Answers until the queue is closed.
pub(super) fn run(queue: &Mutex<mpsc::Receiver<Read>>, shared: &Arc<Shared>, path: &Path) {
    let mut connection: Option<(u64, Connection)> = None;
    while let Some(read) = next(queue) {
        let generation = shared.generation();
        if connection.as_ref().is_none_or(|(of, _)| *of != generation) {
            connection = None;
        }
        let report = || shared.report_damage(generation);
        match &connection {
            Some((_, db)) => read(Ok(db), &report),
            None => match connect_reader(path) {
                Ok(db) => read(Ok(&connection.insert((generation, db)).1), &report),
                Err(error) => read(Err(ReadFailure::of(error)), &report),
            },
        }
    }
}

/// One thread waits in the queue, the others at its door.
fn next(queue: &Mutex<mpsc::Receiver<Read>>) -> Option<Read> {
    queue
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .blocking_recv()
}
