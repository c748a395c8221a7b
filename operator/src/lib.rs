//! Turns `ImageCache` resources into what each node should hold, and tells how it went.
//!
//! ```text
//! watches ─► world ─► image_cache: validate → refresh → assign → build → status     one ImageCache
//!              │          │ wishes                  │ jobs, pins
//!              │      node_cache: merge → apply     registry: follow → admin API
//!              │          NodeCache.spec
//!              └── leader: the loop around all of it, while the lease is ours
//! ```

pub mod address;
pub mod api;
pub mod app;
pub mod cli;
pub mod crds;
pub mod events;
pub mod explain;
pub mod image_cache;
pub mod labels;
pub mod leader;
pub mod lease;
pub mod metrics;
pub mod node_cache;
pub mod pods;
pub mod queue;
pub mod registry;
pub mod scheduling;
pub mod shared;
#[cfg(test)]
pub(crate) mod test_support;
pub mod uninstall;
pub mod watch;
