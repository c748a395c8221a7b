//! One `NodeCache` per node: what all `ImageCache`s together want there.
//!
//! [`wishes::Wishes`] collects who wants what where, [`merge::merge`] makes a node's spec of it.

pub mod apply;
pub mod merge;
pub mod wishes;
