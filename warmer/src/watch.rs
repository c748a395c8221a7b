//! This node's `NodeCache`, and no other object of the cluster: every change of any node would else reach every node.
//!
//! What it said last is kept on disk, so that the node is repaired while the API server is away, also after a restart. A
//! deleted `NodeCache` means stop: nothing is pulled or removed any more.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::NodeCache;
use futures::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::execute::Wishes;

mod kept;

use self::kept::Kept;

/// The API server ends each watch after 290 s. Longer silence is a connection that died unnoticed.
const SILENCE: Duration = Duration::from_secs(330);

/// See the module.
#[derive(Debug)]
pub struct Watch {
    api: Api<NodeCache>,
    node: String,
    kept: Kept,
    wishes: watch::Sender<Option<Arc<Wishes>>>,
}

impl Watch {
    /// For the node of this name, with what an earlier process kept in the folder `state`. The receiver always has the
    /// latest wishes; `None` while there is no `NodeCache`.
    pub async fn new(
        client: Client,
        node: String,
        state: PathBuf,
    ) -> (Self, watch::Receiver<Option<Arc<Wishes>>>) {
        let kept = Kept::new(state, node.clone());
        let wishes = kept.load().await;
        if wishes.is_some() {
            tracing::info!("going on with the last known wishes");
        }
        let (wishes, receiver) = watch::channel(wishes.map(Arc::new));
        let watch = Self {
            api: Api::all(client),
            node,
            kept,
            wishes,
        };
        (watch, receiver)
    }

    /// Follows the object until `stopping`.
    pub async fn run(self, stopping: CancellationToken) {
        stopping.run_until_cancelled(self.follow()).await;
    }

    async fn follow(self) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.node));
        let mut away = false;
        loop {
            let mut seen = Seen::new(&self.node);
            let mut events =
                std::pin::pin!(watcher(self.api.clone(), config.clone()).default_backoff());
            // The stream never ends; after silence it is made anew.
            while let Ok(Some(event)) = timeout(SILENCE, events.next()).await {
                match event {
                    Ok(event) => {
                        if std::mem::take(&mut away) {
                            tracing::info!("the API server answers again");
                        }
                        if let Some(now) = seen.take(event) {
                            self.say(now).await;
                        }
                    }
                    Err(error) if !std::mem::replace(&mut away, true) => {
                        tracing::warn!(%error, "the API server does not answer; going on with the last wishes");
                    }
                    Err(error) => tracing::debug!(%error, "the API server does not answer"),
                }
            }
        }
    }

    async fn say(&self, news: News) {
        let wishes = match news {
            News::Is(object) => Some(Arc::new(Wishes {
                generation: object.metadata.generation.unwrap_or_default(),
                spec: object.spec,
            })),
            News::Gone => None,
        };
        // The status changes far more often; that is no news here.
        let news = self.wishes.send_if_modified(|known| {
            let changed = *known != wishes;
            known.clone_from(&wishes);
            changed
        });
        if news {
            self.kept.store(wishes).await;
        }
    }
}

/// What events say of the object.
#[derive(Debug, PartialEq)]
enum News {
    Is(Box<NodeCache>),
    Gone,
}

/// From events to the object as it is now.
#[derive(Debug)]
struct Seen<'a> {
    node: &'a str,
    listed: bool,
}

impl<'a> Seen<'a> {
    fn new(node: &'a str) -> Self {
        Self {
            node,
            listed: false,
        }
    }

    /// `None`: no news.
    fn take(&mut self, event: Event<NodeCache>) -> Option<News> {
        match event {
            Event::Init => {
                self.listed = false;
                None
            }
            Event::InitApply(object) | Event::Apply(object) if object.name_any() == self.node => {
                self.listed = true;
                Some(News::Is(Box::new(object)))
            }
            Event::Delete(object) if object.name_any() == self.node => Some(News::Gone),
            Event::InitDone => (!self.listed).then_some(News::Gone),
            Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use coral_schema::crd::NodeCacheSpec;

    use super::*;

    fn object(name: &str) -> NodeCache {
        let spec: NodeCacheSpec =
            serde_json::from_value(serde_json::json!({ "nodeUID": "u" })).unwrap();
        NodeCache::new(name, spec)
    }

    fn is(name: &str) -> News {
        News::Is(Box::new(object(name)))
    }

    #[test]
    fn l19_events_of_one_object_and_no_other() {
        let mut seen = Seen::new("n1");
        assert_eq!(seen.take(Event::Init), None);
        assert_eq!(seen.take(Event::InitApply(object("n2"))), None);
        assert_eq!(
            seen.take(Event::InitDone),
            Some(News::Gone),
            "ours is not there"
        );
        assert_eq!(seen.take(Event::Apply(object("n1"))), Some(is("n1")));
        assert_eq!(seen.take(Event::Delete(object("n2"))), None);
        assert_eq!(seen.take(Event::Delete(object("n1"))), Some(News::Gone));
        seen.take(Event::Init);
        assert_eq!(seen.take(Event::InitApply(object("n1"))), Some(is("n1")));
        assert_eq!(seen.take(Event::InitDone), None);
    }
}
