//! Upload sessions of hosted repositories (end-4, end-5, end-6, end-11, end-13, end-14).

use coral_schema::oci::{Algorithm, Digest};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::answer::{Answer, EntityTag};
use super::error::Failure;
use super::push::body;
use super::route::{Query, RouteError};
use super::{Asked, Http};
use crate::access::Verb;
use crate::access::cap::WriteCap;
use crate::hosted::{Chunk, HostedError};
use crate::name::RepoKey;
use crate::pull::Outcome;
use crate::store::UploadId;

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// POST: a mount, a whole blob, or the beginning of a session.
pub(super) async fn begin(
    http: &Http,
    asked: &mut Asked<'_>,
    path: &str,
) -> Result<Answer, Failure> {
    let cap = http.admit_change(asked, path, Verb::Push)?;
    let query = asked.query;
    if let Some(digest) = digest_of(query, "mount")?
        && mount(http, asked, &cap, digest).await?
    {
        return Ok(created(asked, path, &digest));
    }
    if let Some(digest) = digest_of(query, "digest")? {
        let chunk = chunk(asked.headers)?;
        let body = body(asked);
        http.hosted.push(&cap, digest, chunk, body).await?;
        return Ok(created(asked, path, &digest));
    }
    let algorithm = match query.get("digest-algorithm") {
        Some(name) => name.parse::<Algorithm>().map_err(RouteError::Digest)?,
        None => Algorithm::Sha256,
    };
    let id = http.hosted.begin(&cap, algorithm).await?;
    Ok(session(asked, path, &id, 0, StatusCode::ACCEPTED))
}

/// `false`: the client has to upload it.
async fn mount(
    http: &Http,
    asked: &Asked<'_>,
    cap: &WriteCap,
    digest: Digest,
) -> Result<bool, Failure> {
    let sources = match asked.query.get("from") {
        Some(from) => http.access.resolve(None, &from).into_iter().collect(),
        None => http.hosted.hosts_of(&digest).await?,
    };
    for source in sources.into_iter().filter(RepoKey::is_hosted) {
        // What may not be read is not there.
        if let Ok(from) = http.access.read_hosted(&asked.caller, source)
            && http.hosted.mount(cap, digest, from).await?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// PATCH, PUT and DELETE of a session.
pub(super) async fn go_on(
    http: &Http,
    asked: &mut Asked<'_>,
    path: &str,
    id: &str,
) -> Result<Answer, Failure> {
    let cap = http.admit_change(asked, path, Verb::Push)?;
    let id = parse(id)?;
    match *asked.method {
        Method::DELETE => {
            let cancelled = http.hosted.cancel(&cap, &id).await;
            cancelled.map_err(|error| at_session(error, asked, path, &id))?;
            Ok(Answer::new(StatusCode::NO_CONTENT, Outcome::Hit))
        }
        Method::PATCH => {
            let chunk = chunk(asked.headers)?;
            let body = body(asked);
            let received = http.hosted.append(&cap, &id, chunk, body).await;
            let received = received.map_err(|error| at_session(error, asked, path, &id))?;
            Ok(session(asked, path, &id, received, StatusCode::ACCEPTED))
        }
        _ => {
            let digest = digest_of(asked.query, "digest")?.ok_or(Failure::Parameter(
                "the parameter digest is missing; it says what was uploaded",
            ))?;
            let chunk = chunk(asked.headers)?;
            let body = body(asked);
            let finished = http.hosted.finish(&cap, &id, digest, (chunk, body)).await;
            finished.map_err(|error| at_session(error, asked, path, &id))?;
            Ok(created(asked, path, &digest))
        }
    }
}

/// GET: how far the session is.
pub(super) async fn status(
    http: &Http,
    asked: &mut Asked<'_>,
    path: &str,
    id: &str,
) -> Result<Answer, Failure> {
    let cap = http.admit_change(asked, path, Verb::Push)?;
    let id = parse(id)?;
    let received = http.hosted.status(&cap, &id).await?;
    Ok(session(asked, path, &id, received, StatusCode::NO_CONTENT))
}

fn parse(id: &str) -> Result<UploadId, Failure> {
    id.parse().map_err(|_| HostedError::UnknownUpload.into())
}

/// A 416 says where the session is.
fn at_session(error: HostedError, asked: &Asked<'_>, path: &str, id: &UploadId) -> Failure {
    match error {
        HostedError::OutOfOrder { received } => Failure::OutOfOrder {
            received,
            location: Some(location(asked, &format!("{path}/blobs/uploads/{id}"))),
        },
        other => other.into(),
    }
}

fn session(
    asked: &Asked<'_>,
    path: &str,
    id: &UploadId,
    received: u64,
    status: StatusCode,
) -> Answer {
    let mut answer = Answer::new(status, Outcome::Hit);
    let headers = &mut answer.headers;
    set(
        headers,
        LOCATION,
        location(asked, &format!("{path}/blobs/uploads/{id}")),
    );
    set(headers, RANGE, range(received));
    set(headers, UPLOAD_ID, id.to_string());
    answer
}

/// `0-<last>`; of nothing, too, there is no other way to say it.
pub(super) fn range(received: u64) -> String {
    format!("0-{}", received.saturating_sub(1))
}

/// 201 for a blob.
fn created(asked: &Asked<'_>, path: &str, digest: &Digest) -> Answer {
    let mut answer = Answer::new(StatusCode::CREATED, Outcome::Hit);
    answer.set_digest(&EntityTag::of(digest), false);
    let location = location(asked, &format!("{path}/blobs/{digest}"));
    set(&mut answer.headers, LOCATION, location);
    answer
}

/// A relative URL, since clients name this registry in ways that it cannot know.
pub(super) fn location(asked: &Asked<'_>, below: &str) -> String {
    match &asked.ns {
        Some(ns) => {
            let ns = utf8_percent_encode(ns, NON_ALPHANUMERIC);
            format!("/v2/{below}?ns={ns}")
        }
        None => format!("/v2/{below}"),
    }
}

/// A path that is no header value cannot have named a repository.
pub(super) fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

fn digest_of(query: Query<'_>, name: &str) -> Result<Option<Digest>, Failure> {
    let digest = query.get(name).map(|text| text.parse());
    Ok(digest.transpose().map_err(RouteError::Digest)?)
}

fn chunk(headers: &HeaderMap) -> Result<Chunk, Failure> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let malformed = Failure::Parameter("a Content-Range of a chunk looks like 0-1023");
    let range = text(CONTENT_RANGE).map(|text| parse_range(text).ok_or(malformed));
    Ok(Chunk {
        range: range.transpose()?,
        length: text(CONTENT_LENGTH).and_then(|length| length.parse().ok()),
    })
}

/// `0-1023`, and what other clients write: `bytes 0-1023/*`, `bytes=0-1023`.
fn parse_range(text: &str) -> Option<(u64, u64)> {
    let text = text.strip_prefix("bytes").unwrap_or(text);
    let text = text.trim_start_matches(['=', ' ']);
    let (first, last) = text
        .split_once('/')
        .map_or(text, |(range, _)| range)
        .split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("0-1023", Some((0, 1023)))]
    #[case("bytes 5-5/*", Some((5, 5)))]
    #[case("bytes=5-6/10", Some((5, 6)))]
    #[case("6-5", None)]
    #[case("5-", None)]
    #[case("-5", None)]
    #[case("", None)]
    #[case("bytes */5", None)]
    #[case("0-99999999999999999999", None)]
    #[case("+1-2", None)]
    fn ranges(#[case] text: &str, #[case] expected: Option<(u64, u64)>) {
        assert_eq!(parse_range(text), expected);
    }

    #[rstest::rstest]
    #[case(0, "0-0")]
    #[case(1, "0-0")]
    #[case(1024, "0-1023")]
    fn the_last_byte_is_named(#[case] received: u64, #[case] expected: &str) {
        assert_eq!(range(received), expected);
    }
}
