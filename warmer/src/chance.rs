//! Chance: what keeps thousands of nodes from doing the same in the same second.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// Any number.
pub fn any() -> u64 {
    RandomState::new().hash_one(())
}

/// From any number to a share of one, without one itself.
pub fn share(any: u64) -> f64 {
    f64::from(u32::try_from(any % 1024).unwrap_or(0)) / 1024.0
}

/// Half of it at least.
pub fn shortened(wait: Duration, any: u64) -> Duration {
    wait.mul_f64(0.5 + share(any) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l05_waits_of_nodes_differ_within_bounds() {
        let wait = Duration::from_secs(1024);
        assert_eq!(shortened(wait, 0), Duration::from_secs(512));
        assert_eq!(shortened(wait, 512), Duration::from_secs(768));
        assert!((0..5_000).all(|any| share(any) < 1.0 && shortened(wait, any) < wait));
        let different = (0..100).map(|_| any() % 1024);
        assert!(different.collect::<std::collections::BTreeSet<_>>().len() > 50);
    }
}
