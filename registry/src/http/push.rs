//! PUT and DELETE of manifests and tags, DELETE of blobs (end-7, end-9, end-10), and bodies of requests.

use axum::body::Body;
use coral_schema::oci::{Digest, ManifestRef, Tag};
use futures::StreamExt as _;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT, IF_MATCH, IF_NONE_MATCH, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::answer::{Answer, EntityTag};
use super::error::Failure;
use super::route::RouteError;
use super::upload::{location, set};
use super::{Asked, Http};
use crate::access::Verb;
use crate::access::cap::WriteCap;
use crate::hosted::{self, Accepted, Condition, HostedError, Pushed};
use crate::pull::Outcome;

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// Most tags of one manifest in one request; the specification asks for ten.
const MAX_TAGS: usize = 100;

/// PUT or DELETE.
pub(super) async fn manifest(
    http: &Http,
    asked: &mut Asked<'_>,
    path: &str,
    reference: ManifestRef,
) -> Result<Answer, Failure> {
    let verb = match *asked.method {
        Method::PUT => Verb::Push,
        _ => Verb::Delete,
    };
    let cap = http.admit_change(asked, path, verb)?;
    if verb == Verb::Push {
        return put(http, asked, path, &cap, reference).await;
    }
    match reference {
        ManifestRef::Digest(digest) => http.hosted.delete_manifest(&cap, digest).await?,
        ManifestRef::Tag(tag) => {
            let condition = condition(asked.headers);
            http.hosted.delete_tag(&cap, tag, condition).await?;
        }
    }
    Ok(Answer::new(StatusCode::ACCEPTED, Outcome::Hit))
}

/// DELETE of a blob.
pub(super) async fn blob(
    http: &Http,
    asked: &mut Asked<'_>,
    path: &str,
    digest: Digest,
) -> Result<Answer, Failure> {
    let cap = http.admit_change(asked, path, Verb::Delete)?;
    http.hosted.delete_blob(&cap, digest).await?;
    Ok(Answer::new(StatusCode::ACCEPTED, Outcome::Hit))
}

async fn put(
    http: &Http,
    asked: &mut Asked<'_>,
    path: &str,
    cap: &WriteCap,
    reference: ManifestRef,
) -> Result<Answer, Failure> {
    let (digest, tags) = match reference {
        ManifestRef::Digest(digest) => (Some(digest), tags(asked)?),
        ManifestRef::Tag(tag) => (None, vec![tag]),
    };
    let text = |name| {
        let value: &HeaderValue = asked.headers.get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok());
    let content_type = text(CONTENT_TYPE);
    let bytes = http.hosted.read_manifest(length, body(asked)).await?;
    let pushed = Pushed {
        digest,
        tags: tags.clone(),
        condition: condition(asked.headers),
        content_type,
        bytes,
    };
    let accepted = http.hosted.put_manifest(cap, pushed).await?;
    let tags = if digest.is_some() { tags } else { Vec::new() };
    Ok(created(asked, path, accepted, &tags))
}

fn created(asked: &Asked<'_>, path: &str, accepted: Accepted, tags: &[Tag]) -> Answer {
    let Accepted { digest, subject } = accepted;
    let mut answer = Answer::new(StatusCode::CREATED, Outcome::Hit);
    answer.set_digest(&EntityTag::of(&digest), false);
    let headers = &mut answer.headers;
    let location = location(asked, &format!("{path}/manifests/{digest}"));
    set(headers, LOCATION, location);
    if let Some(subject) = subject {
        set(headers, OCI_SUBJECT, subject.to_string());
    }
    for tag in tags {
        if let Ok(tag) = HeaderValue::try_from(tag.as_str()) {
            headers.append(OCI_TAG, tag);
        }
    }
    answer
}

/// `?tag=a&tag=b`, each once.
fn tags(asked: &Asked<'_>) -> Result<Vec<Tag>, Failure> {
    let mut tags = Vec::new();
    for text in asked.query.all("tag") {
        let tag: Tag = text.parse().map_err(RouteError::NewTag)?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
        if tags.len() > MAX_TAGS {
            return Err(Failure::TooManyTags);
        }
    }
    Ok(tags)
}

/// What the request demands of a tag.
fn condition(headers: &HeaderMap) -> Condition {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(tags) = text(IF_MATCH) {
        if tags.trim() == "*" {
            return Condition::Present;
        }
        let digest = |tag: &str| tag.trim().trim_matches('"').parse().ok();
        return Condition::Means(tags.split(',').filter_map(digest).collect());
    }
    match text(IF_NONE_MATCH) {
        Some(tags) if tags.trim() == "*" => Condition::Absent,
        _ => Condition::None,
    }
}

/// The body of the request, for whoever stores it.
pub(super) fn body(asked: &mut Asked<'_>) -> hosted::Body {
    let body = asked.take_body().unwrap_or_else(Body::empty);
    let stream = body.into_data_stream();
    stream.map(|chunk| chunk.map_err(Into::into)).boxed()
}

/// Skips a body that nobody has taken. A client that waits to be told to send is not told so.
pub(super) async fn drain(asked: &mut Asked<'_>) {
    if asked.headers.contains_key(EXPECT) {
        return;
    }
    hosted::skip(body(asked)).await;
}

impl From<HostedError> for Failure {
    fn from(error: HostedError) -> Self {
        match error {
            HostedError::OutOfOrder { received } => Self::OutOfOrder {
                received,
                location: None,
            },
            other => Self::Hosted(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(&[], Condition::None)]
    #[case(&[("if-none-match", "*")], Condition::Absent)]
    #[case(&[("if-none-match", "\"x\"")], Condition::None)]
    #[case(&[("if-match", "*")], Condition::Present)]
    #[case(&[("if-match", "\"x\"")], Condition::Means(vec![]))]
    fn conditions(#[case] given: &[(&'static str, &str)], #[case] expected: Condition) {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.insert(*name, value.parse().unwrap());
        }
        assert_eq!(condition(&headers), expected);
    }

    #[test]
    fn a_condition_names_digests_as_entity_tags() {
        let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, format!("\"{one}\", \"{two}\"").parse().unwrap());
        assert_eq!(condition(&headers), Condition::Means(vec![one, two]));
    }
}
