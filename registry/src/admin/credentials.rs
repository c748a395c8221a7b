//! `PUT` and `DELETE /api/v1/credentials/<source>`: logins for single repositories, lent for a time.
//!
//! Taken only where nobody reads them on the way and only listed callers bring them: with `admin.tls` and `admin.auth`.

use std::sync::Arc;

use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use bytes::Bytes;
use coral_schema::admin::{CredentialRequest, LentLogin};
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
    // What a parser says may quote the body.
    let request: CredentialRequest = serde_json::from_slice(&body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Refusal::bad_request(format!(
            "line {line}, column {column}: this is no list of credentials"
        ))
    })?;
    let now = Timestamp::now();
    let (logins, until) = read(&admin, request, now)?;
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
    admin: &Admin,
    request: CredentialRequest,
    now: Timestamp,
) -> Result<(Logins, Timestamp), Refusal> {
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
        .map(|LentLogin { repository, login }| Ok((repo(&repository, &admin.repository)?, login)));
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

    #[rstest::rstest]
    #[case("ghcr.io/team/app", Some("ghcr.io/team/app"))]
    #[case("nginx", Some("docker.io/library/nginx"))]
    #[case("localhost:5000/a", Some("localhost:5000/a"))]
    #[case("ghcr.io/team/app:1", None)]
    #[case("ghcr.io/team/*", None)]
    #[case("ghcr.io/", None)]
    fn l30_one_repository_each(#[case] text: &str, #[case] expected: Option<&str>) {
        let known =
            |image: &ImageReference| format!("{}/{}", image.host, image.repository).parse().ok();
        let found = repo(text, &known).ok().map(|repo| repo.to_string());
        assert_eq!(found.as_deref(), expected);
    }
}
