//! The referrers of a digest (end-12): always a valid index, empty if there are none, even for an unknown repository.

use coral_schema::oci::{Digest, media_type};
use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::answer::Answer;
use super::error::Failure;
use super::{Asked, Http, Readable, paging};
use crate::access::{AccessError, Probe};
use crate::pull::{Outcome, PullError, ReferrersAnswer};

/// Longest index, bytes (distribution specification: an answer is limited to 4 MiB), less room for its frame.
const MAX_BODY: usize = 4 * 1024 * 1024 - 1024;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Unknown and forbidden give the same empty index.
pub(super) async fn referrers(
    http: &Http,
    asked: &mut Asked<'_>,
    path: &str,
    digest: &Digest,
) -> Result<Answer, Failure> {
    let filter = asked.query.get("artifactType");
    let last = asked.query.get("last");
    // Where a page of the whole list begins; a hosted repository is asked for the page alone.
    let mut start = last.as_deref();
    let found = match http.admit(asked, path, Probe::Repository).await {
        Ok(Readable::Proxied(cap)) => {
            let found = http.puller.referrers(&cap, digest, filter.as_deref());
            found.await.map_err(Failure::from)
        }
        Ok(Readable::Hosted(cap)) => {
            let after = start.take().and_then(|last| last.parse().ok());
            let filter = filter.as_deref();
            let found = http.puller.hosted_referrers(&cap, digest, filter, after);
            found.await.map_err(Failure::from)
        }
        Err(failure) => Err(failure),
    };
    let found = found.or_else(empty_if_unknown)?;
    let (page, next) = page(&found.manifests, start);
    let behind = found
        .more
        .then(|| found.manifests.last().and_then(digest_of));
    let next = next.or(behind.flatten());
    let mut answer = Answer::json(media_type::OCI_INDEX, found.outcome, page);
    answer.set_warning(found.warning.as_deref());
    if filter.is_some() {
        let artifact_type = HeaderValue::from_static("artifactType");
        answer.headers.insert(FILTERS_APPLIED, artifact_type);
    }
    if let Some(next) = next {
        let path = format!("/v2/{path}/referrers/{digest}");
        let parameters = [
            ("artifactType", filter.as_deref()),
            ("last", Some(next)),
            ("ns", asked.ns.as_deref()),
        ];
        paging::set_next(&mut answer.headers, &path, &parameters);
    }
    Ok(answer)
}

fn empty_if_unknown(failure: Failure) -> Result<ReferrersAnswer, Failure> {
    match failure {
        Failure::Access(AccessError::Hidden(_)) | Failure::Pull(PullError::NotFound(_)) => {
            Ok(ReferrersAnswer {
                manifests: Vec::new(),
                more: false,
                warning: None,
                outcome: Outcome::Negative,
            })
        }
        other => Err(other),
    }
}

/// The index of what follows `last`, as much as one answer may hold, and where the next page starts.
fn page<'a>(manifests: &'a [Value], last: Option<&str>) -> (Vec<u8>, Option<&'a str>) {
    let start = last.map_or(0, |last| {
        let place = manifests
            .iter()
            .position(|entry| digest_of(entry) == Some(last));
        place.map_or(manifests.len(), |place| place + 1)
    });
    let mut body = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":["#,
        media_type::OCI_INDEX
    )
    .into_bytes();
    let mut next = None;
    for (place, entry) in manifests.iter().enumerate().skip(start) {
        let entry_text = serde_json::to_vec(entry).expect("a JSON value serialises");
        if place > start {
            if body.len() + entry_text.len() > MAX_BODY {
                next = digest_of(&manifests[place - 1]);
                break;
            }
            body.push(b',');
        }
        body.extend_from_slice(&entry_text);
    }
    body.extend_from_slice(b"]}");
    (body, next)
}

fn digest_of(entry: &Value) -> Option<&str> {
    entry.get("digest")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::Kind;

    fn entry(name: &str, weight: usize) -> Value {
        serde_json::json!({ "digest": name, "annotations": { "a": "x".repeat(weight) } })
    }

    fn repo() -> crate::name::RepoKey {
        "ghcr.io/org/app".parse().unwrap()
    }

    fn digests(body: &[u8]) -> Vec<String> {
        let index: Value = serde_json::from_slice(body).unwrap();
        assert_eq!(index["mediaType"], media_type::OCI_INDEX);
        assert_eq!(index["schemaVersion"], 2);
        let manifests = index["manifests"].as_array().unwrap();
        manifests
            .iter()
            .filter_map(digest_of)
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn none_is_an_empty_index() {
        let (body, next) = page(&[], None);
        assert!(digests(&body).is_empty() && next.is_none());
        for unknown in [
            Failure::from(AccessError::Hidden(repo())),
            PullError::NotFound(Kind::Manifest).into(),
        ] {
            assert!(empty_if_unknown(unknown).unwrap().manifests.is_empty());
        }
        assert!(empty_if_unknown(AccessError::Denied(repo()).into()).is_err());
    }

    #[test]
    fn pages_stay_below_four_mebibytes_and_lose_nothing() {
        let entries: Vec<Value> = (0..10)
            .map(|number| entry(&format!("sha256:{number}"), 1024 * 1024))
            .collect();
        let (mut seen, mut last, mut pages) = (Vec::new(), None, 0);
        loop {
            let (body, next) = page(&entries, last);
            assert!(body.len() <= 4 * 1024 * 1024);
            seen.extend(digests(&body));
            pages += 1;
            last = next;
            if last.is_none() {
                break;
            }
        }
        assert_eq!((seen.len(), pages), (10, 4));
    }

    #[test]
    fn a_page_after_something_unknown_is_the_last() {
        let entries = [entry("sha256:1", 1)];
        let (body, next) = page(&entries, Some("sha256:2"));
        assert!(digests(&body).is_empty() && next.is_none());
    }
}
