//! Peers for the tests and the benchmark: a scripted upstream, a breakable wire, our registry as a process, and a
//! client that sees exactly how a reply ended. Everything is on loopback and ends with the value that stands for it.

pub mod ask;
pub mod cache;
pub mod chaos;
pub mod client;
pub mod cri;
pub mod images;
pub mod kube;
pub mod mixed;
pub mod node;
pub mod program;
pub mod pull;
pub mod push;
pub mod registry;
pub mod upstream;
mod wire;
