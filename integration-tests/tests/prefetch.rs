//! Prefetch jobs over the admin API: what they fetch, what they tell, and who may start them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use coral_integration_tests::ask::{json, post};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::{Blob, Image};
use coral_integration_tests::pull::{eventually, get, pull};
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::{Fault, Gate, Kind, Upstream, When};
use http::Method;
use serde_json::{Value, json};

async fn start() -> anyhow::Result<(Upstream, Cache)> {
    let upstream = Upstream::start().await?;
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    Ok((upstream, cache))
}

fn named(image: &str) -> String {
    format!("{UPSTREAM_NAME}/{image}")
}

/// Starts a job; answers the path of its status.
async fn begin(cache: &Cache, request: &Value) -> anyhow::Result<String> {
    let (status, answer) = post(cache.admin(), "/api/v1/prefetch", request).await?;
    assert_eq!(status, 202, "{answer}");
    let id = answer["id"].as_str().unwrap();
    Ok(format!("/api/v1/prefetch/{id}"))
}

async fn look(cache: &Cache, job: &str) -> Value {
    let got = get(cache.admin(), job, &[]).await.unwrap();
    assert_eq!(got.status, 200);
    json(&got)
}

/// The job's status at its end.
async fn run(cache: &Cache, request: &Value) -> anyhow::Result<Value> {
    let job = begin(cache, request).await?;
    let mut last = Value::Null;
    eventually("the job ends", async || {
        last = look(cache, &job).await;
        last["state"] == "done" || last["state"] == "failed"
    })
    .await;
    Ok(last)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_shows_its_progress_and_its_images_are_held() -> anyhow::Result<()> {
    let (mut upstream, cache) = start().await?;
    let image = Image::new(1, &[3 << 20, 1000]);
    upstream.publish("team/app", "v1", &image);
    let gate = Gate::new();
    let layer = When::blob(&image.layers()[0].digest);
    upstream.always(layer.clone(), Fault::new().hold(&gate, 2 << 20));
    let reference = named("team/app:v1");
    let job = begin(&cache, &json!({ "images": [reference] })).await?;
    let total: u64 = image.blobs.iter().map(Blob::size).sum();
    eventually("some of it is there", async || {
        let status = look(&cache, &job).await;
        let image = &status["images"][0];
        let done = image["bytesDone"].as_u64().unwrap();
        assert!(done < total);
        status["state"] == "running" && image["bytesTotal"] == total && done >= 1 << 20
    })
    .await;
    gate.open();
    let again = json!({ "images": [reference] });
    eventually("it ends", async || {
        look(&cache, &job).await["state"] == "done"
    })
    .await;
    let stored = cache.stored();
    let held = |blob: &Blob| stored.contains_key(&blob.digest);
    assert!(image.blobs.iter().all(held), "done is in the store");
    let status = look(&cache, &job).await;
    let shown = &status["images"][0];
    assert_eq!(shown["ref"], reference);
    assert_eq!(shown["digest"], json!(image.digest()));
    assert_eq!(shown["sizeBytes"], total);
    assert_eq!(
        (&shown["bytesDone"], &shown["bytesTotal"]),
        (&json!(total), &json!(total))
    );
    assert_eq!(shown["layers"].as_array().unwrap().len(), 3);
    assert!(shown.get("reason").is_none() && shown.get("message").is_none());
    assert_eq!(upstream.requests(&When::any()), 4, "one GET for each piece");

    assert_eq!(run(&cache, &again).await?["state"], "done");
    assert_eq!(
        upstream.requests(&When::any()),
        4,
        "repeating costs nothing"
    );
    upstream.refuse().await;
    pull(cache.address(), "team/app", "v1").await?;
    let gone = get(cache.admin(), "/api/v1/prefetch/0-0", &[]).await?;
    assert_eq!(gone.status, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reads_along_with_a_prefetch() -> anyhow::Result<()> {
    let (upstream, cache) = start().await?;
    let image = Image::new(1, &[3 << 20]);
    upstream.publish("team/app", "v1", &image);
    let gate = Gate::new();
    let layer = When::blob(&image.layers()[0].digest);
    upstream.always(layer.clone(), Fault::new().hold(&gate, 1 << 20));
    let job = begin(&cache, &json!({ "images": [named("team/app:v1")] })).await?;
    gate.reached(1).await;
    let mut connection = Connection::open(cache.address()).await?;
    let path = format!("/v2/team/app/blobs/{}", image.layers()[0].digest);
    let mut reply = connection.get(&path, &[]).await?;
    assert!(connection.chunk(&mut reply).await?.is_some());
    gate.open();
    connection.discard(&mut reply).await?;
    eventually("it ends", async || {
        look(&cache, &job).await["state"] == "done"
    })
    .await;
    assert_eq!(upstream.requests(&layer), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_until_the_end() -> anyhow::Result<()> {
    let (upstream, cache) = start().await?;
    let image = Image::new(1, &[2 << 20]);
    upstream.publish("team/app", "v1", &image);
    let gate = Gate::new();
    let layer = When::blob(&image.layers()[0].digest);
    upstream.always(layer, Fault::new().hold(&gate, 1 << 20));
    let job = begin(&cache, &json!({ "images": [named("team/app:v1")] })).await?;
    let mut connection = Connection::open(cache.admin()).await?;
    let mut reply = connection
        .get(&job, &[("accept", "text/event-stream")])
        .await?;
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "text/event-stream")
    );
    let first = connection.chunk(&mut reply).await?.unwrap();
    assert!(first.starts_with(b"data: {"), "{first:?}");
    gate.open();
    let rest = connection.read_all(&mut reply).await?;
    let rest = String::from_utf8(rest.to_vec())?;
    let last = rest
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .next_back()
        .unwrap();
    let last: Value = serde_json::from_str(last)?;
    assert_eq!(last["state"], "done");
    assert_eq!(
        last["images"][0]["bytesDone"],
        last["images"][0]["bytesTotal"]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_fails_with_a_reason_and_the_rest_is_held() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let deny = "    deny: [\"team/denied\"]\n";
    let cache = Cache::start(&configuration(&upstream, deny)).await?;
    let image = Image::new(1, &[1000]);
    upstream.publish("team/app", "v1", &image);
    upstream.always(When::any().repository("team/private"), Fault::status(403));
    let mut broken = Image::new(2, &[1000]);
    broken.blobs.pop();
    upstream.publish("team/broken", "v1", &broken);
    let images = [
        "team/none:v1",
        "team/app:v1",
        "team/private:v1",
        "team/broken:v1",
        "team/denied:v1",
    ]
    .map(named);
    let mut images = images.to_vec();
    images.push("unknown.example/team/app:v1".to_owned());
    let status = run(&cache, &json!({ "images": images })).await?;
    assert_eq!(status["state"], "failed");
    let shown: Vec<_> = status["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| {
            let text = |key: &str| image[key].as_str().unwrap_or_default().to_owned();
            assert!(
                image["state"] == "done" || text("message").len() > 10,
                "{image}"
            );
            (text("state"), text("reason"))
        })
        .collect();
    let expected = [
        ("failed", "NotFound"),
        ("done", ""),
        ("failed", "Unauthorized"),
        ("failed", "NotFound"),
        ("failed", "Forbidden"),
        ("failed", "Unauthorized"),
    ];
    assert_eq!(
        shown,
        expected.map(|(state, reason)| (state.to_owned(), reason.to_owned()))
    );
    pull(cache.address(), "team/app", "v1").await?;

    for wrong in [
        json!({ "images": [] }),
        json!({ "images": ["quay.io/A/b"] }),
        json!({ "images": ["a"], "colour": "blue" }),
        json!("nginx"),
    ] {
        let (status, answer) = post(cache.admin(), "/api/v1/prefetch", &wrong).await?;
        assert_eq!(status, 400);
        assert!(answer["error"].as_str().unwrap().len() > 10);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_wanted_platforms_are_fetched() -> anyhow::Result<()> {
    let (upstream, cache) = start().await?;
    let index = Image::multi_platform(
        1,
        &["linux/amd64", "linux/arm64", "linux/s390x"],
        &[1000, 10],
    );
    upstream.publish("team/app", "v1", &index);
    let images = [named("team/app:v1")];
    let request = json!({ "images": images, "platforms": ["linux/arm64", "linux/s390x"] });
    let status = run(&cache, &request).await?;
    assert_eq!(status["state"], "done", "{status}");
    let shown = &status["images"][0];
    assert_eq!(shown["digest"], json!(index.digest()));
    let size = |image: &Image| image.size() - image.manifest.size();
    let sizes = index.children.iter().map(|child| size(child));
    let sizes: Vec<_> = sizes.collect();
    assert_eq!(
        shown["sizeBytes"],
        json!(sizes[1].max(sizes[2])),
        "what one node pulls"
    );
    assert_eq!(shown["bytesTotal"], json!(sizes[1] + sizes[2]));
    let asked = |image: &Image| upstream.requests(&When::manifest(&image.digest()));
    assert_eq!(
        index
            .children
            .iter()
            .map(|child| asked(child))
            .collect::<Vec<_>>(),
        [0, 1, 1]
    );
    assert_eq!(upstream.requests(&When::kind(Kind::Blob)), 6);

    let request = json!({ "images": images, "platforms": ["linux/riscv64"] });
    let status = run(&cache, &request).await?;
    assert_eq!(status["images"][0]["reason"], "PlatformMissing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_some_of_the_platforms_is_done_and_says_so() -> anyhow::Result<()> {
    let (upstream, cache) = start().await?;
    let index = Image::multi_platform(1, &["linux/amd64", "linux/arm64"], &[1000]);
    upstream.publish("team/app", "v1", &index);
    let platforms = ["linux/arm64", "linux/riscv64", "linux/s390x"];
    let request = json!({ "images": [named("team/app:v1")], "platforms": platforms });
    let status = run(&cache, &request).await?;
    assert_eq!(status["state"], "done", "{status}");
    let shown = &status["images"][0];
    assert_eq!(shown["state"], "done");
    assert_eq!(
        shown["missingPlatforms"],
        json!(["linux/riscv64", "linux/s390x"])
    );
    assert_eq!(shown["reason"], "PlatformMissing");
    assert_eq!(
        shown["message"],
        "it has no image for linux/riscv64, linux/s390x"
    );
    let stored = cache.stored();
    let held = |blob: &Blob| stored.contains_key(&blob.digest);
    assert!(index.children[1].blobs.iter().all(held), "the rest is held");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_to_what_cannot_be_had_says_where() -> anyhow::Result<()> {
    let (upstream, cache) = start().await?;
    let (old, new) = (Image::new(1, &[1000]), Image::new(2, &[1000]));
    upstream.publish("team/app", "v1", &old);
    let refresh = json!({ "images": [named("team/app:v1")], "refresh": true });
    let status = run(&cache, &refresh).await?;
    assert_eq!(status["images"][0].get("upstreamDigest"), None);

    upstream.publish("team/app", "v1", &new);
    let gets = When::manifest(&new.digest().to_string()).method(Method::GET);
    upstream.always(gets, Fault::status(403));
    let status = run(&cache, &refresh).await?;
    let shown = &status["images"][0];
    assert_eq!(
        (&shown["state"], &shown["reason"]),
        (&json!("done"), &json!("Stale")),
        "{status}"
    );
    assert_eq!(shown["digest"], json!(old.digest()));
    assert_eq!(shown["upstreamDigest"], json!(new.digest()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_asks_what_a_fresh_tag_means_now() -> anyhow::Result<()> {
    let (mut upstream, cache) = start().await?;
    let (old, new) = (Image::new(1, &[1000]), Image::new(2, &[1000]));
    upstream.publish("team/app", "v1", &old);
    let images = [named("team/app:v1")];
    run(&cache, &json!({ "images": images })).await?;
    upstream.publish("team/app", "v1", &new);
    upstream.reset_counters();
    let status = run(&cache, &json!({ "images": images })).await?;
    assert_eq!(status["images"][0]["digest"], json!(old.digest()));
    assert_eq!(upstream.requests(&When::any()), 0, "it is fresh");

    let refresh = json!({ "images": images, "refresh": true });
    let status = run(&cache, &refresh).await?;
    assert_eq!(
        status["images"][0]["digest"],
        json!(new.digest()),
        "{status}"
    );
    let heads = When::manifest("v1").method(Method::HEAD);
    assert_eq!(upstream.requests(&heads), 1);
    assert_eq!(upstream.requests(&When::kind(Kind::Manifest)), 2);
    pull(cache.address(), "team/app", "v1").await?;
    run(&cache, &refresh).await?;
    assert_eq!(
        upstream.requests(&When::kind(Kind::Manifest)),
        3,
        "one more HEAD"
    );

    upstream.refuse().await;
    let status = run(&cache, &refresh).await?;
    let shown = &status["images"][0];
    assert_eq!(
        (&shown["state"], &shown["reason"]),
        (&json!("done"), &json!("Stale"))
    );
    assert_eq!(shown["digest"], json!(new.digest()));
    Ok(())
}

/// Background work leaves the reserve of the upstream's budget to clients, also for the same image.
#[tokio::test(flavor = "multi_thread")]
async fn h13_a_prefetch_stops_before_the_budget_is_used_up() -> anyhow::Result<()> {
    let (upstream, cache) = start().await?;
    for (seed, tag) in ["v1", "v2", "v3"].into_iter().enumerate() {
        upstream.publish("team/app", tag, &Image::new(seed as u64, &[1000]));
    }
    let little = Fault::new()
        .header("ratelimit-limit", "100;w=21600")
        .header("ratelimit-remaining", "10;w=21600");
    upstream.always(When::kind(Kind::Manifest), little);
    pull(cache.address(), "team/app", "v1").await?;
    let job = begin(&cache, &json!({ "images": [named("team/app:v2")] })).await?;
    eventually("it runs", async || {
        look(&cache, &job).await["state"] == "running"
    })
    .await;
    pull(cache.address(), "team/app", "v3").await?;
    for _ in 0..50 {
        assert_eq!(look(&cache, &job).await["state"], "running");
    }
    assert_eq!(upstream.requests(&When::manifest("v2")), 0);
    pull(cache.address(), "team/app", "v2").await?;
    assert_eq!(upstream.requests(&When::manifest("v2")), 1);
    Ok(())
}

/// A page in a browser on the same machine must not start jobs.
#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_kept_out() -> anyhow::Result<()> {
    let (upstream, cache) = start().await?;
    let body = json!({ "images": [named("team/app:v1")] }).to_string();
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{}/api/v1/prefetch", cache.admin());
    let evil = format!("http://evil.example:{}", cache.admin().port());
    for (name, value, expected) in [
        ("origin", "http://evil.example", 403),
        ("host", evil.trim_start_matches("http://"), 403),
        ("content-type", "text/plain", 415),
    ] {
        let mut headers = http::HeaderMap::new();
        headers.insert("content-type", "application/json".parse()?);
        headers.insert(http::HeaderName::from_static(name), value.parse()?);
        let reply = client
            .post(&url)
            .headers(headers)
            .body(body.clone())
            .send()
            .await?;
        assert_eq!(reply.status().as_u16(), expected, "{name}: {value}");
    }
    let origin = format!("http://{}", cache.admin());
    let same = client.post(&url).header("origin", origin);
    let same = same
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await?;
    assert_eq!(same.status().as_u16(), 202, "our own page may");
    assert_eq!(upstream.requests(&When::any().method(Method::POST)), 0);
    Ok(())
}
