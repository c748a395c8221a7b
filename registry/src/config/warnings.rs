//! What is valid, but may not be what the administrator wants. Pure.

use std::time::Duration;

use coral_schema::mirror_config::HostPort;

use super::{AdminConfig, Config};
use crate::access::Rule;
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
    warnings.extend(access_warnings(config, is_open));
    for upstream in &config.upstreams {
        warnings.extend(upstream_warnings(upstream, is_open));
    }
    warnings
}

fn access_warnings(config: &Config, is_open: bool) -> Vec<String> {
    let is_hosting = !config.hosted.is_empty();
    let needs_login = config.access.iter().any(Rule::needs_login);
    let realm = config.users.as_ref().and_then(|users| users.realm.as_ref());
    let is_encrypted = config.tls.is_some() || realm.is_some_and(|realm| realm.scheme() == "https");
    let found = [
        (
            config.anonymous_push && is_hosting,
            "anonymousPush is true: whoever reaches this registry can push to its hosted repositories, and delete from them",
        ),
        (
            !config.anonymous_push && is_hosting && config.access.is_empty(),
            "hosted names repositories, but nobody can use them: access has no rules, and anonymousPush is false",
        ),
        (
            config.users.is_some() && !needs_login,
            "users can log in, but none of the rules under access is about them",
        ),
        (
            config.users.is_some() && is_open && !is_encrypted,
            "users log in over plain HTTP: anybody on the way can read their passwords; see tls, or users.realm behind a proxy",
        ),
        (
            config.gc.grace < LEAST_GRACE && is_hosting,
            "gc.grace is less than an hour: what a client has seen may be gone when its push comes to the manifest",
        ),
    ];
    let found = found.into_iter().filter(|(holds, _)| *holds);
    found.map(|(_, sentence)| sentence.to_owned()).collect()
}

/// Large images are pushed in less.
const LEAST_GRACE: Duration = Duration::from_hours(1);

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
