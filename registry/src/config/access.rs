//! Who may log in, and what whom is allowed.

use coral_schema::oci::RepositoryName;
use coral_schema::oci::reference::looks_like_host;
use url::Url;

use super::item::Item;
use super::policy::{pattern, repository_pattern};
use super::section::Section;
use super::settings::meant;
use super::upstream::upstream_name;
use super::value;
use crate::access::{HostedConfig, Repositories, Rule, Subject, UsersConfig, Verb, Who};
use crate::upstream::UpstreamConfig;

/// Reads `users`.
pub(super) fn users(section: &mut Section<'_>) -> Option<UsersConfig> {
    let item = section.take("users").filter(|item| !item.is_off())?;
    let mut section = item.section();
    let htpasswd = section.take("htpasswd").map(|item| item.file());
    let tokens = section.take("tokens").map(|item| item.file());
    let realm = section.value("realm", realm);
    if htpasswd.is_none() && tokens.is_none() {
        section.wrong("nobody can log in; write htpasswd, tokens, or both");
    }
    section.finish();
    Some(UsersConfig {
        htpasswd: htpasswd.flatten(),
        tokens: tokens.flatten(),
        realm,
    })
}

fn realm(text: &str) -> Result<Url, String> {
    let malformed = "is not where clients get tokens; write it like https://registry.example/token";
    let url = Url::parse(text).map_err(|_| malformed)?;
    let is_plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    let is_web = ["http", "https"].contains(&url.scheme()) && url.has_host();
    if is_plain && is_web && url.path() == "/token" {
        Ok(url)
    } else {
        Err(malformed.to_owned())
    }
}

/// Reads `access`. Rules name users, hosted repositories and upstreams that can be meant.
pub(super) fn access(
    section: &mut Section<'_>,
    users: Option<&UsersConfig>,
    hosted: &[HostedConfig],
    upstreams: &[UpstreamConfig],
) -> Vec<Rule> {
    let known = Known {
        users,
        hosted,
        upstreams,
    };
    let items = section.list("access").into_iter();
    items.map(|item| known.rule(&item)).collect()
}

struct Known<'a> {
    users: Option<&'a UsersConfig>,
    hosted: &'a [HostedConfig],
    upstreams: &'a [UpstreamConfig],
}

impl Known<'_> {
    fn rule(&self, item: &Item<'_>) -> Rule {
        let mut section = item.section();
        let subjects = words(&mut section, "subjects", |text| self.who(text));
        let repositories = words(&mut section, "repositories", |text| self.repositories(text));
        let verbs = words(&mut section, "verbs", value::word(&VERBS));
        let rule = Rule {
            subjects,
            repositories,
            verbs,
        };
        if rule.repositories.iter().any(|some| some.upstream.is_some()) {
            if rule.verbs.iter().any(|verb| *verb != Verb::Pull) {
                section.wrong("repositories of upstreams are only pulled; write a rule of its own with verbs: [pull]");
            }
            if rule.subjects.contains(&Who::Everybody) {
                section.wrong(
                    "what only the credentials of this cache can read upstream is not for anonymous; name who may, or see \
                     visibility of the upstream",
                );
            }
        }
        section.finish();
        rule
    }

    fn who(&self, text: &str) -> Result<Who, String> {
        let has = |named: fn(&UsersConfig) -> bool| self.users.is_some_and(named);
        match text {
            "anonymous" => return Ok(Who::Everybody),
            "authenticated" if self.users.is_some() => return Ok(Who::Authenticated),
            "authenticated" => return Err("means nobody; write users, too".to_owned()),
            _ => {}
        }
        let subject = text.parse().map_err(|_| {
            "is nobody; write user:NAME, token:NAME, authenticated or anonymous".to_owned()
        })?;
        match &subject {
            Subject::User(_) if !has(|users| users.htpasswd.is_some()) => {
                Err("means nobody; write users.htpasswd, too".to_owned())
            }
            Subject::Token(_) if !has(|users| users.tokens.is_some()) => {
                Err("means nobody; write users.tokens, too".to_owned())
            }
            _ => Ok(Who::One(subject)),
        }
    }

    fn repositories(&self, text: &str) -> Result<Repositories, String> {
        match text.split_once('/') {
            Some((host, rest)) if looks_like_host(host) => {
                let name = upstream_name(host)?;
                let unknown = "begins with a host that is none of the upstreams; name it under upstreams, too";
                let upstream = meant(self.upstreams, &name).ok_or(unknown)?;
                Ok(Repositories {
                    pattern: repository_pattern(&upstream, rest)?,
                    upstream: Some(upstream),
                })
            }
            _ => {
                let pattern = pattern(text)?;
                if !self
                    .hosted
                    .iter()
                    .any(|hosted| may_be_below(text, &hosted.prefix))
                {
                    return Err(
                        "matches nothing: no prefix under hosted begins like this".to_owned()
                    );
                }
                Ok(Repositories {
                    pattern,
                    upstream: None,
                })
            }
        }
    }
}

/// Can a pattern match something at or below `prefix`? As far as its components are plain words.
fn may_be_below(pattern: &str, prefix: &RepositoryName) -> bool {
    let mut words = pattern.split('/').zip(prefix.components());
    words.all(|(word, component)| word == component || word.contains(['*', '?']))
        && (pattern.ends_with("**") || pattern.split('/').count() >= prefix.components().count())
}

/// A list of words that must not be empty.
fn words<T>(
    section: &mut Section<'_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let items = section.list(key);
    if items.is_empty() {
        section.wrong(format!("{key} is missing, so the rule allows nothing"));
    }
    let words = items.iter().filter_map(|item| item.value(&parse));
    words.collect()
}

const VERBS: [(&str, Verb); 3] = [
    ("pull", Verb::Pull),
    ("push", Verb::Push),
    ("delete", Verb::Delete),
];

#[cfg(test)]
mod tests;
