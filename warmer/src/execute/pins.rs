//! Keeps the pins of the node what they shall be, where containerd's own API may be used.

use std::collections::BTreeSet;
use std::time::Duration;

use coral_schema::crd::NodeCacheSpec;
use tokio::time::Instant;

use super::Executor;
use crate::cri::CriError;
use crate::cri::containerd::{Containerd, changes};
use crate::pins::wanted;

/// After a failure.
const AGAIN: Duration = Duration::from_mins(1);

impl Executor {
    /// Asks containerd only when what shall be pinned has changed since it was, or the process has just started.
    pub(super) async fn pin(&mut self, spec: &NodeCacheSpec) {
        let (Some(containerd), Some(space)) = (&self.config.containerd, self.space) else {
            return;
        };
        let wanted = wanted(spec, &self.found, &self.record.ratios, space);
        if self.pinned.as_ref() == Some(&wanted) || Instant::now() < self.pin_at {
            return;
        }
        match apply(containerd, &wanted).await {
            Ok(()) => {
                self.metrics.pinned(wanted.len());
                self.pinned = Some(wanted);
            }
            Err(error) => {
                tracing::warn!(%error, "images cannot be pinned or unpinned");
                self.pin_at = Instant::now() + AGAIN;
            }
        }
    }
}

async fn apply(containerd: &Containerd, wanted: &BTreeSet<String>) -> Result<(), CriError> {
    let names = containerd.names().await?;
    for (name, pinned) in changes(&names, wanted) {
        containerd.pin(name, pinned).await?;
        tracing::info!(image = name.name, pinned, "pin changed");
    }
    Ok(())
}
