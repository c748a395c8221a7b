//! The single-flight table. A leader that is lost (its task died or was dropped) is an outcome like any other: its
//! followers are told, and the next demand starts anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coral_schema::oci::Digest;

use super::{Origin, Transfer};
use crate::upstream::Priority;

/// Running transfers by digest.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Mutex<HashMap<Digest, Arc<Transfer>>>,
}

/// The right and duty to run a transfer. Dropping it takes the transfer off the table and ends it if nothing else did.
#[derive(Debug)]
pub(super) struct Permit {
    table: Arc<Table>,
    transfer: Arc<Transfer>,
}

impl Table {
    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<Transfer>> {
        self.entries().get(digest).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Transfer>> {
        self.entries().values().cloned().collect()
    }

    /// The running transfer, or a new one and the permit to run it.
    pub(super) fn join(
        self: &Arc<Self>,
        digest: &Digest,
        origin: &Origin,
        priority: Priority,
    ) -> (Arc<Transfer>, Option<Permit>) {
        let mut entries = self.entries();
        // One that ended without its blob is about to leave the table; nobody new may be given its ending.
        if let Some(transfer) = entries.get(digest).filter(|transfer| transfer.is_usable()) {
            transfer.raise(priority);
            return (Arc::clone(transfer), None);
        }
        let transfer = Arc::new(Transfer::new(*digest, origin.clone(), priority));
        entries.insert(*digest, Arc::clone(&transfer));
        let permit = Permit {
            table: Arc::clone(self),
            transfer: Arc::clone(&transfer),
        };
        (transfer, Some(permit))
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Transfer>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    pub(super) fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut entries = self.table.entries();
        if entries
            .get(&self.transfer.digest)
            .is_some_and(|entry| Arc::ptr_eq(entry, &self.transfer))
        {
            entries.remove(&self.transfer.digest);
        }
        drop(entries);
        self.transfer.end();
    }
}
