//! Pure: does the cache count as alive, after what the probes saw?

/// Successes in a row that bring the settings back.
const SUCCESSES: u32 = 2;
/// containerd 1.x ignores `dial_timeout`: a black hole costs it 120 s per layer (tried on 1.6).
const FAILURES_WITHOUT_DIAL_TIMEOUT: u32 = 2;
/// Half a minute: a restart of the cache is no reason to touch files, and costs a pull 400 ms per object.
const FAILURES: u32 = 6;

/// Failures in a row that withdraw the settings.
pub fn patience(runtime: &str, version: &str) -> u32 {
    let version = version.strip_prefix('v').unwrap_or(version);
    if runtime == "containerd" && version.starts_with("1.") {
        FAILURES_WITHOUT_DIAL_TIMEOUT
    } else {
        FAILURES
    }
}

/// What the last probes saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probes {
    /// `None` until it is known: then nothing is written, and nothing that an earlier process wrote is withdrawn.
    alive: Option<bool>,
    /// Results in a row that contradict it.
    against: u32,
}

impl Probes {
    /// Does the cache count as alive?
    pub fn alive(self) -> Option<bool> {
        self.alive
    }

    /// Takes in one more result.
    pub fn record(&mut self, answered: bool, patience: u32) {
        match self.alive {
            Some(alive) if alive == answered => self.against = 0,
            None if answered => self.alive = Some(true),
            Some(_) | None => {
                self.against += 1;
                let enough = if answered { SUCCESSES } else { patience };
                if self.against >= enough {
                    *self = Self {
                        alive: Some(answered),
                        against: 0,
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+` and `-` are results; `T`, `F` and `?` what counts after each.
    #[rstest::rstest]
    #[case(6, "+-----+------", "TTTTTTTTTTTTF")]
    #[case(2, "+-+--+-++-", "TTTTFFFFTT")]
    #[case(6, "------+", "?????FF")]
    #[case(6, "--+", "??T")]
    #[case(2, "--++", "?FFT")]
    fn counts(#[case] patience: u32, #[case] results: &str, #[case] expected: &str) {
        let mut probes = Probes::default();
        let seen: String = results
            .chars()
            .map(|result| {
                probes.record(result == '+', patience);
                match probes.alive() {
                    Some(true) => 'T',
                    Some(false) => 'F',
                    None => '?',
                }
            })
            .collect();
        assert_eq!(seen, expected);
    }

    #[rstest::rstest]
    #[case("containerd", "1.6.20~ds1", 2)]
    #[case("containerd", "v1.7.0", 2)]
    #[case("containerd", "v2.4.2", 6)]
    #[case("containerd", "10.0", 6)]
    #[case("cri-o", "1.30.0", 6)]
    fn containerd_1_is_impatient(#[case] name: &str, #[case] version: &str, #[case] after: u32) {
        assert_eq!(patience(name, version), after);
    }
}
