//! Room for images: what the file system has, what a pull will take, what the budget leaves.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What the kubelet starts to evict pods at (`imagefs.available<15%`): whatever the budget, nothing is pulled then.
pub const PRESSURE_PERCENT: u8 = 85;
/// Compressed bytes are kept beside the unpacked ones, which are two to four times as many.
const FIRST_GUESS: f64 = 3.0;
/// Outside of these somebody else wrote or deleted meanwhile.
const CREDIBLE: std::ops::RangeInclusive<f64> = 1.0..=10.0;
/// How much a new measurement moves the mean.
const WEIGHT: f64 = 0.2;
/// Measurements kept by image: the same 256 that a node may hold.
const MOST_RATIOS: usize = 256;

/// The file system of the images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes that it has.
    pub capacity: u64,
    /// Bytes that are not available to us, whoever has them.
    pub used: u64,
}

impl Space {
    /// Asks the kernel about the file system that holds `path`. Blocks.
    pub fn of(path: &Path) -> io::Result<Self> {
        let answer = rustix::fs::statvfs(path)?;
        let capacity = answer.f_blocks.saturating_mul(answer.f_frsize);
        if capacity == 0 {
            return Err(io::Error::other("it has no size: no images can be on it"));
        }
        let available = answer.f_bavail.saturating_mul(answer.f_frsize);
        Ok(Self {
            capacity,
            used: capacity.saturating_sub(available),
        })
    }

    /// With what the runtime says that images take: more than the file system has in use means that the path lies on
    /// another one, and the larger number is the safer one.
    #[must_use]
    pub fn with_images(self, bytes: u64) -> Self {
        Self {
            used: self.used.max(bytes).min(self.capacity),
            ..self
        }
    }

    /// Percent in use, rounded up.
    pub fn used_percent(self) -> u8 {
        self.percent_with(0)
    }

    fn percent_with(self, more: u64) -> u8 {
        let used = u128::from(self.used) + u128::from(more);
        let percent = (used * 100).div_ceil(u128::from(self.capacity.max(1)));
        u8::try_from(percent).unwrap_or(u8::MAX)
    }

    /// Would `need` more bytes stay within `ceiling` percent? An image of unknown size needs nothing, but room there
    /// has to be.
    pub fn fits(self, need: u64, ceiling: u8) -> bool {
        self.used_percent() < ceiling && self.percent_with(need) <= ceiling
    }
}

/// Bytes on disk per compressed byte, learnt from pulls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratios {
    /// By spelling.
    #[serde(default)]
    images: BTreeMap<String, f64>,
    /// For the others.
    #[serde(default = "Ratios::first_guess")]
    mean: f64,
}

impl Default for Ratios {
    fn default() -> Self {
        Self {
            images: BTreeMap::new(),
            mean: FIRST_GUESS,
        }
    }
}

impl Ratios {
    fn first_guess() -> f64 {
        FIRST_GUESS
    }

    /// Bytes that a pull of so many compressed bytes takes.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate; saturates"
    )]
    pub fn need(&self, spelling: &str, compressed: u64) -> u64 {
        let ratio = self.images.get(spelling).unwrap_or(&self.mean);
        (compressed as f64 * ratio) as u64
    }

    /// A pull that ran alone made the disk fuller by `grown`.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn learn(&mut self, spelling: &str, compressed: u64, grown: u64) {
        let ratio = grown as f64 / compressed.max(1) as f64;
        if !CREDIBLE.contains(&ratio) {
            return;
        }
        self.mean += (ratio - self.mean) * WEIGHT;
        if self.images.len() < MOST_RATIOS || self.images.contains_key(spelling) {
            self.images.insert(spelling.to_owned(), ratio);
        }
    }

    /// Forgets images that are no longer wished for.
    pub fn keep(&mut self, wished: impl Fn(&str) -> bool) {
        self.images.retain(|spelling, _| wished(spelling));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(0, 80, 80, true)]
    #[case(0, 81, 80, false)]
    #[case(79, 1, 80, true)]
    #[case(79, 2, 80, false)]
    #[case(80, 0, 80, false)]
    #[case(79, 0, 80, true)]
    #[case(100, 0, 100, false)]
    #[case(50, u64::MAX, 80, false)]
    fn l03_a_pull_needs_room_below_the_ceiling(
        #[case] used: u64,
        #[case] need: u64,
        #[case] ceiling: u8,
        #[case] fits: bool,
    ) {
        let space = Space {
            capacity: 100,
            used,
        };
        assert_eq!(space.fits(need, ceiling), fits);
    }

    #[test]
    fn l03_room_is_estimated_from_what_earlier_pulls_took() {
        let mut ratios = Ratios::default();
        assert_eq!(ratios.need("a", 100), 300);
        ratios.learn("a", 100, 400);
        assert_eq!(ratios.need("a", 100), 400);
        assert_eq!(ratios.need("b", 100), 320, "others move a little");
        ratios.learn("a", 100, 5);
        ratios.learn("a", 100, 5_000);
        assert_eq!(
            ratios.need("a", 100),
            400,
            "others wrote or deleted meanwhile"
        );
        ratios.keep(|spelling| spelling != "a");
        assert_eq!(ratios.need("a", 100), 320);
    }

    #[test]
    fn the_file_system_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::of(folder.path()).unwrap();
        assert!(space.capacity > 0 && space.used <= space.capacity);
        assert!(Space::of(&folder.path().join("none")).is_err());
        assert!(
            Space::of(Path::new("/proc")).is_err(),
            "nothing can be stored there"
        );
    }

    #[test]
    fn images_that_do_not_fit_the_file_system_are_elsewhere() {
        let space = Space {
            capacity: 100,
            used: 10,
        };
        assert_eq!(space.with_images(5).used, 10);
        assert_eq!(space.with_images(60).used, 60);
        assert_eq!(space.with_images(600).used_percent(), 100);
    }
}
