//! The page of the admin listener names only metrics and paths that exist, and stands behind the same guard as they do.
//! What it looks like and does in a browser: `real/page.rs`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use coral_integration_tests::ask::head;
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::{Got, get, pull};
use coral_integration_tests::registry::configuration;
use coral_integration_tests::upstream::Upstream;

async fn start() -> anyhow::Result<(Upstream, Cache)> {
    let upstream = Upstream::start().await?;
    upstream.publish("team/app", "1", &Image::new(1, &[1000]));
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    Ok((upstream, cache))
}

async fn admin(cache: &Cache, path: &str) -> String {
    let got = get(cache.admin(), path, &[]).await.unwrap();
    assert_eq!(got.status, 200, "{path}");
    String::from_utf8(got.body.to_vec()).unwrap()
}

/// Everything in the page that begins with `start`, as far as `part` goes.
fn named(page: &str, start: &str, part: fn(char) -> bool) -> BTreeSet<String> {
    let rests = page.match_indices(start).map(|(at, _)| &page[at..]);
    let ends = rests.map(|rest| rest.split(|char| !part(char)).next().unwrap().to_owned());
    ends.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_page_exists() -> anyhow::Result<()> {
    let (_upstream, cache) = start().await?;
    pull(cache.address(), "team/app", "1").await?;
    let page = admin(&cache, "/ui/").await;
    let metrics = admin(&cache, "/metrics").await;
    let names = named(&page, "coral_registry_", |char| {
        char.is_ascii_lowercase() || char == '_'
    });
    assert_eq!(names.len(), 4, "{names:?}");
    for name in names {
        let sample = format!("{name}{{");
        assert!(
            metrics.lines().any(|line| line.starts_with(&sample)),
            "{name}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_of_the_page_exists() -> anyhow::Result<()> {
    let (_upstream, cache) = start().await?;
    let page = admin(&cache, "/ui/").await;
    let paths = named(&page, "../", |char| {
        char.is_ascii_alphanumeric() || "./-".contains(char)
    });
    assert_eq!(paths.len(), 4, "{paths:?}");
    for path in paths {
        let path = path.replace("../", "/");
        let query = if path.ends_with("mirror-config") {
            "?runtime=containerd"
        } else {
            ""
        };
        admin(&cache, &format!("{path}{query}")).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_stands_before_the_page() -> anyhow::Result<()> {
    let (_upstream, cache) = start().await?;
    let foreign = [("origin", "http://evil.example")];
    for path in ["/ui/", "/ui", "/"] {
        let refused: Got = get(cache.admin(), path, &foreign).await?;
        assert_eq!(refused.status, 403, "{path}");
        assert!(!String::from_utf8_lossy(&refused.body).contains("<html"));
    }
    let here = head(cache.admin(), "/ui/", &[]).await?;
    assert_eq!(here.status, 200);
    // Clients pull there; the page is not for them.
    assert_eq!(get(cache.address(), "/ui/", &[]).await?.status, 404);
    Ok(())
}

/// A browser has no token to send for a page; the page asks for one, and has nothing to show before.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_open_where_the_api_asks_for_a_token() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let folder = tempfile::tempdir()?;
    let keys = folder.path().join("jwks");
    std::fs::write(&keys, r#"{"keys":[]}"#)?;
    let auth = format!(
        "admin:\n  auth: {{ issuer: here, audience: coral, subjects: [me], jwks: {} }}\n",
        keys.display()
    );
    let cache = Cache::start(&(configuration(&upstream, "") + &auth)).await?;
    for (path, status) in [
        ("/ui/", 200),
        ("/metrics", 200),
        ("/api/v1/status", 401),
        ("/api/v1/images", 401),
    ] {
        let got = get(cache.admin(), path, &[]).await?;
        assert_eq!(got.status, status, "{path}");
    }
    Ok(())
}
