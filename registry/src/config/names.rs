//! What upstreams may not have in common: a name means one upstream, and no endpoint is this cache itself.

use std::collections::HashMap;
use std::net::SocketAddr;

use coral_schema::mirror_config::HostPort;
use coral_schema::oci::reference::DOCKER_HUB;
use url::Url;

use super::item::Item;
use crate::name::UpstreamName;

/// Names and endpoints with the places where they stand.
#[derive(Debug, Default)]
pub(super) struct Claims<'t> {
    names: Vec<Claim<'t>>,
    endpoints: Vec<(Url, Item<'t>)>,
}

#[derive(Debug)]
struct Claim<'t> {
    owner: UpstreamName,
    name: UpstreamName,
    is_alias: bool,
    item: Item<'t>,
}

/// Is it one of Docker Hub's other names, which always mean Docker Hub?
pub(super) fn is_docker_hub(name: &UpstreamName) -> bool {
    matches!(name.as_str(), "index.docker.io" | "registry-1.docker.io")
}

impl<'t> Claims<'t> {
    /// There is an upstream `name`.
    pub(super) fn upstream(&mut self, name: &UpstreamName, item: Item<'t>) {
        self.claim(name, name, false, item);
    }

    /// `owner` is also called `name`.
    pub(super) fn alias(&mut self, owner: &UpstreamName, name: &UpstreamName, item: Item<'t>) {
        self.claim(owner, name, true, item);
    }

    fn claim(&mut self, owner: &UpstreamName, name: &UpstreamName, is_alias: bool, item: Item<'t>) {
        self.names.push(Claim {
            owner: owner.clone(),
            name: name.clone(),
            is_alias,
            item,
        });
    }

    /// An upstream is asked at `url`.
    pub(super) fn endpoint(&mut self, url: &Url, item: Item<'t>) {
        self.endpoints.push((url.clone(), item));
    }

    /// Reports names that mean two upstreams. An upstream's own name goes before an alias, wherever they stand.
    pub(super) fn check_names(&self) {
        let mut owners: HashMap<&UpstreamName, &UpstreamName> = HashMap::new();
        let (aliases, names): (Vec<_>, Vec<_>) =
            self.names.iter().partition(|claim| claim.is_alias);
        for Claim {
            owner, name, item, ..
        } in names.into_iter().chain(aliases)
        {
            if is_docker_hub(name) && owner.as_str() != DOCKER_HUB {
                item.wrong(format!("{name} is Docker Hub; configure it as docker.io"));
                continue;
            }
            match owners.get(name) {
                None => {
                    owners.insert(name, owner);
                }
                Some(other) if *other == owner => {
                    item.wrong(format!("{name} means this upstream already; remove it"));
                }
                Some(other) => item.wrong(format!(
                    "{name} means the upstream {other} already; a name means one upstream, so remove it here or there"
                )),
            }
        }
    }

    /// Reports upstreams that would make this cache ask itself, for ever.
    pub(super) fn check_loops(&self, address: Option<&HostPort>, listen: SocketAddr) {
        for Claim { name, item, .. } in &self.names {
            let name: Option<HostPort> = name.as_str().parse().ok();
            let is_ours = name
                .zip(address)
                .is_some_and(|(name, ours)| is_same(ours, name.host(), name.port(), 443));
            if is_ours {
                item.wrong("this is the cache's own address; it cannot be its own upstream");
            }
        }
        for (url, item) in &self.endpoints {
            let host = url.host_str().unwrap_or_default();
            let default_port = if url.scheme() == "http" { 80 } else { 443 };
            let is_address =
                address.is_some_and(|ours| is_same(ours, host, url.port(), default_port));
            let port = url.port().unwrap_or(default_port);
            if is_address || (port == listen.port() && reaches(host, listen)) {
                item.wrong("this is the cache itself; it would ask itself for ever");
            }
        }
    }
}

fn is_same(ours: &HostPort, host: &str, port: Option<u16>, default_port: u16) -> bool {
    ours.host() == host && ours.port().unwrap_or(default_port) == port.unwrap_or(default_port)
}

/// Does `host` lead to where we listen, as far as one can tell without asking anybody?
fn reaches(host: &str, listen: SocketAddr) -> bool {
    let is_loopback = host.parse().is_ok_and(|host: HostPort| host.is_loopback());
    let hears_loopback = listen.ip().is_loopback() || listen.ip().is_unspecified();
    HostPort::from(listen).host() == host || (is_loopback && hears_loopback)
}
