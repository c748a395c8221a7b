//! Pull secrets for registries that the cache does not serve, where the chart allows their copies (`warmer.pullSecrets`):
//! a Secret that the operator writes and the kubelet mounts. Read for each pull and never kept, so that a rotated one
//! counts with the next try. The warmer itself may read no Secret.

use std::io;
use std::path::{Path, PathBuf};

use coral_schema::admin::LentLogin;
use coral_schema::crd::node_cache::{NodeImage, NodeRegistryPolicy};
use coral_schema::crd::pull_secret_key;
use coral_schema::oci::ImageReference;
use coral_schema::oci::docker_config::DockerLogin;

/// Logins that are tried for one pull: registries lock accounts out that try many.
const MOST_TRIES: usize = 5;

/// The folder of copies, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Credentials(Option<PathBuf>);

impl Credentials {
    /// In this folder; `None`: nothing ever needs a login.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self(folder)
    }

    /// The logins for an image, in the order in which they are tried: those of the objects that want it. What comes by way
    /// of the cache needs none. Nothing is an error: without a login the registry says what is the matter.
    pub async fn of(&self, image: &NodeImage) -> Vec<DockerLogin> {
        let Some(folder) = self.0.clone() else {
            return Vec::new();
        };
        if image.registry_policy == NodeRegistryPolicy::MirrorOnly {
            return Vec::new();
        }
        let Ok(reference) = image.reference.parse::<ImageReference>() else {
            return Vec::new();
        };
        let repository = reference.name();
        let owners = image.owners.clone();
        let read = move || logins(&folder, &owners, &repository);
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }
}

fn logins(folder: &Path, owners: &[String], repository: &str) -> Vec<DockerLogin> {
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
    let mine = found
        .into_iter()
        .filter(|login| login.repository == repository);
    mine.map(|login| login.login).take(MOST_TRIES).collect()
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
        let users = logins.into_iter().map(|login| match login {
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
        assert!(nowhere.of(&image("Default")).await.is_empty());
    }
}
