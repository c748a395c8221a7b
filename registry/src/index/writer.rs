//! The thread that writes: drains its queue into one transaction, keeps what a failing disk refuses, and replaces a file
//! that is damaged or gone.

use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, TransactionBehavior, ffi};
use tokio::sync::{mpsc, oneshot};

use super::file::{IndexFile, Lost, database};
use super::memory::Memories;
use super::restore::reenter;
use super::worker::Shared;
use super::{IndexError, Totals};

/// What the writing thread is sent.
pub(super) enum Message {
    /// To be done.
    Write(Write),
    /// Leave a clean file and end.
    Close(oneshot::Sender<rusqlite::Result<()>>),
}

type Apply = Box<dyn FnMut(&Connection) -> rusqlite::Result<()> + Send>;
type Settled = Box<dyn FnOnce(Result<(), IndexError>) + Send>;

/// A change to the file. It may be applied several times, until its transaction is committed; its end is reported
/// exactly once, even if it is dropped.
pub(super) struct Write {
    apply: Apply,
    settled: Option<Settled>,
    lasting: bool,
}

impl Write {
    /// Kept and tried again while the file cannot be written.
    pub(super) fn lasting(apply: Apply, settled: Settled) -> Self {
        Self {
            apply,
            settled: Some(settled),
            lasting: true,
        }
    }

    /// Tried once.
    pub(super) fn once(apply: Apply, settled: Settled) -> Self {
        Self {
            apply,
            settled: Some(settled),
            lasting: false,
        }
    }

    fn settle(mut self, outcome: Result<(), IndexError>) {
        if let Some(settled) = self.settled.take() {
            settled(outcome);
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if let Some(settled) = self.settled.take() {
            settled(Err(IndexError::Closed));
        }
    }
}

/// Whose fault an error of SQLite is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The file is damaged, or not ours: it is replaced.
    File,
    /// Disk full, locked, no permission: it is tried again.
    Environment,
    /// The statement cannot succeed: it is given up.
    Statement,
}

impl Fault {
    /// Our statements are fixed and tested, so a statement that does not fit the tables tells of damaged tables.
    pub(super) fn of(error: &rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(failure, _) = error else {
            return match error {
                rusqlite::Error::SqlInputError { .. }
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::Utf8Error(..) => Self::File,
                _ => Self::Statement,
            };
        };
        match (failure.code, failure.extended_code) {
            (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown, _)
            | (_, ffi::SQLITE_IOERR_SHORT_READ | ffi::SQLITE_READONLY_DBMOVED) => Self::File,
            (
                ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::TooBig
                | ErrorCode::ApiMisuse
                | ErrorCode::ParameterOutOfRange,
                _,
            ) => Self::Statement,
            _ => Self::Environment,
        }
    }
}

/// Why a batch is not in the file.
enum Refused {
    Sqlite(rusqlite::Error),
    NoFile(IndexError),
}

impl From<rusqlite::Error> for Refused {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Refused {
    fn fault(&self) -> Fault {
        match self {
            Self::Sqlite(error) => Fault::of(error),
            Self::NoFile(_) => Fault::Environment,
        }
    }

    fn into_error(self) -> IndexError {
        match self {
            Self::Sqlite(error) => database(error),
            Self::NoFile(error) => error,
        }
    }
}

/// The thread's state.
pub(super) struct Writer {
    /// `None` only while it is being exchanged.
    file: Option<Result<IndexFile, Lost>>,
    queue: mpsc::Receiver<Message>,
    /// What could not be written yet, oldest first.
    backlog: Vec<Write>,
    shared: Arc<Shared>,
    memory: Arc<Memories>,
}

impl Writer {
    pub(super) fn new(
        file: IndexFile,
        queue: mpsc::Receiver<Message>,
        shared: Arc<Shared>,
        memory: Arc<Memories>,
    ) -> Result<Self, IndexError> {
        shared.set_totals(totals(&file.db).map_err(database)?);
        Ok(Self {
            file: Some(Ok(file)),
            queue,
            backlog: Vec::new(),
            shared,
            memory,
        })
    }

    /// Works until told to close, or until nobody can send any more.
    pub(super) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut batch = std::mem::take(&mut self.backlog);
            let mut closing = None;
            let mut messages = 0;
            let mut next = Some(first);
            while let Some(message) = next {
                messages += 1;
                match message {
                    Message::Write(write) => batch.push(write),
                    Message::Close(reply) => closing = Some(reply),
                }
                let more = closing.is_none() && messages < BATCH;
                next = more.then(|| self.queue.try_recv().ok()).flatten();
            }
            self.commit(batch);
            self.shared.progressed(messages);
            if let Some(reply) = closing {
                // From here on who writes is told, and not only dropped with the queue.
                self.queue.close();
                // Nobody waiting for the end any more is fine.
                let _ = reply.send(self.finish());
                return;
            }
        }
    }

    fn commit(&mut self, mut batch: Vec<Write>) {
        let mut outcome = self.try_commit(&mut batch);
        if let Err(refused) = &outcome
            && refused.fault() == Fault::File
        {
            self.shared.report_damage(self.shared.generation());
            outcome = self.try_commit(&mut batch);
        }
        match outcome {
            Ok(()) => self.committed(batch),
            Err(refused) if refused.fault() == Fault::Environment => self.keep(batch, refused),
            Err(_) => self.commit_each(batch),
        }
    }

    /// One of them cannot succeed: the others shall.
    fn commit_each(&mut self, batch: Vec<Write>) {
        for mut write in batch {
            match self.try_commit(std::slice::from_mut(&mut write)) {
                Ok(()) => self.committed(vec![write]),
                Err(refused) if refused.fault() == Fault::Environment => {
                    self.keep(vec![write], refused);
                }
                Err(refused) => {
                    let error = refused.into_error();
                    tracing::error!(%error, "a change to the index is given up");
                    write.settle(Err(error));
                }
            }
        }
    }

    fn try_commit(&mut self, batch: &mut [Write]) -> Result<(), Refused> {
        let db = &mut self.current_file().map_err(Refused::NoFile)?.db;
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for write in batch {
            (write.apply)(&transaction)?;
        }
        let totals = totals(&transaction)?;
        transaction.commit()?;
        self.shared.set_totals(totals);
        Ok(())
    }

    fn committed(&mut self, batch: Vec<Write>) {
        if self.shared.set_failing(false) {
            tracing::info!("the index can be written again");
        }
        for write in batch {
            write.settle(Ok(()));
        }
    }

    fn keep(&mut self, batch: Vec<Write>, refused: Refused) {
        let error = refused.into_error();
        if !self.shared.set_failing(true) {
            tracing::warn!(%error, "the index cannot be written; changes are kept in memory and tried again");
        }
        for write in batch {
            if write.lasting && self.backlog.len() < BACKLOG {
                self.backlog.push(write);
            } else {
                write.settle(Err(error.clone()));
            }
        }
    }

    /// The open file, or a new one if it is damaged, deleted or replaced.
    fn current_file(&mut self) -> Result<&mut IndexFile, IndexError> {
        let reason = match &self.file {
            Some(Ok(_)) if self.shared.is_damaged() => Some("it is damaged"),
            Some(Ok(file)) => match file.is_current() {
                Ok(false) => Some("it was deleted or replaced"),
                // Not knowing is no reason to throw it away.
                Ok(true) | Err(_) => None,
            },
            Some(Err(_)) | None => Some("it could not be created before"),
        };
        if let Some(reason) = reason {
            self.replace(reason)?;
        }
        match &mut self.file {
            Some(Ok(file)) => Ok(file),
            Some(Err(_)) | None => Err(IndexError::Closed),
        }
    }

    fn replace(&mut self, reason: &str) -> Result<(), IndexError> {
        let replaced = match self.file.take() {
            Some(Ok(file)) => {
                tracing::warn!(file = %file.path.display(), reason, "the index is replaced and rebuilt from the store");
                file.replace()
            }
            Some(Err(lost)) => lost.recreate(),
            None => return Err(IndexError::Closed),
        };
        match replaced {
            Ok(mut file) => {
                if let Err(error) = reenter(&mut file.db, &self.memory) {
                    tracing::warn!(%error, "the new index does not have what memory holds");
                }
                self.file = Some(Ok(file));
                self.shared.replaced();
                Ok(())
            }
            Err((lost, error)) => {
                self.file = Some(Err(lost));
                Err(error)
            }
        }
    }

    fn finish(&mut self) -> rusqlite::Result<()> {
        match &self.file {
            Some(Ok(file)) => file.finish(),
            Some(Err(_)) | None => Ok(()),
        }
    }
}

fn totals(db: &Connection) -> rusqlite::Result<Totals> {
    let mut totals = Totals::default();
    let mut statement = db.prepare_cached("SELECT manifest, bytes FROM totals")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let bytes = u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
        let class = if row.get(0)? {
            &mut totals.manifests
        } else {
            &mut totals.blobs
        };
        *class = bytes;
    }
    Ok(totals)
}

/// Bounds how long readers of the log wait for a commit to become visible.
const BATCH: usize = 512;

/// Some megabytes. More than this during one outage of the disk is found again by asking the store.
const BACKLOG: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(extended: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(extended), None)
    }

    #[rstest::rstest]
    #[case(ffi::SQLITE_CORRUPT, Fault::File)]
    #[case(ffi::SQLITE_NOTADB, Fault::File)]
    #[case(ffi::SQLITE_ERROR, Fault::File)]
    #[case(ffi::SQLITE_IOERR_SHORT_READ, Fault::File)]
    #[case(ffi::SQLITE_READONLY_DBMOVED, Fault::File)]
    #[case(ffi::SQLITE_FULL, Fault::Environment)]
    #[case(ffi::SQLITE_BUSY, Fault::Environment)]
    #[case(ffi::SQLITE_IOERR_WRITE, Fault::Environment)]
    #[case(ffi::SQLITE_CONSTRAINT_PRIMARYKEY, Fault::Statement)]
    fn blames(#[case] code: i32, #[case] fault: Fault) {
        assert_eq!(Fault::of(&failure(code)), fault);
    }
}
