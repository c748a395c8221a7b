//! What the process of every program has in common.

pub mod tasks;
