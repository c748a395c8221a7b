//! What a repository has: children, referrers, lists, and what is deleted.

use bytes::Bytes;
use coral_integration_tests::ask::{code, head, json};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::{Blob, Content, Image};
use coral_integration_tests::pull::{Got, get};
use coral_integration_tests::push::{blob, image, manifest, send};
use coral_schema::oci::{Digest, media_type};
use http::Method;
use serde_json::{Value, json};

use super::registry;

const REPO: &str = "team/app";

async fn put(cache: &Cache, repo: &str, tag: &str, body: &Value) -> anyhow::Result<Got> {
    let bytes = Bytes::from(body.to_string());
    Ok(manifest(
        cache.address(),
        (repo, tag),
        media_type::OCI_MANIFEST,
        &bytes,
    )
    .await?)
}

fn of_layers(layers: &[(&str, Digest)]) -> Value {
    let layer =
        |(kind, digest): &(&str, Digest)| json!({ "mediaType": kind, "digest": digest, "size": 5 });
    json!({ "schemaVersion": 2, "layers": layers.iter().map(layer).collect::<Vec<_>>() })
}

#[tokio::test(flavor = "multi_thread")]
async fn children_are_members_of_the_same_repository() -> anyhow::Result<()> {
    let cache = registry().await?;
    let layer = "application/vnd.oci.image.layer.v1.tar";
    let digest = blob(cache.address(), "team/strict/other", b"layer").await?;
    let body = of_layers(&[(layer, digest)]);
    let got = put(&cache, "team/strict", "x", &body).await?;
    assert_eq!(
        (got.status, code(&got).as_str()),
        (404, "MANIFEST_BLOB_UNKNOWN")
    );
    assert_eq!(json(&got)["errors"][0]["detail"], digest.to_string());
    let got = put(&cache, REPO, "x", &body).await?;
    assert_eq!(got.status, 201, "sparse is accepted unless it is refused");
    let at = format!("/v2/{REPO}/blobs/{digest}");
    let got = get(cache.address(), &at, &[]).await?;
    assert_eq!(
        (got.status, code(&got).as_str()),
        (404, "BLOB_UNKNOWN"),
        "naming it is no proof"
    );

    blob(cache.address(), "team/strict", b"layer").await?;
    assert_eq!(put(&cache, "team/strict", "x", &body).await?.status, 201);
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let body = of_layers(&[(layer, digest), (foreign, Digest::sha256(b"nowhere"))]);
    assert_eq!(put(&cache, "team/strict", "x", &body).await?.status, 201);
    let index = json!({ "mediaType": media_type::OCI_INDEX, "manifests": [
        { "mediaType": media_type::OCI_MANIFEST, "digest": Digest::sha256(b"none"), "size": 4 } ] });
    let bytes = Bytes::from(index.to_string());
    let got = manifest(
        cache.address(),
        ("team/strict", "i"),
        media_type::OCI_INDEX,
        &bytes,
    )
    .await?;
    assert_eq!(
        (got.status, code(&got).as_str()),
        (404, "MANIFEST_BLOB_UNKNOWN")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers() -> anyhow::Result<()> {
    let cache = registry().await?;
    let none = async |path: &str| get(cache.address(), &format!("/v2/{path}"), &[]).await;
    let subject = Blob::new(media_type::OCI_MANIFEST, Content::of("{}"));
    let path = format!("{REPO}/referrers/{}", subject.digest);
    let got = none(&path).await?;
    assert_eq!(
        (got.status, got.header("content-type")),
        (200, media_type::OCI_INDEX)
    );
    assert_eq!(json(&got)["manifests"], json!([]));

    let signature = Image::referrer(1, &subject, "application/vnd.example.signature");
    let sbom = Image::referrer(2, &subject, "application/vnd.example.sbom");
    for artifact in [&signature, &sbom] {
        let reference = artifact.digest().to_string();
        for part in &artifact.blobs {
            blob(cache.address(), REPO, &part.content.read_all()).await?;
        }
        let bytes = artifact.manifest.content.read_all();
        let to = (REPO, reference.as_str());
        let got = manifest(cache.address(), to, media_type::OCI_MANIFEST, &bytes).await?;
        assert_eq!(got.status, 201, "though its subject is missing");
        assert_eq!(got.header("oci-subject"), subject.digest.to_string());
    }
    let all = json(&none(&path).await?);
    assert_eq!(all["manifests"].as_array().map(Vec::len), Some(2));
    let filtered = format!("{path}?artifactType=application/vnd.example.sbom");
    let got = none(&filtered).await?;
    assert_eq!(got.header("oci-filters-applied"), "artifactType");
    let expected = json!([{
        "mediaType": media_type::OCI_MANIFEST, "digest": sbom.digest(), "size": sbom.manifest.size(),
        "artifactType": "application/vnd.example.sbom", "annotations": { "seed": "2" },
    }]);
    assert_eq!(json(&got)["manifests"], expected);

    let at = format!("/v2/{REPO}/manifests/{}", sbom.digest());
    let got = send(cache.address(), (Method::DELETE, &at), &[], b"").await?;
    assert_eq!(got.status, 202);
    let left = json(&none(&path).await?);
    assert_eq!(
        left["manifests"][0]["digest"],
        signature.digest().to_string()
    );
    assert_eq!(left["manifests"].as_array().map(Vec::len), Some(1));
    let other = none(&format!("team/none/referrers/{}", subject.digest)).await?;
    assert_eq!(
        (other.status, json(&other)["manifests"].clone()),
        (200, json!([]))
    );
    Ok(())
}

/// All pages; each at most 4 MiB.
async fn all_referrers(cache: &Cache, path: String) -> anyhow::Result<(Vec<String>, usize)> {
    let (mut next, mut found, mut pages) = (path, Vec::new(), 0);
    loop {
        let got = get(cache.address(), &next, &[]).await?;
        assert_eq!((got.status, got.body.len() <= 4 << 20), (200, true));
        let page = json(&got)["manifests"].as_array().cloned();
        let digests = page.unwrap_or_default();
        let digests = digests.iter().filter_map(|entry| entry["digest"].as_str());
        found.extend(digests.map(str::to_owned));
        pages += 1;
        let link = got.header("link");
        if link.is_empty() {
            return Ok((found, pages));
        }
        let end = link.find('>').unwrap_or(link.len());
        link[1..end].clone_into(&mut next);
    }
}

/// Some are so large that 4 MiB come before a thousand entries.
#[tokio::test(flavor = "multi_thread")]
async fn many_referrers_are_listed_in_pages() -> anyhow::Result<()> {
    const MANY: u32 = 1500;
    let cache = registry().await?;
    let subject = Digest::sha256(b"subject");
    let mut pushed = Vec::new();
    for number in 0..MANY {
        let kind = if number % 3 == 0 {
            "a/third"
        } else {
            "a/other"
        };
        let weight = if number < 1200 { 10 } else { 40_000 };
        let body = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": kind,
            "layers": [], "subject": { "mediaType": "a/b", "digest": subject, "size": 7 },
            "annotations": { "number": number.to_string(), "text": "x".repeat(weight) },
        });
        let bytes = Bytes::from(body.to_string());
        let digest = Digest::sha256(&bytes);
        let reference = digest.to_string();
        let to = (REPO, reference.as_str());
        let got = manifest(cache.address(), to, media_type::OCI_MANIFEST, &bytes).await?;
        assert_eq!(got.status, 201);
        pushed.push((reference, kind));
    }
    pushed.sort_unstable();
    let path = format!("/v2/{REPO}/referrers/{subject}");
    let (found, pages) = all_referrers(&cache, path.clone()).await?;
    let expected: Vec<_> = pushed.iter().map(|(digest, _)| digest.clone()).collect();
    assert!(found == expected, "{} in {pages} pages", found.len());
    assert!(pages >= 3, "{pages}");
    let (found, _) = all_referrers(&cache, format!("{path}?artifactType=a/third")).await?;
    let thirds = pushed.iter().filter(|(_, kind)| *kind == "a/third");
    let expected: Vec<_> = thirds.map(|(digest, _)| digest.clone()).collect();
    assert!(found == expected, "{}", found.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_parts_of_a_blob() -> anyhow::Result<()> {
    let cache = registry().await?;
    let content = Content::generated(1, 600_000).read_all();
    let digest = blob(cache.address(), REPO, &content).await?;
    let path = format!("/v2/{REPO}/blobs/{digest}");
    let ask = async |range: &str| get(cache.address(), &path, &[("range", range)]).await;
    let got = ask("bytes=500000-,0-99,300000-300000").await?;
    let boundary = &digest.hex();
    assert_eq!((got.status, got.clean), (206, true));
    assert_eq!(
        got.header("content-type"),
        format!("multipart/byteranges; boundary={boundary}")
    );
    assert_eq!(got.header("content-length"), got.body.len().to_string());
    assert_eq!(got.header("docker-content-digest"), digest.to_string());
    let mut expected = Vec::new();
    for (first, last) in [(500_000, 599_999), (0, 99), (300_000, 300_000)] {
        let head = format!(
            "--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {first}-{last}/600000\r\n\r\n"
        );
        expected.extend_from_slice(head.as_bytes());
        expected.extend_from_slice(&content[first..=last]);
        expected.extend_from_slice(b"\r\n");
    }
    expected.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    assert!(got.body == expected, "{} bytes", got.body.len());

    let got = ask("bytes=5-9,0-6").await?;
    assert_eq!(
        (got.status, got.header("content-range")),
        (206, "bytes 0-9/600000")
    );
    assert!(got.body == content[..10]);
    let got = ask("bytes=600000-,700000-").await?;
    assert_eq!(
        (got.status, got.header("content-range")),
        (416, "bytes */600000")
    );
    let many: Vec<_> = (0..2000).map(|at| format!("{at}-{at}")).collect();
    let got = ask(&format!("bytes={}", many.join(","))).await?;
    assert_eq!((got.status, got.body.len()), (200, 600_000));
    let got = send(
        cache.address(),
        (Method::HEAD, &path),
        &[("range", "bytes=0-1,4-5")],
        b"",
    )
    .await?;
    assert_eq!((got.status, got.header("content-length")), (200, "600000"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_in_pages() -> anyhow::Result<()> {
    let cache = registry().await?;
    for tag in ["b", "a", "B", "c"] {
        assert_eq!(put(&cache, REPO, tag, &json!({})).await?.status, 201);
    }
    let mut path = format!("/v2/{REPO}/tags/list?n=3");
    let got = get(cache.address(), &path, &[]).await?;
    assert_eq!(json(&got), json!({ "name": REPO, "tags": ["B", "a", "b"] }));
    let link = got.header("link");
    assert!(link.ends_with(">; rel=\"next\""), "{link}");
    path = link
        .trim_start_matches('<')
        .split('>')
        .next()
        .unwrap_or_default()
        .to_owned();
    let got = get(cache.address(), &path, &[]).await?;
    assert_eq!(
        (json(&got)["tags"].clone(), got.header("link")),
        (json!(["c"]), "")
    );
    let got = get(cache.address(), &format!("/v2/{REPO}/tags/list?n=0"), &[]).await?;
    assert_eq!(
        (json(&got)["tags"].clone(), got.header("link")),
        (json!([]), "")
    );

    put(&cache, "team/strict/x", "v1", &json!({})).await?;
    let got = get(cache.address(), "/v2/_catalog", &[]).await?;
    assert_eq!(
        json(&got),
        json!({ "repositories": [REPO, "team/strict/x"] })
    );
    let got = get(cache.address(), "/v2/_catalog?n=1", &[]).await?;
    assert_eq!(json(&got), json!({ "repositories": [REPO] }));
    assert_eq!(
        got.header("link"),
        "</v2/_catalog?n=1&last=team%2Fapp>; rel=\"next\""
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_are_seen_at_once() -> anyhow::Result<()> {
    let cache = registry().await?;
    let pushed = Image::new(1, &[100]);
    for tag in ["one", "two"] {
        image(cache.address(), REPO, tag, &pushed).await?;
    }
    let at = |kind: &str, what: &str| format!("/v2/{REPO}/{kind}/{what}");
    let digest = pushed.digest().to_string();
    let layer = pushed.layers()[0].digest.to_string();
    let delete = async |path: &str| send(cache.address(), (Method::DELETE, path), &[], b"").await;
    let status = async |path: &str| head(cache.address(), path, &[]).await.map(|got| got.status);

    let (one, two) = (at("manifests", "one"), at("manifests", "two"));
    assert_eq!(delete(&one).await?.status, 202);
    assert_eq!((status(&one).await?, status(&two).await?), (404, 200));
    let by_digest = at("manifests", &digest);
    assert_eq!(status(&by_digest).await?, 200, "a tag is only a tag");
    assert_eq!(delete(&by_digest).await?.status, 202);
    assert_eq!((status(&by_digest).await?, status(&two).await?), (404, 404));
    let got = delete(&by_digest).await?;
    assert_eq!((got.status, code(&got).as_str()), (404, "MANIFEST_UNKNOWN"));
    let list = get(cache.address(), &format!("/v2/{REPO}/tags/list"), &[]).await?;
    assert_eq!((list.status, json(&list)["tags"].clone()), (200, json!([])));

    let blob = at("blobs", &layer);
    assert_eq!(status(&blob).await?, 200);
    assert_eq!(delete(&blob).await?.status, 202);
    assert_eq!(status(&blob).await?, 404);
    let got = delete(&blob).await?;
    assert_eq!((got.status, code(&got).as_str()), (404, "BLOB_UNKNOWN"));
    image(cache.address(), REPO, "one", &pushed).await?;
    assert_eq!(
        (status(&one).await?, status(&blob).await?),
        (200, 200),
        "and it can come back"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_blobs() -> anyhow::Result<()> {
    let cache = registry().await?;
    let content = Content::generated(5, 3000).read_all();
    let digest = blob(cache.address(), REPO, &content).await?;
    let path = format!("/v2/{REPO}/blobs/{digest}");
    let part = async |range: &str| get(cache.address(), &path, &[("range", range)]).await;
    let cases = [
        ("bytes=500-1499", 500..1500),
        ("bytes=500-", 500..3000),
        ("bytes=-500", 2500..3000),
        ("bytes=2000-5000", 2000..3000),
    ];
    for (range, expected) in cases {
        let got = part(range).await?;
        assert_eq!(
            (got.status, &got.body[..]),
            (206, &content[expected.clone()])
        );
        let said = format!("bytes {}-{}/3000", expected.start, expected.end - 1);
        assert_eq!(got.header("content-range"), said);
    }
    for range in ["bytes=500-0", "bytes=3000-"] {
        assert_eq!(part(range).await?.status, 416);
    }
    Ok(())
}
