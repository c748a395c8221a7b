//! Promise 5, never down because the upstream is: what a tag means, who asks when, and what is answered when nobody can
//! say. Every test looks at both ends: what the client saw, and what the upstream was asked.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use coral_integration_tests::ask::{code, head, metric, status};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::{Got, eventually, get, pull};
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::{Auth, Bearer, Fault, Kind, Login, Upstream, When};
use coral_registry::index::{Index, TagRow};
use coral_schema::process::tasks::Tasks;
use http::Method;

/// Every request for a tag has it checked.
const CHECK_ALWAYS: &str = "    tags: [{ match: \"*\", freshness: 0s }]\n";
const PATH: &str = "/v2/team/app/manifests";

async fn by(cache: &Cache, reference: &(impl ToString + ?Sized)) -> Got {
    let path = format!("{PATH}/{}", reference.to_string());
    get(cache.address(), &path, &[]).await.unwrap()
}

/// An upstream with `team/app:v1`, and a cache that has pulled it.
async fn warm(more: &str) -> anyhow::Result<(Upstream, Image, Cache)> {
    let upstream = Upstream::start().await?;
    let image = Image::new(1, &[1000]);
    upstream.publish("team/app", "v1", &image);
    let cache = Cache::start(&configuration(&upstream, more)).await?;
    pull(cache.address(), "team/app", "v1").await?;
    upstream.reset_counters();
    Ok((upstream, image, cache))
}

fn is_stale(got: &Got, image: &Image) -> bool {
    assert_eq!(got.status, 200);
    assert_eq!(got.body, image.manifest.content.read_all());
    let warning = got.header("warning");
    assert!(
        warning.is_empty() || warning.starts_with("299 - \""),
        "{warning}"
    );
    !warning.is_empty()
}

fn gets() -> When {
    When::kind(Kind::Manifest).method(Method::GET)
}

fn heads() -> When {
    When::kind(Kind::Manifest).method(Method::HEAD)
}

/// Stops the cache, and makes it believe that `v1` was checked so long ago (or so far ahead) when it starts again.
async fn shift_check(cache: &mut Cache, back: bool, by: Duration) -> anyhow::Result<()> {
    cache.stop().await?;
    let index = Index::open(&cache.data().join("index.db"), &Tasks::new())?.index;
    let repo = format!("{UPSTREAM_NAME}/team/app").parse()?;
    let tag = "v1".parse()?;
    let row = index.tag(&repo, &tag).await?.unwrap();
    let checked = if back {
        row.checked.checked_sub(by)?
    } else {
        row.checked.checked_add(by)?
    };
    let row = TagRow {
        checked,
        ..(*row).clone()
    };
    index.put_tag(&repo, &tag, Arc::new(row)).await?;
    index.flush().await?;
    index.close().await?;
    cache.restart().await
}

/// More than any tag is fresh by default.
const LONG: Duration = Duration::from_hours(2);

#[tokio::test(flavor = "multi_thread")]
async fn first_contact_is_one_get_by_tag_and_a_fresh_tag_asks_nobody() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::new(1, &[1000]);
    upstream.publish("team/app", "v1", &image);
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    let first = by(&cache, "v1").await;
    assert_eq!(first.body, image.manifest.content.read_all());
    let seen = upstream.seen(&When::any());
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].target.method, Method::GET);
    assert_eq!(seen[0].target.reference.as_deref(), Some("v1"));

    let path = format!("{PATH}/v1");
    let headers = head(cache.address(), &path, &[]).await?.headers;
    for name in ["docker-content-digest", "content-length", "content-type"] {
        assert_eq!(headers[name], first.headers[name]);
    }
    assert!(!is_stale(&by(&cache, "v1").await, &image));
    assert!(!is_stale(&by(&cache, &image.digest()).await, &image));
    assert_eq!(upstream.requests(&When::any()), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_tag_costs_one_conditional_head_and_no_get() -> anyhow::Result<()> {
    let (upstream, image, cache) = warm(CHECK_ALWAYS).await?;
    assert!(!is_stale(&by(&cache, "v1").await, &image));
    let seen = upstream.seen(&When::any());
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].target.method, Method::HEAD);
    assert_eq!(
        seen[0].header("if-none-match"),
        format!("\"{}\"", image.digest())
    );
    assert_eq!(seen[0].status, Some(304));

    // One that knows no ETags says the digest.
    upstream.configure(|settings| settings.etags = false);
    upstream.reset_counters();
    assert!(!is_stale(&by(&cache, "v1").await, &image));
    assert_eq!(
        (upstream.requests(&heads()), upstream.requests(&gets())),
        (1, 0)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h13_fifty_clients_cause_one_check() -> anyhow::Result<()> {
    let (upstream, image, mut cache) = warm("").await?;
    shift_check(&mut cache, true, LONG).await?;
    let clients = (0..50).map(|_| by(&cache, "v1"));
    for got in futures::future::join_all(clients).await {
        assert!(!is_stale(&got, &image));
    }
    assert_eq!(
        (upstream.requests(&heads()), upstream.requests(&gets())),
        (1, 0)
    );
    Ok(())
}

/// containerd: HEAD by tag, GET by digest. The tag is known then.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_and_a_get_by_digest_leave_the_tag_cached() -> anyhow::Result<()> {
    let mut upstream = Upstream::start().await?;
    let image = Image::new(1, &[1000]);
    upstream.publish("team/app", "v1", &image);
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    let path = format!("{PATH}/v1");
    let first = head(cache.address(), &path, &[]).await?;
    assert_eq!(
        first.header("docker-content-digest"),
        image.digest().to_string()
    );
    assert_eq!(by(&cache, &image.digest()).await.status, 200);
    assert_eq!(
        (upstream.requests(&heads()), upstream.requests(&gets())),
        (1, 1)
    );
    assert_eq!(
        upstream.requests(&When::manifest("v1").method(Method::GET)),
        0
    );

    upstream.refuse().await;
    let again = head(cache.address(), &path, &[]).await?;
    assert_eq!(again.status, 200);
    assert_eq!(
        again.header("docker-content-digest"),
        first.header("docker-content-digest")
    );
    assert!(!is_stale(&by(&cache, "v1").await, &image));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h10_a_tag_that_moves_at_each_request_gives_consistent_pulls() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    // Three, since each round asks twice.
    let images = [1, 2, 3].map(|seed| Image::new(seed, &[1000 * seed]));
    for image in &images {
        upstream.add("team/app", image);
    }
    upstream.tag("team/app", "v1", images.iter().map(Image::digest));
    let cache = Cache::start(&configuration(&upstream, CHECK_ALWAYS)).await?;
    let wanted = images
        .each_ref()
        .map(|image| -> Vec<_> { image.blobs.iter().map(|blob| blob.digest).collect() });
    let mut met = [false; 3];
    for _ in 0..25 {
        let pulled = pull(cache.address(), "team/app", "v1").await?;
        let which = wanted.iter().position(|blobs| *blobs == pulled);
        met[which.expect("all blobs of one image")] = true;

        let said = head(cache.address(), &format!("{PATH}/v1"), &[]).await?;
        let said = said.header("docker-content-digest").to_owned();
        let got = by(&cache, &said).await;
        assert_eq!(got.status, 200, "what a HEAD named can be had");
        assert_eq!(got.header("docker-content-digest"), said);
    }
    assert_eq!(met, [true; 3]);
    for image in &images {
        assert!(upstream.requests(&When::manifest(&image.digest())) <= 1);
        let layer = image.layers()[0].digest;
        assert_eq!(upstream.requests(&When::blob(&layer)), 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h11_a_silent_upstream_is_waited_for_once() -> anyhow::Result<()> {
    let (upstream, image, cache) = warm(CHECK_ALWAYS).await?;
    upstream.always(When::any(), Fault::silence());
    assert!(is_stale(&by(&cache, "v1").await, &image));
    assert_eq!(upstream.requests(&heads()), 1);

    // A minute of deadlines, if each one waited.
    let at_once = async {
        for _ in 0..30 {
            assert!(is_stale(&by(&cache, "v1").await, &image));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), at_once).await?;
    eventually("the breaker is open", async || {
        is_stale(&by(&cache, "v1").await, &image);
        breaker_is_open(&cache).await
    })
    .await;
    let asked = upstream.requests(&When::kind(Kind::Manifest));
    let refused = by(&cache, "unknown").await;
    assert_eq!(
        (refused.status, code(&refused).as_str()),
        (503, "UNAVAILABLE")
    );
    assert!(refused.header("retry-after").parse::<u64>()? > 0);
    assert_eq!(upstream.requests(&When::kind(Kind::Manifest)), asked);
    assert_eq!(upstream.requests(&gets()), 0);
    let stale = "coral_registry_stale_served_total{reason=\"unreachable\"";
    assert!(metric(cache.admin(), stale).await? >= 31.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h11_a_silent_endpoint_is_passed_over_for_the_next() -> anyhow::Result<()> {
    let (first, second) = (Upstream::start().await?, Upstream::start().await?);
    let image = Image::new(1, &[1000]);
    first.publish("team/app", "v1", &image);
    second.publish("team/app", "v1", &image);
    let endpoints = format!("endpoints: [\"{}\", \"{}\"]", first.url(), second.url());
    let text = format!(
        "upstreams:\n  {UPSTREAM_NAME}:\n    {endpoints}\n    plainHttp: true\n{CHECK_ALWAYS}\n\
         defaultUpstream: {UPSTREAM_NAME}\n"
    );
    let cache = Cache::start(&text).await?;
    pull(cache.address(), "team/app", "v1").await?;
    first.always(When::any(), Fault::silence());
    assert!(is_stale(&by(&cache, "v1").await, &image), "a deadline");
    eventually("that check goes on to the second", async || {
        second.requests(&heads()) == 1
    })
    .await;
    for _ in 0..3 {
        assert!(!is_stale(&by(&cache, "v1").await, &image));
    }
    assert_eq!(first.requests(&heads()), 1, "nobody waits for it again");
    Ok(())
}

async fn breaker_is_open(cache: &Cache) -> bool {
    let status = status(cache.admin()).await.unwrap();
    status["upstreams"][0]["endpoints"][0]["breakerOpen"] == true
}

#[tokio::test(flavor = "multi_thread")]
async fn h11_h13_a_failing_upstream_is_answered_stale() -> anyhow::Result<()> {
    let (mut upstream, image, cache) = warm(CHECK_ALWAYS).await?;
    let limited = Fault::status(429).header("retry-after", "1");
    for fault in [
        Fault::status(500),
        Fault::status(503),
        Fault::reset(),
        limited,
    ] {
        upstream.clear_faults();
        upstream.always(When::any(), fault.clone());
        upstream.reset_counters();
        assert!(is_stale(&by(&cache, "v1").await, &image), "{fault:?}");
        let asked = upstream.requests(&heads());
        assert!((1..=3).contains(&asked), "{fault:?}: {asked}");
        assert_eq!(upstream.requests(&gets()), 0);
    }
    // What the upstream asked for is honoured: it is left in peace, and the client has its answer.
    let asked = upstream.requests(&When::any());
    assert!(is_stale(&by(&cache, "v1").await, &image));
    assert_eq!(upstream.requests(&When::any()), asked);

    upstream.clear_faults();
    upstream.refuse().await;
    assert!(is_stale(&by(&cache, "v1").await, &image));
    upstream.accept().await?;
    eventually("it is fresh again", async || {
        !is_stale(&by(&cache, "v1").await, &image)
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h11_stale_answers_end_with_stale_if_error() -> anyhow::Result<()> {
    let (mut upstream, image, mut cache) = warm("    staleIfError: 3h\n").await?;
    upstream.refuse().await;
    shift_check(&mut cache, true, LONG).await?;
    assert!(is_stale(&by(&cache, "v1").await, &image));
    shift_check(&mut cache, true, LONG).await?;
    let refused = by(&cache, "v1").await;
    assert_eq!(refused.status, 502, "{:?}", refused.headers);
    assert_eq!(
        by(&cache, &image.digest()).await.status,
        200,
        "digests never expire"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h30_an_age_that_makes_no_sense_means_check_once() -> anyhow::Result<()> {
    let (mut upstream, image, mut cache) = warm("    staleIfError: 3h\n").await?;
    shift_check(&mut cache, false, LONG).await?;
    assert!(!is_stale(&by(&cache, "v1").await, &image));
    assert!(!is_stale(&by(&cache, "v1").await, &image));
    assert_eq!(
        (upstream.requests(&heads()), upstream.requests(&gets())),
        (1, 0)
    );

    shift_check(&mut cache, false, LONG).await?;
    upstream.refuse().await;
    assert!(
        is_stale(&by(&cache, "v1").await, &image),
        "no evidence against it"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h12_a_tag_that_was_deleted_upstream_is_served() -> anyhow::Result<()> {
    let (upstream, image, cache) = warm(CHECK_ALWAYS).await?;
    upstream.remove("team/app", "v1");
    assert!(is_stale(&by(&cache, "v1").await, &image));
    assert_eq!(
        (upstream.requests(&heads()), upstream.requests(&gets())),
        (1, 0)
    );
    upstream.publish("team/app", "v1", &image);
    assert!(!is_stale(&by(&cache, "v1").await, &image));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h12_a_tag_that_was_deleted_upstream_is_refused_if_so_configured() -> anyhow::Result<()> {
    let (upstream, image, mut cache) = warm("    onUpstreamMissing: refuse\n").await?;
    upstream.remove("team/app", "v1");
    assert!(!is_stale(&by(&cache, "v1").await, &image), "fresh");
    shift_check(&mut cache, true, LONG).await?;
    for _ in 0..2 {
        let refused = by(&cache, "v1").await;
        assert_eq!(
            (refused.status, code(&refused).as_str()),
            (404, "MANIFEST_UNKNOWN")
        );
    }
    upstream.publish("team/app", "v1", &image);
    eventually("it is back", async || by(&cache, "v1").await.status == 200).await;
    assert_eq!(upstream.requests(&gets()), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h12_our_broken_credential_does_not_stop_service() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::new(1, &[1000]);
    upstream.publish("team/app", "v1", &image);
    let logins = |password| Auth::Basic(vec![Login::new("coral", password)]);
    upstream.configure(|settings| settings.auth = logins("first"));
    let secrets = tempfile::tempdir()?;
    let password = secrets.path().join("password");
    std::fs::write(&password, "first\n")?;
    let more = format!(
        "{CHECK_ALWAYS}    visibility: shared\n    credentials:\n      - {{ username: coral, passwordFile: {} }}\n",
        password.display()
    );
    let cache = Cache::start(&configuration(&upstream, &more)).await?;
    pull(cache.address(), "team/app", "v1").await?;
    upstream.configure(|settings| settings.auth = logins("second"));
    upstream.reset_counters();
    for _ in 0..3 {
        assert!(is_stale(&by(&cache, "v1").await, &image));
    }
    assert!(upstream.requests(&heads()) > 0);
    assert_eq!(upstream.requests(&gets()), 0);
    let refused = "coral_registry_stale_served_total{reason=\"refused\"";
    assert!(metric(cache.admin(), refused).await? >= 3.0, "the alarm");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h12_what_was_made_private_is_served_until_the_grace_is_over() -> anyhow::Result<()> {
    let more = format!("{CHECK_ALWAYS}    revokeGrace: 2s\n");
    let (upstream, image, cache) = warm(&more).await?;
    let private = Bearer {
        private: vec!["team/app".to_owned()],
        ..Bearer::default()
    };
    upstream.configure(|settings| settings.auth = Auth::Bearer(private));
    assert!(is_stale(&by(&cache, "v1").await, &image));
    eventually("it is refused", async || {
        let got = by(&cache, "v1").await;
        got.status == 404 && code(&got) == "MANIFEST_UNKNOWN"
    })
    .await;
    assert_eq!(by(&cache, &image.digest()).await.status, 404);
    let blob = format!("/v2/team/app/blobs/{}", image.layers()[0].digest);
    assert_eq!(get(cache.address(), &blob, &[]).await?.status, 404);
    assert_eq!(upstream.requests(&When::kind(Kind::Blob)), 0);
    Ok(())
}

/// A tag that moved just before an outage must not replace a complete image by a name.
#[tokio::test(flavor = "multi_thread")]
async fn the_previous_image_is_answered_while_nothing_of_the_new_one_is_held() -> anyhow::Result<()>
{
    let (mut upstream, old, mut cache) = warm("").await?;
    let new = Image::new(2, &[2000]);
    upstream.publish("team/app", "v1", &new);
    shift_check(&mut cache, true, LONG).await?;
    assert!(
        !is_stale(&by(&cache, "v1").await, &new),
        "its manifest only"
    );
    upstream.refuse().await;
    eventually("the breaker is open", async || {
        by(&cache, "unknown").await;
        breaker_is_open(&cache).await
    })
    .await;
    assert!(is_stale(&by(&cache, "v1").await, &old));
    pull(cache.address(), "team/app", "v1").await?;

    upstream.accept().await?;
    let layer = format!("/v2/team/app/blobs/{}", new.layers()[0].digest);
    eventually("something of the new one is held", async || {
        get(cache.address(), &layer, &[]).await.unwrap().status == 200
    })
    .await;
    upstream.refuse().await;
    shift_check(&mut cache, true, LONG).await?;
    assert!(is_stale(&by(&cache, "v1").await, &new));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h14_a_404_is_remembered_shortly() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::new(1, &[1000]);
    let text = configuration(&upstream, "") + "cache: { negativeTtl: 4s }\n";
    let cache = Cache::start(&text).await?;
    for _ in 0..10 {
        assert_eq!(by(&cache, "v1").await.status, 404);
    }
    assert_eq!(upstream.requests(&When::any()), 1, "asked once");
    upstream.publish("team/app", "v1", &image);
    eventually("a fresh push is seen", async || {
        by(&cache, "v1").await.status == 200
    })
    .await;
    assert_eq!(upstream.requests(&gets()), 2);
    Ok(())
}
