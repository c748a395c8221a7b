//! How the upstream behaves when no fault is scripted.

use std::collections::HashMap;
use std::time::Duration;

use super::Auth;

/// How the upstream behaves when no fault is scripted.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Round trip time: passes once for a connection, once more for TLS, and once for each request.
    pub rtt: Duration,
    /// Of all bodies together, bytes per second.
    pub bandwidth: Option<u64>,
    /// Of each connection, bytes per second.
    pub connection_bandwidth: Option<u64>,
    /// Each connection is closed after so many bytes of bodies.
    pub connection_bytes: Option<u64>,
    /// Who may read.
    pub auth: Auth,
    /// Is there a referrers API? If not, 404.
    pub referrers: bool,
    /// Have manifests an `ETag`, and is `If-None-Match` honoured?
    pub etags: bool,
    /// Are ranges of blobs honoured? If not, 200 with everything.
    pub ranges: bool,
    /// Blobs are to be had at a signed URL; the registry's own address redirects there.
    pub signed_urls: Option<SignedUrls>,
    /// Most tags in one answer.
    pub page: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rtt: Duration::ZERO,
            bandwidth: None,
            connection_bandwidth: None,
            connection_bytes: None,
            auth: Auth::Open,
            referrers: true,
            etags: true,
            ranges: true,
            signed_urls: None,
            page: 1000,
        }
    }
}

/// Where blobs are redirected to.
#[derive(Debug, Clone)]
pub struct SignedUrls {
    /// Scheme, host and port, such as [`super::Upstream::cdn_url`].
    pub base: String,
    /// How often each URL works; then 403, as when it has expired.
    pub uses: u32,
}

/// Signed URLs that still work.
#[derive(Debug, Default)]
pub(super) struct Signatures {
    count: u64,
    left: HashMap<String, u32>,
}

impl Signatures {
    pub(super) fn sign(&mut self, uses: u32) -> String {
        self.count += 1;
        let signature = format!("scripted-signature-{}", self.count);
        self.left.insert(signature.clone(), uses);
        signature
    }

    pub(super) fn expire(&mut self) {
        self.left.clear();
    }

    pub(super) fn accept(&mut self, signature: &str) -> bool {
        let left = self.left.get_mut(signature).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }
}
