//! One `NodeCache` per node: what all `ImageCache`s together want there.
//!
//! [`wishes::Wishes`] collects who wants what where, [`merge::merge`] makes a node's spec of it;
//! [`stored::Stored`] is what is remembered of one.

pub mod apply;
pub mod merge;
pub mod stored;
pub mod wishes;
