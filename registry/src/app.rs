//! The composition root, and what a process holds while it runs.

pub mod lock;
