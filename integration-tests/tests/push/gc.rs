//! Collecting what hosted repositories do not need: what goes, and when, and above all what does not.

use std::time::Duration;

use coral_integration_tests::ask::{head, json, post};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::{eventually, get, pull};
use coral_integration_tests::push::{blob, image, manifest, send};
use coral_schema::oci::{Digest, media_type};
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

const REPO: &str = "team/app";

/// Only passes that a test asks for.
async fn registry(grace: &str) -> anyhow::Result<Cache> {
    let hosted = "[{ prefix: team }, { prefix: team/tidy, deleteUntaggedAfter: 0s }]";
    Cache::start(&format!(
        "hosted: {hosted}\nanonymousPush: true\ngc: {{ interval: none, grace: {grace} }}\n"
    ))
    .await
}

async fn pass(cache: &Cache, query: &str) -> anyhow::Result<Value> {
    let path = format!("/api/v1/gc{query}");
    let (status, report) = post(cache.admin(), &path, &json!({})).await?;
    anyhow::ensure!(status == 200, "{status} {report}");
    Ok(report)
}

/// What would go now, as digests.
async fn due(cache: &Cache) -> anyhow::Result<Vec<String>> {
    let report = pass(cache, "?dryRun=true").await?;
    let items = report["items"].as_array().cloned().unwrap_or_default();
    let due = items.iter().filter(|item| item["state"] == "removed");
    Ok(due
        .filter_map(|item| Some(item["digest"].as_str()?.to_owned()))
        .collect())
}

/// Marks, and waits until that was long enough ago for all of these.
async fn ripen(cache: &Cache, digests: &[Digest]) -> anyhow::Result<()> {
    pass(cache, "").await?;
    wait_until_due(cache, digests).await;
    Ok(())
}

async fn wait_until_due(cache: &Cache, digests: &[Digest]) {
    eventually("what was marked may go", async || {
        let due = due(cache).await.unwrap_or_default();
        let mut all = digests.iter();
        all.all(|digest| due.contains(&digest.to_string()))
    })
    .await;
}

async fn has(cache: &Cache, repo: &str, digest: &Digest) -> anyhow::Result<bool> {
    let path = format!("/v2/{repo}/blobs/{digest}");
    let status = head(cache.address(), &path, &[]).await?.status;
    anyhow::ensure!(matches!(status, 200 | 404), "{status}");
    Ok(status == 200)
}

async fn put(cache: &Cache, tag: &str, layers: &[Digest]) -> anyhow::Result<u16> {
    let layer = |digest: &Digest| json!({ "mediaType": "a/b", "digest": digest, "size": 1 });
    let layers: Vec<_> = layers.iter().map(layer).collect();
    let body = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "layers": layers, "annotations": { "tag": tag } });
    let bytes = body.to_string().into();
    let to = (REPO, tag);
    let got = manifest(cache.address(), to, media_type::OCI_MANIFEST, &bytes).await?;
    Ok(got.status)
}

async fn delete(cache: &Cache, reference: &str) -> anyhow::Result<u16> {
    let path = format!("/v2/{REPO}/manifests/{reference}");
    let got = send(cache.address(), (Method::DELETE, &path), &[], b"").await?;
    Ok(got.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn h02_a_blob_that_a_client_has_seen_is_there_when_its_manifest_comes() -> anyhow::Result<()>
{
    let cache = registry("1ms").await?;
    let address = cache.address();
    let mut blobs = Vec::new();
    for content in ["seen", "mounted", "read", "pushed again", "unused"] {
        blobs.push(blob(address, REPO, content.as_bytes()).await?);
    }
    ripen(&cache, &blobs).await?;
    assert!(has(&cache, REPO, &blobs[0]).await?);
    let path = format!("/v2/{REPO}/blobs/uploads/?mount={}&from={REPO}", blobs[1]);
    let got = send(address, (Method::POST, &path), &[], b"").await?;
    assert_eq!(got.status, 201);
    let path = format!("/v2/{REPO}/blobs/{}", blobs[2]);
    assert_eq!(get(address, &path, &[]).await?.body, "read");
    blob(address, REPO, b"pushed again").await?;
    assert_eq!(due(&cache).await?, [blobs[4].to_string()]);

    let report = pass(&cache, "").await?;
    assert_eq!(
        (&report["removed"], &report["freedBytes"]),
        (&json!(1), &json!(6))
    );
    assert!(!has(&cache, REPO, &blobs[4]).await?);
    assert!(
        !cache.stored().contains_key(&blobs[4]),
        "its bytes went at once"
    );
    assert_eq!(put(&cache, "v1", &blobs[..4]).await?, 201);
    for digest in &blobs[..4] {
        let path = format!("/v2/{REPO}/blobs/{digest}");
        assert_eq!(get(address, &path, &[]).await?.status, 200);
    }
    for _ in 0..3 {
        assert_eq!(pass(&cache, "").await?["removed"], 0);
    }
    assert_eq!(cache.metric("gc_removed_total").await?, Some(1.0));
    assert_eq!(cache.metric("gc_marked").await?, Some(0.0));
    cache.assert_sound();
    Ok(())
}

/// A manifest that comes between marking and taking takes the marks away with it, whatever the client asked before.
#[tokio::test(flavor = "multi_thread")]
async fn h02_a_manifest_clears_the_marks_of_what_it_names() -> anyhow::Result<()> {
    let cache = registry("1ms").await?;
    let pushed = blob(cache.address(), REPO, b"pushed").await?;
    ripen(&cache, &[pushed]).await?;
    assert_eq!(put(&cache, "v1", &[pushed]).await?, 201);
    assert!(due(&cache).await?.is_empty());
    assert_eq!(delete(&cache, "v1").await?, 202);
    assert!(
        due(&cache).await?.is_empty(),
        "its manifest is kept without a tag"
    );
    Ok(())
}

/// Clients that push, see, and delete the same few blobs while passes run: who saw a blob less than `grace` before its
/// manifest was accepted finds it there.
#[tokio::test(flavor = "multi_thread")]
async fn h02_pushes_and_passes_race() -> anyhow::Result<()> {
    const GRACE: Duration = Duration::from_millis(300);
    let cache = registry("300ms").await?;
    let end = Instant::now() + Duration::from_secs(6);
    let client = async |number: u32| {
        let mut round = number;
        while Instant::now() < end {
            round += 7;
            let content = format!("blob {}", round % 5);
            let digest = Digest::sha256(content.as_bytes());
            let seen = Instant::now();
            if !has(&cache, REPO, &digest).await? {
                blob(cache.address(), REPO, content.as_bytes()).await?;
            }
            let tag = format!("t{number}-{round}");
            assert_eq!(put(&cache, &tag, &[digest]).await?, 201);
            if seen.elapsed() < GRACE {
                let path = format!("/v2/{REPO}/blobs/{digest}");
                let got = get(cache.address(), &path, &[]).await?;
                assert_eq!((got.status, got.body.len()), (200, content.len()), "{tag}");
            }
            let path = format!("/v2/{REPO}/manifests/{tag}");
            let digest = head(cache.address(), &path, &[]).await?;
            let digest = digest.header("docker-content-digest").to_owned();
            assert_eq!(delete(&cache, &digest).await?, 202);
            // Nobody names it for so long that it may go.
            tokio::time::sleep(GRACE * (round % 3)).await;
        }
        anyhow::Ok(())
    };
    let collect = async {
        let mut removed = 0;
        while Instant::now() < end {
            removed += pass(&cache, "").await?["removed"].as_u64().unwrap_or(0);
        }
        anyhow::Ok(removed)
    };
    let others = blob(cache.address(), "team/other", b"alone").await?;
    let (removed, ..) = tokio::try_join!(collect, client(1), client(2), client(3))?;
    assert!(removed > 0, "nothing was ever taken");
    assert!(!has(&cache, "team/other", &others).await?);
    cache.assert_sound();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_without_a_tag_go_where_that_is_said() -> anyhow::Result<()> {
    let mut cache = registry("1ms").await?;
    let address = cache.address();
    let old = Image::new(1, &[2000, 3]);
    let new = Image::new(2, &[3000]);
    let signature = Image::referrer(3, &new.manifest, "application/vnd.example");
    for repo in [REPO, "team/tidy"] {
        image(address, repo, "v1", &old).await?;
        image(address, repo, "v1", &new).await?;
        let reference = signature.digest().to_string();
        image(address, repo, &reference, &signature).await?;
    }
    ripen(&cache, &[old.digest()]).await?;
    cache.restart().await?;
    wait_until_due(&cache, &[old.digest()]).await;
    let report = pass(&cache, "?dryRun=true").await?;
    assert_eq!(
        (&report["removed"], &report["dryRun"]),
        (&json!(1), &json!(true))
    );
    let item = &report["items"][0];
    assert_eq!(
        (&item["repository"], &item["kind"], &item["size"]),
        (
            &json!("team/tidy"),
            &json!("manifest"),
            &json!(old.manifest.size())
        )
    );
    let report = pass(&cache, "").await?;
    assert_eq!(
        (&report["removed"], &report["freedBytes"]),
        (&json!(1), &json!(0))
    );
    let blobs: Vec<Digest> = old.blobs.iter().map(|part| part.digest).collect();
    wait_until_due(&cache, &blobs).await;
    let report = pass(&cache, "").await?;
    assert_eq!(report["removed"], json!(old.blobs.len()));
    assert_eq!(report["freedBytes"], 0, "the other repository has them");
    let address = cache.address();
    let gone = format!("/v2/team/tidy/manifests/{}", old.digest());
    assert_eq!(head(address, &gone, &[]).await?.status, 404);
    pull(address, "team/tidy", "v1").await?;
    pull(address, REPO, &old.digest().to_string()).await?;
    let path = format!("/v2/team/tidy/referrers/{}", new.digest());
    let listed = json(&get(address, &path, &[]).await?);
    assert_eq!(
        listed["manifests"][0]["digest"],
        signature.digest().to_string()
    );

    // Pushed again, it is all there again, also for a new index.
    image(address, "team/tidy", "old", &old).await?;
    cache.stop().await?;
    std::fs::remove_file(cache.data().join("index.db"))?;
    cache.restart().await?;
    for reference in ["old", "v1"] {
        pull(cache.address(), "team/tidy", reference).await?;
    }
    Ok(())
}

/// While somebody pushes, nothing goes: the first blob of a large image may wait long for its manifest.
#[tokio::test(flavor = "multi_thread")]
async fn h02_nothing_goes_from_a_repository_that_is_pushed_to() -> anyhow::Result<()> {
    let cache = registry("2s").await?;
    let first = blob(cache.address(), REPO, b"first").await?;
    let alone = blob(cache.address(), "team/other", b"alone").await?;
    let begun = Instant::now();
    pass(&cache, "").await?;
    let mut number = 0;
    while cache.stored().contains_key(&alone) {
        number += 1;
        blob(cache.address(), REPO, format!("{number}").as_bytes()).await?;
        pass(&cache, "").await?;
        assert!(begun.elapsed() < Duration::from_secs(30), "never collected");
    }
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert!(has(&cache, REPO, &first).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_else_has_it_keeps_the_bytes() -> anyhow::Result<()> {
    let cache = registry("1ms").await?;
    let shared = blob(cache.address(), REPO, b"shared").await?;
    let path = format!("/v2/team/other/blobs/uploads/?mount={shared}&from={REPO}");
    let got = send(cache.address(), (Method::POST, &path), &[], b"").await?;
    assert_eq!(got.status, 201);
    let path = "/v2/team/other/manifests/v1";
    let body = json!({ "layers": [{ "mediaType": "a/b", "digest": shared, "size": 6 }] });
    let headers = [("content-type", media_type::OCI_MANIFEST)];
    let body = body.to_string();
    let got = send(
        cache.address(),
        (Method::PUT, path),
        &headers,
        body.as_bytes(),
    )
    .await?;
    assert_eq!(got.status, 201);
    ripen(&cache, &[shared]).await?;
    let report = pass(&cache, "").await?;
    assert_eq!(
        (&report["removed"], &report["freedBytes"]),
        (&json!(1), &json!(0))
    );
    assert!(!has(&cache, REPO, &shared).await?);
    assert!(has(&cache, "team/other", &shared).await?);
    assert!(cache.stored().contains_key(&shared));
    Ok(())
}
