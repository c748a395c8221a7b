//! `PUT` and `DELETE /api/v1/pins/<source>`: images that eviction leaves alone; `GET /api/v1/pins` lists the sources.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use bytes::Bytes;
use coral_schema::admin::{FrozenTag, PinRequest, PinSource};
use coral_schema::oci::{ImageReference, ManifestRef};
use http::StatusCode;
use jiff::Timestamp;

use super::{Admin, Refusal};
use crate::index::{self, IndexError, MAX_PIN_SOURCES, MAX_PINS, PinnedImage, Pins};
use crate::name::RepoKey;

/// Longest request body, bytes: ten thousand references, each longer than any in use.
pub(super) const MAX_BODY: usize = 4 * 1024 * 1024;

pub(super) async fn put(
    State(admin): State<Arc<Admin>>,
    Path(source): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Refusal> {
    check_source(&source)?;
    let body = body.map_err(|rejection| Refusal::new(rejection.status(), rejection.body_text()))?;
    let request: PinRequest = serde_json::from_slice(&body).map_err(Refusal::bad_request)?;
    let pins = pins(request, &admin.repository, admin.index.now())?;
    let fits = admin.index.pin(&source, pins).await.map_err(unavailable)?;
    if fits {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Refusal::new(
            StatusCode::INSUFFICIENT_STORAGE,
            format!(
                "this cache keeps pins of {MAX_PIN_SOURCES} sources and {MAX_PINS} images in all; delete some"
            ),
        ))
    }
}

pub(super) async fn delete(
    State(admin): State<Arc<Admin>>,
    Path(source): Path<String>,
) -> Result<StatusCode, Refusal> {
    check_source(&source)?;
    admin.index.unpin(&source).await.map_err(unavailable)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Result<Json<Vec<PinSource>>, Refusal> {
    let sources = admin.index.pin_sources().await.map_err(unavailable)?;
    Ok(Json(sources.into_iter().map(show).collect()))
}

fn show(source: index::PinSource) -> PinSource {
    let index::PinSource {
        source,
        images,
        until,
    } = source;
    PinSource {
        source,
        images,
        expires: until.to_string(),
    }
}

/// The source asks again; it renews its pins anyway.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: IndexError) -> Refusal {
    Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("{error}; try again"),
    )
}

pub(super) fn check_source(source: &str) -> Result<(), Refusal> {
    let printable = source.bytes().all(|byte| byte.is_ascii_graphic());
    let whole = source.split('/').all(|segment| !segment.is_empty());
    if printable && whole && source.len() <= MAX_SOURCE {
        return Ok(());
    }
    Err(Refusal::bad_request(format!(
        "a source is a path of printable ASCII like operator/team/app, at most {MAX_SOURCE} bytes long"
    )))
}

fn pins(
    request: PinRequest,
    repository: &dyn Fn(&ImageReference) -> Option<RepoKey>,
    now: Timestamp,
) -> Result<Pins, Refusal> {
    let PinRequest {
        images,
        frozen,
        platforms,
        expires,
    } = request;
    if images.len() > MAX_IMAGES || frozen.len() > MAX_IMAGES || platforms.len() > MAX_PLATFORMS {
        return Err(Refusal::bad_request(format!(
            "a source pins at most {MAX_IMAGES} images for {MAX_PLATFORMS} platforms"
        )));
    }
    let until: Timestamp = expires.parse().map_err(|error| {
        Refusal::bad_request(format!(
            "expires is a time like 2026-01-31T12:00:00Z: {error}"
        ))
    })?;
    if until <= now {
        return Err(Refusal::bad_request(format!(
            "expires has passed: it is {now} here; to unpin, send DELETE"
        )));
    }
    // Of equal ones the first counts.
    let frozen = frozen.iter().map(|tag| freeze(tag, repository));
    let images = images.iter().map(|text| pin(text, repository));
    Ok(Pins {
        images: frozen.chain(images).collect::<Result<_, _>>()?,
        platforms,
        until,
    })
}

fn freeze(
    tag: &FrozenTag,
    repository: &dyn Fn(&ImageReference) -> Option<RepoKey>,
) -> Result<PinnedImage, Refusal> {
    let FrozenTag { reference, digest } = tag;
    let image = pin(reference, repository)?;
    if matches!(image.reference, ManifestRef::Digest(_)) {
        let error = format!("image {reference:?}: only a tag can be frozen");
        return Err(Refusal::bad_request(error));
    }
    Ok(PinnedImage {
        frozen: Some(*digest),
        ..image
    })
}

fn pin(
    text: &str,
    repository: &dyn Fn(&ImageReference) -> Option<RepoKey>,
) -> Result<PinnedImage, Refusal> {
    let refuse = |why: String| Refusal::bad_request(format!("image {text:?}: {why}"));
    let image: ImageReference = text.parse().map_err(|error| refuse(format!("{error}")))?;
    let repo = repository(&image).ok_or_else(|| refuse("no registry has this name".to_owned()))?;
    Ok(PinnedImage {
        repo,
        reference: image.manifest_ref(),
        frozen: None,
    })
}

/// Longest name of a source, bytes.
const MAX_SOURCE: usize = 256;

/// Most images of one source: more than one object of the operator may name.
const MAX_IMAGES: usize = 10_000;

/// Most platforms of one source: more than there are.
const MAX_PLATFORMS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("operator", true)]
    #[case("coral-operator/ml/inference", true)]
    #[case("", false)]
    #[case("a//b", false)]
    #[case("a/", false)]
    #[case("a b", false)]
    #[case("a/b\n", false)]
    #[case("ümlaut", false)]
    fn sources(#[case] source: &str, #[case] good: bool) {
        assert_eq!(check_source(source).is_ok(), good, "{source:?}");
        let long = "x".repeat(MAX_SOURCE);
        assert!(check_source(&long).is_ok() && check_source(&(long + "x")).is_err());
    }

    fn ask(image: &str, count: usize, expires: &str) -> Result<Pins, String> {
        let request = PinRequest {
            images: vec![image.to_owned(); count],
            frozen: Vec::new(),
            platforms: Vec::new(),
            expires: expires.to_owned(),
        };
        let repository = |image: &ImageReference| image.name().parse().ok();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        pins(request, &repository, now).map_err(|refusal| refusal.error)
    }

    #[test]
    fn requests() {
        let asked = ask("nginx", 1, "2026-01-01T02:00:00+01:00").unwrap();
        let nginx = "docker.io/library/nginx".parse().unwrap();
        let pinned = PinnedImage {
            repo: nginx,
            reference: "latest".parse().unwrap(),
            frozen: None,
        };
        assert_eq!(asked.images, [pinned]);
        assert_eq!(asked.until.to_string(), "2026-01-01T01:00:00Z");
        let later = "2027-01-01T00:00:00Z";
        assert!(ask("nginx", MAX_IMAGES, later).is_ok());
        for (image, count, expires, hint) in [
            ("nginx", MAX_IMAGES + 1, later, "10000"),
            ("quay.io/A/b", 1, later, "quay.io/A/b"),
            ("nginx", 1, "2026-01-01T00:00:00Z", "passed"),
            ("nginx", 1, "tomorrow", "expires"),
        ] {
            let error = ask(image, count, expires).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }
}
