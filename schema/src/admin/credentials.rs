//! Logins that are lent to the registry: `PUT /api/v1/credentials/<source>`. They print without their secrets.

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::oci::docker_config::DockerLogin;

/// Body of `PUT /api/v1/credentials/<source>`: takes the place of what the source lent before. The registry keeps it in
/// memory only, until a time, and takes it over TLS only.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CredentialRequest {
    /// Several for one repository are tried in this order.
    pub entries: Vec<LentLogin>,
    /// Until when; a source that still wants them says so again before.
    pub expires: String,
}

/// A login, for one repository and no other.
#[derive(Debug, Clone)]
pub struct LentLogin {
    /// Host and repository, like `ghcr.io/team/app`.
    pub repository: String,
    /// What to log in with: `username` and `password`, `identityToken`, or `registryToken`.
    pub login: DockerLogin,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    repository: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_token: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registry_token: Option<Secret>,
}

struct Secret(SecretString);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.into()))
    }
}

impl Serialize for LentLogin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut raw = Raw {
            repository: self.repository.clone(),
            username: None,
            password: None,
            identity_token: None,
            registry_token: None,
        };
        match self.login.clone() {
            DockerLogin::Password { username, password } => {
                (raw.username, raw.password) = (Some(username), Some(Secret(password)));
            }
            DockerLogin::IdentityToken(token) => raw.identity_token = Some(Secret(token)),
            DockerLogin::RegistryToken(token) => raw.registry_token = Some(Secret(token)),
        }
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LentLogin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Raw {
            repository,
            username,
            password,
            identity_token,
            registry_token,
        } = Raw::deserialize(deserializer)?;
        let login = match (username, password, identity_token, registry_token) {
            (Some(username), Some(Secret(password)), None, None) => {
                DockerLogin::Password { username, password }
            }
            (None, None, Some(Secret(token)), None) => DockerLogin::IdentityToken(token),
            (None, None, None, Some(Secret(token))) => DockerLogin::RegistryToken(token),
            _ => {
                return Err(serde::de::Error::custom(
                    "an entry has username and password, identityToken, or registryToken",
                ));
            }
        };
        Ok(Self { repository, login })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_wire() {
        let text = concat!(
            r#"{"entries":[{"repository":"ghcr.io/a/b","username":"u","password":"hidden"},"#,
            r#"{"repository":"ghcr.io/a/b","identityToken":"hidden"},"#,
            r#"{"repository":"ghcr.io/a/b","registryToken":"hidden"}],"expires":"2026-01-31T12:00:00Z"}"#
        );
        let parsed: CredentialRequest = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), text);
        assert!(!format!("{parsed:?}").contains("hidden"));
    }

    #[rstest::rstest]
    #[case(r#"{"repository":"a.b/c"}"#)]
    #[case(r#"{"repository":"a.b/c","username":"u"}"#)]
    #[case(r#"{"repository":"a.b/c","password":"p","identityToken":"t"}"#)]
    #[case(r#"{"repository":"a.b/c","registryToken":"t","more":1}"#)]
    fn half_a_login_is_none(#[case] text: &str) {
        assert!(serde_json::from_str::<LentLogin>(text).is_err());
    }
}
