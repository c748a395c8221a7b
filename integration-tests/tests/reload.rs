//! H-36: the configuration changes while clients pull. The file is looked at every few seconds; the tests wait until the
//! change is seen.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use coral_integration_tests::ask::{code, json, metric, status};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::{Got, eventually, get, pull};
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::{Fault, Gate, Upstream, When};
use serde_json::json;

async fn at(cache: &Cache, path: &str) -> Got {
    get(cache.address(), path, &[]).await.unwrap()
}

fn write(cache: &Cache, text: &str) {
    // Renamed into place: the watcher never sees half of it.
    let file = cache.configuration();
    let next = file.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(&next, &file).unwrap();
}

fn one_more(text: &str, name: &str, upstream: &Upstream) -> String {
    let more = format!(
        "upstreams:\n  {name}:\n    endpoints: [\"{}\"]\n    plainHttp: true\n",
        upstream.url()
    );
    text.replacen("upstreams:\n", &more, 1)
}

async fn config_state(cache: &Cache) -> (String, String) {
    let config = status(cache.admin()).await.unwrap()["config"].clone();
    let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("error"))
}

#[tokio::test(flavor = "multi_thread")]
async fn h36_a_removed_upstream_stops_at_once_and_its_running_transfer_goes_on()
-> anyhow::Result<()> {
    let (kept, removed) = (Upstream::start().await?, Upstream::start().await?);
    let (stays, goes) = (Image::new(1, &[1000]), Image::new(2, &[3 << 20]));
    kept.publish("team/app", "v1", &stays);
    removed.publish("team/app", "v1", &goes);
    let layer = goes.layers()[0].digest;
    let gate = Gate::new();
    removed.always(When::blob(&layer), Fault::new().hold(&gate, 1 << 20));
    let without = configuration(&kept, "");
    let cache = Cache::start(&one_more(&without, "removed.example", &removed)).await?;
    let manifest = "/v2/removed.example/team/app/manifests/v1";
    assert_eq!(at(&cache, manifest).await.status, 200);
    let config = format!(
        "/v2/removed.example/team/app/blobs/{}",
        goes.blobs[0].digest
    );
    assert_eq!(at(&cache, &config).await.status, 200);
    let mut connection = Connection::open(cache.address()).await?;
    let path = format!("/v2/removed.example/team/app/blobs/{layer}");
    let mut running = connection.get(&path, &[]).await?;
    assert_eq!(running.status, 200);
    pull(cache.address(), "team/app", "v1").await?;
    let connections = kept.connections();

    write(&cache, &without);
    eventually("it is removed", async || {
        at(&cache, manifest).await.status == 404
    })
    .await;
    let asked = removed.requests(&When::any());
    let by_digest = format!("/v2/removed.example/team/app/manifests/{}", goes.digest());
    let mirror = "/v2/team/app/manifests/v1?ns=removed.example";
    for path in [manifest, &by_digest, &config, &path, mirror] {
        let got = at(&cache, path).await;
        assert_eq!(
            (got.status, code(&got).as_str()),
            (404, "NAME_UNKNOWN"),
            "{path}"
        );
    }
    assert_eq!(removed.requests(&When::any()), asked);
    gate.open();
    assert_eq!(connection.hash(&mut running).await?, layer);
    assert_eq!(removed.requests(&When::blob(&layer)), 1);

    kept.publish("team/app", "v2", &Image::new(3, &[10]));
    pull(cache.address(), "team/app", "v2").await?;
    assert_eq!(
        kept.connections(),
        connections,
        "what did not change keeps its connections"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h36_a_change_takes_effect_without_a_restart() -> anyhow::Result<()> {
    let (first, second) = (Upstream::start().await?, Upstream::start().await?);
    let image = Image::new(1, &[1000]);
    first.publish("team/app", "v1", &image);
    second.publish("team/app", "v1", &image);
    second.publish("team/new", "v1", &image);
    let cache = Cache::start(&configuration(&first, "")).await?;
    pull(cache.address(), "team/app", "v1").await?;
    let asked = first.requests(&When::any());
    write(
        &cache,
        &configuration(&second, "    deny: [\"team/secret\"]\n"),
    );
    eventually("the new rule holds", async || {
        at(&cache, "/v2/team/secret/manifests/v1").await.status == 403
    })
    .await;
    pull(cache.address(), "team/new", "v1").await?;
    pull(cache.address(), "team/app", "v1").await?;
    assert_eq!(
        first.requests(&When::manifest("v1").repository("team/new")),
        0
    );
    assert_eq!(
        second.requests(&When::any().repository("team/app")),
        0,
        "held"
    );
    assert!(
        first.requests(&When::any()) <= asked + 1,
        "asked for the secret at most"
    );
    let registries = get(cache.admin(), "/api/v1/registries", &[]).await?;
    let deny =
        json!([{ "name": UPSTREAM_NAME, "aliases": [], "allow": [], "deny": ["team/secret"] }]);
    assert_eq!(json(&registries), deny);
    let applied = "coral_registry_config_reloads_total{result=\"applied\"}";
    let applied = metric(cache.admin(), applied).await?;
    assert!((applied - 1.0).abs() < 0.5, "{applied}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h36_an_invalid_change_is_refused_and_shown() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    upstream.publish("team/app", "v1", &Image::new(1, &[1000]));
    upstream.publish("team/app", "v2", &Image::new(2, &[1000]));
    let right = configuration(&upstream, "");
    let cache = Cache::start(&right).await?;
    assert_eq!(config_state(&cache).await.0, "current");
    let refused = "coral_registry_config_reloads_total{result=\"refused\"}";
    let folder = tempfile::tempdir()?;
    let garbage = folder.path().join("ca.pem");
    std::fs::write(&garbage, "no certificate")?;
    let garbage = format!("    tls: {{ ca: {} }}\n", garbage.display());
    let missing = "    tls: { ca: /no/such/file.pem }\n";
    for (wrong, hint) in [
        (right.clone() + "colour: blue\n", "colour"),
        (right.clone() + "connections: [\n", ""),
        (right.clone() + "store: { maxBytes: 1Gi }\n", "store"),
        (configuration(&upstream, missing), "tls.ca"),
        (configuration(&upstream, &garbage), "tls.ca"),
    ] {
        let before = metric(cache.admin(), refused).await?;
        write(&cache, &wrong);
        eventually(&format!("{hint:?} is refused"), async || {
            let (state, error) = config_state(&cache).await;
            let counted = metric(cache.admin(), refused).await.unwrap() > before;
            counted && state == "refused" && error.contains(hint)
        })
        .await;
        pull(cache.address(), "team/app", "v1").await?;
    }
    pull(cache.address(), "team/app", "v2").await?;
    write(&cache, &right);
    eventually("it is right again", async || {
        config_state(&cache).await == ("current".to_owned(), String::new())
    })
    .await;
    Ok(())
}
