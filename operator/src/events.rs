//! Events on `ImageCache`s: what `kubectl describe` shows below the status. At most one per object and reason per minute.

use std::collections::HashMap;
use std::time::Duration;

use coral_schema::crd::{ImageCache, Reason};
use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use tokio::time::Instant;

use crate::api::{self, ApiError};
use crate::labels::FIELD_MANAGER;
use crate::node_cache::wishes::ObjectKey;

/// Something that people should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// In one word.
    pub reason: Reason,
    /// In a sentence.
    pub note: String,
}

/// Lets each (object, reason) through once a minute.
#[derive(Debug, Default)]
pub struct Limiter {
    told: HashMap<(ObjectKey, Reason), Instant>,
}

impl Limiter {
    /// May it be told now?
    pub fn admit(&mut self, key: &ObjectKey, reason: Reason, now: Instant) -> bool {
        self.told
            .retain(|_, told| now.duration_since(*told) < PAUSE);
        let known = (key.clone(), reason);
        if self.told.contains_key(&known) {
            return false;
        }
        self.told.insert(known, now);
        true
    }
}

/// Tells it.
pub async fn publish(
    client: &Client,
    object: &ImageCache,
    happening: &Happening,
    instance: &str,
) -> Result<(), ApiError> {
    let namespace = object.namespace().unwrap_or_default();
    let event = event(object, happening, instance, Timestamp::now());
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    api::call(api.create(&PostParams::default(), &event))
        .await
        .map(drop)
}

fn event(object: &ImageCache, happening: &Happening, instance: &str, now: Timestamp) -> Event {
    let Happening { reason, note } = happening;
    let mut note = note.clone();
    note.truncate(note.floor_char_boundary(LONGEST_NOTE));
    Event {
        metadata: ObjectMeta {
            namespace: object.namespace(),
            name: Some(format!("{}.{:x}", object.name_any(), now.as_nanosecond())),
            ..ObjectMeta::default()
        },
        regarding: Some(object.object_ref(&())),
        reason: Some(reason.as_str().to_owned()),
        note: Some(note),
        type_: Some(kind(*reason).to_owned()),
        action: Some("Reconcile".to_owned()),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(format!("coral.dev/{FIELD_MANAGER}")),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

/// As Kubernetes distinguishes them.
fn kind(reason: Reason) -> &'static str {
    match reason {
        Reason::Warm
        | Reason::Warming
        | Reason::Suspended
        | Reason::WaitingForCache
        | Reason::Written
        | Reason::Removed => "Normal",
        _ => "Warning",
    }
}

/// Between two events of one reason about one object.
const PAUSE: Duration = Duration::from_mins(1);
/// The API server refuses longer ones, bytes.
const LONGEST_NOTE: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_per_object_and_reason_per_minute() {
        let key = |name: &str| ObjectKey {
            namespace: "ml".to_owned(),
            name: name.to_owned(),
        };
        let mut limiter = Limiter::default();
        let start = Instant::now();
        assert!(limiter.admit(&key("a"), Reason::NotFound, start));
        assert!(!limiter.admit(&key("a"), Reason::NotFound, start + PAUSE / 2));
        assert!(limiter.admit(&key("a"), Reason::Warm, start));
        assert!(limiter.admit(&key("b"), Reason::NotFound, start));
        assert!(limiter.admit(&key("a"), Reason::NotFound, start + PAUSE));
        assert!(limiter.told.len() <= 2, "old ones are forgotten");
    }

    #[test]
    fn an_event_points_at_its_object() {
        let spec = serde_json::from_value(serde_json::json!({ "sets": [] })).unwrap();
        let mut object = ImageCache::new("inference", spec);
        object.metadata.namespace = Some("ml".to_owned());
        object.metadata.uid = Some("1-2".to_owned());
        let happening = Happening {
            reason: Reason::NoMatchingNodes,
            note: "ü".repeat(1000),
        };
        let event = event(&object, &happening, "pod-1", Timestamp::UNIX_EPOCH);
        let regarding = event.regarding.unwrap();
        assert_eq!(regarding.kind.as_deref(), Some("ImageCache"));
        assert_eq!(regarding.uid.as_deref(), Some("1-2"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("ml"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.note.unwrap().len(), LONGEST_NOTE);
    }
}
