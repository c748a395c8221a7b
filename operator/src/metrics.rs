//! The prefix of our metrics. The families live with the modules that count.

use prometheus_client::registry::Registry;

/// The part of `registry` whose names start with `coral_operator_`.
pub fn prefixed(registry: &mut Registry) -> &mut Registry {
    registry.sub_registry_with_prefix("coral_operator")
}
