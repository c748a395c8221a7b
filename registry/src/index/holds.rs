//! Who publishes and who deletes a digest at this moment: never both.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coral_schema::oci::Digest;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Index, IndexError};

/// The table of both.
#[derive(Debug, Default)]
pub(super) struct Holds {
    held: Mutex<Held>,
    deleted: Notify,
}

#[derive(Debug, Default)]
struct Held {
    publishing: HashMap<Digest, usize>,
    deleting: HashSet<Digest>,
}

/// While it lives, its blob is not deleted.
#[derive(Debug)]
pub struct Publishing {
    holds: Arc<Holds>,
    digest: Digest,
}

/// While it lives, its blob is not published.
#[derive(Debug)]
pub(super) struct Deleting {
    holds: Arc<Holds>,
    digest: Digest,
}

impl Index {
    /// Waits until a running deletion of this blob has ended, and keeps others from beginning. Taken before its bytes
    /// get their final name, held until [`Index::put_blob`] was called.
    pub async fn publishing(&self, digest: &Digest) -> Result<Publishing, IndexError> {
        timeout(DELETION_DEADLINE, self.0.holds.publish(*digest))
            .await
            .map_err(|_| IndexError::Deleting)
    }
}

impl Holds {
    async fn publish(self: &Arc<Self>, digest: Digest) -> Publishing {
        loop {
            let mut deleted = std::pin::pin!(self.deleted.notified());
            deleted.as_mut().enable();
            {
                let mut held = self.lock();
                if !held.deleting.contains(&digest) {
                    *held.publishing.entry(digest).or_default() += 1;
                    return Publishing {
                        holds: self.clone(),
                        digest,
                    };
                }
            }
            deleted.await;
        }
    }

    /// `None` while somebody publishes or deletes it.
    pub(super) fn delete(self: &Arc<Self>, digest: Digest) -> Option<Deleting> {
        let mut held = self.lock();
        let free = !held.publishing.contains_key(&digest) && held.deleting.insert(digest);
        free.then(|| Deleting {
            holds: self.clone(),
            digest,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        let mut held = self.holds.lock();
        if let Some(count) = held.publishing.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                held.publishing.remove(&self.digest);
            }
        }
    }
}

impl Drop for Deleting {
    fn drop(&mut self) {
        self.holds.lock().deleting.remove(&self.digest);
        self.holds.deleted.notify_waiters();
    }
}

/// Removing a file takes milliseconds; who waits longer than this goes without publishing.
const DELETION_DEADLINE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn publishing_and_deleting_exclude_each_other() {
        let holds = Arc::new(Holds::default());
        let digest = Digest::sha256(b"x");
        let first = holds.publish(digest).await;
        let second = holds.publish(digest).await;
        drop(first);
        assert!(holds.delete(digest).is_none());
        drop(second);
        let deleting = holds.delete(digest).unwrap();
        assert!(holds.delete(digest).is_none());
        let mut waiting = std::pin::pin!(holds.publish(digest));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(deleting);
        waiting.await;
    }
}
