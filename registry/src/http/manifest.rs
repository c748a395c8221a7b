//! GET and HEAD of a manifest (end-3): the bytes as the upstream sent them.

use coral_schema::oci::{ManifestRef, media_type};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::answer::{Answer, Content, EntityTag};
use super::error::Failure;
use super::{Asked, Http, Readable};
use crate::access::Probe;
use crate::pull::{ManifestAnswer, Want};

/// A HEAD asks for the headers only, so that it never costs a GET upstream.
pub(super) async fn manifest(
    http: &Http,
    asked: &mut Asked<'_>,
    path: &str,
    reference: &ManifestRef,
) -> Result<Answer, Failure> {
    let cap = http.admit(asked, path, Probe::Manifest(reference)).await?;
    let want = if asked.is_head() {
        Want::Head
    } else {
        Want::Body
    };
    let manifest = match cap {
        Readable::Hosted(cap) => http.puller.hosted_manifest(&cap, reference, want).await?,
        Readable::Proxied(cap) if asked.only_if_cached() => {
            let cached = http.puller.cached_manifest(&cap, reference, want).await;
            cached.ok_or(Failure::NotCached)?
        }
        Readable::Proxied(cap) => http.puller.manifest(&cap, reference, want).await?,
    };
    let immutable = matches!(reference, ManifestRef::Digest(_));
    Ok(answer(manifest, immutable, asked.headers))
}

fn answer(manifest: ManifestAnswer, immutable: bool, headers: &HeaderMap) -> Answer {
    let tag = EntityTag::of(&manifest.digest);
    let held = tag.is_held(headers);
    let status = if held {
        StatusCode::NOT_MODIFIED
    } else {
        StatusCode::OK
    };
    let mut answer = Answer::new(status, manifest.outcome);
    answer.set_digest(&tag, immutable);
    answer.set_warning(manifest.warning.as_deref());
    if held {
        return answer;
    }
    let content_type = HeaderValue::try_from(manifest.media_type)
        .unwrap_or(HeaderValue::from_static(media_type::OCTET_STREAM));
    answer.headers.insert(CONTENT_TYPE, content_type);
    match manifest.body {
        Some(body) => answer.set_content(Content::Full(body)),
        None => answer.set_length(manifest.size),
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::Outcome;
    use bytes::Bytes;
    use coral_schema::oci::Digest;
    use http::header::{CACHE_CONTROL, CONTENT_LENGTH, ETAG, IF_NONE_MATCH, WARNING};

    fn manifest(body: Option<&'static [u8]>) -> ManifestAnswer {
        ManifestAnswer {
            digest: Digest::sha256(b"{}"),
            media_type: media_type::OCI_INDEX.to_owned(),
            size: 2,
            body: body.map(Bytes::from_static),
            outcome: Outcome::Stale,
            warning: Some("not checked".to_owned()),
            moved_to: None,
        }
    }

    #[test]
    fn headers() {
        let digest = Digest::sha256(b"{}").to_string();
        let get = answer(manifest(Some(b"{}")), false, &HeaderMap::new());
        assert_eq!(get.headers["docker-content-digest"], digest);
        assert_eq!(get.headers[ETAG], format!("\"{digest}\""));
        assert_eq!(get.headers[CONTENT_TYPE], media_type::OCI_INDEX);
        assert_eq!(get.headers[CONTENT_LENGTH], "2");
        assert_eq!(get.headers[CACHE_CONTROL], "no-cache");
        assert_eq!(get.headers[WARNING], "299 - \"not checked\"");

        let head = answer(manifest(None), false, &HeaderMap::new());
        assert_eq!(head.headers, get.headers);
        let by_digest = answer(manifest(None), true, &HeaderMap::new());
        assert_eq!(
            by_digest.headers[CACHE_CONTROL],
            "max-age=31536000, immutable"
        );
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let mut headers = HeaderMap::new();
        let etag = format!("\"{}\"", Digest::sha256(b"{}"));
        headers.insert(IF_NONE_MATCH, etag.parse().unwrap());
        let answer = answer(manifest(Some(b"{}")), false, &headers);
        assert_eq!(answer.status, StatusCode::NOT_MODIFIED);
        assert_eq!(answer.headers[ETAG], etag);
        assert!(matches!(answer.content, Content::Empty));
    }
}
