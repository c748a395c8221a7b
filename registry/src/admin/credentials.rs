//! `PUT` and `DELETE /api/v1/credentials/<source>`: logins for single repositories, lent for a time.
//!
//! Taken only where nobody reads them on the way and only listed callers bring them: with `admin.tls` and `admin.auth`.

use std::sync::Arc;

use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use bytes::Bytes;
use coral_schema::admin::CredentialRequest;
use coral_schema::oci::ImageReference;
use coral_schema::oci::docker_config::DockerLogin;
use http::StatusCode;
use jiff::Timestamp;

use super::pins::check_source;
use super::{Admin, Refusal};
use crate::name::RepoKey;
use crate::upstream::lent::{Lent, MOST_LOGINS};

pub(super) async fn put(
    State(admin): State<Arc<Admin>>,
    Path(source): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Refusal> {
    let lent = lent(&admin)?;
    check_source(&source)?;
    let body = body.map_err(|rejection| Refusal::new(rejection.status(), rejection.body_text()))?;
    let now = Timestamp::now();
    let (logins, until) = read(&body, &admin.repository, now)?;
    if lent.lend(&source, logins, until, now) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Refusal::new(
            StatusCode::INSUFFICIENT_STORAGE,
            format!("this cache keeps {MOST_LOGINS} lent credentials in all; delete some"),
        ))
    }
}

pub(super) async fn delete(
    State(admin): State<Arc<Admin>>,
    Path(source): Path<String>,
) -> Result<StatusCode, Refusal> {
    let lent = lent(&admin)?;
    check_source(&source)?;
    lent.take_back(&source);
    Ok(StatusCode::NO_CONTENT)
}

fn lent(admin: &Admin) -> Result<&Lent, Refusal> {
    admin.lent.as_ref().ok_or_else(|| {
        Refusal::new(
            StatusCode::UPGRADE_REQUIRED,
            "credentials are taken over TLS only, from listed callers: set admin.tls and admin.auth",
        )
    })
}

type Logins = Vec<(RepoKey, DockerLogin)>;

fn read(
    body: &[u8],
    repository: &dyn Fn(&ImageReference) -> Option<RepoKey>,
    now: Timestamp,
) -> Result<(Logins, Timestamp), Refusal> {
    // What a parser says may quote the body.
    let request = serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Refusal::bad_request(format!(
            "line {line}, column {column}: this is no list of credentials"
        ))
    })?;
    let CredentialRequest { entries, expires } = request;
    let until: Timestamp = expires.parse().map_err(|error| {
        Refusal::bad_request(format!(
            "expires is a time like 2026-01-31T12:00:00Z: {error}"
        ))
    })?;
    if until <= now || until.duration_since(now) > LONGEST {
        return Err(Refusal::bad_request(format!(
            "expires is within a day from now; it is {now} here"
        )));
    }
    let logins = entries
        .into_iter()
        .map(|entry| Ok((repo(&entry.repository, repository)?, entry.login)));
    Ok((logins.collect::<Result<_, Refusal>>()?, until))
}

fn repo(
    text: &str,
    repository: &dyn Fn(&ImageReference) -> Option<RepoKey>,
) -> Result<RepoKey, Refusal> {
    let refuse = || {
        Refusal::bad_request(format!(
            "repository {text:?}: is written as ghcr.io/team/app, without tag and digest"
        ))
    };
    let image: ImageReference = text.parse().map_err(|_| refuse())?;
    let last = text.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) {
        return Err(refuse());
    }
    repository(&image).ok_or_else(refuse)
}

/// Whoever lends is near, and renews.
const LONGEST: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

#[cfg(test)]
mod tests {
    use super::*;

    fn known(image: &ImageReference) -> Option<RepoKey> {
        image.name().parse().ok()
    }

    const LOGIN: &str = r#"{"repository":"ghcr.io/team/app","username":"u","password":"hidden"}"#;

    #[rstest::rstest]
    #[case(LOGIN, "2026-01-01T01:00:00Z", true)]
    #[case("", "2026-01-01T01:00:00Z", true)]
    #[case(LOGIN, "2026-01-01T00:00:00Z", false)]
    #[case(LOGIN, "2026-01-03T00:00:00Z", false)]
    #[case(LOGIN, "soon", false)]
    #[case(
        r#"{"repository":"ghcr.io/team/app","username":"hidden"}"#,
        "2026-01-01T01:00:00Z",
        false
    )]
    #[case(
        r#"{"repository":"ghcr.io/a:1","registryToken":"hidden"}"#,
        "2026-01-01T01:00:00Z",
        false
    )]
    #[case(r#""hidden""#, "2026-01-01T01:00:00Z", false)]
    fn a_refusal_quotes_no_secret(#[case] entry: &str, #[case] expires: &str, #[case] good: bool) {
        let body = format!(r#"{{"entries":[{entry}],"expires":"{expires}"}}"#);
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let read = read(body.as_bytes(), &known, now);
        assert_eq!(read.is_ok(), good, "{body}");
        if let Err(refusal) = read {
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
            assert!(!refusal.error.contains("hidden"), "{}", refusal.error);
        }
    }

    #[rstest::rstest]
    #[case("ghcr.io/team/app", Some("ghcr.io/team/app"))]
    #[case("nginx", Some("docker.io/library/nginx"))]
    #[case("localhost:5000/a", Some("localhost:5000/a"))]
    #[case("ghcr.io/team/app:1", None)]
    #[case("ghcr.io/team/*", None)]
    #[case("ghcr.io/", None)]
    fn l30_one_repository_each(#[case] text: &str, #[case] expected: Option<&str>) {
        let found = repo(text, &known).ok().map(|repo| repo.to_string());
        assert_eq!(found.as_deref(), expected);
    }
}
