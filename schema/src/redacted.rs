//! URLs that print without what must not be read: password, query (signatures of storage services) and fragment.

use std::fmt;

use url::Url;

/// A URL whose `Display` and `Debug` show scheme, host, port and path only.
#[derive(Clone, PartialEq, Eq)]
pub struct RedactedUrl(Url);

impl RedactedUrl {
    /// Wraps `url`.
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// The whole URL, for connecting.
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}",
            self.0.scheme(),
            self.0.host_str().unwrap_or_default()
        )?;
        if let Some(port) = self.0.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.0.path())
    }
}

impl fmt::Debug for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_no_secret() {
        let url = RedactedUrl::new(
            "https://user:secret@cdn.example:8443/blob/1?X-Signature=secret#secret"
                .parse()
                .unwrap(),
        );
        assert_eq!(url.to_string(), "https://cdn.example:8443/blob/1");
        assert_eq!(format!("{url:?}"), url.to_string());
    }
}
