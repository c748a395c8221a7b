//! What the API server has, as far as its watches told us: every change comes with what was there before.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

/// Objects of one kind by namespace and name; the namespace of cluster-wide ones is empty.
#[derive(Debug)]
pub struct Objects<K> {
    all: BTreeMap<Key, Arc<K>>,
    /// Those seen since a list began.
    listed: Option<HashSet<Key>>,
    complete: bool,
}

/// Namespace and name.
pub type Key = (String, String);

/// One object, before and after an event.
#[derive(Debug)]
pub struct Change<K> {
    /// Which.
    pub key: Key,
    /// As it was; nothing for a new one.
    pub before: Option<Arc<K>>,
    /// As it is; nothing when it is gone.
    pub after: Option<Arc<K>>,
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            listed: None,
            complete: false,
        }
    }
}

impl<K: Resource> Objects<K> {
    /// Has the first list come in?
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// One of them.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.all.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Those of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        let from = (namespace.to_owned(), String::new());
        let rest = self.all.range(from..);
        rest.take_while(move |((of, _), _)| of == namespace)
            .map(|(_, object)| object)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<K>> {
        self.all.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Takes an event in. What a list no longer has is gone when it ends.
    pub fn apply(&mut self, event: watcher::Event<K>) -> Vec<Change<K>> {
        match event {
            watcher::Event::Apply(object) => self.put(object).into_iter().collect(),
            watcher::Event::Delete(object) => self.remove(key(&object)).into_iter().collect(),
            watcher::Event::Init => {
                self.listed = Some(HashSet::new());
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(key(&object));
                }
                self.put(object).into_iter().collect()
            }
            watcher::Event::InitDone => {
                self.complete = true;
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<Key> = self
                    .all
                    .keys()
                    .filter(|key| !listed.contains(*key))
                    .cloned()
                    .collect();
                gone.into_iter()
                    .filter_map(|key| self.remove(key))
                    .collect()
            }
        }
    }

    /// An answer to our own write, which the watch will tell later. An older state of the same object changes nothing:
    /// answers and watches overtake each other.
    pub fn put(&mut self, object: K) -> Option<Change<K>> {
        let key = key(&object);
        let before = self.all.get(&key).cloned();
        if before
            .as_ref()
            .is_some_and(|before| is_older(&object, before))
        {
            return None;
        }
        let after = Arc::new(object);
        self.all.insert(key.clone(), Arc::clone(&after));
        Some(Change {
            key,
            before,
            after: Some(after),
        })
    }

    fn remove(&mut self, key: Key) -> Option<Change<K>> {
        let before = self.all.remove(&key)?;
        Some(Change {
            key,
            before: Some(before),
            after: None,
        })
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Generations of one object only grow.
fn is_older<K: Resource>(object: &K, known: &K) -> bool {
    let (object, known) = (object.meta(), known.meta());
    object.uid == known.uid && object.generation < known.generation
}

/// Watches all objects of a kind, for ever; what nobody looks at is dropped by `prune`. Errors are logged and waited
/// out with a growing pause.
pub fn watch<K>(
    api: Api<K>,
    prune: impl FnMut(&mut K) + Send + 'static,
) -> impl Stream<Item = watcher::Event<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    follow(api, watcher::Config::default(), prune)
}

/// The same for what fields select.
pub fn watch_some<K>(
    api: Api<K>,
    fields: &str,
    prune: impl FnMut(&mut K) + Send + 'static,
) -> impl Stream<Item = watcher::Event<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    follow(api, watcher::Config::default().fields(fields), prune)
}

/// The same for the one object of a name.
pub fn watch_one<K>(
    api: Api<K>,
    name: &str,
    prune: impl FnMut(&mut K) + Send + 'static,
) -> impl Stream<Item = watcher::Event<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    follow(api, config, prune)
}

fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    prune: impl FnMut(&mut K) + Send + 'static,
) -> impl Stream<Item = watcher::Event<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    watcher(api, config.timeout(seconds(WATCH)).page_size(PAGE))
        .default_backoff()
        .modify(prune)
        .filter_map(|event| async move {
            event
                .inspect_err(|error| {
                    tracing::warn!(%error, kind = %K::kind(&()), "the watch failed; it is tried again");
                })
                .ok()
        })
}

/// The same event of what is kept of its object.
pub fn map<K, L>(event: watcher::Event<K>, mut keep: impl FnMut(K) -> L) -> watcher::Event<L> {
    match event {
        watcher::Event::Apply(object) => watcher::Event::Apply(keep(object)),
        watcher::Event::Delete(object) => watcher::Event::Delete(keep(object)),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitApply(object) => watcher::Event::InitApply(keep(object)),
        watcher::Event::InitDone => watcher::Event::InitDone,
    }
}

/// What stands in every object and is never looked at: a third of its size.
pub fn prune_metadata<K: Resource>(object: &mut K) {
    object.managed_fields_mut().clear();
}

/// Objects of a list that are in memory at once, as text and whole, before they are pruned.
const PAGE: u32 = 100;
/// One watch request lives this long: a connection that died unnoticed is found out.
const WATCH: Duration = Duration::from_mins(4);

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use kube::runtime::watcher::Event;

    use super::*;

    fn node(name: &str, uid: &str, generation: i64) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        node.metadata.uid = Some(uid.to_owned());
        node.metadata.generation = Some(generation);
        node
    }

    fn told(changes: &[Change<Node>]) -> Vec<(&str, bool, bool)> {
        let tell = changes.iter().map(|change| {
            let Change { key, before, after } = change;
            (key.1.as_str(), before.is_some(), after.is_some())
        });
        tell.collect()
    }

    #[test]
    fn a_list_after_a_gap_tells_what_is_gone() {
        let mut nodes = Objects::default();
        nodes.apply(Event::Init);
        nodes.apply(Event::InitApply(node("a", "1", 1)));
        nodes.apply(Event::InitApply(node("b", "2", 1)));
        assert!(!nodes.is_complete());
        assert!(nodes.apply(Event::InitDone).is_empty());
        assert!(nodes.is_complete());

        nodes.apply(Event::Init);
        let changes = nodes.apply(Event::InitApply(node("b", "2", 2)));
        assert_eq!(told(&changes), [("b", true, true)]);
        let changes = nodes.apply(Event::InitDone);
        assert_eq!(told(&changes), [("a", true, false)]);
        assert_eq!(nodes.len(), 1);
    }

    #[test]
    fn an_answer_is_not_undone_by_a_late_event() {
        let mut nodes = Objects::default();
        nodes.apply(Event::Apply(node("a", "1", 1)));
        nodes.put(node("a", "1", 3));
        assert!(nodes.apply(Event::Apply(node("a", "1", 2))).is_empty());
        assert_eq!(nodes.get("", "a").unwrap().metadata.generation, Some(3));
        // Another object under the name starts again.
        let changes = nodes.apply(Event::Apply(node("a", "2", 1)));
        assert_eq!(told(&changes), [("a", true, true)]);
        let changes = nodes.apply(Event::Delete(node("a", "2", 1)));
        assert_eq!(told(&changes), [("a", true, false)]);
    }
}
