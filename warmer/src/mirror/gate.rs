//! What the executor asks before a pull that may only come from the cache: do the runtime's mirror settings lead there,
//! and does the cache hold the image?

use coral_schema::oci::ImageReference;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::MirrorState;
use crate::execute::{Cache, CacheUnreachable, Held};

/// The cache of the spec, behind the mirror settings as they stand. CRI cannot be told "from the mirror only".
#[derive(Debug, Clone)]
pub struct Gate(watch::Receiver<MirrorState>);

impl Gate {
    /// Over the settings that [`super::Mirrors`] publishes.
    pub fn new(state: watch::Receiver<MirrorState>) -> Self {
        Self(state)
    }
}

impl Cache for Gate {
    fn holds<'a>(
        &'a self,
        image: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Held, CacheUnreachable>> {
        async move {
            let state = self.0.borrow().clone();
            match state.cache {
                Some(cache) if state.leads.contains(&image.host) => cache.holds(image).await,
                _ => Ok(Held::NotMirrored),
            }
        }
        .boxed()
    }
}
