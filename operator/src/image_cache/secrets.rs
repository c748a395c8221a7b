//! Pure: an object's pull secrets, and what of them is lent to the registry: for exactly the repositories of its images.

use std::fmt;
use std::sync::Arc;

use coral_schema::admin::LentLogin;
use coral_schema::oci::docker_config::DockerConfig;
use coral_schema::oci::{Digest, ImageReference};
use k8s_openapi::api::core::v1::Secret;

use super::served::Registries;
use super::validate::ValidatedImageCache;

/// What an object's pull secrets hold, in the order of the spec.
#[derive(Debug, Clone, Default)]
pub struct PullSecrets {
    /// Those that could be read.
    pub configs: Vec<Arc<DockerConfig>>,
    /// What is the matter with the others, each in a sentence without any of their content.
    pub problems: Vec<String>,
}

/// What an object lends to the registry (`/api/v1/credentials/<source>`). Compared by its content, printed without.
#[derive(Clone)]
pub struct Lending {
    /// In whose name.
    pub source: String,
    /// In the order in which they are tried. None: nothing is lent.
    pub logins: Arc<[LentLogin]>,
    content: Digest,
}

impl Lending {
    /// Under this name.
    pub fn new(source: String, logins: Vec<LentLogin>) -> Self {
        let text = serde_json::to_vec(&logins).expect("logins are made of JSON values");
        Self {
            source,
            logins: logins.into(),
            content: Digest::sha256(&text),
        }
    }
}

impl PartialEq for Lending {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.content == other.content
    }
}

impl Eq for Lending {}

impl fmt::Debug for Lending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lending")
            .field("source", &self.source)
            .field("logins", &self.logins.len())
            .finish_non_exhaustive()
    }
}

/// Reads a Secret of type `kubernetes.io/dockerconfigjson`, or of the older `kubernetes.io/dockercfg`. The error is a
/// sentence without any of its content.
pub fn read(secret: &Secret) -> Result<DockerConfig, String> {
    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
    if let Some(text) = data(".dockerconfigjson") {
        return DockerConfig::parse(&text.0).map_err(|error| error.to_string());
    }
    if let Some(text) = data(".dockercfg") {
        let whole = [&br#"{"auths":"#[..], &text.0, &b"}"[..]].concat();
        return DockerConfig::parse(&whole).map_err(|error| error.to_string());
    }
    Err("it has neither .dockerconfigjson nor .dockercfg".to_owned())
}

/// The logins for the repositories of an object's images, where the registry serves them.
pub(super) fn logins(
    object: &ValidatedImageCache,
    secrets: &PullSecrets,
    registries: &Registries,
) -> Vec<LentLogin> {
    logins_where(object, secrets, |image| registries.serve(image))
}

/// Those for the others, which nodes need.
pub fn copies(
    object: &ValidatedImageCache,
    secrets: &PullSecrets,
    registries: &Registries,
) -> Vec<LentLogin> {
    logins_where(object, secrets, |image| !registries.serve(image))
}

/// As kubelets choose them: all that match, the most specific first.
fn logins_where(
    object: &ValidatedImageCache,
    secrets: &PullSecrets,
    is_meant: impl Fn(&ImageReference) -> bool,
) -> Vec<LentLogin> {
    let images = object.images.iter().map(|image| &image.reference);
    let mut repositories: Vec<String> = images
        .filter(|reference| is_meant(reference))
        .map(ImageReference::name)
        .collect();
    repositories.sort_unstable();
    repositories.dedup();
    let mut logins = Vec::new();
    for repository in repositories {
        let matching = secrets
            .configs
            .iter()
            .flat_map(|config| config.matching(&repository));
        let mut matching: Vec<_> = matching.collect();
        // Of equal keys the first secret's.
        matching.sort_by(|a, b| b.key.cmp(&a.key));
        logins.extend(
            matching
                .into_iter()
                .take(MOST_TRIES)
                .map(|entry| LentLogin {
                    repository: repository.clone(),
                    login: entry.login.clone(),
                }),
        );
    }
    logins
}

/// Logins for one repository: upstreams lock accounts out that try many.
const MOST_TRIES: usize = 5;

#[cfg(test)]
mod tests {
    use coral_schema::oci::docker_config::DockerLogin;
    use k8s_openapi::ByteString;

    use super::*;
    use crate::test_support::{object, registry};

    fn secret(key: &str, text: &str) -> Secret {
        Secret {
            data: Some([(key.to_owned(), ByteString(text.into()))].into()),
            ..Secret::default()
        }
    }

    fn config(keys: &[&str]) -> String {
        let auths: serde_json::Map<String, serde_json::Value> = keys
            .iter()
            .map(|key| {
                let (key, user) = key.split_once('=').unwrap();
                let login = serde_json::json!({ "username": user, "password": "hidden" });
                (key.to_owned(), login)
            })
            .collect();
        serde_json::json!({ "auths": auths }).to_string()
    }

    fn secrets(all: &[&[&str]]) -> PullSecrets {
        let configs = all.iter().map(|keys| {
            let secret = secret(".dockerconfigjson", &config(keys));
            Arc::new(read(&secret).unwrap())
        });
        PullSecrets {
            configs: configs.collect(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn l30_l34_only_the_objects_repositories_the_most_specific_login_first() {
        let object = object(
            "a",
            "sets: [{name: a, images: ['ghcr.io/team/app:1', 'ghcr.io/team/app:2', nginx, 'quay.io/x/y:1']}]",
        );
        let secrets = secrets(&[
            &[
                "ghcr.io=wide",
                "https://index.docker.io/v1/=hub",
                "quay.io=not served",
            ],
            &["ghcr.io/team=narrow", "*.io=any", "ghcr.io/other=of others"],
        ]);
        let registries = Registries::new(&[registry("docker.io"), registry("ghcr.io")]);
        let lent = logins(&object, &secrets, &registries);
        let lent: Vec<(&str, &str)> = lent
            .iter()
            .map(|login| match &login.login {
                DockerLogin::Password { username, .. } => {
                    (login.repository.as_str(), username.as_str())
                }
                _ => panic!("another login"),
            })
            .collect();
        assert_eq!(
            lent,
            [
                ("docker.io/library/nginx", "hub"),
                ("docker.io/library/nginx", "any"),
                ("ghcr.io/team/app", "narrow"),
                ("ghcr.io/team/app", "wide"),
                ("ghcr.io/team/app", "any"),
            ]
        );
        let copied = copies(&object, &secrets, &registries);
        let copied: Vec<&str> = copied.iter().map(|it| it.repository.as_str()).collect();
        assert_eq!(copied, ["quay.io/x/y", "quay.io/x/y"]);
    }

    #[test]
    fn l34_both_forms_of_secrets_are_read() {
        let old = secret(
            ".dockercfg",
            r#"{"ghcr.io":{"username":"u","password":"hidden"}}"#,
        );
        assert_eq!(read(&old).unwrap().matching("ghcr.io/a").len(), 1);
        for bad in [
            secret("password", "hidden"),
            secret(".dockerconfigjson", r#"{"auths":{"a":"hidden"}}"#),
            secret(".dockercfg", "hidden"),
            Secret::default(),
        ] {
            let error = read(&bad).unwrap_err();
            assert!(!error.is_empty() && !error.contains("hidden"), "{error}");
        }
    }

    #[test]
    fn what_is_lent_is_compared_and_not_shown() {
        let lending = |password: &str| {
            let login = DockerLogin::RegistryToken(password.into());
            let repository = "ghcr.io/a".to_owned();
            Lending::new(
                "operator/ml/a".to_owned(),
                vec![LentLogin { repository, login }],
            )
        };
        assert_eq!(lending("hidden"), lending("hidden"));
        assert_ne!(lending("hidden"), lending("other"));
        assert!(!format!("{:?}", lending("hidden")).contains("hidden"));
    }
}
