//! Keeps the images that a node's `NodeCache` names on that node.

pub mod cri;
pub mod disk;
pub mod execute;
pub mod plan;
pub mod presence;
pub mod purge;
pub mod record;
