//! Logins that a source (the operator of a cluster) lends for single repositories, until a time. In memory only.
//!
//! They come after the administrator's own: only where those are refused, or there are none, is a lent one tried, and
//! where it is the only one and refused, too, the public's way. So a wrong one takes nothing away from anybody.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use coral_schema::oci::RepositoryName;
use coral_schema::oci::docker_config::DockerLogin;
use jiff::Timestamp;
use moka::sync::Cache;
use secrecy::ExposeSecret as _;

use super::CredentialId;
use super::credentials::{Credential, Login};
use crate::name::{RepoKey, UpstreamName};

/// All that is lent; clones share it.
#[derive(Clone)]
pub struct Lent(Arc<Inner>);

struct Inner {
    sources: Mutex<Sources>,
    by_repository: ArcSwap<ByRepository>,
    /// What was refused lately.
    refused: Cache<CredentialId, ()>,
}

#[derive(Default)]
struct Sources {
    all: BTreeMap<String, Vec<Lending>>,
    /// For names of logins.
    count: u64,
}

#[derive(Clone)]
struct Lending {
    repo: RepoKey,
    credential: Credential,
    until: Timestamp,
}

type ByRepository = HashMap<UpstreamName, HashMap<RepositoryName, Vec<Lending>>>;

impl Default for Lent {
    fn default() -> Self {
        Self(Arc::new(Inner {
            sources: Mutex::default(),
            by_repository: ArcSwap::default(),
            refused: Cache::builder()
                .max_capacity(MOST_LOGINS)
                .time_to_live(REFUSED_FOR)
                .build(),
        }))
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

impl Lent {
    /// What the source lends from now on; what it lent before, it does not any more. `false`: nothing changed, since that
    /// would be more than [`MOST_LOGINS`] in all.
    pub fn lend(
        &self,
        source: &str,
        logins: Vec<(RepoKey, DockerLogin)>,
        until: Timestamp,
        now: Timestamp,
    ) -> bool {
        let mut sources = self.sources();
        sources.forget(now);
        let others = sources.all.iter().filter(|(name, _)| *name != source);
        let others: usize = others.map(|(_, lent)| lent.len()).sum();
        if (others + logins.len()) as u64 > MOST_LOGINS {
            return false;
        }
        let before = sources.all.remove(source).unwrap_or_default();
        let lent = logins.into_iter().map(|(repo, login)| {
            let login = Login::from(login);
            let same = |old: &&Lending| {
                old.repo == repo
                    && old
                        .credential
                        .login
                        .as_ref()
                        .is_some_and(|it| same(it, &login))
            };
            // One that is renewed keeps its name, and with it the tokens that it was exchanged for.
            let id = match before.iter().find(same) {
                Some(old) => old.credential.id.clone(),
                None => sources.next(),
            };
            let credential = Credential {
                id,
                login: Some(login),
            };
            Lending {
                repo,
                credential,
                until,
            }
        });
        let lent: Vec<Lending> = lent.collect();
        sources.all.insert(source.to_owned(), lent);
        self.publish(&sources);
        true
    }

    /// The source lends nothing any more.
    pub fn take_back(&self, source: &str) {
        let mut sources = self.sources();
        sources.all.remove(source);
        self.publish(&sources);
    }

    /// What is lent for a repository now, in the order of sources and of their lists.
    pub(super) fn find(
        &self,
        upstream: &UpstreamName,
        repository: &RepositoryName,
    ) -> Vec<Credential> {
        let all = self.0.by_repository.load();
        let found = all.get(upstream).and_then(|all| all.get(repository));
        let Some(found) = found else {
            return Vec::new();
        };
        let now = Timestamp::now();
        let valid = found.iter().filter(|lending| lending.until > now);
        valid.map(|lending| lending.credential.clone()).collect()
    }

    /// Was it refused a moment ago?
    pub(super) fn is_refused(&self, id: &CredentialId) -> bool {
        self.0.refused.contains_key(id)
    }

    /// The upstream refused it. Only lent ones are remembered.
    pub(super) fn note_refused(&self, id: &CredentialId) {
        if is_lent(id) {
            self.0.refused.insert(id.clone(), ());
        }
    }

    fn publish(&self, sources: &Sources) {
        let mut by_repository = ByRepository::new();
        for lending in sources.all.values().flatten() {
            // What was pushed here needs no login elsewhere.
            let Some(upstream) = lending.repo.upstream() else {
                continue;
            };
            let repository = lending.repo.repository().clone();
            by_repository
                .entry(upstream.clone())
                .or_default()
                .entry(repository)
                .or_default()
                .push(lending.clone());
        }
        self.0.by_repository.store(by_repository.into());
    }

    fn sources(&self) -> std::sync::MutexGuard<'_, Sources> {
        self.0
            .sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sources {
    fn forget(&mut self, now: Timestamp) {
        for lent in self.all.values_mut() {
            lent.retain(|lending| lending.until > now);
        }
        self.all.retain(|_, lent| !lent.is_empty());
    }

    fn next(&mut self) -> CredentialId {
        self.count += 1;
        CredentialId(format!("{LENT}{}", self.count).into())
    }
}

impl From<DockerLogin> for Login {
    fn from(login: DockerLogin) -> Self {
        match login {
            DockerLogin::Password { username, password } => Self::Password { username, password },
            DockerLogin::IdentityToken(token) => Self::Refresh(token),
            DockerLogin::RegistryToken(token) => Self::Bearer(token),
        }
    }
}

/// Is it not one of the administrator's?
pub(super) fn is_lent(id: &CredentialId) -> bool {
    id.0.starts_with(LENT)
}

fn same(one: &Login, other: &Login) -> bool {
    match (one, other) {
        (
            Login::Password { username, password },
            Login::Password {
                username: other_name,
                password: other,
            },
        ) => username == other_name && password.expose_secret() == other.expose_secret(),
        (Login::Refresh(one), Login::Refresh(other))
        | (Login::Bearer(one), Login::Bearer(other)) => {
            one.expose_secret() == other.expose_secret()
        }
        _ => false,
    }
}

/// Logins in all: a few for each image of a large cluster.
pub const MOST_LOGINS: u64 = 20_000;
/// A refused login is left alone for so long: upstreams lock accounts out.
const REFUSED_FOR: Duration = Duration::from_mins(1);
/// What names of lent logins begin with.
const LENT: &str = "lent:";

#[cfg(test)]
mod tests {
    use super::*;

    fn password(secret: &str) -> DockerLogin {
        DockerLogin::Password {
            username: "u".to_owned(),
            password: secret.into(),
        }
    }

    fn repo(text: &str) -> RepoKey {
        text.parse().unwrap()
    }

    fn ids(lent: &Lent, name: &str) -> Vec<CredentialId> {
        let repo = repo(name);
        let found = lent.find(repo.upstream().unwrap(), repo.repository());
        found.into_iter().map(|credential| credential.id).collect()
    }

    #[test]
    fn l30_a_login_is_for_its_repository_and_no_other() {
        let lent = Lent::default();
        let now = Timestamp::now();
        let later = now + jiff::SignedDuration::from_hours(1);
        let logins = vec![(repo("a.example/team/app"), password("hidden"))];
        assert!(lent.lend("operator/ml/a", logins, later, now));
        assert_eq!(ids(&lent, "a.example/team/app").len(), 1);
        for other in [
            "a.example/team",
            "a.example/team/app/x",
            "b.example/team/app",
        ] {
            assert!(ids(&lent, other).is_empty(), "{other}");
        }
        assert!(!format!("{lent:?}").contains("hidden"));
        lent.take_back("operator/ml/a");
        assert!(ids(&lent, "a.example/team/app").is_empty());
    }

    #[test]
    fn l32_a_renewed_login_keeps_its_tokens_and_a_rotated_one_does_not() {
        let lent = Lent::default();
        let name = "a.example/team/app";
        let now = Timestamp::now();
        let ids_of = |secret: &str, minutes: i64| {
            let until = now + jiff::SignedDuration::from_mins(minutes);
            assert!(lent.lend("s", vec![(repo(name), password(secret))], until, now));
            ids(&lent, name)
        };
        let first = ids_of("one", 10);
        assert_eq!(ids_of("one", 20), first);
        let rotated = ids_of("two", 20);
        assert_ne!(rotated, first);
        assert!(ids_of("two", 0).is_empty(), "it has expired");
    }

    #[test]
    fn what_is_lent_is_bounded() {
        let lent = Lent::default();
        let now = Timestamp::now();
        let later = now + jiff::SignedDuration::from_hours(1);
        let many = usize::try_from(MOST_LOGINS).unwrap();
        let logins = |count| vec![(repo("a.example/b"), password("x")); count];
        assert!(lent.lend("a", logins(many), later, now));
        assert!(!lent.lend("b", logins(1), later, now));
        assert!(lent.lend("a", logins(1), later, now), "in its own place");
    }
}
