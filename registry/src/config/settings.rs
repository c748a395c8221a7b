//! The tree to the validated [`Config`]: pure. Files that it names are noted, and looked at by whoever loads it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use coral_schema::oci::reference::DOCKER_HUB;
use url::Url;

use super::access::{access, users};
use super::admin::admin;
use super::hosted::{gc, hosted};
use super::item::Item;
use super::mistake::Findings;
use super::names::{Claims, is_docker_hub};
use super::raw::Node;
use super::section::Section;
use super::upstream::{upstream, upstream_name};
use super::{
    CacheConfig, Config, FillOnRange, FinishTransfers, Overrides, StoreConfig, StoreLimit,
    TlsFiles, value,
};
use crate::name::UpstreamName;
use crate::upstream::UpstreamConfig;

/// Reads the whole tree. `unset_limit` is the store's limit when `store.maxBytes` is not there. The result means
/// something only when nothing was found to be wrong.
pub(super) fn convert(
    root: &Node,
    overrides: &Overrides,
    unset_limit: StoreLimit,
    found: &Findings,
) -> Config {
    let mut section = Item::new(root, String::new(), found).section();
    let listen_item = section.take("listen");
    let listen = overrides.listen.unwrap_or_else(|| {
        let written = listen_item
            .as_ref()
            .and_then(|item| item.value(value::listen));
        written.unwrap_or_else(|| loopback(5000))
    });
    let address = section.value("address", value::host_port);
    let mut claims = Claims::default();
    let upstreams = upstreams(&mut section, &mut claims, found);
    claims.check_names();
    claims.check_loops(address.as_ref(), listen);
    let data = data(&mut section, overrides);
    let hosted = hosted(&mut section);
    let users = users(&mut section);
    let config = Config {
        listen,
        address,
        admin: admin(section.section("admin"), listen, overrides),
        tls: tls(section.section("tls")),
        connections: section
            .value("connections", value::number(1..=1_000_000))
            .map_or(4096, |number| number as usize),
        shutdown_grace: section
            .value("shutdownGrace", value::duration)
            .unwrap_or(Duration::from_secs(55)),
        store: store(section.section("store"), &data, unset_limit),
        data,
        default_upstream: default_upstream(&mut section, &upstreams),
        access: access(&mut section, users.as_ref(), &hosted, &upstreams),
        upstreams,
        hosted,
        gc: gc(section.section("gc")),
        users,
        anonymous_push: section.flag("anonymousPush"),
        manifest_max_bytes: manifest_max_bytes(section.section("manifest")),
        cache: cache(section.section("cache")),
    };
    for key in ["hotCache", "peers"] {
        section.unsupported(key);
    }
    section.finish();
    config
}

pub(super) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn data(section: &mut Section<'_>, overrides: &Overrides) -> PathBuf {
    let written = section.value("data", value::path);
    let given = overrides.data.clone().or(written);
    given.unwrap_or_else(|| PathBuf::from("coral-data"))
}

pub(super) fn tls(mut section: Section<'_>) -> Option<TlsFiles> {
    let pair = section.file_pair("certificate", "key");
    section.finish();
    pair.map(|(certificate, key)| TlsFiles { certificate, key })
}

fn store(mut section: Section<'_>, data: &std::path::Path, unset_limit: StoreLimit) -> StoreConfig {
    let folder = section.value("url", store_url);
    let max_bytes = section.value("maxBytes", value::size(1 << 20..=1 << 60));
    section.unsupported("s3");
    section.unsupported("redirect");
    section.finish();
    StoreConfig {
        folder: folder.unwrap_or_else(|| data.join("store")),
        max_bytes: max_bytes.map_or(unset_limit, StoreLimit::Bytes),
    }
}

fn store_url(text: &str) -> Result<PathBuf, String> {
    let malformed = || "is not a store; write it like file:///var/lib/coral/store".to_owned();
    let url = Url::parse(text).map_err(|_| malformed())?;
    match url.scheme() {
        "file"
            if text.starts_with("file:///")
                && url.query().is_none()
                && url.fragment().is_none() =>
        {
            url.to_file_path().map_err(|()| malformed())
        }
        "s3" | "gs" | "az" | "abfs" => {
            Err("is not supported yet; write a folder like file:///var/lib/coral/store".to_owned())
        }
        _ => Err(malformed()),
    }
}

fn upstreams<'t>(
    section: &mut Section<'t>,
    claims: &mut Claims<'t>,
    found: &'t Findings,
) -> Vec<UpstreamConfig> {
    let Some(item) = section.take("upstreams") else {
        return default_upstreams(found);
    };
    let mut upstreams = Vec::new();
    let entries = item.named();
    if entries.is_empty() {
        item.wrong("no upstream is named; name one, or leave the key out for the usual ones");
    }
    for (key, item) in entries {
        match upstream_name(key) {
            Err(problem) => item.wrong(problem),
            Ok(name) => {
                claims.upstream(&name, item.clone());
                upstreams.push(upstream(name, item.section(), claims));
            }
        }
    }
    upstreams
}

/// What is there without an `upstreams` key, all of it anonymous.
const DEFAULT_UPSTREAMS: [&str; 7] = [
    DOCKER_HUB,
    "ghcr.io",
    "quay.io",
    "registry.k8s.io",
    "gcr.io",
    "public.ecr.aws",
    "mcr.microsoft.com",
];

fn default_upstreams(found: &Findings) -> Vec<UpstreamConfig> {
    let default = |host: &str| {
        let name = host.parse().ok()?;
        let section = Section::absent(String::new(), found);
        Some(upstream(name, section, &mut Claims::default()))
    };
    DEFAULT_UPSTREAMS.into_iter().filter_map(default).collect()
}

fn default_upstream(
    section: &mut Section<'_>,
    upstreams: &[UpstreamConfig],
) -> Option<UpstreamName> {
    let has_list = section.has("upstreams");
    let Some(item) = section.take("defaultUpstream") else {
        return (!has_list).then(|| DOCKER_HUB.parse().ok()).flatten();
    };
    item.value(|text| {
        let name = upstream_name(text)?;
        let unknown = || "is not one of the upstreams; name it under upstreams, too".to_owned();
        meant(upstreams, &name).ok_or_else(unknown)
    })
}

/// The upstream that a name, or an alias, stands for.
pub(super) fn meant(upstreams: &[UpstreamConfig], name: &UpstreamName) -> Option<UpstreamName> {
    let mut upstreams = upstreams.iter();
    let meant = upstreams.find(|upstream| {
        upstream.name == *name
            || upstream.aliases.contains(name)
            || (upstream.name.as_str() == DOCKER_HUB && is_docker_hub(name))
    });
    meant.map(|upstream| upstream.name.clone())
}

/// At most this much of manifests is in flight in the whole process, so a single one cannot be larger.
const MOST_MANIFEST_BYTES: u64 = 64 << 20;

fn manifest_max_bytes(mut section: Section<'_>) -> u64 {
    let bytes = section.value("maxBytes", value::size(1 << 10..=MOST_MANIFEST_BYTES));
    section.finish();
    bytes.unwrap_or(8 << 20)
}

fn cache(mut section: Section<'_>) -> CacheConfig {
    let config = CacheConfig {
        manifest_memory: section
            .value("manifestMemory", value::size(0..=1 << 40))
            .unwrap_or(64 << 20),
        negative_ttl: section
            .value("negativeTtl", value::duration)
            .unwrap_or(Duration::from_secs(10)),
        finish_transfers: section
            .value("finishTransfers", finish_transfers)
            .unwrap_or(FinishTransfers::Always),
        fill_on_range: section
            .value(
                "fillOnRange",
                value::word(&[
                    ("auto", FillOnRange::Auto),
                    ("always", FillOnRange::Always),
                    ("never", FillOnRange::Never),
                ]),
            )
            .unwrap_or(FillOnRange::Auto),
    };
    section.finish();
    config
}

fn finish_transfers(text: &str) -> Result<FinishTransfers, String> {
    match text {
        "always" => Ok(FinishTransfers::Always),
        "never" => Ok(FinishTransfers::Never),
        _ => text
            .strip_prefix("after(")
            .and_then(|rest| rest.strip_suffix(')'))
            .and_then(|share| share.parse().ok())
            .map(FinishTransfers::After)
            .ok_or_else(|| "is not known here; write always, never or after(10%)".to_owned()),
    }
}
