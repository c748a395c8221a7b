//! Where nodes reach the registry. Of a Service they get the `ClusterIP` as a number: it works from a node's own network,
//! where cluster names do not resolve, and it refuses in a millisecond while nothing stands behind it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use k8s_openapi::api::core::v1::Service;

/// As on the command line: `[https://]HOST:PORT` or `[https://]service/NAME:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// `https`, or else `http`.
    pub tls: bool,
    /// Which host.
    pub host: Host,
    /// Which port.
    pub port: u16,
}

/// See [`NodeAddress`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Fixed(String),
    /// A Service in the operator's namespace.
    Service(String),
}

/// The text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is written as HOST:PORT or service/NAME:PORT, with https:// in front for TLS")]
pub struct AddressError;

impl FromStr for NodeAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (tls, rest) = match text.split_once("://") {
            None => (false, text),
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Err(AddressError),
        };
        let (host, port) = rest.rsplit_once(':').ok_or(AddressError)?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or(AddressError)?;
        let host = match host.strip_prefix("service/") {
            Some(name) if is_label(name) => Host::Service(name.to_owned()),
            None if is_host(host) => Host::Fixed(host.to_owned()),
            _ => return Err(AddressError),
        };
        Ok(Self { tls, host, port })
    }
}

impl NodeAddress {
    /// The URL for `spec.mirror.url`, at this host.
    pub fn url(&self, host: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{host}:{}", self.port)
    }

    /// The same for a Service as it stands; nothing while it has no address.
    pub fn url_of(&self, service: &Service) -> Option<String> {
        let address = service.spec.as_ref()?.cluster_ip.as_ref()?;
        // "None" of a headless one is no address.
        let address: IpAddr = address.parse().ok()?;
        Some(self.url(&match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        }))
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match &self.host {
            Host::Fixed(host) => self.url(host),
            Host::Service(name) => self.url(&format!("service/{name}")),
        })
    }
}

fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_host(host: &str) -> bool {
    match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ServiceSpec;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("10.0.0.1:5000", "http://10.0.0.1:5000")]
    #[case("registry.example.com:443", "http://registry.example.com:443")]
    #[case("https://registry.example.com:443", "https://registry.example.com:443")]
    #[case("[::1]:5000", "http://[::1]:5000")]
    #[case("service/coral:5000", "http://service/coral:5000")]
    #[case("https://service/coral:5000", "https://service/coral:5000")]
    fn addresses(#[case] text: &str, #[case] expected: &str) {
        let address: NodeAddress = text.parse().unwrap();
        assert_eq!(address.to_string(), expected);
    }

    #[rstest]
    #[case("coral")]
    #[case("coral:")]
    #[case("coral:0")]
    #[case(":5000")]
    #[case("::1:5000")]
    #[case("coral:5000/path")]
    #[case("ftp://coral:5000")]
    #[case("service/:5000")]
    #[case("service/a/b:5000")]
    fn others(#[case] text: &str) {
        assert_eq!(text.parse::<NodeAddress>(), Err(AddressError));
    }

    #[rstest]
    #[case(Some("10.96.0.7"), Some("http://10.96.0.7:5000"))]
    #[case(Some("fd00::7"), Some("http://[fd00::7]:5000"))]
    #[case(Some("None"), None)]
    #[case(Some(""), None)]
    #[case(None, None)]
    fn a_service_is_its_number(#[case] address: Option<&str>, #[case] expected: Option<&str>) {
        let service = Service {
            spec: Some(ServiceSpec {
                cluster_ip: address.map(ToOwned::to_owned),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        };
        let wanted: NodeAddress = "service/coral:5000".parse().unwrap();
        assert_eq!(wanted.url_of(&service).as_deref(), expected);
    }
}
