//! Carries out wishes to remove, one after the other: each is judged by facts that were asked for it.

use coral_schema::crd::NodeCacheSpec;
use coral_schema::crd::node_cache::{PurgeOutcome, PurgeResult, PurgeWish};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Executor;
use crate::cri::CriError;
use crate::presence::look_at;
use crate::purge::{Facts, Verdict, judge, stands};

impl Executor {
    /// A runtime that fails is asked again in the next round.
    pub(super) async fn remove(&mut self, spec: &NodeCacheSpec) {
        for wish in &spec.purge {
            let now = Timestamp::now();
            let settled = self
                .settled
                .iter()
                .any(|outcome| outcome.reference == wish.reference);
            let pulling = self.running.contains_key(&wish.reference);
            if settled || pulling || !stands(wish, spec, now) {
                continue;
            }
            match self.remove_one(wish, spec, now).await {
                Ok(Some(result)) => {
                    tracing::info!(image = wish.reference, ?result, "wish to remove settled");
                    self.settled.push(PurgeOutcome {
                        reference: wish.reference.clone(),
                        result,
                        time: Time(now),
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(image = wish.reference, %error, "could not be removed");
                    return;
                }
            }
        }
    }

    async fn remove_one(
        &mut self,
        wish: &PurgeWish,
        spec: &NodeCacheSpec,
        now: Timestamp,
    ) -> Result<Option<PurgeResult>, CriError> {
        let image = look_at(self.runtime.as_ref(), &wish.reference).await?;
        // The containers last: what started until now is seen.
        let containers = self.runtime.containers().await?;
        let facts = Facts {
            image: image.as_ref(),
            containers: &containers,
        };
        match judge(wish, spec, &self.record, facts, now) {
            Verdict::Leave => return Ok(None),
            Verdict::Final(result) => return Ok(Some(result)),
            Verdict::Remove => self.runtime.remove(&wish.reference).await?,
        }
        let left = look_at(self.runtime.as_ref(), &wish.reference).await?;
        if left.is_some() {
            return Ok(None);
        }
        self.record.images.remove(&wish.reference);
        self.found.remove(&wish.reference);
        Ok(Some(PurgeResult::Purged))
    }
}
