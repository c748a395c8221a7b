//! Turns `ImageCache` resources into what each node should hold, and tells how it went.

pub mod address;
pub mod api;
pub mod crds;
pub mod events;
pub mod image_cache;
pub mod labels;
pub mod lease;
pub mod metrics;
pub mod node_cache;
#[cfg(test)]
pub(crate) mod test_support;
pub mod queue;
pub mod registry;
pub mod watch;
