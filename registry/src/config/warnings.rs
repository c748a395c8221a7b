//! What is valid, but may not be what the administrator wants. Pure.

use coral_schema::mirror_config::HostPort;

use super::{AdminConfig, Config};
use crate::upstream::{UpstreamConfig, VisibilityMode};

/// Sentences for the log.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let is_open = !config.listen.ip().is_loopback();
    if config.address.is_none() && config.listen.ip().is_unspecified() {
        warnings.push(format!(
            "address is not set, so mirror settings and redirects name {}; set it to what clients can reach",
            HostPort::from(config.listen)
        ));
    }
    warnings.extend(admin_warning(&config.admin));
    if config.anonymous_push && !config.hosted.is_empty() {
        warnings.push(
            "anonymousPush is true: whoever reaches this registry can push to its hosted repositories, and delete from them"
                .to_owned(),
        );
    }
    if !config.anonymous_push && !config.hosted.is_empty() {
        warnings.push(
            "hosted names repositories, but nobody can push to them: there are no users, and anonymousPush is false"
                .to_owned(),
        );
    }
    for upstream in &config.upstreams {
        warnings.extend(upstream_warnings(upstream, is_open));
    }
    warnings
}

fn admin_warning(admin: &AdminConfig) -> Option<String> {
    let AdminConfig {
        listen, tls, auth, ..
    } = admin;
    match (auth, tls) {
        _ if listen.ip().is_loopback() => None,
        (None, _) => Some(format!(
            "admin.listen is {listen}: whoever reaches it can delete images and start downloads; see admin.auth"
        )),
        (Some(_), None) => Some(format!(
            "admin.listen is {listen} without admin.tls: anybody on the way can read the tokens that admin.auth asks for"
        )),
        (Some(_), Some(_)) => None,
    }
}

fn upstream_warnings(upstream: &UpstreamConfig, is_open: bool) -> Vec<String> {
    let name = &upstream.name;
    let has_login = !upstream.credentials.is_empty();
    let mut warnings = Vec::new();
    match upstream.policy.visibility {
        VisibilityMode::Shared if is_open => warnings.push(format!(
            "upstreams.\"{name}\".visibility is shared: whoever reaches this cache can read what its credentials can"
        )),
        VisibilityMode::Public if has_login => warnings.push(format!(
            "upstreams.\"{name}\".visibility is public: everybody can read what its credentials can, private images too"
        )),
        VisibilityMode::Auto | VisibilityMode::Public | VisibilityMode::Shared => {}
    }
    if upstream.tls.insecure_skip_verify {
        warnings.push(format!(
            "upstreams.\"{name}\".tls.insecureSkipVerify is true: anybody on the way can read its credentials and move its tags"
        ));
    }
    if has_login && upstream.endpoints.iter().any(|url| url.scheme() == "http") {
        warnings.push(format!(
            "upstreams.\"{name}\" sends its credentials over plain HTTP: anybody on the way can read them"
        ));
    }
    warnings
}
