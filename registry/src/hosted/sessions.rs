//! Who writes to which upload session: one at a time. Plain sync code.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::UploadId;

/// The sessions that somebody writes to now, and how far they are.
#[derive(Debug, Default, Clone)]
pub(super) struct Sessions(Arc<Mutex<HashMap<UploadId, Arc<AtomicU64>>>>);

/// Somebody writes to the session, which has so many bytes now, if that is known yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Busy(pub(super) Option<u64>);

/// The right to write to one session; given back when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    sessions: Sessions,
    id: UploadId,
    received: Arc<AtomicU64>,
}

impl Sessions {
    /// Takes the session, unless somebody has it (H-32).
    pub(super) fn take(&self, id: &UploadId) -> Result<Turn, Busy> {
        let mut busy = self.lock();
        if let Some(received) = busy.get(id) {
            return Err(busy_at(received));
        }
        let received = Arc::new(AtomicU64::new(UNKNOWN));
        busy.insert(id.clone(), Arc::clone(&received));
        Ok(Turn {
            sessions: self.clone(),
            id: id.clone(),
            received,
        })
    }

    /// Does somebody write to it now?
    pub(super) fn busy(&self, id: &UploadId) -> Option<Busy> {
        self.lock().get(id).map(|received| busy_at(received))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<AtomicU64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn busy_at(received: &AtomicU64) -> Busy {
    let received = received.load(Ordering::Relaxed);
    Busy((received != UNKNOWN).then_some(received))
}

/// Until the upload was opened.
const UNKNOWN: u64 = u64::MAX;

impl Turn {
    /// The session has so many bytes now.
    pub(super) fn note(&self, received: u64) {
        self.received.store(received, Ordering::Relaxed);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h32_one_writer_at_a_time() {
        let sessions = Sessions::default();
        let id: UploadId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let turn = sessions.take(&id).unwrap();
        assert_eq!(sessions.take(&id).unwrap_err(), Busy(None));
        turn.note(7);
        assert_eq!(sessions.take(&id).unwrap_err(), Busy(Some(7)));
        assert_eq!(sessions.busy(&id), Some(Busy(Some(7))));
        drop(turn);
        assert_eq!(sessions.busy(&id), None);
        assert!(sessions.take(&id).is_ok());
    }
}
