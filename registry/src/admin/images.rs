//! `GET /api/v1/images?repo=&q=`: what is in the cache.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use coral_schema::admin::{ImageEntry, Images};
use http::StatusCode;
use serde::Deserialize;

use super::{Admin, Refusal};
use crate::index::{Image, ImageFilter};
use crate::name::RepoKey;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    repo: Option<String>,
    q: Option<String>,
}

pub(super) async fn images(
    State(admin): State<Arc<Admin>>,
    Query(parameters): Query<Parameters>,
) -> Result<Json<Images>, Refusal> {
    let filter = filter(parameters)?;
    // One more than shown tells whether there are more.
    let found = admin.index.images(&filter, MAX_SHOWN + 1).await;
    let found = found.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error))?;
    Ok(Json(Images {
        truncated: found.len() > MAX_SHOWN,
        images: found.into_iter().take(MAX_SHOWN).map(entry).collect(),
    }))
}

fn filter(parameters: Parameters) -> Result<ImageFilter, Refusal> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let repo = given(parameters.repo)
        .map(|repo| repo.parse::<RepoKey>())
        .transpose()
        .map_err(|_| {
            Refusal::bad_request("repo is a whole name with its host, like docker.io/library/nginx, or a hosted repository")
        })?;
    Ok(ImageFilter {
        repo,
        text: given(parameters.q),
        after: None,
    })
}

fn entry(image: Image) -> ImageEntry {
    let Image {
        repo,
        tag,
        digest,
        held,
        last_use,
    } = image;
    ImageEntry {
        repository: repo.to_string(),
        tag,
        digest,
        held,
        last_use: last_use.map(|time| time.to_string()),
    }
}

/// Most images of an answer: as many as a person may want to look through.
const MAX_SHOWN: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let filter = |repo: &str, q: &str| {
            filter(Parameters {
                repo: Some(repo.to_owned()),
                q: Some(q.to_owned()),
            })
        };
        let both = filter("docker.io/nginx", "1.27").unwrap();
        assert_eq!(both.repo.unwrap().to_string(), "docker.io/library/nginx");
        assert_eq!(both.text.as_deref(), Some("1.27"));
        let none = filter("", "").unwrap();
        assert!(none.repo.is_none() && none.text.is_none());
        assert_eq!(
            filter("Nginx", "").unwrap_err().status,
            StatusCode::BAD_REQUEST
        );
    }
}
