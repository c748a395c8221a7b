//! Are the node's disks so busy that another pull would hurt what runs there? Unpacking is mostly writing and syncing; a
//! hundred pulls at once have stalled whole runtimes.
//!
//! The kernel says which share of time everything that had work to do waited for disks (PSI, `full` in
//! Documentation/accounting/psi.rst). `some` would not do: a single unpacking keeps it high on an idle node.

use std::path::Path;
use std::time::Duration;

/// Where the kernel says it. Inside a container it is that of the whole node, too.
pub const FILE: &str = "/proc/pressure/io";
/// The kernel's shortest average: no sense in asking more often.
pub const WINDOW: Duration = Duration::from_secs(10);

/// No pull starts from here on, percent: for two fifths of the time nobody on the node got anywhere. An unpacking alone on
/// a slow cloud disk comes close; one beside a busy database passes it.
const HIGH: f64 = 40.0;
/// Pulls start again below. After the disks fell silent the average gets here within 16 s, so that the end of one pull
/// does not hold up the next for long.
const LOW: f64 = 20.0;

/// Time in which every task that had work waited for disks, over [`WINDOW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    percent: f64,
}

impl Pressure {
    /// Asks the kernel. `None` where it does not say: older than 4.20, or started with `psi=0`. Blocks for a moment.
    pub fn read(file: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(file).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
        let percent = full
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix("avg10="))?;
        Some(Self {
            percent: percent.parse().ok()?,
        })
    }
}

/// Is it too much for another pull? `before` is the last answer: it takes more to come than to stay.
pub fn too_high(before: bool, now: Option<Pressure>) -> bool {
    let limit = if before { LOW } else { HIGH };
    now.is_some_and(|now| now.percent >= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(percent: f64) -> Pressure {
        Pressure { percent }
    }

    #[test]
    fn l04_the_kernels_words_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("io");
        assert_eq!(Pressure::read(&file), None, "no such file");
        for (text, read) in [
            (
                "some avg10=71.24 avg60=1.01 avg300=0.74 total=1056698536\n\
                 full avg10=40.21 avg60=0.86 avg300=0.44 total=225708779\n",
                Some(full(40.21)),
            ),
            ("some avg10=71.24 avg60=1.01 avg300=0.74 total=1\n", None),
            ("full avg10=much", None),
            ("", None),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(Pressure::read(&file), read, "{text}");
        }
    }

    #[test]
    fn l04_busy_disks_stay_busy_until_they_are_calm() {
        let mut busy = false;
        let seen = [0.0, 39.9, 40.0, 20.0, 39.9, 19.9, 39.9].map(|percent| {
            busy = too_high(busy, Some(full(percent)));
            busy
        });
        assert_eq!(seen, [false, false, true, true, true, false, false]);
        assert!(!too_high(true, None), "who is not told does not wait");
    }
}
