use super::*;
use jiff::ToSpan as _;
use proptest::prelude::*;

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn ago(minutes: i64) -> Timestamp {
    now() - minutes.minutes()
}

const fn volume(free: u64, total: u64) -> Volume {
    Volume { free, total }
}

/// A volume without any pressure.
const WIDE: Volume = volume(1 << 60, 1 << 61);

fn blob(number: u64, size: u64, minutes: i64) -> EvictionCandidate {
    EvictionCandidate {
        digest: Digest::sha256(&number.to_le_bytes()),
        size,
        manifest: false,
        stored: ago(minutes),
        last_use: ago(minutes),
        bare_since: None,
        pinned: false,
        missing: false,
    }
}

fn pressing(need: u64, goal: u64) -> Pressure {
    Pressure {
        reason: Reason::Limit,
        need,
        goal,
    }
}

fn chosen(candidates: &[EvictionCandidate], pressure: Pressure) -> Vec<usize> {
    let victims = victims(&mut candidates.iter().cloned(), pressure, now());
    let position = |victim: &Victim| candidates.iter().position(|c| c.digest == victim.digest);
    victims.iter().map(|v| position(v).unwrap()).collect()
}

#[rstest::rstest]
#[case::below(900, WIDE, None)]
#[case::above_the_limit(901, WIDE, Some((Reason::Limit, 1, 101)))]
#[case::nothing_to_give(0, volume(0, 1000), None)]
#[case::own_volume_with_room(700, volume(200, 1000), None)]
#[case::own_volume_full(880, volume(40, 1000), Some((Reason::Volume, 53, 144)))]
#[case::both_at_once(950, volume(10, 1000), Some((Reason::Volume, 87, 182)))]
#[case::others_filled_the_volume(10, volume(20, 1000), None)]
#[case::others_filled_it_to_the_last_byte(10, volume(0, 1000), Some((Reason::Volume, 2, 2)))]
#[case::eviction_lets_fills_go_on(95, volume(10, 1000), Some((Reason::Volume, 41, 90)))]
#[case::a_volume_that_cannot_tell(10, volume(0, 0), None)]
fn h08_pressure(
    #[case] held: u64,
    #[case] volume: Volume,
    #[case] expected: Option<(Reason, u64, u64)>,
) {
    let pressure = pressure(held, 1000, volume).map(|p| (p.reason, p.need, p.goal));
    assert_eq!(pressure, expected);
}

#[test]
fn the_least_recently_used_go_first_and_no_more_than_needed() {
    let candidates: Vec<_> = (0..10)
        .map(|n| blob(n, 10, 1000 - n.cast_signed()))
        .collect();
    assert_eq!(chosen(&candidates, pressing(1, 25)), [0, 1, 2]);
}

#[test]
fn what_is_protected_goes_in_its_order_and_only_as_far_as_needed() {
    let young = blob(0, 10, 59);
    let young_too = blob(1, 10, 58);
    let idle = blob(2, 10, 60);
    let missing = EvictionCandidate {
        missing: true,
        ..blob(3, 10, 500)
    };
    let pinned = EvictionCandidate {
        pinned: true,
        ..blob(4, 10, 9000)
    };
    let manifest = EvictionCandidate {
        manifest: true,
        ..blob(5, 10, 9000)
    };
    let month = 30 * 24 * 60;
    let bare = EvictionCandidate {
        bare_since: Some(ago(month)),
        manifest: true,
        ..blob(6, 10, month)
    };
    let in_use = EvictionCandidate {
        last_use: ago(5),
        ..bare.clone()
    };
    let in_use = EvictionCandidate {
        digest: Digest::sha256(b"in use"),
        ..in_use
    };
    let all = [
        bare, pinned, manifest, missing, idle, young, young_too, in_use,
    ];
    assert_eq!(chosen(&all, pressing(10, 1000)), [4, 0]);
    assert_eq!(chosen(&all, pressing(21, 1000)), [4, 0, 5]);
    assert_eq!(chosen(&all, pressing(1000, 1000)), [4, 0, 5, 6, 3, 2, 7]);
}

prop_compose! {
    fn any_candidate()(
        size in 0_u64..100,
        used in 0_i64..100_000,
        stored_before in 0_i64..1000,
        bare in proptest::option::of(0_i64..100_000),
        flags in 0_u8..0b1_0000,
    ) -> EvictionCandidate {
        EvictionCandidate {
            size,
            last_use: ago(used),
            stored: ago(used + stored_before),
            bare_since: bare.map(ago),
            manifest: flags & 0b11 == 0b11,
            pinned: flags & 0b1100 == 0b1100,
            missing: flags & 0b1100 == 0b1000,
            ..blob(0, 0, 0)
        }
    }
}

fn any_candidates() -> impl Strategy<Value = Vec<EvictionCandidate>> {
    proptest::collection::vec(any_candidate(), 0..60).prop_map(|mut candidates| {
        candidates.sort_by_key(|candidate| candidate.last_use);
        for (number, candidate) in candidates.iter_mut().enumerate() {
            candidate.digest = Digest::sha256(&number.to_le_bytes());
        }
        candidates
    })
}

/// What the policy promises, said the slow way: sort by tier, take until the tier's target is met.
fn model(candidates: &[EvictionCandidate], pressure: Pressure, now: Timestamp) -> Vec<Digest> {
    let mut sorted: Vec<_> = candidates
        .iter()
        .filter_map(|candidate| Some((tier(candidate, now)?, candidate)))
        .collect();
    sorted.sort_by_key(|(tier, candidate)| (*tier, candidate.last_use));
    let mut freed = 0;
    let mut chosen = Vec::new();
    for (tier, candidate) in sorted {
        if freed < tier.target(pressure) {
            freed += candidate.size;
            chosen.push(candidate.digest);
        }
    }
    chosen
}

proptest! {
    #[test]
    fn agrees_with_the_model(candidates in any_candidates(), need in 0_u64..1000, more in 0_u64..1000) {
        let pressure = pressing(need, need + more);
        let victims = victims(&mut candidates.iter().cloned(), pressure, now());
        let digests: Vec<_> = victims.iter().map(|victim| victim.digest).collect();
        prop_assert_eq!(digests, model(&candidates, pressure, now()));
    }

    #[test]
    fn frees_enough_if_it_can_and_never_touches_pins(candidates in any_candidates(), need in 1_u64..1000, more in 0_u64..1000) {
        let pressure = pressing(need, need + more);
        let victims = victims(&mut candidates.iter().cloned(), pressure, now());
        let freed: u64 = victims.iter().map(|victim| victim.size).sum();
        let free: u64 = candidates.iter().filter(|c| !c.pinned).map(|c| c.size).sum();
        prop_assert!(freed >= need.min(free));
        for candidate in candidates.iter().filter(|candidate| candidate.pinned) {
            prop_assert!(victims.iter().all(|victim| victim.digest != candidate.digest));
        }
        let last = victims.last().map_or(0, |victim| victim.size);
        prop_assert!(freed - last < pressure.goal.max(1));
    }

    /// H-30: a wrong clock changes which blobs count as young, never how much goes.
    #[test]
    fn h30_clock_jumps_evict_no_more(candidates in any_candidates(), goal in 1_u64..1000, hours in -24_i64..=24) {
        let jumped = now() + hours.hours();
        let pressure = pressing(goal, goal);
        let victims = victims(&mut candidates.iter().cloned(), pressure, jumped);
        let freed: u64 = victims.iter().map(|victim| victim.size).sum();
        prop_assert!(freed < goal + 100);
        prop_assert_eq!(super::pressure(800, 1000, WIDE), None);
    }
}
