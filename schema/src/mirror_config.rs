//! What to write on a node, so that its container runtime asks the cache first and the registry itself when the cache
//! does not help: texts for containerd, CRI-O (and podman), and Docker's daemon.
//!
//! Pure. Everything that goes into a text is a parsed type ([`HostPort`]), so that no name can break out of its quotes
//! or its path. The registry itself always stays as the fallback: a node must never be worse off than without a cache.

use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::oci::reference::DOCKER_HUB;

/// A host name or IP address, with an optional port: `cache.example:5000`, `10.0.0.5`, `[::1]:5000`. Lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// IPv6 addresses with their brackets.
    host: String,
    port: Option<u16>,
}

/// The text is not a host with an optional port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a host is a name or an IP address with an optional port, like cache.example:5000 or [::1]:5000"
)]
pub struct HostPortError;

impl HostPort {
    /// The host alone; an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, if one was written.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Can it be reached from this machine only?
    pub fn is_loopback(&self) -> bool {
        let address = self.host.trim_matches(['[', ']']);
        self.host == "localhost"
            || address.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
            || address.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let text = text.to_ascii_lowercase();
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
            _ => (text.as_str(), None),
        };
        let port = match port {
            Some(port) if port.starts_with(['0', '+']) => return Err(HostPortError),
            Some(port) => Some(port.parse().map_err(|_| HostPortError)?),
            None => None,
        };
        let is_ipv6 = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
        if is_ipv6 || (host.len() <= 253 && host.split('.').all(is_label)) {
            Ok(Self {
                host: host.to_owned(),
                port,
            })
        } else {
            Err(HostPortError)
        }
    }
}

/// A label of a host name; underscores as some internal names have them.
fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

impl From<std::net::SocketAddr> for HostPort {
    fn from(address: std::net::SocketAddr) -> Self {
        let host = match address {
            std::net::SocketAddr::V4(address) => address.ip().to_string(),
            std::net::SocketAddr::V6(address) => format!("[{}]", address.ip()),
        };
        Self {
            host,
            port: Some(address.port()),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// Where nodes reach the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Its address, as seen from the nodes.
    pub address: HostPort,
    /// It speaks HTTPS, with a certificate that the nodes trust.
    pub tls: bool,
}

impl FromStr for Cache {
    type Err = HostPortError;

    /// From a URL of scheme, host and port: `http://10.96.0.10:5000`.
    fn from_str(url: &str) -> Result<Self, HostPortError> {
        let (tls, address) = match url.split_once("://") {
            Some(("https", address)) => (true, address),
            Some(("http", address)) => (false, address),
            _ => return Err(HostPortError),
        };
        let address = address.strip_suffix('/').unwrap_or(address).parse()?;
        Ok(Self { address, tls })
    }
}

/// A registry that the cache stands in front of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// As it stands in image references.
    pub host: HostPort,
    /// Other names that the cache knows it by.
    pub aliases: Vec<HostPort>,
    /// It speaks plain HTTP.
    pub plain_http: bool,
}

/// One file for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorFile {
    /// Where it goes by default.
    pub path: String,
    /// What else is needed, a sentence per line.
    pub notes: &'static [&'static str],
    /// Its content.
    pub content: String,
}

/// Prints the path and the notes as comments, then the content: to be read and pasted by a person.
impl fmt::Display for MirrorFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# {}", self.path)?;
        for note in self.notes {
            writeln!(f, "# {note}")?;
        }
        f.write_str(&self.content)
    }
}

/// containerd: one `hosts.toml` per registry.
pub fn containerd(cache: &Cache, registries: &[Registry]) -> Vec<MirrorFile> {
    registries
        .iter()
        .map(|registry| MirrorFile {
            path: format!("/etc/containerd/certs.d/{}/hosts.toml", registry.host),
            notes: CONTAINERD_NOTES,
            content: format!(
                "server = \"{}\"\n\n{}",
                registry.server(),
                containerd_hosts(cache, None)
            ),
        })
        .collect()
}

/// containerd: one `hosts.toml` for all registries that have no folder of their own. It names no `server`: containerd
/// then falls back to the registry that the image names. The cache answers 404 for registries that it does not know.
pub fn containerd_default(cache: &Cache) -> MirrorFile {
    MirrorFile {
        path: "/etc/containerd/certs.d/_default/hosts.toml".to_owned(),
        notes: CONTAINERD_NOTES,
        content: containerd_hosts(cache, None),
    }
}

/// containerd: the content of a `hosts.toml` that names the cache and no `server`: containerd then falls back to the
/// right address of the registry, which for Docker Hub is not its name. `authority` is the name of a file beside it that
/// holds the certificate which the cache's own is checked against.
pub fn containerd_hosts(cache: &Cache, authority: Option<&'static str>) -> String {
    // `push` is left out, so that pushes go to the registry itself. The time limit matters when the cache's machine is
    // gone: without it containerd waits 30 s for each object before it asks the registry. 1.x ignores it.
    let mut text = format!(
        "[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"400ms\"\n",
        cache.url()
    );
    if let Some(authority) = authority {
        line(&mut text, format_args!("  ca = \"{authority}\""));
    }
    text
}

/// CRI-O and podman: one drop-in for all registries.
///
/// A mirror's location cannot hold a port in its path, so a registry with a port needs an alias without one.
pub fn crio(cache: &Cache, registries: &[Registry]) -> MirrorFile {
    let mut content = String::new();
    for registry in registries {
        if !content.is_empty() {
            content.push('\n');
        }
        let host = &registry.host;
        let Some(in_path) = registry.name_in_path() else {
            line(
                &mut content,
                format_args!(
                    "# {host}: a mirror's location cannot hold its port; give it an alias without one."
                ),
            );
            continue;
        };
        line(&mut content, format_args!("[[registry]]"));
        line(&mut content, format_args!("prefix = \"{host}\""));
        line(&mut content, format_args!("location = \"{host}\""));
        if registry.plain_http {
            line(&mut content, format_args!("insecure = true"));
        }
        line(&mut content, format_args!("\n[[registry.mirror]]"));
        line(
            &mut content,
            format_args!("location = \"{}/{in_path}\"", cache.address),
        );
        if !cache.tls {
            line(&mut content, format_args!("insecure = true"));
        }
    }
    MirrorFile {
        path: "/etc/containers/registries.conf.d/50-coral.conf".to_owned(),
        notes: &[
            "CRI-O reads it after `systemctl reload crio`; podman with its next command.",
            "The registry itself stays the fallback.",
        ],
        content,
    }
}

/// Docker's daemon, which mirrors Docker Hub and nothing else. Other registries are pulled by the cache's own name:
/// `docker pull <cache>/ghcr.io/<repository>`, for which a plain HTTP cache must be listed as insecure.
pub fn docker(cache: &Cache) -> MirrorFile {
    let url = cache.url();
    let insecure = if cache.tls || cache.address.is_loopback() {
        String::new()
    } else {
        format!(",\n  \"insecure-registries\": [\"{}\"]", cache.address)
    };
    MirrorFile {
        path: "/etc/docker/daemon.json".to_owned(),
        notes: &[
            "Merge it into the file, without these comment lines, then `systemctl restart docker`.",
            "Docker mirrors Docker Hub only, and the cache's defaultUpstream must be docker.io for it.",
        ],
        content: format!("{{\n  \"registry-mirrors\": [\"{url}\"]{insecure}\n}}\n"),
    }
}

impl Cache {
    /// Scheme, host and port.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }
}

impl Registry {
    /// The fallback's URL. Docker Hub's API has another host than its images' names: `https://docker.io` would fail.
    fn server(&self) -> String {
        let scheme = if self.plain_http { "http" } else { "https" };
        if self.host.host() == DOCKER_HUB {
            format!("{scheme}://registry-1.docker.io")
        } else {
            format!("{scheme}://{}", self.host)
        }
    }

    fn name_in_path(&self) -> Option<&HostPort> {
        std::iter::once(&self.host)
            .chain(&self.aliases)
            .find(|name| name.port.is_none() && !name.host.starts_with('['))
    }
}

fn line(text: &mut String, arguments: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{arguments}");
}

/// First line of every file that the warmer writes: it changes and removes no others.
pub const MARKER: &str =
    "# Written by coral-warmer, which removes it again. Without this line it is left alone.";

const CONTAINERD_NOTES: &[&str] = &[
    "Read at every pull, once the registry section of containerd's config.toml has config_path = \"/etc/containerd/certs.d\".",
    "The registry itself stays the fallback.",
];

#[cfg(test)]
mod tests;
