//! Pure: when a transfer goes on without readers, and when a range is worth a whole download.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coral_schema::oci::Digest;
use coral_schema::quantity::Ratio;
use moka::sync::Cache;

/// Does a transfer that nobody reads any more go on (configuration `cache.finishTransfers`)?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishTransfers {
    /// Yes: the next client will want it.
    Always,
    /// Once this share of it is there.
    After(Ratio),
    /// No.
    Never,
}

impl FinishTransfers {
    /// Go on without readers?
    pub fn goes_on(self, watermark: u64, size: Option<u64>) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::After(share) => size.is_some_and(|size| watermark >= share.of(size)),
        }
    }
}

/// Does a bounded range start a fill (configuration `cache.fillOnRange`)?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillOnRange {
    /// Once a tenth of the blob was asked for in ranges, or by a second client.
    Auto,
    /// Yes.
    Always,
    /// No.
    Never,
}

/// What a range is compared with.
#[derive(Debug, Clone, Copy)]
pub struct RangeFacts {
    /// First byte that is wanted.
    pub start: u64,
    /// Last byte that is wanted; `None` for an open end.
    pub end: Option<u64>,
    /// Length of the blob.
    pub size: u64,
    /// The watermark of the running transfer, if one runs.
    pub watermark: Option<u64>,
    /// Bytes of this blob that were passed through lately.
    pub passed: u64,
    /// Did another client ask for ranges of it lately?
    pub second_client: bool,
}

impl FillOnRange {
    /// Shall the range go upstream by itself, without a fill?
    pub fn passes_through(self, facts: &RangeFacts) -> bool {
        let Some(end) = facts.end else { return false };
        let length = end.saturating_sub(facts.start) + 1;
        if length > LARGEST_PASSED {
            return false;
        }
        let within_share = facts.passed.saturating_add(length) <= facts.size / 10;
        match (facts.watermark, self) {
            (Some(watermark), _) => end >= watermark.saturating_add(NEAR) && within_share,
            (None, Self::Always) => false,
            (None, Self::Never) => true,
            (None, Self::Auto) => within_share && !facts.second_client,
        }
    }
}

/// Largest range that is passed through, bytes: lazy loaders read chunks of up to 4 MiB.
const LARGEST_PASSED: u64 = 4 << 20;
/// A range this close to the watermark will be there sooner than a request of its own, bytes.
const NEAR: u64 = 4 << 20;

/// What was passed through lately, per blob.
#[derive(Debug)]
pub struct RangeLedger(Cache<Digest, Arc<Mutex<Passed>>>);

#[derive(Debug, Default)]
struct Passed {
    bytes: u64,
    clients: HashSet<Option<IpAddr>>,
}

impl Default for RangeLedger {
    fn default() -> Self {
        Self(
            Cache::builder()
                .max_capacity(10_000)
                .time_to_idle(Duration::from_hours(1))
                .build(),
        )
    }
}

impl RangeLedger {
    /// Bytes that were passed, and whether others than `client` asked.
    pub fn read(&self, digest: &Digest, client: Option<IpAddr>) -> (u64, bool) {
        self.0.get(digest).map_or((0, false), |passed| {
            let passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
            (
                passed.bytes,
                passed.clients.iter().any(|other| *other != client),
            )
        })
    }

    /// `client` is passed `bytes` more.
    pub fn add(&self, digest: &Digest, client: Option<IpAddr>, bytes: u64) {
        let passed = self.0.get_with(*digest, Arc::default);
        let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.bytes = passed.bytes.saturating_add(bytes);
        // Two are enough to know that there is a second one.
        if passed.clients.len() < 2 {
            passed.clients.insert(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn facts(start: u64, end: Option<u64>) -> RangeFacts {
        RangeFacts {
            start,
            end,
            size: GIB,
            watermark: None,
            passed: 0,
            second_client: false,
        }
    }

    #[rstest::rstest]
    #[case::small_and_cold(facts(500_000_000, Some(500_000_999)), true)]
    #[case::open_end(facts(500_000_000, None), false)]
    #[case::large(facts(0, Some(4 << 20)), false)]
    #[case::largest(facts(0, Some((4 << 20) - 1)), true)]
    #[case::a_tenth_is_used(RangeFacts { passed: GIB / 10, ..facts(0, Some(999)) }, false)]
    #[case::second_client(RangeFacts { second_client: true, ..facts(0, Some(999)) }, false)]
    #[case::near_the_watermark(RangeFacts { watermark: Some(1000), ..facts(2000, Some(3000)) }, false)]
    #[case::far_ahead(RangeFacts { watermark: Some(1000), ..facts(GIB / 2, Some(GIB / 2 + 9)) }, true)]
    #[case::far_ahead_but_used_up(
        RangeFacts { watermark: Some(1000), passed: GIB / 10, ..facts(GIB / 2, Some(GIB / 2 + 9)) }, false)]
    fn decides_auto(#[case] facts: RangeFacts, #[case] passes: bool) {
        assert_eq!(FillOnRange::Auto.passes_through(&facts), passes);
    }

    #[test]
    fn the_setting_is_obeyed() {
        assert!(!FillOnRange::Always.passes_through(&facts(0, Some(9))));
        assert!(FillOnRange::Never.passes_through(&RangeFacts {
            passed: GIB,
            ..facts(0, Some(9))
        }));
    }

    #[test]
    fn a_ledger_knows_the_second_client() {
        let ledger = RangeLedger::default();
        let digest = Digest::sha256(b"");
        let client = |last| Some(IpAddr::from([127, 0, 0, last]));
        ledger.add(&digest, client(1), 10);
        assert_eq!(ledger.read(&digest, client(1)), (10, false));
        assert_eq!(ledger.read(&digest, client(2)), (10, true));
    }

    fn percent(percent: u8) -> Ratio {
        Ratio::from_percent(percent).unwrap()
    }

    #[rstest::rstest]
    #[case(FinishTransfers::Always, true)]
    #[case(FinishTransfers::Never, false)]
    #[case(FinishTransfers::After(percent(10)), true)]
    #[case(FinishTransfers::After(percent(20)), false)]
    fn finishes(#[case] setting: FinishTransfers, #[case] goes_on: bool) {
        assert_eq!(setting.goes_on(15, Some(100)), goes_on);
    }
}
