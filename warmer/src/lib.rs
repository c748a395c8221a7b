//! Keeps the images that a node's `NodeCache` names on that node.
//!
//! ```text
//! watch ──wishes──► execute (plan, presence, disk, purge) ──► cri: the container runtime, which pulls through the cache
//!   │                  │  ▲ does the cache hold it? (registry)
//!   │                  │  └─────────────── mirror: points the runtime at the cache while it answers
//!   └──────────────────┴────────────────── report: the status
//! ```

pub mod app;
pub mod chance;
pub mod cli;
pub mod credentials;
pub mod cri;
pub mod disk;
pub mod execute;
pub mod metrics;
pub mod mirror;
pub mod pins;
pub mod plan;
pub mod presence;
pub mod pressure;
pub mod purge;
pub mod record;
pub mod registry;
pub mod report;
pub mod watch;
