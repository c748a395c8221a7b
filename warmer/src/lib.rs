//! Keeps the images that a node's `NodeCache` names on that node.

pub mod cri;
pub mod disk;
pub mod presence;
pub mod record;
