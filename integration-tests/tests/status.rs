//! What clients see: the status table (registry.md 3.1) as a mirror (`ns`) and otherwise, the endpoints and their
//! headers, and that what cannot be right never becomes an answer. Every test looks at what the upstream was asked, too.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use coral_integration_tests::ask::{code, head, json, status, without_body};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::{Blob, Content, Image};
use coral_integration_tests::pull::{Got, eventually, get, pull};
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::{Auth, Fault, Kind, Login, Upstream, When};
use coral_schema::oci::{Digest, media_type};
use http::Method;
use serde_json::json;

async fn start(more: &str) -> anyhow::Result<(Upstream, Cache)> {
    let upstream = Upstream::start().await?;
    let cache = Cache::start(&configuration(&upstream, more)).await?;
    Ok((upstream, cache))
}

async fn at(cache: &Cache, path: &str) -> Got {
    get(cache.address(), path, &[]).await.unwrap()
}

/// GET by default upstream, by host path, and as a mirror; the first two must not differ. Then HEAD with the same
/// status and headers. Answers (otherwise, mirror).
async fn both(cache: &Cache, rest: &str) -> (Got, Got) {
    let default = at(cache, &format!("/v2/{rest}")).await;
    let by_host = at(cache, &format!("/v2/{UPSTREAM_NAME}/{rest}")).await;
    assert_eq!(default.status, by_host.status);
    assert_eq!(code(&default), code(&by_host));
    let path = format!("/v2/{rest}?ns={UPSTREAM_NAME}");
    let mirror = at(cache, &path).await;
    assert_eq!(mirror.header("oci-namespace"), UPSTREAM_NAME);
    let head = head(cache.address(), &path, &[]).await.unwrap();
    assert_eq!(head.status, mirror.status, "HEAD of {path}");
    for name in ["content-type", "retry-after", "warning", "oci-namespace"] {
        assert_eq!(
            head.headers.contains_key(name),
            mirror.headers.contains_key(name),
            "{name} of {path}"
        );
    }
    for got in [&default, &mirror] {
        let version = got.header("docker-distribution-api-version");
        assert_eq!(version, "registry/2.0");
        let message = &json(got)["errors"][0]["message"];
        assert!(
            message.as_str().unwrap().len() > 20,
            "a sentence: {message}"
        );
    }
    (default, mirror)
}

fn is(got: &Got, status: u16, error: &str) {
    assert_eq!((got.status, code(got).as_str()), (status, error));
    let retry = got.header("retry-after");
    if status == 503 || status == 429 {
        assert!(retry.parse::<u64>().unwrap() > 0);
    } else {
        assert_eq!(retry, "");
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("team/app/blobs/{digest}")
}

#[tokio::test(flavor = "multi_thread")]
async fn table_unknown_and_refused_repositories_ask_nobody() -> anyhow::Result<()> {
    let more = "    allow: [\"team/**\"]\n    deny: [\"team/secret\"]\n";
    let (upstream, cache) = start(more).await?;
    for path in [
        "/v2/evil.example/team/app/manifests/v1",
        "/v2/localhost/team/app/manifests/v1",
        "/v2/evil.example:5000/team/app/tags/list",
        "/v2/team/app/manifests/v1?ns=evil.example",
        "/v2/upstream.example/team/app/manifests/v1?ns=evil.example",
    ] {
        is(&at(&cache, path).await, 404, "NAME_UNKNOWN");
    }
    for rest in ["team/secret/manifests/v1", "library/nginx/manifests/v1"] {
        let (default, mirror) = both(&cache, rest).await;
        is(&default, 403, "DENIED");
        is(&mirror, 403, "DENIED");
    }
    assert_eq!(upstream.requests(&When::any()), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn table_missing() -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    let (default, mirror) = both(&cache, "team/app/manifests/v1").await;
    is(&default, 404, "MANIFEST_UNKNOWN");
    is(&mirror, 404, "MANIFEST_UNKNOWN");
    let (default, mirror) = both(&cache, &blob_path(&Digest::sha256(b"x"))).await;
    is(&default, 404, "BLOB_UNKNOWN");
    is(&mirror, 404, "BLOB_UNKNOWN");
    assert_eq!(upstream.requests(&When::any()), 2, "each asked once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn table_our_credential_is_refused() -> anyhow::Result<()> {
    let (upstream, cache) = start("    visibility: shared\n").await?;
    let login = Login::new("somebody", "else");
    upstream.configure(|settings| settings.auth = Auth::Basic(vec![login]));
    for (rest, unknown) in [
        ("team/app/manifests/v1".to_owned(), "MANIFEST_UNKNOWN"),
        (blob_path(&Digest::sha256(b"x")), "BLOB_UNKNOWN"),
    ] {
        let (default, mirror) = both(&cache, &rest).await;
        is(&default, 403, "DENIED");
        is(&mirror, 404, unknown);
        assert!(json(&mirror)["errors"][0]["detail"].is_string());
        for got in [default, mirror] {
            assert!(!got.headers.contains_key("www-authenticate"));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn table_429_with_nothing_cached() -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    upstream.always(When::any(), Fault::status(429).header("retry-after", "30"));
    for rest in [
        "team/app/manifests/v1".to_owned(),
        blob_path(&Digest::sha256(b"x")),
    ] {
        let (default, mirror) = both(&cache, &rest).await;
        is(&default, 429, "TOOMANYREQUESTS");
        is(&mirror, 503, "TOOMANYREQUESTS");
        for got in [default, mirror] {
            let wait: u64 = got.header("retry-after").parse()?;
            assert!((1..=30).contains(&wait), "{wait}");
        }
    }
    let gets = When::kind(Kind::Manifest).method(Method::GET);
    assert_eq!(upstream.requests(&gets), 1, "it is left in peace");
    Ok(())
}

#[rstest::rstest]
#[case(Fault::status(500))]
#[case(Fault::status(503))]
#[case(Fault::reset())]
#[case(Fault::html())]
#[tokio::test(flavor = "multi_thread")]
async fn table_a_failing_upstream_then_its_breaker(#[case] fault: Fault) -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    upstream.always(When::any(), fault);
    let mirror = format!("/v2/team/app/manifests/v1?ns={UPSTREAM_NAME}");
    is(
        &at(&cache, "/v2/team/app/manifests/v1").await,
        502,
        "UNAVAILABLE",
    );
    is(&at(&cache, &mirror).await, 502, "UNAVAILABLE");
    eventually("the breaker is open", async || {
        at(&cache, &mirror).await;
        let status = status(cache.admin()).await.unwrap();
        status["upstreams"][0]["endpoints"][0]["breakerOpen"] == true
    })
    .await;
    let asked = upstream.requests(&When::kind(Kind::Manifest));
    let (default, mirror) = both(&cache, "team/app/manifests/v1").await;
    is(&default, 503, "UNAVAILABLE");
    is(&mirror, 503, "UNAVAILABLE");
    assert_eq!(upstream.requests(&When::kind(Kind::Manifest)), asked);
    Ok(())
}

/// The deadlines are conditions: the answer comes though the upstream never says anything.
#[tokio::test(flavor = "multi_thread")]
async fn table_a_silent_upstream() -> anyhow::Result<()> {
    let (upstream, cache) = start("    timeouts: { headers: 1s, tagCheck: 1s }\n").await?;
    upstream.always(When::any(), Fault::silence());
    is(
        &at(&cache, "/v2/team/app/manifests/v1").await,
        504,
        "UNAVAILABLE",
    );
    let blob = blob_path(&Digest::sha256(b"x"));
    let blob = format!("/v2/{blob}?ns={UPSTREAM_NAME}");
    is(&at(&cache, &blob).await, 504, "UNAVAILABLE");
    assert_eq!(upstream.requests(&When::kind(Kind::Manifest)), 1);
    Ok(())
}

fn two_endpoints(first: &Upstream, second: &Upstream) -> String {
    format!(
        "upstreams:\n  {UPSTREAM_NAME}:\n    endpoints: [\"{}\", \"{}\"]\n    plainHttp: true\n    \
         timeouts: {{ headers: 1s, tagCheck: 1s }}\ndefaultUpstream: {UPSTREAM_NAME}\n",
        first.url(),
        second.url()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn several_endpoints_one_404_and_one_without_an_answer_are_no_404() -> anyhow::Result<()> {
    let (missing, failing) = (Upstream::start().await?, Upstream::start().await?);
    let blob = format!("/v2/{}", blob_path(&Digest::sha256(b"x")));
    for (fault, expected) in [(Fault::silence(), 504), (Fault::status(500), 502)] {
        for order in [[&missing, &failing], [&failing, &missing]] {
            failing.clear_faults();
            failing.always(When::any(), fault.clone());
            let cache = Cache::start(&two_endpoints(order[0], order[1])).await?;
            is(
                &at(&cache, "/v2/team/app/manifests/v1").await,
                expected,
                "UNAVAILABLE",
            );
            is(&at(&cache, &blob).await, expected, "UNAVAILABLE");
        }
    }
    let cache = Cache::start(&two_endpoints(&missing, &missing)).await;
    drop(cache);
    failing.clear_faults();
    let cache = Cache::start(&two_endpoints(&missing, &failing)).await?;
    is(
        &at(&cache, "/v2/team/app/manifests/v1").await,
        404,
        "MANIFEST_UNKNOWN",
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_names_digests_and_tags_ask_nobody() -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    let hex = "0".repeat(64);
    for (path, status, error) in [
        ("/v2/Team/app/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/team//app/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/team/../app/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/team%2Fapp/manifests/v1", 400, "NAME_INVALID"),
        (
            "/v2/team/app/blobs/sha256:baddigeststring",
            400,
            "DIGEST_INVALID",
        ),
        ("/v2/team/app/blobs/md5:00", 400, "DIGEST_INVALID"),
        ("/v2/team/app/manifests/sha256:00", 400, "DIGEST_INVALID"),
        ("/v2/team/app/manifests/.hidden", 404, "MANIFEST_UNKNOWN"),
        ("/v2/team/app/tags/list?n=many", 400, "UNSUPPORTED"),
        ("/v2/team/app/elsewhere/v1", 404, "NAME_UNKNOWN"),
        ("/v1/", 404, "NAME_UNKNOWN"),
    ] {
        let got = at(&cache, path).await;
        assert_eq!((got.status, code(&got).as_str()), (status, error), "{path}");
    }
    assert_eq!(upstream.requests(&When::any()), 0);
    let escaped = format!("/v2/team/app/blobs/sha256%3A{hex}");
    is(&at(&cache, &escaped).await, 404, "BLOB_UNKNOWN");
    assert_eq!(upstream.requests(&When::any()), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_are_405() -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    // What the endpoint does not know is told so; what it knows, that this repository takes no changes.
    let (uploads, manifests) = ("POST", "GET, HEAD, PUT, DELETE");
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        for (path, known) in [
            ("/v2/team/app/blobs/uploads/", uploads),
            ("/v2/team/app/manifests/v1", manifests),
        ] {
            let headers = [("content-length", "0")];
            let got = without_body(cache.address(), method.clone(), path, &headers).await?;
            let is_known = known.split(", ").any(|known| known == method.as_str());
            let allowed = if is_known { "GET, HEAD" } else { known };
            assert_eq!((got.status, got.header("allow")), (405, allowed));
        }
    }
    assert_eq!(at(&cache, "/v2/").await.status, 200);
    assert_eq!(upstream.requests(&When::any()), 0);
    Ok(())
}

/// Every spelling of a name leads to one repository upstream, and to one only.
#[tokio::test(flavor = "multi_thread")]
async fn h23_the_doors_to_docker_hub() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::new(1, &[10]);
    upstream.publish("library/nginx", "v1", &image);
    let text = format!(
        "upstreams:\n  docker.io:\n    endpoints: [\"{}\"]\n    plainHttp: true\n  other.example:5000:\n    \
         endpoints: [\"{}\"]\n    plainHttp: true\n    aliases: [short.example]\ndefaultUpstream: docker.io\n",
        upstream.url(),
        upstream.url()
    );
    let cache = Cache::start(&text).await?;
    for path in [
        "/v2/nginx/manifests/v1",
        "/v2/library/nginx/manifests/v1",
        "/v2/docker.io/nginx/manifests/v1",
        "/v2/docker.io/library/nginx/manifests/v1",
        "/v2/index.docker.io/library/nginx/manifests/v1",
        "/v2/registry-1.docker.io/nginx/manifests/v1",
        "/v2/nginx/manifests/v1?ns=docker.io",
        "/v2/library/nginx/manifests/v1?ns=index.docker.io",
        "/v2/library/nginx/manifests/v1?ns=DOCKER.IO",
        "/v2/library/nginx/manifests/v1?ns=docker.io:443",
        "/v2/library/nginx/manifests/v1?ns=docker.io%3A443",
    ] {
        let got = at(&cache, path).await;
        assert_eq!(got.status, 200, "{path}");
        assert_eq!(got.body, image.manifest.content.read_all());
    }
    assert_eq!(upstream.requests(&When::any()), 1, "one repository");
    for path in [
        "/v2/other.example:5000/nginx/manifests/v1",
        "/v2/nginx/manifests/v1?ns=other.example%3A5000",
        "/v2/nginx/manifests/v1?ns=short.example",
    ] {
        is(&at(&cache, path).await, 404, "MANIFEST_UNKNOWN");
    }
    let elsewhere = upstream.seen(&When::any().repository("nginx"));
    assert_eq!(elsewhere.len(), 1, "another repository: no library/ there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tag_lists_are_paged_and_known_tags_survive_an_outage() -> anyhow::Result<()> {
    let (mut upstream, cache) = start("").await?;
    for (seed, tag) in ["a", "b", "c", "d"].into_iter().enumerate() {
        upstream.publish("team/app", tag, &Image::new(seed as u64, &[]));
    }
    let whole = at(&cache, "/v2/team/app/tags/list").await;
    assert_eq!(
        json(&whole),
        json!({ "name": "team/app", "tags": ["a", "b", "c", "d"] })
    );
    assert_eq!(whole.header("link"), "");

    let page = at(&cache, "/v2/upstream.example/team/app/tags/list?n=2").await;
    assert_eq!(json(&page)["tags"], json!(["a", "b"]));
    let link = page.header("link");
    let next = link.strip_prefix('<').unwrap();
    let next = next.strip_suffix(">; rel=\"next\"").unwrap();
    let next = at(&cache, next).await;
    assert_eq!(json(&next)["tags"], json!(["c", "d"]), "{link}");
    let mirror = at(&cache, "/v2/team/app/tags/list?n=2&ns=upstream.example").await;
    assert!(mirror.header("link").contains("ns=upstream.example"));
    let none = at(&cache, "/v2/team/app/tags/list?n=0").await;
    assert_eq!(json(&none)["tags"], json!([]));
    assert_eq!(none.header("link"), "");
    let last = at(&cache, "/v2/team/app/tags/list?last=c").await;
    assert_eq!(json(&last)["tags"], json!(["d"]));
    is(
        &at(&cache, "/v2/team/none/tags/list").await,
        404,
        "NAME_UNKNOWN",
    );

    at(&cache, "/v2/team/app/manifests/b").await;
    upstream.refuse().await;
    let known = at(&cache, "/v2/team/app/tags/list").await;
    assert_eq!(
        (known.status, json(&known)["tags"].clone()),
        (200, json!(["b"]))
    );
    assert!(known.header("warning").starts_with("299 - \""));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h39_referrers_by_api_and_by_fallback_tag() -> anyhow::Result<()> {
    for api in [true, false] {
        let (upstream, cache) = start("").await?;
        upstream.configure(|settings| settings.referrers = api);
        let image = Image::new(1, &[10]);
        upstream.publish("team/app", "v1", &image);
        let signature =
            Image::referrer(2, &image.manifest, "application/vnd.example.signature+json");
        let bill = Image::referrer(3, &image.manifest, "application/vnd.example.sbom");
        upstream.add("team/app", &signature);
        upstream.add("team/app", &bill);
        if !api {
            let entry = |image: &Image, kind: &str| {
                json!({ "mediaType": image.manifest.media_type, "digest": image.digest(),
                        "size": image.manifest.size(), "artifactType": kind })
            };
            let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
                entry(&signature, "application/vnd.example.signature+json"),
                entry(&bill, "application/vnd.example.sbom"),
            ]});
            let tag = image.digest().to_string().replace(':', "-");
            let index = Image::raw(media_type::OCI_INDEX, index.to_string());
            upstream.publish("team/app", &tag, &index);
        }
        let path = format!("/v2/team/app/referrers/{}", image.digest());
        let all = at(&cache, &path).await;
        assert_eq!(all.status, 200);
        assert_eq!(all.header("content-type"), media_type::OCI_INDEX);
        assert_eq!(json(&all)["manifests"].as_array().unwrap().len(), 2);
        assert_eq!(all.header("oci-filters-applied"), "");
        let asked = upstream.requests(&When::any());

        let kind = "application/vnd.example.signature+json";
        let filtered = at(&cache, &format!("{path}?artifactType={kind}")).await;
        let filtered_list = json(&filtered)["manifests"].clone();
        assert_eq!(filtered_list.as_array().unwrap().len(), 1);
        assert_eq!(filtered_list[0]["digest"], json!(signature.digest()));
        assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
        assert_eq!(upstream.requests(&When::any()), asked, "from memory");

        let none = format!("/v2/team/app/referrers/{}", Digest::sha256(b"none"));
        let none = at(&cache, &none).await;
        assert_eq!(none.status, 200);
        assert_eq!(json(&none)["schemaVersion"], 2);
        assert_eq!(json(&none)["manifests"], json!([]));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_is_paged_and_keeps_private_repositories_to_itself() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    for name in ["team/a", "team/b", "team/c"] {
        upstream.publish(name, "v1", &Image::new(1, &[10]));
    }
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    for name in ["team/a", "team/b", "team/c"] {
        assert_eq!(
            at(&cache, &format!("/v2/{name}/manifests/v1")).await.status,
            200
        );
    }
    let names = |got: &Got| json(got)["repositories"].clone();
    let asked = upstream.requests(&When::any());
    let whole = at(&cache, "/v2/_catalog").await;
    let all = json!([
        "upstream.example/team/a",
        "upstream.example/team/b",
        "upstream.example/team/c"
    ]);
    assert_eq!(names(&whole), all);
    let page = at(&cache, "/v2/_catalog?n=2").await;
    assert_eq!(names(&page).as_array().unwrap().len(), 2);
    let link = page.header("link");
    let next = link
        .strip_prefix('<')
        .unwrap()
        .strip_suffix(">; rel=\"next\"")
        .unwrap();
    assert_eq!(
        names(&at(&cache, next).await),
        json!(["upstream.example/team/c"])
    );
    assert_eq!(upstream.requests(&When::any()), asked);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h16_odd_manifests_come_back_byte_for_byte() -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    let config = Blob::new(
        "application/vnd.oci.image.config.v1+json",
        Content::of("{}"),
    );
    let descriptor = format!(
        "{{ \"size\":2 , \"digest\":\"{}\", \"mediaType\":\"{}\"}}",
        config.digest, config.media_type
    );
    let odd = [
        format!("{{\"layers\":[ ],\n\t\"config\":{descriptor},\"schemaVersion\":2}}\n\n"),
        format!("{{\"schemaVersion\":2,\"config\":{descriptor},\"layers\":[],\"annotations\":{{\"z\":\"1\",\"a\":\"\\u00e9\"}}}}"),
        format!("\r\n  {{\"schemaVersion\":2,\"unknown\":1e400,\"config\":{descriptor},\"layers\":[]}}  ").replace("1e400", "1.50e2"),
    ];
    for (number, text) in odd.iter().enumerate() {
        for media in [media_type::OCI_MANIFEST, media_type::DOCKER_MANIFEST] {
            let image = Image::raw(media, text.clone());
            let repository = format!("team/odd{number}-{}", media.len());
            upstream.publish(&repository, "v1", &image);
            for reference in ["v1".to_owned(), image.digest().to_string()] {
                let got = at(&cache, &format!("/v2/{repository}/manifests/{reference}")).await;
                assert_eq!(got.status, 200, "{text}");
                assert_eq!(got.body, text.as_bytes());
                assert_eq!(got.header("content-type"), media);
                let digest = got.header("docker-content-digest");
                assert_eq!(digest, image.digest().to_string());
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h35_hostile_manifests_are_refused_and_hurt_nobody() -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(9 << 20));
    for (tag, text) in [
        ("deep", deep),
        ("long", long),
        ("text", "no JSON".to_owned()),
    ] {
        upstream.publish("team/app", tag, &Image::raw(media_type::OCI_MANIFEST, text));
        let got = at(&cache, &format!("/v2/team/app/manifests/{tag}")).await;
        assert_eq!(got.status, 502, "{tag}");
    }
    let layer = json!({ "mediaType": "a/b", "digest": Digest::sha256(b"x"), "size": 1 });
    let wide = json!({ "schemaVersion": 2, "config": layer, "layers": vec![layer; 9_999] });
    let wide = Image::raw(media_type::OCI_MANIFEST, wide.to_string());
    upstream.publish("team/app", "wide", &wide);
    let got = at(&cache, "/v2/team/app/manifests/wide").await;
    assert_eq!(got.body, wide.manifest.content.read_all());
    let image = Image::new(1, &[1000]);
    upstream.publish("team/app", "good", &image);
    pull(cache.address(), "team/app", "good").await?;
    Ok(())
}

/// A Docker schema 1 manifest's digest is not the hash of its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn h42_schema_1_is_404_with_a_clear_message() -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    let text = json!({ "schemaVersion": 1, "name": "team/app", "tag": "v1", "fsLayers": [], "history": [] });
    let media = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    upstream.publish("team/app", "v1", &Image::raw(media, text.to_string()));
    let got = at(&cache, "/v2/team/app/manifests/v1").await;
    is(&got, 404, "MANIFEST_UNKNOWN");
    let message = json(&got)["errors"][0]["message"].to_string();
    assert!(message.contains("schema"), "{message}");
    // As real registries have it: a header that no hash of the body can be.
    let other = Digest::sha256(b"the payload without its signatures").to_string();
    upstream.always(
        When::manifest("v2"),
        Fault::status(200)
            .body(text.to_string())
            .header("content-type", media)
            .header("docker-content-digest", &other),
    );
    is(
        &at(&cache, "/v2/team/app/manifests/v2").await,
        404,
        "MANIFEST_UNKNOWN",
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h38_head_promises_nothing_that_get_turns_into_a_broken_answer() -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    let image = Image::new(1, &[1000]);
    upstream.publish("team/app", "v1", &image);
    let layer = format!("/v2/{}", blob_path(&image.layers()[0].digest));
    let promised = head(cache.address(), "/v2/team/app/manifests/v1", &[]).await?;
    assert_eq!(promised.status, 200);
    let length = image.manifest.size().to_string();
    assert_eq!(promised.header("content-length"), length);
    let promised = head(cache.address(), &layer, &[]).await?;
    assert_eq!(
        (promised.status, promised.header("content-length")),
        (200, "1000")
    );
    let gets = When::any().method(Method::GET);
    assert_eq!(upstream.requests(&gets), 0, "a HEAD asks by HEAD");

    upstream.always(When::any(), Fault::status(500));
    is(
        &at(&cache, "/v2/team/app/manifests/v1").await,
        502,
        "UNAVAILABLE",
    );
    is(&at(&cache, &layer).await, 502, "UNAVAILABLE");
    upstream.clear_faults();
    let missing = format!("/v2/{}", blob_path(&Digest::sha256(b"missing")));
    assert_eq!(head(cache.address(), &missing, &[]).await?.status, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn conditional_requests_and_caching_headers() -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    let image = Image::new(1, &[1000]);
    upstream.publish("team/app", "v1", &image);
    pull(cache.address(), "team/app", "v1").await?;
    let asked = upstream.requests(&When::any());
    let layer = &image.layers()[0];
    let blob = format!("/v2/{}", blob_path(&layer.digest));
    for (path, digest, caching) in [
        (
            "/v2/team/app/manifests/v1".to_owned(),
            image.digest(),
            "no-cache",
        ),
        (
            format!("/v2/team/app/manifests/{}", image.digest()),
            image.digest(),
            "max-age=31536000, immutable",
        ),
        (blob.clone(), layer.digest, "max-age=31536000, immutable"),
    ] {
        let got = at(&cache, &path).await;
        let etag = format!("\"{digest}\"");
        assert_eq!(
            (got.status, got.header("etag")),
            (200, etag.as_str()),
            "{path}"
        );
        assert_eq!(got.header("cache-control"), caching, "{path}");
        assert_eq!(got.header("docker-content-digest"), digest.to_string());
        let head = head(cache.address(), &path, &[]).await?;
        for (name, value) in &got.headers {
            assert!(
                name == "date" || head.headers.get(name) == Some(value),
                "{name} of {path}"
            );
        }
        for held in [etag.clone(), format!("\"other\", W/{etag}"), "*".to_owned()] {
            let same = get(cache.address(), &path, &[("if-none-match", &held)]).await?;
            assert_eq!((same.status, same.body.len()), (304, 0), "{held} of {path}");
        }
        let other = get(cache.address(), &path, &[("if-none-match", "\"other\"")]).await?;
        assert_eq!(other.status, 200);
    }
    assert_eq!(
        upstream.requests(&When::any()),
        asked,
        "all of it from the cache"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_held_blob() -> anyhow::Result<()> {
    let (upstream, cache) = start("").await?;
    let image = Image::new(1, &[1000]);
    upstream.publish("team/app", "v1", &image);
    pull(cache.address(), "team/app", "v1").await?;
    let asked = upstream.requests(&When::any());
    let layer = &image.layers()[0];
    let blob = format!("/v2/{}", blob_path(&layer.digest));
    assert_eq!(at(&cache, &blob).await.header("accept-ranges"), "bytes");
    let content = layer.content.read_all();
    for (range, status, expected) in [
        ("bytes=100-199", 206, 100..200),
        ("bytes=900-", 206, 900..1000),
        ("bytes=-10", 206, 990..1000),
        ("bytes=990-5000", 206, 990..1000),
        ("bytes=1000-", 416, 0..0),
        ("bytes=5-2", 200, 0..1000),
        ("lines=1-2", 200, 0..1000),
    ] {
        let got = get(cache.address(), &blob, &[("range", range)]).await?;
        if range == "bytes=5-2" && got.status == 416 {
            continue;
        }
        assert_eq!(got.status, status, "{range}");
        if status == 416 {
            assert_eq!(got.header("content-range"), "bytes */1000");
        } else {
            assert_eq!(got.body, content[expected], "{range}");
        }
    }
    assert_eq!(
        upstream.requests(&When::any()),
        asked,
        "all of it from the cache"
    );
    Ok(())
}
