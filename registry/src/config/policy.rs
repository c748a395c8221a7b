//! How an upstream's content is treated: which repositories, how fresh the tags, who may read.

use std::time::Duration;

use coral_schema::oci::reference::DOCKER_HUB;

use super::item::Item;
use super::section::Section;
use super::value;
use crate::name::UpstreamName;
use crate::upstream::{Glob, OnMissing, Policy, RepositoryPattern, TagRule, VisibilityMode};

/// Reads the policy keys of the upstream `name`.
pub(super) fn policy(name: &UpstreamName, section: &mut Section<'_>) -> Policy {
    let allow = patterns(name, section.list("allow"));
    let deny = patterns(name, section.list("deny"));
    contradictions(&allow, &deny);
    let repositories =
        |patterns: Vec<Pattern<'_>>| patterns.into_iter().map(|p| p.compiled).collect();
    Policy {
        allow: repositories(allow),
        deny: repositories(deny),
        tags: tags(section.take("tags").as_ref()),
        stale_if_error: section
            .value("staleIfError", value::duration)
            .unwrap_or(Duration::from_hours(720)),
        on_missing: section
            .value(
                "onUpstreamMissing",
                value::word(&[("serve", OnMissing::Serve), ("refuse", OnMissing::Refuse)]),
            )
            .unwrap_or(OnMissing::Serve),
        revoke_grace: section
            .value("revokeGrace", value::duration)
            .unwrap_or(Duration::from_hours(1)),
        visibility: visibility(section),
    }
}

fn visibility(section: &mut Section<'_>) -> VisibilityMode {
    let words = value::word(&[
        ("auto", VisibilityMode::Auto),
        ("public", VisibilityMode::Public),
        ("shared", VisibilityMode::Shared),
    ]);
    let parse = |text: &str| match text {
        "verify" => Err("is not supported yet; write auto, public or shared".to_owned()),
        other => words(other),
    };
    section
        .value("visibility", parse)
        .unwrap_or(VisibilityMode::Auto)
}

/// A pattern with the place where it stands.
struct Pattern<'t> {
    item: Item<'t>,
    text: String,
    compiled: RepositoryPattern,
}

fn patterns<'t>(name: &UpstreamName, items: Vec<Item<'t>>) -> Vec<Pattern<'t>> {
    let read = |item: Item<'t>| {
        let (text, compiled) = item.value(|text| {
            repository_pattern(name, text).map(|pattern| (text.to_owned(), pattern))
        })?;
        Some(Pattern {
            item,
            text,
            compiled,
        })
    };
    items.into_iter().filter_map(read).collect()
}

/// A pattern of repositories of the upstream `name`.
pub(super) fn repository_pattern(
    name: &UpstreamName,
    text: &str,
) -> Result<RepositoryPattern, String> {
    let pattern = pattern(text)?;
    if name.as_str() == DOCKER_HUB && !text.contains('/') && text != "**" {
        return Err(format!(
            "matches nothing on Docker Hub; its names have two components, like library/{text}"
        ));
    }
    Ok(pattern)
}

/// A pattern of repositories.
pub(super) fn pattern(text: &str) -> Result<RepositoryPattern, String> {
    let is_known =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/*?".contains(&byte);
    if !text.bytes().all(is_known) {
        return Err(
            "is not a repository pattern; it has lower-case letters, digits, '.', '_', '-', '/', and the wildcards * \
             and ?"
                .to_owned(),
        );
    }
    let components: Vec<&str> = text.split('/').collect();
    if components.iter().any(|component| component.is_empty()) {
        return Err("has an empty component; write it like library/* or team/**".to_owned());
    }
    let last = components.len() - 1;
    let stray = |(index, component): (usize, &&str)| {
        component.contains("**") && (index < last || *component != "**")
    };
    if components.iter().enumerate().any(stray) {
        return Err("has ** before its end; ** may only be the whole last component".to_owned());
    }
    Glob::new(text, true)
        .map(RepositoryPattern)
        .map_err(|_| "is not a pattern".to_owned())
}

/// `deny` wins, so an `allow` that it covers wholly can never have been meant.
fn contradictions(allow: &[Pattern<'_>], deny: &[Pattern<'_>]) {
    for denied in deny.iter().filter(|denied| denied.text == "**") {
        denied
            .item
            .wrong("\"**\" refuses every repository; remove the upstream instead");
    }
    for allowed in allow {
        if let Some(denied) = deny.iter().find(|denied| covers(denied, &allowed.text)) {
            allowed.item.wrong(format!(
                "\"{}\" is allowed here, but deny refuses \"{}\", and deny wins; remove one of them",
                allowed.text, denied.text
            ));
        }
    }
}

fn covers(denied: &Pattern<'_>, allowed: &str) -> bool {
    let is_below = |parent: &str| {
        allowed
            .strip_prefix(parent)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    let below = denied
        .text
        .strip_suffix("/**")
        .is_some_and(|parent| !parent.contains(['*', '?']) && is_below(parent));
    let is_literal = !allowed.contains(['*', '?']);
    denied.text == allowed || below || (is_literal && denied.compiled.0.matches(allowed))
}

/// Freshness of tags that no rule matches.
const OTHER_TAGS: Duration = Duration::from_mins(5);
/// Freshness of tags that look like versions, without rules.
const VERSION_TAGS: Duration = Duration::from_hours(1);

fn tags(item: Option<&Item<'_>>) -> Vec<TagRule> {
    let mut rules: Vec<TagRule> = Vec::new();
    let mut earlier: Vec<String> = Vec::new();
    for item in item.map(Item::list).unwrap_or_default() {
        let Some((pattern, text, rule)) = tag_rule(&item) else {
            continue;
        };
        if earlier.contains(&text) {
            pattern.wrong_value("stands in an earlier rule already; the first match decides");
        } else if earlier.iter().any(|text| is_catch_all(text)) {
            pattern.wrong_value("is never reached: an earlier rule matches every tag; move it up");
        }
        earlier.push(text);
        rules.push(rule);
    }
    if item.is_none() {
        rules.extend(rule("*:v?*", VERSION_TAGS));
    }
    if !earlier.iter().any(|text| is_catch_all(text)) {
        rules.extend(rule("*", OTHER_TAGS));
    }
    rules
}

/// The rule in `item`, with its pattern's place and text.
fn tag_rule<'t>(item: &Item<'t>) -> Option<(Item<'t>, String, TagRule)> {
    let mut section = item.section();
    let pattern = section.take("match");
    let freshness = section.take("freshness");
    if pattern.is_none() || freshness.is_none() {
        section.wrong("a rule has match and freshness, like { match: \"*:v?*\", freshness: 1h }");
    }
    section.finish();
    let freshness = freshness.and_then(|item| item.value(value::duration));
    let pattern = pattern?;
    let (text, glob) =
        pattern.value(|text| tag_pattern(text).map(|glob| (text.to_owned(), glob)))?;
    // A freshness that is wrong was reported; the pattern still takes part in the comparison with other rules.
    let freshness = freshness.unwrap_or(OTHER_TAGS);
    let rule = TagRule {
        pattern: glob,
        freshness,
    };
    Some((pattern, text, rule))
}

fn rule(text: &str, freshness: Duration) -> Option<TagRule> {
    let pattern = Glob::new(text, false).ok()?;
    Some(TagRule { pattern, freshness })
}

fn is_catch_all(text: &str) -> bool {
    matches!(text, "*" | "*:*")
}

fn tag_pattern(text: &str) -> Result<Glob, String> {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/*?:".contains(&byte);
    if text != "*" && text.split(':').count() != 2 {
        return Err("is not repository:tag; write it like *:latest or library/*:v?*".to_owned());
    }
    if !text.bytes().all(is_known) {
        return Err("has a character that no tag has; the wildcards are * and ?".to_owned());
    }
    if text.starts_with(':') || text.ends_with(':') {
        return Err("has an empty side; write * for all".to_owned());
    }
    Glob::new(text, false).map_err(|_| "is not a pattern".to_owned())
}
