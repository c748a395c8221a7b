//! A pull-through caching OCI registry, which also takes pushes.

pub mod access;
pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod evict;
pub mod hosted;
pub mod http;
pub mod index;
pub mod metrics;
pub mod name;
pub mod pull;
pub mod rebuild;
pub mod server;
pub mod store;
pub mod transfer;
pub mod upstream;
