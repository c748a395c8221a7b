//! Lists: tags, referrers, repositories.

use std::sync::Arc;

use coral_schema::oci::{Digest, ManifestRef, Tag};
use serde_json::{Value, json};

use super::failure::pull_error;
use super::{Kind, Outcome, PullError, Puller, ReferrersAnswer, TagsAnswer, Want, known};
use crate::access::cap::ReadCap;
use crate::index::ManifestRow;
use crate::name::RepoKey;
use crate::upstream::failover::{self, Failure};
use crate::upstream::{Call, Identity, Priority};

impl Puller {
    /// One page of tags: the upstream's when it can be reached, else what is known here.
    pub async fn tags(
        &self,
        cap: &ReadCap,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<TagsAnswer, PullError> {
        let n = n.map(|n| n.min(LONGEST_PAGE));
        let (call, repository) = (call(cap), cap.repo().repository());
        let asked = failover::first(cap.upstream(), false, |endpoint| async move {
            endpoint.tags(call, repository, n, last).await
        });
        match asked.await {
            Ok(answer) => {
                let page = answer.value;
                Ok(TagsAnswer {
                    tags: page.entries,
                    more: page.more,
                    warning: None,
                    outcome: Outcome::Miss,
                })
            }
            Err(failure) => self.known_tags(cap, n, last, &failure).await,
        }
    }

    async fn known_tags(
        &self,
        cap: &ReadCap,
        n: Option<usize>,
        last: Option<&str>,
        failure: &Failure,
    ) -> Result<TagsAnswer, PullError> {
        let error = match pull_error(failure, Kind::Manifest) {
            error @ (PullError::NotFound(_) | PullError::Refused(_)) => return Err(error),
            error => error,
        };
        let after = last.and_then(|last| last.parse::<Tag>().ok());
        let limit = n.unwrap_or(LONGEST_PAGE);
        let tags = self
            .0
            .index
            .tags(cap.repo(), after.as_ref(), limit + 1)
            .await
            .unwrap_or_default();
        if tags.is_empty() {
            return Err(error);
        }
        let more = tags.len() > limit;
        let tags = tags.iter().take(limit).map(ToString::to_string).collect();
        let warning = Some(format!(
            "{error}; only the tags that this cache knows are listed"
        ));
        Ok(TagsAnswer {
            tags,
            more,
            warning,
            outcome: Outcome::Stale,
        })
    }

    /// The referrers of a digest: by the referrers API, else by the fallback tag; for a while from memory.
    ///
    /// As a client does it (distribution specification, "Listing Referrers"), an upstream that has the API is believed
    /// alone: nobody who uses the API keeps the tag true, so it may list what was deleted.
    pub async fn referrers(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<ReferrersAnswer, PullError> {
        let key = (cap.repo().clone(), *digest);
        let (all, warning, outcome) = if let Some(cached) = self.0.referrers.get(&key) {
            (cached, None, Outcome::Hit)
        } else {
            match self.ask_referrers(cap, digest).await {
                Ok(found) => {
                    let found = Arc::new(found);
                    self.0.referrers.insert(key, Arc::clone(&found));
                    (found, None, Outcome::Miss)
                }
                Err(error) => (
                    Arc::new(self.known_referrers(cap, digest, &error).await?),
                    Some(error),
                    Outcome::Stale,
                ),
            }
        };
        let wanted = |one: &&Value| artifact_type.is_none_or(|kind| one["artifactType"] == kind);
        let manifests = all.iter().filter(wanted).cloned().collect();
        let warning = warning
            .map(|error| format!("{error}; only the referrers that this cache knows are listed"));
        Ok(ReferrersAnswer {
            manifests,
            more: false,
            warning,
            outcome,
        })
    }

    async fn ask_referrers(&self, cap: &ReadCap, digest: &Digest) -> Result<Vec<Value>, PullError> {
        let limit = self.0.config.load().manifest_max_bytes;
        let (call, repository) = (call(cap), cap.repo().repository());
        let asked = failover::first(cap.upstream(), false, |endpoint| async move {
            endpoint.referrers(call, repository, digest, limit).await
        });
        match asked
            .await
            .map_err(|failure| pull_error(&failure, Kind::Manifest))
        {
            Ok(answer) => Ok(answer.value.entries),
            Err(PullError::NotFound(_)) => self.fallback_tag(cap, digest).await,
            Err(error) => Err(error),
        }
    }

    /// For upstreams without the API (distribution specification, "Referrers Tag Schema").
    async fn fallback_tag(&self, cap: &ReadCap, digest: &Digest) -> Result<Vec<Value>, PullError> {
        let reference = ManifestRef::Tag(fallback_tag_of(digest));
        let index = match self.manifest(cap, &reference, Want::Body).await {
            Ok(answer) => answer.body.unwrap_or_default(),
            Err(PullError::NotFound(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let index: Value = serde_json::from_slice(&index).unwrap_or_default();
        Ok(index["manifests"].as_array().cloned().unwrap_or_default())
    }

    async fn known_referrers(
        &self,
        cap: &ReadCap,
        digest: &Digest,
        error: &PullError,
    ) -> Result<Vec<Value>, PullError> {
        let (index, mut found, mut after) = (&self.0.index, Vec::new(), None);
        loop {
            let page = index.referrers(cap.repo(), digest, None, (after, LONGEST_PAGE));
            let rows = page.await.unwrap_or_default();
            found.extend(rows.iter().map(describe));
            after = rows.last().map(|(digest, _)| *digest);
            if rows.len() < LONGEST_PAGE {
                break;
            }
        }
        if found.is_empty() {
            return Err(error.clone());
        }
        Ok(found)
    }

    /// Repositories of which something is stored, in order.
    pub async fn repositories(&self, after: Option<&RepoKey>, limit: usize) -> Vec<RepoKey> {
        let rows = self.0.index.repos(after, limit).await;
        known(rows.map(Some))
            .unwrap_or_default()
            .into_iter()
            .map(|row| row.repo)
            .collect()
    }
}

/// The descriptor of a referrer (distribution specification, "Listing Referrers").
pub(super) fn describe((digest, row): &(Digest, Arc<ManifestRow>)) -> Value {
    let mut descriptor = json!({
        "mediaType": row.media_type, "digest": digest, "size": row.size,
    });
    if let Some(artifact_type) = &row.artifact_type {
        descriptor["artifactType"] = json!(artifact_type);
    }
    if !row.annotations.is_empty() {
        descriptor["annotations"] = json!(row.annotations);
    }
    descriptor
}

/// `<algorithm>-<hex>`, the hex cut to 64 digits.
fn fallback_tag_of(digest: &Digest) -> Tag {
    let hex = digest.hex();
    let text = format!(
        "{}-{}",
        digest.algorithm().name(),
        &hex[..hex.len().min(64)]
    );
    text.parse()
        .expect("letters, digits and a dash, short enough")
}

fn call(cap: &ReadCap) -> Call {
    let step = cap.upstream().timeouts.tag_check;
    Call {
        priority: Priority::Interactive,
        identity: Identity::Configured,
        step,
        total: super::MANIFEST_TOTAL,
    }
}

/// Most entries on one page.
pub(super) const LONGEST_PAGE: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use coral_schema::oci::Algorithm;

    #[test]
    fn fallback_tags_are_cut() {
        let long = fallback_tag_of(&Digest::of(Algorithm::Sha512, b""));
        assert_eq!(long.as_str().len(), "sha512-".len() + 64);
        assert!(
            fallback_tag_of(&Digest::sha256(b""))
                .as_str()
                .starts_with("sha256-e3b0c4")
        );
    }
}
