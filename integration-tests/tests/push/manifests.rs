//! Manifests and tags: put, found again, and deleted (end-7, end-8, end-9).

use bytes::Bytes;
use coral_integration_tests::ask::{code, head, json};
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::{get, pull};
use coral_integration_tests::push::{image, manifest, send};
use coral_schema::oci::{Algorithm, Digest, media_type};
use http::Method;
use serde_json::json;

use super::registry;

const REPO: &str = "team/app";

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_back_as_it_was_pushed() -> anyhow::Result<()> {
    let cache = registry().await?;
    let index = Image::multi_platform(1, &["linux/amd64", "linux/arm64"], &[70_000, 3]);
    image(cache.address(), REPO, "v1", &index).await?;
    assert_eq!(pull(cache.address(), REPO, "v1").await?.len(), 3);
    let path = format!("/v2/{REPO}/manifests/v1");
    let got = get(cache.address(), &path, &[]).await?;
    assert_eq!(got.header("content-type"), media_type::OCI_INDEX);
    assert_eq!(
        got.header("docker-content-digest"),
        index.digest().to_string()
    );
    let etag = format!("\"{}\"", index.digest());
    assert_eq!(got.header("etag"), etag);
    let seen = head(cache.address(), &path, &[]).await?;
    assert_eq!(
        (seen.status, &seen.headers["content-length"]),
        (200, &got.headers["content-length"])
    );
    let again = get(cache.address(), &path, &[("if-none-match", &etag)]).await?;
    assert_eq!(again.status, 304);
    cache.assert_sound();
    Ok(())
}

/// H-16: the bytes are kept, whatever JSON they are.
#[rstest::rstest]
#[case("{}")]
#[case(
    "\u{feff}{ \"mediaType\" : \"application/vnd.oci.image.index.v1+json\",\r\n\t\"manifests\":[] , \"a\":1,\"a\":2}\n\n"
)]
#[tokio::test(flavor = "multi_thread")]
async fn h16_raw_bytes(#[case] text: &'static str) -> anyhow::Result<()> {
    let cache = registry().await?;
    let bytes = Bytes::from_static(text.as_bytes());
    for digest in [Algorithm::Sha256, Algorithm::Sha512].map(|by| Digest::of(by, &bytes)) {
        let (reference, at) = (digest.to_string(), format!("/v2/{REPO}/manifests/{digest}"));
        let to = (REPO, reference.as_str());
        let got = manifest(cache.address(), to, media_type::OCI_INDEX, &bytes).await?;
        assert_eq!((got.status, got.header("location")), (201, at.as_str()));
        assert_eq!(got.header("docker-content-digest"), reference);
        let got = get(cache.address(), &at, &[]).await?;
        assert_eq!((got.status, &got.body), (200, &bytes));
        assert_eq!(got.header("content-type"), media_type::OCI_INDEX);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_manifest_is_refused() -> anyhow::Result<()> {
    let cache = registry().await?;
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let digest = Digest::sha256(b"");
    let child = json!({ "digest": digest, "mediaType": "a/b", "size": 0 }).to_string();
    let wide = format!("{{\"layers\":[{}]}}", vec![child; 10_001].join(","));
    let cases = [
        ("not json", media_type::OCI_MANIFEST, "MANIFEST_INVALID"),
        (
            "{\"mediaType\":\"a/b\"}",
            media_type::OCI_MANIFEST,
            "MANIFEST_INVALID",
        ),
        (
            "{\"schemaVersion\":1}",
            "application/json",
            "MANIFEST_INVALID",
        ),
        (&deep, media_type::OCI_MANIFEST, "MANIFEST_INVALID"),
        (&wide, media_type::OCI_MANIFEST, "MANIFEST_INVALID"),
    ];
    for (text, content_type, expected) in cases {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let got = manifest(cache.address(), (REPO, "v1"), content_type, &bytes).await?;
        assert_eq!(
            (got.status, code(&got).as_str()),
            (400, expected),
            "{text:.40}"
        );
    }
    let wrong = Digest::sha256(b"other").to_string();
    let bytes = Bytes::from_static(b"{}");
    let got = manifest(cache.address(), (REPO, &wrong), "a/b", &bytes).await?;
    assert_eq!((got.status, code(&got).as_str()), (400, "DIGEST_INVALID"));
    assert!(cache.stored().is_empty());
    Ok(())
}

/// 4 MiB must be accepted; above the limit it is 413, whether the length was said or not.
#[tokio::test(flavor = "multi_thread")]
async fn large_manifests() -> anyhow::Result<()> {
    let cache = registry().await?;
    let of_size = |size: usize| Bytes::from(format!("{{\"x\":\"{}\"}}", "x".repeat(size - 8)));
    let large = of_size(4 << 20);
    let got = manifest(
        cache.address(),
        (REPO, "large"),
        media_type::OCI_MANIFEST,
        &large,
    )
    .await?;
    assert_eq!(got.status, 201);
    let path = format!("/v2/{REPO}/manifests/large");
    assert_eq!(get(cache.address(), &path, &[]).await?.body, large);
    let larger = of_size((5 << 20) + 1);
    let got = manifest(
        cache.address(),
        (REPO, "large"),
        media_type::OCI_MANIFEST,
        &larger,
    )
    .await?;
    assert_eq!((got.status, code(&got).as_str()), (413, "MANIFEST_INVALID"));
    let put = (Method::PUT, path.as_str());
    let got = coral_integration_tests::push::stream(cache.address(), put, &[], &larger).await?;
    assert_eq!(got.status, 413);
    assert_eq!(get(cache.address(), &path, &[]).await?.body, large);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tags_at_once() -> anyhow::Result<()> {
    let cache = registry().await?;
    let bytes = Bytes::from_static(b"{}");
    let digest = Digest::sha256(&bytes);
    let tags: Vec<_> = (0..12).map(|number| format!("t{number:02}")).collect();
    let query = tags
        .iter()
        .chain([&tags[0]])
        .map(|tag| format!("tag={tag}"));
    let query: Vec<_> = query.collect();
    let to = format!("{digest}?{}", query.join("&"));
    let got = manifest(cache.address(), (REPO, &to), "a/b", &bytes).await?;
    assert_eq!(got.status, 201);
    let said = got.headers.get_all("oci-tag").iter();
    let said: Vec<_> = said.filter_map(|tag| tag.to_str().ok()).collect();
    assert_eq!(said, tags);
    let list = get(cache.address(), &format!("/v2/{REPO}/tags/list"), &[]).await?;
    assert_eq!(json(&list), json!({ "name": REPO, "tags": tags }));

    let to = format!("{digest}?tag=good&tag=-bad");
    let got = manifest(cache.address(), (REPO, &to), "a/b", &bytes).await?;
    assert_eq!((got.status, code(&got).as_str()), (400, "MANIFEST_INVALID"));
    let query: Vec<_> = (0..101).map(|number| format!("tag=x{number}")).collect();
    let to = format!("{digest}?{}", query.join("&"));
    let got = manifest(cache.address(), (REPO, &to), "a/b", &bytes).await?;
    assert_eq!(got.status, 414);
    let list = get(cache.address(), &format!("/v2/{REPO}/tags/list"), &[]).await?;
    assert_eq!(json(&list)["tags"], json!(tags), "nothing of them was made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn conditional_writes() -> anyhow::Result<()> {
    let cache = registry().await?;
    let [one, two] = [b"{\"n\":1}", b"{\"n\":2}"].map(|text| Bytes::from_static(text));
    let path = format!("/v2/{REPO}/manifests/v1");
    let put = async |condition: (&str, &str), body: &Bytes| {
        let headers = [("content-type", "a/b"), condition];
        let got = send(cache.address(), (Method::PUT, &path), &headers, body).await;
        got.map(|got| got.status)
    };
    let is = |bytes: &Bytes| format!("\"{}\"", Digest::sha256(bytes));
    assert_eq!(put(("if-match", "*"), &one).await?, 412);
    assert_eq!(put(("if-match", &is(&one)), &one).await?, 412);
    assert_eq!(put(("if-none-match", "*"), &one).await?, 201);
    assert_eq!(put(("if-none-match", "*"), &two).await?, 412);
    assert_eq!(put(("if-match", &is(&two)), &two).await?, 412);
    assert_eq!(put(("if-match", &is(&one)), &two).await?, 201);
    assert_eq!(get(cache.address(), &path, &[]).await?.body, two);
    let headers = [("if-match", &*is(&one))];
    let got = send(cache.address(), (Method::DELETE, &path), &headers, b"").await?;
    assert_eq!((got.status, code(&got).as_str()), (412, "DENIED"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn immutable_tags() -> anyhow::Result<()> {
    let cache = registry().await?;
    let [one, two] = [b"{\"n\":1}", b"{\"n\":2}"].map(|text| Bytes::from_static(text));
    let put = async |tag: &str, body: &Bytes| {
        manifest(cache.address(), ("team/strict", tag), "a/b", body).await
    };
    assert_eq!(put("v1", &one).await?.status, 201);
    assert_eq!(put("v1", &one).await?.status, 201, "the same again");
    let got = put("v1", &two).await?;
    assert_eq!((got.status, code(&got).as_str()), (409, "DENIED"));
    assert!(String::from_utf8_lossy(&got.body).contains("v1 is immutable"));
    let to = format!("{}?tag=free&tag=v1", Digest::sha256(&two));
    assert_eq!(put(&to, &two).await?.status, 409);
    for reference in ["v1".to_owned(), Digest::sha256(&one).to_string()] {
        let path = format!("/v2/team/strict/manifests/{reference}");
        let got = send(cache.address(), (Method::DELETE, &path), &[], b"").await?;
        assert_eq!(got.status, 409);
        assert_eq!(get(cache.address(), &path, &[]).await?.body, one);
    }
    assert_eq!(put("latest", &one).await?.status, 201);
    assert_eq!(put("latest", &two).await?.status, 201);
    Ok(())
}
