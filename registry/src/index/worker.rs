//! The handle to the threads that own SQLite: a queue to the one that writes, a queue to those that read.
//!
//! No future waits for them without a deadline, and no connection is ever held across an await.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::file::{IndexFile, database, mark_complete};
use super::memory::Memories;
use super::reader::{self, Read, ReadFailure};
use super::writer::{Message, Write, Writer};
use super::{IndexError, Totals};

/// The handle. Its threads end when it is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    writes: mpsc::Sender<Message>,
    reads: mpsc::Sender<Read>,
    shared: Arc<Shared>,
}

/// What threads and handle tell each other besides the queues.
#[derive(Debug)]
pub(super) struct Shared {
    /// Which file is open: grows with each replacement; readers reopen.
    generation: AtomicU64,
    /// The generation that a reader found damaged.
    damaged: AtomicU64,
    /// Has the last attempt to write failed?
    failing: AtomicBool,
    complete: AtomicBool,
    /// Messages handed to the writer, and those it has looked at.
    sent: AtomicU64,
    seen: AtomicU64,
    progress: Mutex<Instant>,
    totals: watch::Sender<Totals>,
    replacements: watch::Sender<u64>,
}

impl Worker {
    /// Starts the threads.
    pub(super) fn start(
        file: IndexFile,
        complete: bool,
        memory: Arc<Memories>,
    ) -> Result<Self, IndexError> {
        let (writes, write_queue) = mpsc::channel(WRITE_QUEUE);
        let (reads, read_queue) = mpsc::channel(READ_QUEUE);
        let shared = Arc::new(Shared::new(complete));
        let path = file.path.clone();
        let thread = Writer::new(file, write_queue, shared.clone(), memory)?;
        spawn("index-write", move || thread.run())?;
        let read_queue = Arc::new(Mutex::new(read_queue));
        for _ in 0..READERS {
            let (queue, shared, path) = (read_queue.clone(), shared.clone(), path.clone());
            spawn("index-read", move || reader::run(&queue, &shared, &path))?;
        }
        Ok(Self {
            writes,
            reads,
            shared,
        })
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Hands over a write that is tried until it succeeds; `settled` runs when it did, or was given up. Returns once it
    /// is queued.
    pub(super) async fn submit(
        &self,
        apply: impl FnMut(&Connection) -> rusqlite::Result<()> + Send + 'static,
        settled: impl FnOnce() + Send + 'static,
    ) -> Result<(), IndexError> {
        let write = Write::lasting(Box::new(apply), Box::new(move |_| settled()));
        self.send(Message::Write(write)).await
    }

    /// Writes and waits for the commit; tried once.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        apply: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, IndexError> {
        self.call_then(apply, || ()).await
    }

    /// As [`Worker::call`]; `settled` runs when the write was committed or given up, before anybody hears of a later one.
    pub(super) async fn call_then<T: Send + 'static>(
        &self,
        mut apply: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
        settled: impl FnOnce() + Send + 'static,
    ) -> Result<T, IndexError> {
        let (reply, answer) = oneshot::channel();
        let result = Arc::new(Mutex::new(None));
        let kept = result.clone();
        let write = Write::once(
            Box::new(move |db| {
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(apply(db)?);
                Ok(())
            }),
            Box::new(move |outcome| {
                settled();
                let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
                let value = outcome.and_then(|()| value.ok_or(IndexError::Closed));
                // A caller that left is not interested.
                let _ = reply.send(value);
            }),
        );
        self.send(Message::Write(write)).await?;
        match timeout(CALL_DEADLINE, answer).await {
            Ok(answer) => answer.map_err(|_| IndexError::Closed)?,
            Err(_) => Err(IndexError::Busy),
        }
    }

    /// Marks the file complete, unless it is not the one any more that was current after this many replacements.
    pub(super) async fn set_complete(&self, replacement: u64) -> Result<bool, IndexError> {
        let shared = self.shared.clone();
        self.call(move |db| {
            // The writer itself exchanges files, never within a batch.
            let same = *shared.replacements.borrow() == replacement;
            if same {
                mark_complete(db)?;
                shared.set_complete(true);
            }
            Ok(same)
        })
        .await
    }

    /// Asks the file for what a client waits for. A damaged or lost one is replaced, and the new one asked once.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl Fn(&Connection) -> rusqlite::Result<T> + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        self.read_within(READ_DEADLINE, query).await
    }

    /// As [`Worker::read`], for questions that look at whole tables.
    pub(super) async fn scan<T: Send + 'static>(
        &self,
        query: impl Fn(&Connection) -> rusqlite::Result<T> + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        self.read_within(CALL_DEADLINE, query).await
    }

    async fn read_within<T: Send + 'static>(
        &self,
        deadline: Duration,
        query: impl Fn(&Connection) -> rusqlite::Result<T> + Send + Sync + 'static,
    ) -> Result<T, IndexError> {
        let query = Arc::new(query);
        match self.read_once(deadline, query.clone()).await {
            Err(ReadFailure::Damaged(_) | ReadFailure::Gone(_)) => {
                // The writer replaces the file before this.
                self.call(|_| Ok(())).await?;
                let second = self.read_once(deadline, query).await;
                second.map_err(ReadFailure::into_error)
            }
            answer => answer.map_err(ReadFailure::into_error),
        }
    }

    async fn read_once<T: Send + 'static>(
        &self,
        deadline: Duration,
        query: Arc<impl Fn(&Connection) -> rusqlite::Result<T> + Send + Sync + 'static>,
    ) -> Result<T, ReadFailure> {
        let (reply, answer) = oneshot::channel();
        let read: Read = Box::new(move |db, report| {
            let result = db.and_then(|db| query(db).map_err(ReadFailure::of));
            if let Err(ReadFailure::Damaged(_)) = result {
                report();
            }
            // A caller that left is not interested.
            let _ = reply.send(result);
        });
        let answer = async {
            let sent = self.reads.send(read).await;
            sent.map_err(|_| IndexError::Closed)?;
            answer.await.map_err(|_| IndexError::Closed)
        };
        match timeout(deadline, answer).await {
            Ok(answer) => answer.map_err(ReadFailure::Other)?,
            Err(_) => Err(ReadFailure::Other(IndexError::Busy)),
        }
    }

    /// Ends the writing thread with a clean file.
    pub(super) async fn close(&self) -> Result<(), IndexError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Close(reply)).await?;
        match timeout(CLOSE_DEADLINE, answer).await {
            Ok(answer) => answer.map_err(|_| IndexError::Closed)?.map_err(database),
            Err(_) => Err(IndexError::Busy),
        }
    }

    /// Waits for a place in the queue, but not while the file cannot be written.
    async fn send(&self, message: Message) -> Result<(), IndexError> {
        let permit = match self.writes.try_reserve() {
            Ok(permit) => permit,
            Err(mpsc::error::TrySendError::Closed(())) => return Err(IndexError::Closed),
            Err(mpsc::error::TrySendError::Full(())) if self.shared.is_failing() => {
                return Err(IndexError::Busy);
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                match timeout(SEND_DEADLINE, self.writes.reserve()).await {
                    Ok(permit) => permit.map_err(|_| IndexError::Closed)?,
                    Err(_) => return Err(IndexError::Busy),
                }
            }
        };
        self.shared.sent.fetch_add(1, Ordering::Relaxed);
        permit.send(message);
        Ok(())
    }
}

impl Shared {
    fn new(complete: bool) -> Self {
        Self {
            generation: AtomicU64::new(1),
            damaged: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            complete: AtomicBool::new(complete),
            sent: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            progress: Mutex::new(Instant::now()),
            totals: watch::Sender::new(Totals::default()),
            replacements: watch::Sender::new(0),
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A reader found this generation damaged; the writer replaces it before its next batch.
    pub(super) fn report_damage(&self, generation: u64) {
        self.damaged.fetch_max(generation, Ordering::AcqRel);
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire) >= self.generation()
    }

    pub(super) fn replaced(&self) {
        self.set_complete(false);
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.replacements.send_modify(|count| *count += 1);
    }

    pub(super) fn replacements(&self) -> watch::Receiver<u64> {
        self.replacements.subscribe()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    pub(super) fn set_complete(&self, complete: bool) {
        self.complete.store(complete, Ordering::Release);
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Returns what it was before.
    pub(super) fn set_failing(&self, failing: bool) -> bool {
        self.failing.swap(failing, Ordering::Relaxed)
    }

    pub(super) fn totals(&self) -> watch::Receiver<Totals> {
        self.totals.subscribe()
    }

    pub(super) fn set_totals(&self, totals: Totals) {
        self.totals.send_if_modified(|present| {
            let changed = *present != totals;
            *present = totals;
            changed
        });
    }

    /// The writer has looked at `messages` more. Failing to write is progress, too: a full disk is no reason to restart.
    pub(super) fn progressed(&self, messages: usize) {
        self.seen.fetch_add(messages as u64, Ordering::Relaxed);
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(super) fn progressing(&self, within: Duration) -> bool {
        let idle = self.seen.load(Ordering::Relaxed) >= self.sent.load(Ordering::Relaxed);
        let last = *self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        idle || last.elapsed() <= within
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), IndexError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
        .map_err(|source| IndexError::File {
            operation: "start an index thread",
            source: Arc::new(source),
        })
}

/// A point read takes microseconds; two threads keep one long listing from delaying the rest.
const READERS: usize = 2;

/// A few hundred pulls starting at once, each with some lookups.
const READ_QUEUE: usize = 1024;

/// What a writer that commits 36,000 times a second clears in well under a second.
const WRITE_QUEUE: usize = 4096;

/// Below the time that a client with a stale answer waits for the upstream.
const READ_DEADLINE: Duration = Duration::from_secs(2);

/// As for reads.
const SEND_DEADLINE: Duration = Duration::from_secs(2);

/// Bulk work of rebuilding and evicting waits for commits, clients do not.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// A checkpoint of the whole log, within the grace of a stopping process.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);
