//! One upstream: where it is, as whom we come, how much we ask, how long we wait.

use std::time::Duration;

use coral_schema::oci::RepositoryName;
use coral_schema::oci::reference::DOCKER_HUB;
use coral_schema::redacted::RedactedUrl;
use url::Url;

use super::item::Item;
use super::names::Claims;
use super::section::Section;
use super::{policy, value};
use crate::name::UpstreamName;
use crate::upstream::{
    CredentialRule, CredentialSource, Limits, Timeouts, TlsConfig, UpstreamConfig,
};

/// Reads the section of the upstream `name`; an empty section gives the defaults. What has to be compared with other
/// upstreams is noted in `claims`.
pub(super) fn upstream<'t>(
    name: UpstreamName,
    mut section: Section<'t>,
    claims: &mut Claims<'t>,
) -> UpstreamConfig {
    let plain_http = section.flag("plainHttp");
    let config = UpstreamConfig {
        aliases: aliases(&name, &mut section, claims),
        endpoints: endpoints(&name, plain_http, &mut section, claims),
        token_realms: token_realms(&name, &mut section),
        credentials: credentials(&mut section),
        policy: policy::policy(&name, &mut section),
        limits: limits(section.section("limits")),
        timeouts: timeouts(section.section("timeouts")),
        tls: tls(section.section("tls")),
        proxy: section.value("proxy", value::proxy).map(RedactedUrl::new),
        http2: section.flag("http2"),
        plain_http,
        name,
    };
    section.finish();
    config
}

fn aliases<'t>(
    name: &UpstreamName,
    section: &mut Section<'t>,
    claims: &mut Claims<'t>,
) -> Vec<UpstreamName> {
    let mut aliases = Vec::new();
    for item in section.list("aliases") {
        let Some(alias) = item.value(upstream_name) else {
            continue;
        };
        claims.alias(name, &alias, item);
        aliases.push(alias);
    }
    aliases
}

/// A name by which clients can mean an upstream: in `ns`, and as the first component of a path.
pub(super) fn upstream_name(text: &str) -> Result<UpstreamName, String> {
    if text.contains("://") {
        return Err("is a URL; write the host alone, with its port if that is not 443".to_owned());
    }
    let name: UpstreamName = text
        .parse()
        .map_err(|error| format!("is not a registry's host; {error}"))?;
    if !coral_schema::oci::reference::looks_like_host(name.as_str()) {
        return Err(
            "would be taken for a repository; write a host with a dot or a port, like registry.internal"
                .to_owned(),
        );
    }
    Ok(name)
}

fn endpoints<'t>(
    name: &UpstreamName,
    plain_http: bool,
    section: &mut Section<'t>,
    claims: &mut Claims<'t>,
) -> Vec<Url> {
    let Some(list) = section.take("endpoints") else {
        return default_endpoint(name, plain_http).into_iter().collect();
    };
    let items = list.list();
    if items.is_empty() {
        list.wrong(format!(
            "an upstream has at least one endpoint; leave the key out for https://{name}"
        ));
    }
    let mut urls: Vec<Url> = Vec::new();
    for item in items {
        let Some(url) = item.value(value::endpoint(plain_http)) else {
            continue;
        };
        if urls.contains(&url) {
            item.wrong_value("stands here twice; remove one");
        }
        claims.endpoint(&url, item);
        urls.push(url);
    }
    urls
}

/// Docker Hub's API has another host than its images' names.
fn default_endpoint(name: &UpstreamName, plain_http: bool) -> Option<Url> {
    let scheme = if plain_http { "http" } else { "https" };
    let host = match name.as_str() {
        DOCKER_HUB => "registry-1.docker.io",
        other => other,
    };
    Url::parse(&format!("{scheme}://{host}")).ok()
}

/// Docker Hub's token service; it is not on the endpoint's own host.
const DOCKER_HUB_REALM: &str = "auth.docker.io";

fn token_realms(name: &UpstreamName, section: &mut Section<'_>) -> Vec<String> {
    let mut realms: Vec<String> = Vec::new();
    for item in section.list("tokenRealms") {
        let realm = item.value(value::host_port).map(|realm| realm.to_string());
        realms.extend(realm.filter(|realm| !realms.contains(realm)));
    }
    if name.as_str() == DOCKER_HUB && !realms.iter().any(|realm| realm == DOCKER_HUB_REALM) {
        realms.push(DOCKER_HUB_REALM.to_owned());
    }
    realms
}

fn credentials(section: &mut Section<'_>) -> Vec<CredentialRule> {
    let mut rules: Vec<CredentialRule> = Vec::new();
    for item in section.list("credentials") {
        let mut section = item.section();
        let prefix = section.value("prefix", prefix).unwrap_or_default();
        let source = credential_source(&mut section);
        if rules.iter().any(|rule| rule.prefix == prefix) {
            item.wrong("an earlier credential has the same prefix; remove one");
        }
        section.finish();
        rules.extend(source.map(|source| CredentialRule { prefix, source }));
    }
    rules
}

/// Whole components; empty for all.
fn prefix(text: &str) -> Result<String, String> {
    if text.is_empty() || text.parse::<RepositoryName>().is_ok() {
        return Ok(text.to_owned());
    }
    Err(
        "is not a repository prefix; write whole components like team or team/app, or \"\" for all"
            .to_owned(),
    )
}

fn credential_source(section: &mut Section<'_>) -> Option<CredentialSource> {
    let username = section.take("username");
    let password_file = section.take("passwordFile");
    let docker_config = section.take("dockerConfig");
    let token_file = section.take("tokenFile");
    let helper = section.take("helper");
    if let Some(helper) = helper {
        helper
            .wrong("not supported yet; write username and passwordFile, dockerConfig or tokenFile");
        return None;
    }
    match (username, password_file, docker_config, token_file) {
        (Some(username), Some(password_file), None, None) => {
            let username = username.value(user_name);
            let password_file = password_file.file();
            Some(CredentialSource::Password {
                username: username?,
                password_file: password_file?,
            })
        }
        (None, None, Some(file), None) => file.file().map(CredentialSource::DockerConfig),
        (None, None, None, Some(file)) => file.file().map(CredentialSource::TokenFile),
        (Some(_), None, None, None) => {
            section.wrong(
                "username stands without passwordFile; name the file that holds the password",
            );
            None
        }
        (None, Some(_), None, None) => {
            section.wrong("passwordFile stands without username; add it");
            None
        }
        (None, None, None, None) => {
            section.wrong(
                "a credential comes from username and passwordFile, dockerConfig or tokenFile; add one of them",
            );
            None
        }
        _ => {
            section.wrong(
                "a credential has one source; keep username and passwordFile, dockerConfig or tokenFile",
            );
            None
        }
    }
}

/// RFC 7617, section 2: a user name has no colon.
fn user_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|letter: char| letter == ':' || letter.is_control()) {
        return Err("is not a user name; it has at least one character and no colon".to_owned());
    }
    Ok(text.to_owned())
}

fn limits(mut section: Section<'_>) -> Limits {
    let limits = Limits {
        concurrent_transfers: section
            .value("concurrentTransfers", value::number(1..=100_000))
            .map_or(64, |number| number as usize),
        requests_per_minute: section
            .value(
                "requestsPerMinute",
                value::or_none(value::number(1..=10_000_000)),
            )
            .flatten(),
        bandwidth: section
            .value("bandwidth", value::or_none(value::size(16 << 10..=1 << 50)))
            .flatten(),
        reserve: section.value("reserve", percent).unwrap_or(20),
    };
    section.finish();
    limits
}

fn percent(text: &str) -> Result<u8, String> {
    text.strip_suffix('%')
        .unwrap_or(text)
        .parse()
        .ok()
        .filter(|percent| *percent <= 100)
        .ok_or_else(|| "is not a percentage; write a whole number from 0 to 100".to_owned())
}

/// Nothing that a client waits for may take longer: clients give up after 30 s without an answer.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A transfer that crawls for longer is of no use to anybody.
const LONGEST_STALL: Duration = Duration::from_mins(10);

fn timeouts(mut section: Section<'_>) -> Timeouts {
    let mut wait = |key, most, default| {
        section
            .value(key, value::wait(most))
            .unwrap_or(Duration::from_secs(default))
    };
    let (connect, headers) = (
        wait("connect", LONGEST_WAIT, 3),
        wait("headers", LONGEST_WAIT, 10),
    );
    let (tag_check, stall) = (
        wait("tagCheck", LONGEST_WAIT, 2),
        wait("stall", LONGEST_STALL, 30),
    );
    let min_rate = section
        .value("minRate", value::size(1..=1 << 40))
        .unwrap_or(16 << 10);
    section.finish();
    Timeouts {
        connect,
        headers,
        tag_check,
        stall,
        min_rate,
    }
}

fn tls(mut section: Section<'_>) -> TlsConfig {
    let ca = section.take("ca").and_then(|item: Item<'_>| item.file());
    let client = section.file_pair("clientCertificate", "clientKey");
    let insecure_skip_verify = section.flag("insecureSkipVerify");
    section.finish();
    TlsConfig {
        ca,
        client,
        insecure_skip_verify,
    }
}
