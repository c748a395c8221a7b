//! Pure: what is pinned, so that the kubelet does not collect it.
//!
//! Bounded: what is pinned nobody can collect, and a disk full of pins ends in evicted pods.

use std::collections::BTreeSet;

use coral_schema::crd::NodeCacheSpec;

use crate::disk::{Ratios, Space};
use crate::presence::Found;

/// Of the image file system at most so much is pinned: the kubelet collects down to 80 %, and has to find that much among
/// the rest.
const MOST_PERCENT: u64 = 50;

/// Every name of the images that are to be pinned and are there, the most wanted first as long as they fit. The kubelet
/// removes an image with all its names, and any of them may be the one it looks at: all carry the pin.
pub fn wanted(
    spec: &NodeCacheSpec,
    found: &Found,
    ratios: &Ratios,
    space: Space,
) -> BTreeSet<String> {
    let mut protected: Vec<_> = spec.images.iter().filter(|image| image.protect).collect();
    protected.sort_by_key(|image| std::cmp::Reverse(image.priority));
    let mut room = u128::from(space.capacity) * u128::from(MOST_PERCENT) / 100;
    let mut names = BTreeSet::new();
    for image in protected {
        let Some(Some(facts)) = found.get(&image.reference) else {
            continue;
        };
        // The other name of an image that is pinned already takes no more.
        if !names.contains(&facts.id) {
            let need = u128::from(ratios.need(&image.reference, facts.size_bytes));
            let Some(left) = room.checked_sub(need) else {
                continue;
            };
            room = left;
        }
        names.insert(facts.id.clone());
        names.extend(facts.tags.iter().chain(&facts.digests).cloned());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::ImageFacts;

    fn facts(id: &str, names: &[&str], size_bytes: u64) -> ImageFacts {
        ImageFacts {
            id: id.to_owned(),
            tags: names.iter().map(ToString::to_string).collect(),
            digests: vec![format!("r.test/x@{id}")],
            size_bytes,
        }
    }

    #[test]
    fn l09_every_name_is_pinned_and_half_of_the_disk_at_most() {
        let images = serde_json::json!([
            { "ref": "a", "protect": true },
            { "ref": "b", "protect": true, "priority": 1 },
            { "ref": "alias-of-b", "protect": true },
            { "ref": "too-large", "protect": true, "priority": 9 },
            { "ref": "absent", "protect": true },
            { "ref": "not-wished-for" },
        ]);
        let spec = serde_json::json!({ "nodeUID": "u", "images": images });
        let spec: NodeCacheSpec = serde_json::from_value(spec).unwrap();
        // An image takes three times its size.
        let found = Found::from([
            ("a".to_owned(), Some(facts("1", &["r.test/a:1"], 10))),
            (
                "b".to_owned(),
                Some(facts("2", &["r.test/b:1", "r.test/b:2"], 10)),
            ),
            (
                "alias-of-b".to_owned(),
                Some(facts("2", &["r.test/b:1", "r.test/b:2"], 10)),
            ),
            (
                "too-large".to_owned(),
                Some(facts("3", &["r.test/c:1"], 17)),
            ),
            ("absent".to_owned(), None),
            (
                "not-wished-for".to_owned(),
                Some(facts("4", &["r.test/d:1"], 1)),
            ),
        ]);
        let pinned = |capacity| {
            let space = Space { capacity, used: 0 };
            let names = wanted(&spec, &found, &Ratios::default(), space);
            names.into_iter().collect::<Vec<_>>().join(" ")
        };
        let b = "2 r.test/b:1 r.test/b:2 r.test/x@2";
        assert_eq!(pinned(100), b, "30 of 50: a does not fit beside it");
        assert_eq!(pinned(59), "");
        assert!(pinned(1000).contains("r.test/c:1") && !pinned(1000).contains("r.test/d:1"));
    }
}
