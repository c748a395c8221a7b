//! Pull secrets for registries that the cache does not serve, where the chart allows their copies (`warmer.pullSecrets`):
//! a Secret that the operator writes and the kubelet mounts. Read for each pull and never kept, so that a rotated one
//! counts with the next try, which comes at once. The warmer itself may read no Secret.

use std::io;
use std::path::{Path, PathBuf};

use coral_schema::admin::LentLogin;
use coral_schema::crd::node_cache::{NodeImage, NodeRegistryPolicy};
use coral_schema::crd::pull_secret_key;
use coral_schema::oci::docker_config::DockerLogin;
use coral_schema::oci::{Digest, ImageReference};

/// Logins that are tried for one pull: registries lock accounts out that try many.
const MOST_TRIES: usize = 5;

/// The folder of copies, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Credentials(Option<PathBuf>);

/// What there is to try for one image.
#[derive(Debug, Default)]
pub struct Logins {
    /// In this order.
    pub tries: Vec<DockerLogin>,
    /// Others have another one; `None` is that of no logins.
    pub mark: Option<Digest>,
}

impl Credentials {
    /// In this folder; `None`: nothing ever needs a login.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self(folder)
    }

    /// Is there such a folder?
    pub fn are_copied(&self) -> bool {
        self.0.is_some()
    }

    /// The logins for an image, in the order in which they are tried: those of the objects that want it. What comes by way
    /// of the cache needs none. Nothing is an error: without a login the registry says what is the matter.
    pub async fn of(&self, image: &NodeImage) -> Logins {
        let Some(folder) = self.0.clone() else {
            return Logins::default();
        };
        if image.registry_policy == NodeRegistryPolicy::MirrorOnly {
            return Logins::default();
        }
        let Ok(reference) = image.reference.parse::<ImageReference>() else {
            return Logins::default();
        };
        let repository = reference.name();
        let owners = image.owners.clone();
        let read = move || logins(&folder, &owners, &repository);
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }
}

fn logins(folder: &Path, owners: &[String], repository: &str) -> Logins {
    let mut keys: Vec<String> = owners.iter().filter_map(|owner| key(owner)).collect();
    keys.dedup();
    let mut found = Vec::new();
    for key in keys {
        let file = folder.join(key);
        match read(&file) {
            Ok(logins) => found.extend(logins),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, file = %file.display(), "a copied pull secret cannot be read");
            }
        }
    }
    found.retain(|login| login.repository == repository);
    found.truncate(MOST_TRIES);
    let text = serde_json::to_vec(&found).expect("logins are made of JSON values");
    Logins {
        mark: (!found.is_empty()).then(|| Digest::sha256(&text)),
        tries: found.into_iter().map(|login| login.login).collect(),
    }
}

/// The file of an owner, which stands in the spec as `namespace/name/set`.
fn key(owner: &str) -> Option<String> {
    let mut parts = owner.split('/');
    Some(pull_secret_key(parts.next()?, parts.next()?))
}

/// The error says nothing of the content.
fn read(file: &Path) -> io::Result<Vec<LentLogin>> {
    let text = std::fs::read(file)?;
    serde_json::from_slice(&text)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not a list of logins"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(policy: &str) -> NodeImage {
        serde_json::from_value(serde_json::json!({
            "ref": "quay.io/team/app:1", "registryPolicy": policy,
            "owners": ["ml/a/x", "ml/a/y", "web/b/z", "../etc/passwd"],
        }))
        .unwrap()
    }

    async fn users(folder: &Path, image: &NodeImage) -> Vec<String> {
        let credentials = Credentials::new(Some(folder.to_owned()));
        let logins = credentials.of(image).await;
        let users = logins.tries.into_iter().map(|login| match login {
            DockerLogin::Password { username, .. } => username,
            other => panic!("{other:?}"),
        });
        users.collect()
    }

    #[tokio::test]
    async fn l30_only_the_logins_of_those_who_want_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let write = |key: &str, logins: &[(&str, &str)]| {
            let logins: Vec<_> = logins
                .iter()
                .map(|(repository, user)| {
                    serde_json::json!({ "repository": repository, "username": user, "password": "hidden" })
                })
                .collect();
            std::fs::write(
                folder.path().join(key),
                serde_json::to_vec(&logins).unwrap(),
            )
            .unwrap();
        };
        write(
            "ml.a",
            &[
                ("quay.io/team/app", "narrow"),
                ("quay.io/team/app", "wide"),
                ("quay.io/team/application", "another"),
            ],
        );
        write("web.b", &[("quay.io/team/app", "web")]);
        write("web.c", &[("quay.io/team/app", "stranger")]);
        let image = image("Default");
        assert_eq!(
            users(folder.path(), &image).await,
            ["narrow", "wide", "web"]
        );
        // What the kubelet is in the middle of writing, or somebody spoilt.
        std::fs::write(folder.path().join("ml.a"), "hidden").unwrap();
        assert_eq!(users(folder.path(), &image).await, ["web"]);
    }

    #[tokio::test]
    async fn what_comes_through_the_cache_needs_no_login() {
        let folder = tempfile::tempdir().unwrap();
        let login = r#"[{"repository":"quay.io/team/app","username":"u","password":"hidden"}]"#;
        std::fs::write(folder.path().join("ml.a"), login).unwrap();
        assert_eq!(users(folder.path(), &image("Default")).await, ["u"]);
        assert!(users(folder.path(), &image("MirrorOnly")).await.is_empty());
        let nowhere = Credentials::default();
        assert!(nowhere.of(&image("Default")).await.tries.is_empty());
    }
}
