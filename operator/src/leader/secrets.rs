//! Pull secrets: read by name where an object names them, and again every minute, so that a rotated one is lent in place
//! of the old one. There is no watch: the operator may get Secrets, not list them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use coral_schema::oci::docker_config::DockerConfig;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::api::{self, ApiError};
use crate::image_cache::secrets::{self, PullSecrets};
use crate::node_cache::wishes::ObjectKey;

/// A Secret: namespace and name.
pub(super) type SecretKey = (String, String);

/// What became of reading one: what it holds, or why that cannot be used.
pub(super) type Read = Result<Result<Arc<DockerConfig>, String>, ApiError>;

/// The Secrets that objects name.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    objects: HashMap<ObjectKey, Vec<String>>,
    known: BTreeMap<SecretKey, Known>,
}

#[derive(Debug)]
struct Known {
    due: Instant,
    reading: bool,
    /// Nothing before the first answer.
    content: Option<Result<Arc<DockerConfig>, String>>,
}

impl Secrets {
    /// An object names these now.
    pub(super) fn want(&mut self, object: &ObjectKey, names: &[String], now: Instant) {
        for name in names {
            let key = (object.namespace.clone(), name.clone());
            self.known.entry(key).or_insert(Known {
                due: now,
                reading: false,
                content: None,
            });
        }
        let before = if names.is_empty() {
            self.objects.remove(object)
        } else {
            self.objects.insert(object.clone(), names.to_vec())
        };
        if before.is_some_and(|before| before != names) {
            self.drop_unused();
        }
    }

    /// The object is gone.
    pub(super) fn forget(&mut self, object: &ObjectKey) {
        if self.objects.remove(object).is_some() {
            self.drop_unused();
        }
    }

    /// A secret that nobody names any more is not kept in memory.
    fn drop_unused(&mut self) {
        let objects = &self.objects;
        self.known.retain(|(namespace, name), _| {
            objects
                .iter()
                .any(|(object, names)| object.namespace == *namespace && names.contains(name))
        });
    }

    /// What an object's secrets hold; nothing before all of them were asked for.
    pub(super) fn of(&self, object: &ObjectKey) -> Option<PullSecrets> {
        let mut found = PullSecrets::default();
        for name in self.objects.get(object).into_iter().flatten() {
            let known = self.known.get(&(object.namespace.clone(), name.clone()))?;
            match known.content.as_ref()? {
                Ok(config) => found.configs.push(Arc::clone(config)),
                Err(problem) => found
                    .problems
                    .push(format!("pull secret {name}: {problem}")),
            }
        }
        Some(found)
    }

    /// When one is to be read.
    pub(super) fn next(&self) -> Option<Instant> {
        let waiting = self.known.values().filter(|known| !known.reading);
        waiting.map(|known| known.due).min()
    }

    /// Which are to be read now, at most `most`. Each has to be answered by [`Secrets::answer`].
    pub(super) fn ask(&mut self, most: usize, now: Instant) -> Vec<SecretKey> {
        let due = self.known.iter_mut();
        let due = due.filter(|(_, known)| !known.reading && known.due <= now);
        let asked = due.take(most).map(|(key, known)| {
            known.reading = true;
            key.clone()
        });
        asked.collect()
    }

    /// Takes an answer in. Whose look at the registry may be different now. What was read stays while the API server does
    /// not answer.
    pub(super) fn answer(&mut self, key: &SecretKey, answer: Read, now: Instant) -> Vec<ObjectKey> {
        let Some(known) = self.known.get_mut(key) else {
            return Vec::new();
        };
        known.reading = false;
        known.due = now + LOOK;
        let content = match answer {
            Ok(content) => content,
            Err(ApiError::NotFound) => Err("there is no such Secret in this namespace".to_owned()),
            Err(ApiError::Refused(_)) => Err(
                "the operator may not read Secrets of this namespace; add it to the chart's pullSecretNamespaces"
                    .to_owned(),
            ),
            Err(_) if known.content.is_some() => return Vec::new(),
            Err(error) => Err(error.to_string()),
        };
        let same = match (&known.content, &content) {
            // Contents do not compare: whoever builds on them does.
            (Some(Err(before)), Err(after)) => before == after,
            _ => false,
        };
        known.content = Some(content);
        let (namespace, name) = key;
        let objects = self.objects.iter().filter(|(object, names)| {
            !same && object.namespace == *namespace && names.contains(name)
        });
        objects.map(|(object, _)| object.clone()).collect()
    }
}

/// Reads one, and forgets all of it but the logins.
pub(super) async fn read(client: &Client, (namespace, name): &SecretKey) -> Read {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = api::call(api.get(name)).await?;
    Ok(secrets::read(&secret).map(Arc::new))
}

/// Between two looks at one secret.
const LOOK: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey {
            namespace: "ml".to_owned(),
            name: name.to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn l32_a_secret_is_read_once_for_all_and_again_every_minute() {
        let start = Instant::now();
        let mut secrets = Secrets::default();
        let names = ["s".to_owned()];
        secrets.want(&key("a"), &names, start);
        secrets.want(&key("b"), &names, start);
        assert!(secrets.of(&key("a")).is_none(), "not read yet");
        let asked = secrets.ask(8, start);
        assert_eq!(asked, [("ml".to_owned(), "s".to_owned())]);
        assert!(secrets.ask(8, start).is_empty());
        let mut affected = secrets.answer(&asked[0], Ok(Ok(Arc::default())), start);
        affected.sort_unstable();
        assert_eq!(affected, [key("a"), key("b")]);
        assert_eq!(secrets.of(&key("a")).unwrap().configs.len(), 1);
        assert_eq!(secrets.next(), Some(start + LOOK));

        // The API server is away: what was read stays. It is refused: it does not.
        let silent = Err(ApiError::Silent);
        assert!(secrets.answer(&asked[0], silent, start).is_empty());
        assert_eq!(secrets.of(&key("b")).unwrap().configs.len(), 1);
        let gone = Err(ApiError::NotFound);
        assert_eq!(secrets.answer(&asked[0], gone, start).len(), 2);
        let now = secrets.of(&key("b")).unwrap();
        assert!(now.configs.is_empty() && now.problems[0].contains("pull secret s"));
        assert!(
            secrets
                .answer(&asked[0], Err(ApiError::NotFound), start)
                .is_empty()
        );

        // Nothing is kept that nobody names.
        secrets.want(&key("a"), &[], start);
        assert!(secrets.next().is_some());
        secrets.forget(&key("b"));
        assert_eq!(secrets.next(), None);
        assert!(secrets.of(&key("a")).unwrap().problems.is_empty());
    }
}
