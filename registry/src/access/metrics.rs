//! What logins count.

use std::fmt::Write as _;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
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
    by: By,
    result: LoginResult,
}

/// What somebody showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum By {
    Password,
    Token,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum LoginResult {
    Ok,
    Wrong,
    Busy,
}

impl AccessMetrics {
    /// Registers the families under their names without the common prefix.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for by in [By::Password, By::Token] {
            for result in [LoginResult::Ok, LoginResult::Wrong] {
                metrics.of(by, result).inc_by(0);
            }
        }
        metrics.of(By::Password, LoginResult::Busy).inc_by(0);
        registry.register(
            "logins",
            "Passwords and tokens that requests showed, by what they were found to be",
            metrics.logins.clone(),
        );
        metrics
    }

    pub(super) fn shown<T>(&self, by: By, found: &Result<T, AccessError>) {
        let result = match found {
            Ok(_) => LoginResult::Ok,
            Err(AccessError::Busy) => LoginResult::Busy,
            Err(_) => LoginResult::Wrong,
        };
        self.of(by, result).inc();
    }

    fn of(&self, by: By, result: LoginResult) -> Counter {
        let labels = Labels { by, result };
        self.logins.get_or_create_owned(&labels)
    }
}

impl EncodeLabelValue for By {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Password => "password",
            Self::Token => "token",
        })
    }
}

impl EncodeLabelValue for LoginResult {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Ok => "ok",
            Self::Wrong => "wrong",
            Self::Busy => "busy",
        })
    }
}
