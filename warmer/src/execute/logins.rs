//! Other logins are worth another try at once. Copies of them come to a node a minute after the wish that needs them: a
//! kubelet is in no hurry with what it has mounted.

use std::time::Duration;

use coral_schema::crd::NodeCacheSpec;

use super::Executor;

/// While somebody waits for them.
pub(super) const LOOK: Duration = Duration::from_secs(5);

impl Executor {
    /// What was refused with other logins than there are now begins anew.
    pub(super) async fn renew(&mut self, spec: &NodeCacheSpec) {
        for image in &spec.images {
            let spelling = image.reference.as_str();
            let Some(tried) = self.refused.get(spelling) else {
                continue;
            };
            if self.config.credentials.of(image).await.mark == *tried {
                continue;
            }
            self.refused.remove(spelling);
            if let Some(entry) = self.record.images.get_mut(spelling) {
                entry.failure = None;
            }
            tracing::info!(
                image = spelling,
                "its logins have changed: it is pulled again"
            );
        }
    }
}
