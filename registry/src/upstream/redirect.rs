//! Pure rules for following redirects: where to, and with or without credentials (H-18).
//!
//! At most [`MAX_HOPS`]; never from https to http; `Authorization` goes no further than the first origin; never to a
//! loopback or link-local address, unless the endpoint itself has such an address. Private addresses (10.0.0.0/8 and
//! the like) are allowed: over https a certificate proves that the target is what the registry named, and over http
//! we only go when the administrator configured the endpoint itself with `plainHttp`, on a network of their own.

use std::net::{IpAddr, Ipv6Addr};

use url::{Host, Url};

/// Redirects in a row; storage services need one or two.
pub(super) const MAX_HOPS: usize = 5;

/// Addresses that mean this machine or its closest surroundings, where metadata services listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Near {
    /// 127.0.0.0/8, `::1`, and the unspecified address, which connects to the same.
    Loopback,
    /// 169.254.0.0/16, `fe80::/10`, multicast and broadcast.
    Link,
}

/// Is the address near?
pub(super) fn near(address: IpAddr) -> Option<Near> {
    match address.to_canonical() {
        IpAddr::V4(v4) if v4.is_loopback() || v4.octets()[0] == 0 => Some(Near::Loopback),
        IpAddr::V4(v4) if v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() => {
            Some(Near::Link)
        }
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unspecified() => Some(Near::Loopback),
        IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast() || v6 == AWS_METADATA => {
            Some(Near::Link)
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// The metadata service of AWS, the only one outside of the link-local ranges.
const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// The same for the host of a URL, as far as it says it without asking DNS.
pub(super) fn near_host(url: &Url) -> Option<Near> {
    match url.host()? {
        Host::Ipv4(v4) => near(v4.into()),
        Host::Ipv6(v6) => near(v6.into()),
        Host::Domain(name) => {
            let name = name.trim_end_matches('.');
            (name == "localhost" || name.ends_with(".localhost")).then_some(Near::Loopback)
        }
    }
}

/// May a redirect or a token realm lead from an endpoint at `from` (itself `own`) to `to`?
pub(super) fn check(from: &Url, own: Option<Near>, to: &Url) -> Result<(), &'static str> {
    match (from.scheme(), to.scheme()) {
        ("https" | "http", "https") | ("http", "http") => {}
        ("https", "http") => return Err("it leads from https to http"),
        _ => return Err("it leads to something that is not http"),
    }
    if near_host(to).is_some_and(|near| own != Some(near)) {
        return Err("it leads to a loopback or link-local address");
    }
    Ok(())
}

/// A next hop.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hop {
    /// Where to.
    pub(super) url: Url,
    /// Is it still the origin that the credentials are for?
    pub(super) same_origin: bool,
}

/// Where `Location` leads from `from`.
pub(super) fn follow(from: &Url, own: Option<Near>, location: &[u8]) -> Result<Hop, &'static str> {
    let location = std::str::from_utf8(location).map_err(|_| "its Location is not text")?;
    let mut url = from
        .join(location)
        .map_err(|_| "its Location is not a URL")?;
    check(from, own, &url)?;
    // Credentials in a Location would be sent as Basic.
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return Err("its Location has no host");
    }
    url.set_fragment(None);
    let same_origin = url.origin() == from.origin();
    Ok(Hop { url, same_origin })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("https://r.example/v2/x", "/y", Ok(("https://r.example/y", true)))]
    #[case("https://r.example/v2/x", "https://r.example:443/y", Ok(("https://r.example/y", true)))]
    #[case("https://r.example/v2/x", "https://cdn.example/y?sig=1#z", Ok(("https://cdn.example/y?sig=1", false)))]
    #[case("https://r.example/v2/x", "//cdn.example/y", Ok(("https://cdn.example/y", false)))]
    #[case("https://r.example/v2/x", "https://u:p@cdn.example/y", Ok(("https://cdn.example/y", false)))]
    #[case("https://r.example/v2/x", "https://r.example:8443/y", Ok(("https://r.example:8443/y", false)))]
    #[case("https://r.example/v2/x", "https://10.0.0.5/y", Ok(("https://10.0.0.5/y", false)))]
    #[case("http://r.example/v2/x", "https://r.example/y", Ok(("https://r.example/y", false)))]
    #[case(
        "https://r.example/v2/x",
        "http://r.example/y",
        Err("it leads from https to http")
    )]
    #[case(
        "http://r.example/v2/x",
        "file:///etc/passwd",
        Err("it leads to something that is not http")
    )]
    #[case("http://r.example/v2/x", "https://", Err("its Location is not a URL"))]
    fn h18_follows(
        #[case] from: &str,
        #[case] location: &str,
        #[case] expected: Result<(&str, bool), &'static str>,
    ) {
        let expected = expected.map(|(url, same_origin)| Hop {
            url: url.parse().unwrap(),
            same_origin,
        });
        assert_eq!(
            follow(&from.parse().unwrap(), None, location.as_bytes()),
            expected
        );
    }

    #[rstest::rstest]
    #[case("http://169.254.169.254/latest", Near::Link)]
    #[case("http://[fe80::1]/", Near::Link)]
    #[case("http://[fd00:ec2::254]/", Near::Link)]
    #[case("http://[::ffff:169.254.169.254]/", Near::Link)]
    #[case("http://2852039166/", Near::Link)]
    #[case("http://127.0.0.1/", Near::Loopback)]
    #[case("http://127.1/", Near::Loopback)]
    #[case("http://0.0.0.0/", Near::Loopback)]
    #[case("http://[::1]/", Near::Loopback)]
    #[case("http://[::ffff:127.0.0.1]/", Near::Loopback)]
    #[case("http://localhost/", Near::Loopback)]
    #[case("http://x.localhost./", Near::Loopback)]
    fn h18_near_addresses_need_a_near_endpoint(#[case] location: &str, #[case] expected: Near) {
        let from = "http://r.example/".parse().unwrap();
        assert_eq!(near_host(&location.parse().unwrap()), Some(expected));
        for own in [None, Some(Near::Loopback), Some(Near::Link)] {
            assert_eq!(
                follow(&from, own, location.as_bytes()).is_ok(),
                own == Some(expected),
                "{own:?}"
            );
        }
    }
}
