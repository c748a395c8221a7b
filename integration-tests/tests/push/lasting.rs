//! Promise 8, nothing lost: what was acknowledged is there after a restart, without the index, and whatever is deleted
//! elsewhere; an upload goes on where it was.

use coral_integration_tests::ask::{head, json};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::{Content, Image};
use coral_integration_tests::pull::{get, pull};
use coral_integration_tests::push::{begin, blob, image, send};
use coral_registry::app::rebuild;
use coral_registry::config::{self, Overrides};
use coral_schema::oci::{Algorithm, Digest};
use http::Method;
use serde_json::json;

use super::registry;

const REPO: &str = "team/app";

#[rstest::rstest]
#[case(Algorithm::Sha256)]
#[case(Algorithm::Sha512)]
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_after_a_restart(#[case] algorithm: Algorithm) -> anyhow::Result<()> {
    let mut cache = registry().await?;
    let content = Content::generated(1, 300_000).read_all();
    let digest = Digest::of(algorithm, &content);
    let location = begin(cache.address(), REPO).await?;
    let first = &content[..100_000];
    let got = send(cache.address(), (Method::PATCH, &location), &[], first).await?;
    assert_eq!(got.header("range"), "0-99999");
    cache.restart().await?;
    let got = get(cache.address(), &location, &[]).await?;
    assert_eq!((got.status, got.header("range")), (204, "0-99999"));
    let headers = [("content-range", "100000-199999")];
    let chunk = &content[100_000..200_000];
    let got = send(cache.address(), (Method::PATCH, &location), &headers, chunk).await?;
    assert_eq!(got.status, 202);
    cache.restart().await?;
    let ending = format!("{location}?digest={digest}");
    let got = send(
        cache.address(),
        (Method::PUT, &ending),
        &[],
        &content[200_000..],
    )
    .await?;
    assert_eq!(got.status, 201);
    let path = format!("/v2/{REPO}/blobs/{digest}");
    assert!(get(cache.address(), &path, &[]).await?.body == content);
    Ok(())
}

async fn assert_all(cache: &Cache, pushed: &Image, artifact: &Image) -> anyhow::Result<()> {
    for repository in [REPO, "team/strict"] {
        pull(cache.address(), repository, "v1").await?;
    }
    let list = get(cache.address(), &format!("/v2/{REPO}/tags/list"), &[]).await?;
    assert_eq!(json(&list)["tags"], json!(["sig", "v1"]));
    let path = format!("/v2/{REPO}/referrers/{}", pushed.digest());
    let found = json(&get(cache.address(), &path, &[]).await?);
    assert_eq!(
        found["manifests"][0]["digest"],
        artifact.digest().to_string()
    );
    let loose = format!("/v2/{REPO}/blobs/{}", Digest::sha256(b"loose"));
    assert_eq!(get(cache.address(), &loose, &[]).await?.body, "loose");
    let deleted = format!("/v2/{REPO}/manifests/deleted");
    assert_eq!(head(cache.address(), &deleted, &[]).await?.status, 404);
    let deleted = format!("/v2/{REPO}/blobs/{}", Digest::sha256(b"deleted"));
    assert_eq!(head(cache.address(), &deleted, &[]).await?.status, 404);
    let elsewhere = format!("/v2/team/strict/blobs/{}", Digest::sha256(b"loose"));
    assert_eq!(head(cache.address(), &elsewhere, &[]).await?.status, 404);
    Ok(())
}

/// H-31: the records say it all.
#[tokio::test(flavor = "multi_thread")]
async fn h31_a_lost_index_is_rebuilt_with_what_was_pushed() -> anyhow::Result<()> {
    let mut cache = registry().await?;
    let pushed = Image::new(1, &[70_000, 3]);
    let artifact = Image::referrer(2, &pushed.manifest, "application/vnd.example");
    for repository in [REPO, "team/strict"] {
        image(cache.address(), repository, "v1", &pushed).await?;
    }
    image(cache.address(), REPO, "sig", &artifact).await?;
    blob(cache.address(), REPO, b"loose").await?;
    blob(cache.address(), REPO, b"deleted").await?;
    image(cache.address(), REPO, "deleted", &pushed).await?;
    for path in [
        format!("/v2/{REPO}/manifests/deleted"),
        format!("/v2/{REPO}/blobs/{}", Digest::sha256(b"deleted")),
    ] {
        let got = send(cache.address(), (Method::DELETE, &path), &[], b"").await?;
        assert_eq!(got.status, 202);
    }
    assert_all(&cache, &pushed, &artifact).await?;
    cache.restart().await?;
    assert_all(&cache, &pushed, &artifact).await?;

    cache.stop().await?;
    std::fs::remove_file(cache.data().join("index.db"))?;
    cache.restart().await?;
    assert_all(&cache, &pushed, &artifact).await?;

    cache.stop().await?;
    let overrides = Overrides {
        data: Some(cache.data()),
        ..Overrides::default()
    };
    let loaded = config::load(Some(&cache.configuration()), &overrides)?;
    let progress = rebuild(loaded.config).await?;
    assert_eq!(progress.unreadable, 0);
    cache.restart().await?;
    assert_all(&cache, &pushed, &artifact).await
}

/// Damaged bytes are never served, and can be pushed again.
#[tokio::test(flavor = "multi_thread")]
async fn h37_damaged_content_can_be_pushed_again() -> anyhow::Result<()> {
    let mut cache = registry().await?;
    let pushed = Image::new(1, &[5000]);
    image(cache.address(), REPO, "v1", &pushed).await?;
    let layer = pushed.layers()[0].digest;
    cache.stop().await?;
    for digest in [layer, pushed.digest()] {
        std::fs::write(&cache.stored()[&digest], b"short")?;
    }
    cache.restart().await?;
    for path in [
        format!("/v2/{REPO}/manifests/v1"),
        format!("/v2/{REPO}/blobs/{layer}"),
    ] {
        assert_eq!(get(cache.address(), &path, &[]).await?.status, 404);
    }
    image(cache.address(), REPO, "v1", &pushed).await?;
    pull(cache.address(), REPO, "v1").await?;
    cache.assert_sound();
    Ok(())
}
