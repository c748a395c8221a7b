//! `GET /api/v1/mirror-config?runtime=containerd|crio|docker[&upstream=]`: text for a node, ready to paste.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::{Query, State};
use coral_schema::mirror_config::{Cache, Registry, containerd, crio, docker};
use coral_schema::oci::reference::DOCKER_HUB;
use http::StatusCode;
use serde::Deserialize;

use super::{Admin, Refusal};

/// What nodes need to know.
#[derive(Debug, Clone)]
pub struct Mirrors {
    /// How they reach us.
    pub cache: Cache,
    /// What we stand in front of.
    pub registries: Vec<Registry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    runtime: Option<String>,
    upstream: Option<String>,
}

pub(super) async fn mirror_config(
    State(admin): State<Arc<Admin>>,
    Query(parameters): Query<Parameters>,
) -> Result<String, Refusal> {
    text(&(admin.mirrors)(), &parameters)
}

fn text(mirrors: &Mirrors, parameters: &Parameters) -> Result<String, Refusal> {
    let registries = match &parameters.upstream {
        Some(upstream) => vec![find(&mirrors.registries, upstream)?.clone()],
        None => mirrors.registries.clone(),
    };
    let files = match parameters.runtime.as_deref() {
        Some("containerd") => containerd(&mirrors.cache, &registries),
        Some("crio") => vec![crio(&mirrors.cache, &registries)],
        Some("docker")
            if registries
                .iter()
                .any(|up| up.host.to_string() == DOCKER_HUB) =>
        {
            vec![docker(&mirrors.cache)]
        }
        Some("docker") => {
            return Err(Refusal::bad_request(
                "Docker's daemon mirrors Docker Hub only; pull from other registries by the name of this cache",
            ));
        }
        _ => {
            return Err(Refusal::bad_request(
                "say for which runtime: ?runtime=containerd, ?runtime=crio or ?runtime=docker",
            ));
        }
    };
    let mut text = String::new();
    for file in files {
        if !text.is_empty() {
            text.push('\n');
        }
        write!(text, "{file}").expect("writing to a String does not fail");
    }
    Ok(text)
}

fn find<'a>(registries: &'a [Registry], upstream: &str) -> Result<&'a Registry, Refusal> {
    let named = |name: &coral_schema::mirror_config::HostPort| {
        name.to_string().eq_ignore_ascii_case(upstream)
    };
    registries
        .iter()
        .find(|registry| named(&registry.host) || registry.aliases.iter().any(named))
        .ok_or_else(|| {
            let error = format!("{upstream} is not a configured upstream of this cache");
            Refusal::new(StatusCode::NOT_FOUND, error)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(runtime: Option<&str>, upstream: Option<&str>) -> Result<String, StatusCode> {
        let registry = |host: &str, aliases: &[&str]| Registry {
            host: host.parse().unwrap(),
            aliases: aliases.iter().map(|alias| alias.parse().unwrap()).collect(),
            plain_http: false,
        };
        let mirrors = Mirrors {
            cache: Cache {
                address: "cache.example:5000".parse().unwrap(),
                tls: false,
            },
            registries: vec![
                registry("docker.io", &[]),
                registry("registry.internal:5000", &["internal.example"]),
            ],
        };
        let parameters = Parameters {
            runtime: runtime.map(str::to_owned),
            upstream: upstream.map(str::to_owned),
        };
        text(&mirrors, &parameters).map_err(|refusal| refusal.status)
    }

    #[test]
    fn every_runtime_has_a_text() {
        for runtime in ["containerd", "crio", "docker"] {
            let text = ask(Some(runtime), None).unwrap();
            assert!(text.contains("cache.example:5000"), "{text}");
        }
        let all = ask(Some("containerd"), None).unwrap();
        assert!(
            all.contains("certs.d/docker.io/") && all.contains("certs.d/registry.internal:5000/")
        );
        let one = ask(Some("containerd"), Some("internal.example")).unwrap();
        assert!(!one.contains("docker.io"), "{one}");
    }

    #[rstest::rstest]
    #[case(None, None, StatusCode::BAD_REQUEST)]
    #[case(Some("podman"), None, StatusCode::BAD_REQUEST)]
    #[case(Some("docker"), Some("internal.example"), StatusCode::BAD_REQUEST)]
    #[case(Some("crio"), Some("evil.example"), StatusCode::NOT_FOUND)]
    fn refusals(
        #[case] runtime: Option<&str>,
        #[case] upstream: Option<&str>,
        #[case] status: StatusCode,
    ) {
        assert_eq!(ask(runtime, upstream), Err(status));
    }
}
