//! What logins count.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::AccessError;

/// Metric families of this module; clones share them.
#[derive(Debug, Clone, Default)]
pub struct AccessMetrics {
    logins: Family<Labels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    by: &'static str,
    result: &'static str,
}

/// What somebody showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Password,
    Token,
}

impl By {
    fn label(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Token => "token",
        }
    }
}

impl AccessMetrics {
    /// Registers the families under their names without the common prefix.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for (by, result) in [
            (By::Password, "ok"),
            (By::Password, "wrong"),
            (By::Password, "busy"),
            (By::Token, "ok"),
            (By::Token, "wrong"),
        ] {
            metrics.add(by, result, 0);
        }
        registry.register(
            "logins",
            "Passwords and tokens that requests showed, by what they were found to be",
            metrics.logins.clone(),
        );
        metrics
    }

    pub(super) fn shown<T>(&self, by: By, found: &Result<T, AccessError>) {
        let result = match found {
            Ok(_) => "ok",
            Err(AccessError::Busy) => "busy",
            Err(_) => "wrong",
        };
        self.add(by, result, 1);
    }

    fn add(&self, by: By, result: &'static str, times: u64) {
        let by = by.label();
        let labels = Labels { by, result };
        self.logins.get_or_create(&labels).inc_by(times);
    }
}
