//! What may be removed. The runtime removes an image with all its names, also from under running containers: nothing
//! but this decision stands between a wish and somebody else's image.

use coral_schema::crd::NodeCacheSpec;
use coral_schema::crd::node_cache::{PurgeResult, PurgeWish};
use coral_schema::oci::ImageReference;
use jiff::Timestamp;

use crate::cri::{ContainerFacts, ImageFacts};
use crate::presence::same_name;
use crate::record::Record;

/// What becomes of a wish to remove an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing, and nothing is reported: void, paused, or wished for again.
    Leave,
    /// It may go now.
    Remove,
    /// Nothing is to be done.
    Final(PurgeResult),
}

/// What was asked right before a removal.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The image under the wish's spelling.
    pub image: Option<&'a ImageFacts>,
    /// Containers in every state.
    pub containers: &'a [ContainerFacts],
}

/// Is the wish still one?
pub fn stands(wish: &PurgeWish, spec: &NodeCacheSpec, now: Timestamp) -> bool {
    let wished_for = || {
        spec.images
            .iter()
            .any(|image| spelled_alike(&image.reference, &wish.reference))
    };
    !spec.paused && now <= wish.not_after.0 && !wished_for()
}

/// Removed is only what our pull brought and nobody has a use for.
pub fn judge(
    wish: &PurgeWish,
    spec: &NodeCacheSpec,
    record: &Record,
    facts: Facts<'_>,
    now: Timestamp,
) -> Verdict {
    if !stands(wish, spec, now) {
        return Verdict::Leave;
    }
    let Some(image) = facts.image else {
        return Verdict::Final(PurgeResult::Purged);
    };
    let pulled_by_us = record
        .images
        .get(&wish.reference)
        .is_some_and(|entry| entry.ours.as_ref() == Some(&image.id));
    if !pulled_by_us || !names(image).all(|name| is_ours(&name, image, record)) {
        return Verdict::Final(PurgeResult::NotOurs);
    }
    let wished_for = |name: &ImageReference| {
        spec.images
            .iter()
            .filter_map(|wished| wished.reference.parse().ok())
            .any(|wished: ImageReference| same_name(&wished, name))
    };
    let has_a_use = facts.containers.iter().any(|container| uses(container, image))
        // A sibling that is wished for would go as well; it takes this one along when its own time comes.
        || names(image).any(|name| wished_for(&name));
    if has_a_use {
        return Verdict::Final(PurgeResult::InUse);
    }
    Verdict::Remove
}

fn names(image: &ImageFacts) -> impl Iterator<Item = ImageReference> {
    let names = image.tags.iter().chain(&image.digests);
    names.filter_map(|name| name.parse().ok())
}

/// A tag is ours if we pulled this image under it. A digest is if we pulled the image from that repository: the runtime
/// adds the digest to a tag by itself.
fn is_ours(name: &ImageReference, image: &ImageFacts, record: &Record) -> bool {
    record
        .images
        .iter()
        .filter(|(_, entry)| entry.ours.as_ref() == Some(&image.id))
        .filter_map(|(spelling, _)| spelling.parse::<ImageReference>().ok())
        .any(|ours| {
            let repository = ours.host == name.host && ours.repository == name.repository;
            same_name(&ours, name) || (repository && name.digest.is_some())
        })
}

/// Runtimes write the identifier with and without its algorithm, or a name.
fn uses(container: &ContainerFacts, image: &ImageFacts) -> bool {
    let bare = |word: &str| word.strip_prefix("sha256:").unwrap_or(word).to_owned();
    container.image.iter().any(|word| {
        bare(word) == bare(&image.id)
            || image
                .tags
                .iter()
                .chain(&image.digests)
                .any(|name| spelled_alike(name, word))
    })
}

fn spelled_alike(one: &str, other: &str) -> bool {
    one == other
        || match (one.parse(), other.parse()) {
            (Ok(one), Ok(other)) => same_name(&one, &other),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Entry;
    use jiff::SignedDuration;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    struct Case {
        ours: &'static [&'static str],
        wished: &'static [&'static str],
        tags: &'static [&'static str],
        container: Option<&'static str>,
    }

    /// Pulled as `r.test/a:1` by us alone, wished for by nobody, used by nothing.
    const CLEAN: Case = Case {
        ours: &["r.test/a:1"],
        wished: &[],
        tags: &["r.test/a:1"],
        container: None,
    };

    fn spec(wished: &[&str]) -> NodeCacheSpec {
        let images: Vec<_> = wished
            .iter()
            .map(|reference| serde_json::json!({ "ref": reference }))
            .collect();
        serde_json::from_value(serde_json::json!({ "nodeUID": "u", "images": images })).unwrap()
    }

    fn wish() -> PurgeWish {
        let text = r#"{"ref":"r.test/a:1","notAfter":"1970-01-01T00:10:00Z"}"#;
        serde_json::from_str(text).unwrap()
    }

    fn record(ours: &[&str]) -> Record {
        let mut record = Record::default();
        for spelling in ours {
            let entry = Entry {
                ours: Some("sha256:id".to_owned()),
                ..Entry::default()
            };
            record.images.insert((*spelling).to_owned(), entry);
        }
        record
    }

    fn verdict(case: &Case) -> Verdict {
        let image = ImageFacts {
            id: "sha256:id".to_owned(),
            tags: case.tags.iter().map(ToString::to_string).collect(),
            digests: vec![format!("r.test/a@{DIGEST}")],
            size_bytes: 1,
        };
        let containers: Vec<_> = case
            .container
            .map(|word| ContainerFacts {
                id: "c".to_owned(),
                image: vec![word.to_owned()],
            })
            .into_iter()
            .collect();
        let facts = Facts {
            image: Some(&image),
            containers: &containers,
        };
        judge(&wish(), &spec(case.wished), &record(case.ours), facts, NOW)
    }

    #[rstest::rstest]
    #[case::clean(CLEAN, Verdict::Remove)]
    #[case::a_was_there_before(Case { ours: &[], ..CLEAN }, Verdict::Final(PurgeResult::NotOurs))]
    #[case::a_only_a_sibling_is_ours(Case { ours: &["r.test/b:1"], ..CLEAN }, Verdict::Final(PurgeResult::NotOurs))]
    #[case::b_a_foreign_tag(Case { tags: &["r.test/a:1", "r.test/other:1"], ..CLEAN }, Verdict::Final(PurgeResult::NotOurs))]
    #[case::b_a_tag_of_ours(Case { ours: &["r.test/a:1", "r.test/b:1"], tags: &["r.test/a:1", "r.test/b:1"], ..CLEAN }, Verdict::Remove)]
    #[case::b_a_wished_sibling(Case { ours: &["r.test/a:1", "r.test/b:1"], tags: &["r.test/a:1", "r.test/b:1"], wished: &["r.test/b:1"], ..CLEAN }, Verdict::Final(PurgeResult::InUse))]
    #[case::b_wished_by_digest(Case { wished: &["r.test/a@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"], ..CLEAN }, Verdict::Final(PurgeResult::InUse))]
    #[case::wished_again(Case { wished: &["r.test/a:1"], ..CLEAN }, Verdict::Leave)]
    #[case::wished_again_by_another_spelling(Case { wished: &["R.test/a:1"], ..CLEAN }, Verdict::Leave)]
    #[case::c_a_container_by_identifier(Case { container: Some("sha256:id"), ..CLEAN }, Verdict::Final(PurgeResult::InUse))]
    #[case::c_without_algorithm(Case { container: Some("id"), ..CLEAN }, Verdict::Final(PurgeResult::InUse))]
    #[case::c_by_name(Case { container: Some("r.test/a:1"), ..CLEAN }, Verdict::Final(PurgeResult::InUse))]
    #[case::c_another_image(Case { container: Some("sha256:other"), ..CLEAN }, Verdict::Remove)]
    fn l08_only_what_we_brought_and_nobody_uses(#[case] case: Case, #[case] expected: Verdict) {
        assert_eq!(verdict(&case), expected);
    }

    #[test]
    fn l08_wishes_are_void_afterwards_and_absent_images_are_gone() {
        let facts = Facts {
            image: None,
            containers: &[],
        };
        let record = Record::default();
        let at = |now| judge(&wish(), &spec(&[]), &record, facts, now);
        assert_eq!(at(NOW), Verdict::Final(PurgeResult::Purged));
        assert_eq!(at(NOW + SignedDuration::from_mins(11)), Verdict::Leave);
        let mut paused = spec(&[]);
        paused.paused = true;
        assert_eq!(judge(&wish(), &paused, &record, facts, NOW), Verdict::Leave);
    }

    #[test]
    fn l08_somebody_elses_image_is_not_ours_even_without_names_that_say_so() {
        let image = ImageFacts {
            id: "sha256:pulled-by-the-kubelet".to_owned(),
            ..ImageFacts::default()
        };
        let facts = Facts {
            image: Some(&image),
            containers: &[],
        };
        let verdict = judge(&wish(), &spec(&[]), &record(&["r.test/a:1"]), facts, NOW);
        assert_eq!(verdict, Verdict::Final(PurgeResult::NotOurs));
    }
}
