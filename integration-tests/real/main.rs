//! Our release binary between unmodified registries and clients, all real processes on loopback.
//!
//! `integration-tests/run` builds what is needed, names it in the environment and starts these tests. Each test owns its
//! registry, upstream and clients: processes, ports and folders of its own, gone when it ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admin;
mod browser;
mod chart;
mod clients;
mod cluster;
mod containerd;
mod coral;
mod definitions;
mod disk;
mod docker;
mod harness;
mod images;
mod installation;
mod kill;
mod kubernetes;
mod line;
mod load;
mod login;
mod operator;
mod outages;
mod page;
mod push;
mod refusals;
mod scratch;
mod token;
mod upstream;
mod warm;
mod weather;
