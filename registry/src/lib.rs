//! A pull-through caching OCI registry.

pub mod access;
pub mod index;
pub mod name;
pub mod pull;
pub mod store;
pub mod upstream;
