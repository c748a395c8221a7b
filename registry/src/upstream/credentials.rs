//! Our logins: which one is for a repository, read from files that are looked at again when they may have changed.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use coral_schema::oci::RepositoryName;
use coral_schema::oci::docker_config::{DockerConfig, DockerLogin};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::{CredentialId, CredentialRule, CredentialSource};

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Longest credential file, bytes; real ones have a few thousand.
const LONGEST_FILE: u64 = 1 << 20;
/// The id of no credential.
const ANONYMOUS: &str = "anonymous";

impl CredentialId {
    /// No credential.
    pub fn anonymous() -> Self {
        // Every request asks who its upstream would see.
        static ID: LazyLock<Arc<str>> = LazyLock::new(|| ANONYMOUS.into());
        Self(Arc::clone(&ID))
    }

    /// Is it none?
    pub fn is_anonymous(&self) -> bool {
        &*self.0 == ANONYMOUS
    }
}

/// What to log in with.
#[derive(Clone)]
pub(super) enum Login {
    /// User and password, for the registry or its token service.
    Password {
        username: String,
        password: SecretString,
    },
    /// A refresh token for the token service.
    Refresh(SecretString),
    /// A bearer token for the registry itself.
    Bearer(SecretString),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

/// A login with its name; `None` while its file cannot be used.
#[derive(Debug, Clone)]
pub(super) struct Credential {
    pub(super) id: CredentialId,
    pub(super) login: Option<Login>,
}

/// The logins of one endpoint.
#[derive(Debug)]
pub(super) struct Credentials {
    /// Longest prefix first.
    rules: Arc<[CredentialRule]>,
    /// The hosts under which a Docker config may know this endpoint.
    hosts: [String; 2],
    /// One for each rule.
    loaded: ArcSwap<Vec<Loaded>>,
    next_look: Mutex<Instant>,
}

#[derive(Debug, Clone)]
struct Loaded {
    /// What was last read successfully.
    content: Option<Content>,
    /// Why the last look failed.
    problem: Option<Arc<str>>,
}

#[derive(Debug, Clone)]
enum Content {
    Secret(SecretString),
    Docker(Arc<DockerConfig>),
}

impl Credentials {
    /// Reads the files. One that cannot be read is a warning, not an error: it may be mounted later, and what does
    /// not need it works.
    pub(super) fn new(rules: &[CredentialRule], hosts: [String; 2]) -> Self {
        let mut rules = rules.to_vec();
        rules.sort_by_key(|rule| std::cmp::Reverse(components(&rule.prefix).count()));
        let loaded = rules.iter().map(|rule| load(&rule.source, None)).collect();
        Self {
            rules: rules.into(),
            hosts,
            loaded: ArcSwap::from_pointee(loaded),
            next_look: Mutex::new(Instant::now() + LOOK_EVERY),
        }
    }

    /// The login for a repository, if there is one.
    pub(super) fn find(&self, repository: &RepositoryName) -> Option<Credential> {
        let loaded = self.loaded.load();
        self.rules
            .iter()
            .zip(loaded.iter())
            .filter(|(rule, _)| covers(&rule.prefix, repository))
            .find_map(|(rule, loaded)| self.credential(rule, loaded, repository))
    }

    /// Why a file cannot be read now, if that is so.
    pub(super) fn problem(&self) -> Option<Arc<str>> {
        self.loaded
            .load()
            .iter()
            .find_map(|loaded| loaded.problem.clone())
    }

    /// Reads the files again if the last look was long enough ago; at most one caller does, off the runtime, and at
    /// most for `patience`. The others use what is there.
    pub(super) async fn refresh(&self, patience: Duration) {
        if self.rules.is_empty() {
            return;
        }
        let Ok(mut next_look) = self.next_look.try_lock() else {
            return;
        };
        if Instant::now() < *next_look {
            return;
        }
        *next_look = Instant::now() + LOOK_EVERY;
        let (rules, old) = (Arc::clone(&self.rules), self.loaded.load_full());
        let read = tokio::task::spawn_blocking(move || {
            rules
                .iter()
                .zip(old.iter())
                .map(|(rule, old)| load(&rule.source, Some(old)))
                .collect::<Vec<_>>()
        });
        if let Ok(Ok(loaded)) = timeout(patience, read).await {
            self.loaded.store(Arc::new(loaded));
        }
    }

    /// `None` when a Docker config has nothing for the repository: then a shorter prefix may.
    fn credential(
        &self,
        rule: &CredentialRule,
        loaded: &Loaded,
        repository: &RepositoryName,
    ) -> Option<Credential> {
        let (id, login) = match (&rule.source, &loaded.content) {
            (CredentialSource::Password { username, .. }, content) => {
                let login = match content {
                    Some(Content::Secret(password)) => Some(Login::Password {
                        username: username.clone(),
                        password: password.clone(),
                    }),
                    _ => None,
                };
                (format!("password:{}:{username}", rule.prefix), login)
            }
            (CredentialSource::TokenFile(_), content) => {
                let login = match content {
                    Some(Content::Secret(token)) => Some(Login::Bearer(token.clone())),
                    _ => None,
                };
                (format!("token:{}", rule.prefix), login)
            }
            (CredentialSource::DockerConfig(_), Some(Content::Docker(config))) => {
                self.docker(config, repository)?
            }
            (CredentialSource::DockerConfig(_), _) => (format!("docker:{}", rule.prefix), None),
        };
        Some(Credential {
            id: CredentialId(id.into()),
            login,
        })
    }

    fn docker(
        &self,
        config: &DockerConfig,
        repository: &RepositoryName,
    ) -> Option<(String, Option<Login>)> {
        let entry = self.hosts.iter().find_map(|host| {
            let entries = config.matching(&format!("{host}/{repository}"));
            entries.first().copied()
        })?;
        Some(match entry.login.clone() {
            DockerLogin::Password { username, password } => (
                format!("docker:{}:{username}", entry.key),
                Some(Login::Password { username, password }),
            ),
            DockerLogin::IdentityToken(token) => {
                (format!("docker:{}", entry.key), Some(Login::Refresh(token)))
            }
            DockerLogin::RegistryToken(token) => {
                (format!("docker:{}", entry.key), Some(Login::Bearer(token)))
            }
        })
    }
}

fn components(prefix: &str) -> impl Iterator<Item = &str> {
    prefix.split('/').filter(|component| !component.is_empty())
}

fn covers(prefix: &str, repository: &RepositoryName) -> bool {
    let mut own = repository.components();
    components(prefix).all(|component| own.next() == Some(component))
}

/// Reads a file. When that fails, what it held before stays in use, and a warning is written once.
fn load(source: &CredentialSource, old: Option<&Loaded>) -> Loaded {
    match read(source) {
        Ok(content) => Loaded {
            content: Some(content),
            problem: None,
        },
        Err(problem) => {
            let problem: Arc<str> = problem.into();
            if old.is_none_or(|old| old.problem.as_ref() != Some(&problem)) {
                tracing::warn!(%problem, "a credential cannot be read; it is tried again every few seconds");
            }
            Loaded {
                content: old.and_then(|old| old.content.clone()),
                problem: Some(problem),
            }
        }
    }
}

/// Errors name the file and never quote it.
fn read(source: &CredentialSource) -> Result<Content, String> {
    let (CredentialSource::Password {
        password_file: path,
        ..
    }
    | CredentialSource::TokenFile(path)
    | CredentialSource::DockerConfig(path)) = source;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_FILE).read_to_end(&mut bytes))
        .map_err(|error| format!("{}: {error}", path.display()))?;
    if matches!(source, CredentialSource::DockerConfig(_)) {
        let config =
            DockerConfig::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        return Ok(Content::Docker(Arc::new(config)));
    }
    let text = SecretString::from(
        String::from_utf8(bytes).map_err(|_| format!("{}: it is not text", path.display()))?,
    );
    let secret = text.expose_secret().trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(format!("{}: it is empty", path.display()));
    }
    Ok(Content::Secret(secret.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn password(prefix: &str, username: &str, file: PathBuf) -> CredentialRule {
        let source = CredentialSource::Password {
            username: username.to_owned(),
            password_file: file,
        };
        CredentialRule {
            prefix: prefix.to_owned(),
            source,
        }
    }

    fn hosts() -> [String; 2] {
        ["registry.example".to_owned(), "team.example".to_owned()]
    }

    fn exposed(credentials: &Credentials, repository: &str) -> Option<(String, String)> {
        let found = credentials.find(&repository.parse().unwrap())?;
        let secret = match found.login? {
            Login::Password { password, .. } => password,
            Login::Refresh(secret) | Login::Bearer(secret) => secret,
        };
        Some((found.id.0.to_string(), secret.expose_secret().to_owned()))
    }

    #[test]
    fn the_longest_prefix_of_whole_components_wins() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("{name}\n")).unwrap();
            path
        };
        let rules = [
            password("", "all", file("all")),
            password("team/app", "app", file("app")),
            password("team", "team", file("team")),
        ];
        let credentials = Credentials::new(&rules, hosts());
        let found = |repository: &str| exposed(&credentials, repository).unwrap();
        assert_eq!(
            found("team/app/x"),
            ("password:team/app:app".into(), "app".into())
        );
        assert_eq!(found("team/application").1, "team");
        assert_eq!(found("teams").1, "all");
    }

    #[test]
    fn a_docker_config_without_an_entry_leaves_it_to_shorter_prefixes() {
        let folder = tempfile::tempdir().unwrap();
        let (config, token) = (
            folder.path().join("config.json"),
            folder.path().join("token"),
        );
        std::fs::write(
            &config,
            r#"{"auths":{"team.example/a":{"username":"u","password":"hidden"}}}"#,
        )
        .unwrap();
        std::fs::write(&token, "fallback").unwrap();
        let rules = [
            CredentialRule {
                prefix: "a".into(),
                source: CredentialSource::DockerConfig(config),
            },
            CredentialRule {
                prefix: String::new(),
                source: CredentialSource::TokenFile(token),
            },
        ];
        let credentials = Credentials::new(&rules, hosts());
        assert_eq!(
            exposed(&credentials, "a/b"),
            Some(("docker:team.example/a:u".into(), "hidden".into()))
        );
        assert_eq!(
            exposed(&credentials, "b"),
            Some(("token:".into(), "fallback".into()))
        );
        assert!(!format!("{credentials:?}").contains("hidden"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_read_again_and_a_lost_one_stays_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let credentials = Credentials::new(&[password("", "u", path.clone())], hosts());
        assert!(
            credentials
                .find(&"a".parse().unwrap())
                .unwrap()
                .login
                .is_none()
        );
        assert!(
            credentials.problem().unwrap().contains("password"),
            "names the file"
        );

        for (content, expected) in [
            (Some("one\n"), "one"),
            (Some("two"), "two"),
            (Some("\n"), "two"),
            (None, "two"),
        ] {
            match content {
                Some(content) => std::fs::write(&path, content).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            tokio::time::advance(LOOK_EVERY).await;
            // The runtime's clock would jump over a deadline while the blocking thread reads.
            credentials.refresh(Duration::from_secs(1 << 32)).await;
            assert_eq!(exposed(&credentials, "a").unwrap().1, expected);
        }
    }
}
