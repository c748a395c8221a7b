//! The repositories that take pushes.

use std::time::Duration;

use coral_schema::oci::RepositoryName;
use coral_schema::oci::reference::looks_like_host;

use super::item::Item;
use super::section::Section;
use super::value;
use crate::access::HostedConfig;
use crate::hosted::GcConfig;
use crate::upstream::Glob;

/// Reads the list. A prefix stands in it once.
pub(super) fn hosted(section: &mut Section<'_>) -> Vec<HostedConfig> {
    let mut found: Vec<HostedConfig> = Vec::new();
    for item in section.list("hosted") {
        let Some(config) = entry(&item) else { continue };
        if found.iter().any(|other| other.prefix == config.prefix) {
            item.wrong(format!(
                "the prefix {} stands in the list already; remove one of them",
                config.prefix
            ));
        }
        found.push(config);
    }
    found
}

fn entry(item: &Item<'_>) -> Option<HostedConfig> {
    let mut section = item.section();
    let prefix = section.required("prefix", prefix);
    let sparse = section.value("sparse", value::flag).unwrap_or(true);
    let tags = section.list("immutableTags").into_iter();
    let immutable_tags = tags.filter_map(|item| item.value(tags_glob)).collect();
    let delete_untagged_after = section
        .value("deleteUntaggedAfter", value::or_none(value::duration))
        .flatten();
    section.finish();
    Some(HostedConfig {
        prefix: prefix?,
        sparse,
        immutable_tags,
        delete_untagged_after,
    })
}

/// Reads `gc`.
pub(super) fn gc(mut section: Section<'_>) -> GcConfig {
    let default = GcConfig::default();
    let interval = section.value("interval", value::or_none(value::wait(LONGEST)));
    let grace = section.value("grace", value::wait(LONGEST));
    let uploads = section.value("uploads", value::wait(LONGEST));
    section.finish();
    GcConfig {
        interval: interval.unwrap_or(default.interval),
        grace: grace.unwrap_or(default.grace),
        uploads: uploads.unwrap_or(default.uploads),
    }
}

/// What waits longer never goes.
const LONGEST: Duration = Duration::from_hours(24 * 366);

fn prefix(text: &str) -> Result<RepositoryName, String> {
    let prefix: RepositoryName = text.parse().map_err(|_| {
        "is not the start of repository names; write whole lower-case components like team or team/apps".to_owned()
    })?;
    let first = prefix.components().next().unwrap_or_default();
    if looks_like_host(first) {
        return Err(
            "looks like a host, and would hide an upstream; begin with a component without a dot, not localhost"
                .to_owned(),
        );
    }
    Ok(prefix)
}

fn tags_glob(text: &str) -> Result<Glob, String> {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-*?[]{},!".contains(&byte);
    let glob = Glob::new(text, false).ok();
    glob.filter(|_| !text.is_empty() && text.bytes().all(is_known))
        .ok_or_else(|| "is not a pattern of tags; write one like v* or release-?.*".to_owned())
}
