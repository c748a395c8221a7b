//! Credentials in Docker's `config.json` form, matched as the kubelet does.
//!
//! Keys are hosts with an optional port and path prefix; parts of a host may hold `*` and `?`. The most specific key
//! stands first. `credsStore` and `credHelpers` name commands to run and are ignored: nothing here runs anything.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer};

use super::reference::DOCKER_HUB;

/// A parsed file. Prints without its secrets.
#[derive(Debug, Clone, Default)]
pub struct DockerConfig {
    /// In descending order of their keys, so that a longer path stands before its prefix, and `*` last.
    entries: Vec<DockerEntry>,
}

/// One entry of `auths`.
#[derive(Debug, Clone)]
pub struct DockerEntry {
    /// Host, port and path prefix, without scheme and API version.
    pub key: String,
    /// What to log in with.
    pub login: DockerLogin,
}

/// What an entry offers. An identity token wins over a password, a registry token over both.
#[derive(Clone)]
pub enum DockerLogin {
    /// `auth`, or `username` and `password`.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: SecretString,
    },
    /// `identitytoken`: an `OAuth2` refresh token for the registry's token service.
    IdentityToken(SecretString),
    /// `registrytoken`: a bearer token that is sent as it is.
    RegistryToken(SecretString),
}

impl fmt::Debug for DockerLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::IdentityToken(_) => "IdentityToken",
            Self::RegistryToken(_) => "RegistryToken",
        })
    }
}

/// Why a file cannot be used. Never quotes the file: it holds secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    /// Not JSON of that form.
    #[error("line {line}, column {column}: this is not JSON in the form of Docker's config.json")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// `auth` does not decode.
    #[error("the entry for {key}: auth is not the base64 form of user:password")]
    Auth {
        /// The entry's key.
        key: String,
    },
}

impl DockerConfig {
    /// Reads a file.
    pub fn parse(text: &[u8]) -> Result<Self, DockerConfigError> {
        let raw: Raw = serde_json::from_slice(text).map_err(|error| DockerConfigError::Json {
            line: error.line(),
            column: error.column(),
        })?;
        let mut entries = Vec::new();
        for (key, auth) in raw.auths {
            let key = normalise(&key);
            match auth.login() {
                Ok(Some(login)) => entries.push(DockerEntry { key, login }),
                Ok(None) => {}
                Err(NotBase64) => return Err(DockerConfigError::Auth { key }),
            }
        }
        entries.sort_by(|a, b| b.key.cmp(&a.key));
        Ok(Self { entries })
    }

    /// The entries for an image, most specific first. `image` is a host, with its port if it has one, a slash and a
    /// repository. Keys of Docker Hub under its other names count when none matches literally.
    pub fn matching(&self, image: &str) -> Vec<&DockerEntry> {
        let matching = |image: &str| -> Vec<&DockerEntry> {
            self.entries
                .iter()
                .filter(|entry| covers(&entry.key, image))
                .collect()
        };
        let found = matching(image);
        match image.split_once('/') {
            Some((DOCKER_HUB, rest)) if found.is_empty() => {
                ["index.docker.io", "registry-1.docker.io"]
                    .iter()
                    .flat_map(|host| matching(&format!("{host}/{rest}")))
                    .collect()
            }
            _ => found,
        }
    }
}

/// `https://index.docker.io/v1/` is `index.docker.io`: without scheme, login, API version and default port.
fn normalise(key: &str) -> String {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let host = host
        .strip_suffix(":443")
        .unwrap_or(host)
        .to_ascii_lowercase();
    let path = match path.split_once('/') {
        Some(("v1" | "v2", rest)) => rest,
        _ => path,
    };
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        host
    } else {
        format!("{host}/{path}")
    }
}

/// Does a key cover an image? The path is a plain prefix, as in the kubelet.
fn covers(key: &str, image: &str) -> bool {
    let split = |text: &str| -> (String, String, String) {
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        (host.to_owned(), port.to_owned(), path.to_owned())
    };
    let ((key_host, key_port, key_path), (host, port, path)) = (split(key), split(image));
    let same_number_of_parts = key_host.split('.').count() == host.split('.').count();
    key_port == port
        && path.starts_with(&key_path)
        && same_number_of_parts
        && key_host
            .split('.')
            .zip(host.split('.'))
            .all(|(pattern, part)| glob(pattern.as_bytes(), part.as_bytes()))
}

/// `*` is any run of characters, `?` any one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on after the last star took one character more; linear in practice, no recursion.
    let (mut at, mut position, mut retry) = (0, 0, None);
    while position < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at + 1, position));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[position] => {
                at += 1;
                position += 1;
            }
            _ => match retry {
                Some((after_star, taken)) => {
                    at = after_star;
                    position = taken + 1;
                    retry = Some((after_star, taken + 1));
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    auths: BTreeMap<String, RawAuth>,
}

#[derive(Deserialize)]
struct RawAuth {
    #[serde(default, deserialize_with = "secret")]
    auth: Option<SecretString>,
    username: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    password: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    identitytoken: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    registrytoken: Option<SecretString>,
}

/// An empty text is no secret.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()).map(SecretString::from))
}

struct NotBase64;

impl RawAuth {
    /// `None` for an entry without credentials, as `docker login` leaves behind when a helper keeps them.
    fn login(self) -> Result<Option<DockerLogin>, NotBase64> {
        if let Some(token) = self.registrytoken {
            return Ok(Some(DockerLogin::RegistryToken(token)));
        }
        if let Some(token) = self.identitytoken {
            return Ok(Some(DockerLogin::IdentityToken(token)));
        }
        if let Some(auth) = self.auth {
            return decode(auth.expose_secret()).map(Some);
        }
        Ok(match (self.username, self.password) {
            (Some(username), Some(password)) => Some(DockerLogin::Password { username, password }),
            _ => None,
        })
    }
}

fn decode(auth: &str) -> Result<DockerLogin, NotBase64> {
    let bytes = STANDARD.decode(auth.trim()).map_err(|_| NotBase64)?;
    let text = SecretString::from(String::from_utf8(bytes).map_err(|_| NotBase64)?);
    let (username, password) = text.expose_secret().split_once(':').ok_or(NotBase64)?;
    Ok(DockerLogin::Password {
        username: username.to_owned(),
        // Docker pads its field with NUL bytes.
        password: password.trim_end_matches('\0').into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(keys: &[&str]) -> DockerConfig {
        let auths: BTreeMap<&str, _> = keys
            .iter()
            .map(|key| {
                (
                    *key,
                    serde_json::json!({"username": key, "password": "hidden"}),
                )
            })
            .collect();
        DockerConfig::parse(&serde_json::to_vec(&serde_json::json!({ "auths": auths })).unwrap())
            .unwrap()
    }

    fn keys<'a>(config: &'a DockerConfig, image: &str) -> Vec<&'a str> {
        config
            .matching(image)
            .into_iter()
            .map(|entry| entry.key.as_str())
            .collect()
    }

    #[rstest::rstest]
    #[case("https://index.docker.io/v1/", "docker.io/library/nginx", true)]
    #[case("docker.io", "docker.io/library/nginx", true)]
    #[case("index.docker.io", "ghcr.io/library/nginx", false)]
    #[case("https://ghcr.io", "ghcr.io/a/b", true)]
    #[case("https://GHCR.io:443/v2/", "ghcr.io/a/b", true)]
    #[case("ghcr.io/a", "ghcr.io/a/b", true)]
    #[case("ghcr.io/a", "ghcr.io/c/b", false)]
    #[case("registry.internal:5000", "registry.internal:5000/a", true)]
    #[case("registry.internal", "registry.internal:5000/a", false)]
    #[case(
        "*.dkr.ecr.*.amazonaws.com",
        "1.dkr.ecr.eu-west-1.amazonaws.com/a",
        true
    )]
    #[case("*.example", "a.b.example/x", false)]
    #[case("r?g*y.example", "registry.example/x", true)]
    #[case("r*s.example", "registry.example/x", false)]
    fn matches_as_the_kubelet_does(#[case] key: &str, #[case] image: &str, #[case] expected: bool) {
        assert_eq!(keys(&config(&[key]), image).len() == 1, expected);
    }

    #[test]
    fn the_most_specific_stands_first() {
        let config = config(&[
            "*.example",
            "r.example/team/app",
            "r.example",
            "r.example/team",
        ]);
        assert_eq!(
            keys(&config, "r.example/team/app"),
            [
                "r.example/team/app",
                "r.example/team",
                "r.example",
                "*.example"
            ]
        );
    }

    #[test]
    fn reads_every_kind_of_login() {
        let text = format!(
            r#"{{"credsStore":"x","auths":{{"a":{{"auth":"{}"}},"b":{{"identitytoken":"i","auth":"eDo="}},
                "c":{{"registrytoken":"r"}},"d":{{}}}}}}"#,
            STANDARD.encode("user:pass:word")
        );
        let config = DockerConfig::parse(text.as_bytes()).unwrap();
        let login = |host: &str| {
            config
                .matching(&format!("{host}/x"))
                .first()
                .map(|entry| entry.login.clone())
        };
        assert!(
            matches!(login("a"), Some(DockerLogin::Password { username, password })
            if username == "user" && password.expose_secret() == "pass:word")
        );
        assert!(
            matches!(login("b"), Some(DockerLogin::IdentityToken(token)) if token.expose_secret() == "i")
        );
        assert!(matches!(login("c"), Some(DockerLogin::RegistryToken(_))));
        assert!(login("d").is_none());
    }

    #[rstest::rstest]
    #[case(r#"{"auths":{"a":{"auth":7,"password":"hidden"}}}"#)]
    #[case(r#"{"auths":{"a":"hidden"}}"#)]
    #[case(r#"{"auths":{"https://u:hidden@a":{"auth":"hidden"}}}"#)]
    #[case("hidden")]
    fn errors_quote_nothing(#[case] text: &str) {
        let error = DockerConfig::parse(text.as_bytes()).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hidden"), "{error}");
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", config(&["a"])).contains("hidden"));
    }
}
