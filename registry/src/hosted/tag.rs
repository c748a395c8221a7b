//! Pure: may this tag become, or stop being, what a request says?

use coral_schema::oci::{Digest, Tag};

use super::HostedError;
use crate::access::HostedConfig;

/// What a request demands of a tag as it is (RFC 9110, section 13.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match: *`
    Present,
    /// `If-Match: "<digest>", …`; what is no digest matches nothing.
    Means(Vec<Digest>),
}

impl Condition {
    /// Does it hold for a tag that means `present` now?
    pub(super) fn check(&self, present: Option<&Digest>) -> Result<(), HostedError> {
        let holds = match self {
            Self::None => true,
            Self::Absent => present.is_none(),
            Self::Present => present.is_some(),
            Self::Means(digests) => present.is_some_and(|present| digests.contains(present)),
        };
        holds.then_some(()).ok_or(HostedError::Precondition)
    }
}

/// May `tag`, which means `present`, mean `next` (or nothing)?
pub(super) fn may_change(
    config: &HostedConfig,
    tag: &Tag,
    present: Option<&Digest>,
    next: Option<&Digest>,
) -> Result<(), HostedError> {
    if present.is_some() && present != next && config.is_immutable(tag) {
        return Err(HostedError::Immutable(tag.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Glob;

    #[test]
    fn conditions() {
        let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let holds =
            |condition: Condition, present: Option<&Digest>| condition.check(present).is_ok();
        assert!(holds(Condition::None, None) && holds(Condition::None, Some(&one)));
        assert!(holds(Condition::Absent, None) && !holds(Condition::Absent, Some(&one)));
        assert!(!holds(Condition::Present, None) && holds(Condition::Present, Some(&one)));
        let means = || Condition::Means(vec![two, one]);
        assert!(holds(means(), Some(&one)) && !holds(means(), None));
        assert!(!holds(Condition::Means(vec![two]), Some(&one)));
        assert!(!holds(Condition::Means(Vec::new()), Some(&one)));
    }

    #[test]
    fn an_immutable_tag_may_be_made_and_said_again_only() {
        let config = HostedConfig {
            prefix: "team".parse().unwrap(),
            sparse: true,
            immutable_tags: vec![Glob::new("v*", false).unwrap()],
            delete_untagged_after: None,
        };
        let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let may = |tag: &str, present: Option<&Digest>, next: Option<&Digest>| {
            may_change(&config, &tag.parse().unwrap(), present, next).is_ok()
        };
        assert!(may("v1", None, Some(&one)) && may("v1", Some(&one), Some(&one)));
        assert!(!may("v1", Some(&one), Some(&two)) && !may("v1", Some(&one), None));
        assert!(may("latest", Some(&one), Some(&two)) && may("latest", Some(&one), None));
    }
}
