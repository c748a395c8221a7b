//! DNS for an endpoint's clients: names that a redirect leads to must not mean this machine or its link (H-18).
//!
//! The check sits in the resolver, so that what was checked is what is connected to. The endpoint's own host is not
//! restricted; if it turns out to be loopback or link-local, redirects to the same are fine, as for literal addresses.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::redirect::{Near, near};

/// Is the endpoint itself near? Told by its URL, or learned when its name is resolved.
#[derive(Debug, Default)]
pub(super) struct Nearness(AtomicU8);

impl Nearness {
    pub(super) fn new(known: Option<Near>) -> Self {
        let nearness = Self::default();
        nearness.learn(known);
        nearness
    }

    pub(super) fn get(&self) -> Option<Near> {
        match self.0.load(Ordering::Relaxed) {
            1 => Some(Near::Loopback),
            2 => Some(Near::Link),
            _ => None,
        }
    }

    fn learn(&self, near: Option<Near>) {
        let value = match near {
            None => 0,
            Some(Near::Loopback) => 1,
            Some(Near::Link) => 2,
        };
        self.0.store(value, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    /// The endpoint's own host.
    pub(super) own: Arc<str>,
    /// Hosts of proxies, which are often on this machine; a redirect to `localhost` never gets here.
    pub(super) proxies: Arc<HashSet<String>>,
    pub(super) nearness: Arc<Nearness>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let addresses: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(this.admit(name.as_str(), addresses)?)
        })
    }
}

impl Resolver {
    fn admit(&self, name: &str, mut addresses: Vec<SocketAddr>) -> Result<Addrs, &'static str> {
        if name == &*self.own {
            self.nearness
                .learn(addresses.first().and_then(|address| near(address.ip())));
        } else if name != "localhost" && !self.proxies.contains(name) {
            let own = self.nearness.get();
            addresses.retain(|address| near(address.ip()).is_none_or(|near| own == Some(near)));
            if addresses.is_empty() {
                return Err("the name leads to a loopback or link-local address");
            }
        }
        Ok(Box::new(addresses.into_iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(nearness: Option<Near>) -> Resolver {
        Resolver {
            own: "registry.example".into(),
            proxies: Arc::new(HashSet::from(["proxy.example".to_owned()])),
            nearness: Arc::new(Nearness::new(nearness)),
        }
    }

    fn admitted(resolver: &Resolver, name: &str, addresses: &[&str]) -> Option<usize> {
        let addresses = addresses
            .iter()
            .map(|ip| SocketAddr::new(ip.parse().unwrap(), 0))
            .collect();
        resolver.admit(name, addresses).ok().map(Iterator::count)
    }

    #[test]
    fn h18_names_do_not_lead_here() {
        let resolver = resolver(None);
        assert_eq!(
            admitted(&resolver, "cdn.example", &["192.0.2.1", "127.0.0.1"]),
            Some(1)
        );
        assert_eq!(
            admitted(&resolver, "cdn.example", &["169.254.169.254"]),
            None
        );
        assert_eq!(admitted(&resolver, "cdn.example", &["::1"]), None);
        assert_eq!(admitted(&resolver, "cdn.example", &["10.0.0.1"]), Some(1));
        assert_eq!(
            admitted(&resolver, "proxy.example", &["127.0.0.1"]),
            Some(1)
        );
    }

    #[test]
    fn h18_an_endpoint_on_this_machine_may_redirect_to_it() {
        let resolver = resolver(None);
        assert_eq!(
            admitted(&resolver, "registry.example", &["127.0.0.1"]),
            Some(1)
        );
        assert_eq!(admitted(&resolver, "cdn.example", &["127.0.0.1"]), Some(1));
        assert_eq!(
            admitted(&resolver, "cdn.example", &["169.254.169.254"]),
            None
        );
        assert_eq!(
            admitted(&resolver, "registry.example", &["192.0.2.1"]),
            Some(1)
        );
        assert_eq!(admitted(&resolver, "cdn.example", &["127.0.0.1"]), None);
    }
}
