//! Answers that are wrong, late, or refusals.

use std::sync::atomic::{AtomicBool, Ordering};

use super::fake::{Fake, Reply, head, reply};
use super::*;

/// The silence that tests wait for.
const SHORT: Duration = Duration::from_millis(50);

fn impatient() -> Call {
    Call {
        step: SHORT,
        ..call()
    }
}

#[rstest::rstest]
#[case("content-encoding", "gzip")]
#[case("content-type", "text/html")]
#[tokio::test]
async fn h17_h06_coded_and_html_answers_are_no_content(
    #[case] name: &'static str,
    #[case] value: &'static str,
) {
    let fake = Fake::start(move |_| reply(200, &[(name, value)], "x")).await;
    let endpoint = endpoint(&config(&fake.url()));
    let is_protocol = |error: UpstreamErrorKind| matches!(error, UpstreamErrorKind::Protocol(_));
    assert!(is_protocol(blob(&*endpoint, None).await.unwrap_err()));
    assert!(is_protocol(manifest(&*endpoint, "a").await.unwrap_err()));
    let checked = endpoint
        .head_manifest(call(), &repository("a"), &tag(), None)
        .await;
    assert!(is_protocol(checked.unwrap_err().kind));
}

/// H-06: a body ends cleanly only with exactly the announced length.
#[rstest::rstest]
#[case(&[("content-length", "7")], Some(7), true)]
#[case(&[("content-length", "8")], Some(8), false)]
#[case(&[], None, true)]
#[tokio::test]
async fn h06_lengths(
    #[case] headers: &'static [(&str, &str)],
    #[case] total: Option<u64>,
    #[case] clean: bool,
) {
    let fake = Fake::start(move |_| Reply::Close(head(200, headers, "content"))).await;
    let stream = blob(&*endpoint(&config(&fake.url())), None).await.unwrap();
    assert_eq!((stream.start, stream.total), (0, total));
    assert_eq!(bytes(stream).await.is_ok(), clean);
}

#[tokio::test]
async fn h06_a_chunked_part_longer_than_its_range_is_refused() {
    let headers = [
        ("content-range", "bytes 2-3/7"),
        ("transfer-encoding", "chunked"),
    ];
    let fake =
        Fake::start(move |_| Reply::Bytes(head(206, &headers, "5\r\nntent\r\n0\r\n\r\n"))).await;
    let stream = blob(
        &*endpoint(&config(&fake.url())),
        Some(ByteRange {
            start: 2,
            end: Some(3),
        }),
    )
    .await
    .unwrap();
    assert!(matches!(
        bytes(stream).await.unwrap_err(),
        UpstreamErrorKind::Protocol(_)
    ));
}

#[tokio::test]
async fn h06_a_manifest_over_the_limit_is_not_read() {
    let fake = Fake::start(|seen| {
        if seen.target.contains("/announced/") {
            Reply::Stall(head(200, &[("content-length", "1001")], ""))
        } else {
            Reply::Close(head(200, &[], &"x".repeat(1001)))
        }
    })
    .await;
    let endpoint = endpoint(&config(&fake.url()));
    for name in ["announced", "streamed"] {
        assert_eq!(
            manifest(&*endpoint, name).await.unwrap_err(),
            UpstreamErrorKind::TooLarge(1000)
        );
    }
}

#[tokio::test]
async fn h07_a_silent_upstream_times_out_at_each_step() {
    let fake = Fake::start(|seen| {
        if seen.target.contains("/blobs/") {
            Reply::Stall(head(200, &[("content-length", "7")], "con"))
        } else {
            Reply::Stall(Vec::new())
        }
    })
    .await;
    let endpoint = endpoint(&config(&fake.url()));
    let error = endpoint
        .manifest(impatient(), &repository("a"), &tag(), 10)
        .await
        .unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Timeout("response headers"));
    // Time for the headers on a busy machine.
    let patient = BlobCall {
        step: SHORT * 20,
        ..blob_call()
    };
    let stream = endpoint
        .blob(patient, &repository("a"), &digest(), None)
        .await
        .unwrap();
    assert_eq!(
        bytes(stream).await.unwrap_err(),
        UpstreamErrorKind::Timeout("response body")
    );
}

#[tokio::test]
async fn h07_a_trickling_answer_has_a_deadline_for_the_whole() {
    let fake = Fake::start(|_| Reply::Stall(head(200, &[("content-length", "7")], "con"))).await;
    let brief = Call {
        total: SHORT,
        ..call()
    };
    let endpoint = endpoint(&config(&fake.url()));
    let error = endpoint
        .manifest(brief, &repository("a"), &tag(), 10)
        .await
        .unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Timeout("the whole answer"));
}

#[tokio::test]
async fn h11_after_one_timeout_it_is_unresponsive_and_after_three_it_is_left_alone() {
    let healthy = Arc::new(AtomicBool::new(false));
    let fake = Fake::start({
        let healthy = Arc::clone(&healthy);
        move |seen| match (seen.target.as_str(), healthy.load(Ordering::Relaxed)) {
            ("/v2/", true) => reply(401, &[], ""),
            _ => Reply::Stall(Vec::new()),
        }
    })
    .await;
    let endpoint = endpoint(&config(&fake.url()));
    let silent = async || {
        endpoint
            .manifest(impatient(), &repository("a"), &tag(), 10)
            .await
            .unwrap_err()
            .kind
    };
    silent().await;
    assert!(endpoint.available().is_ok());

    // Asking makes a check run, whose success makes it responsive again.
    healthy.store(true, Ordering::Relaxed);
    assert!(!endpoint.responsive());
    while !endpoint.responsive() {
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.count("/v2/a"), 1);

    for _ in 0..3 {
        assert!(matches!(silent().await, UpstreamErrorKind::Timeout(_)));
    }
    assert!(endpoint.available().is_err() && endpoint.status().breaker_open);
    let asked = fake.seen().len();
    assert!(matches!(
        silent().await,
        UpstreamErrorKind::BreakerOpen { .. }
    ));
    assert_eq!(fake.seen().len(), asked, "not asked");
}

#[rstest::rstest]
#[case(404, UpstreamErrorKind::NotFound)]
#[case(403, UpstreamErrorKind::Refused { status: 403 })]
#[case(401, UpstreamErrorKind::Refused { status: 401 })]
#[case(400, UpstreamErrorKind::Status(400))]
#[case(500, UpstreamErrorKind::Status(500))]
#[case(204, UpstreamErrorKind::Status(204))]
#[tokio::test]
async fn statuses_are_decisions(#[case] status: u16, #[case] expected: UpstreamErrorKind) {
    let fake = Fake::start(move |_| reply(status, &[], "")).await;
    let endpoint = endpoint(&config(&fake.url()));
    assert_eq!(manifest(&*endpoint, "a").await.unwrap_err(), expected);
    for _ in 0..4 {
        manifest(&*endpoint, "a").await.unwrap_err();
    }
    assert_eq!(
        endpoint.available().is_err(),
        status == 500,
        "the breaker counts failures only"
    );
}

#[tokio::test]
async fn a_name_that_cannot_exist_is_not_found() {
    let fake = Fake::start(|_| reply(400, &[], r#"{"errors":[{"code":"NAME_INVALID"}]}"#)).await;
    assert_eq!(
        manifest(&*endpoint(&config(&fake.url())), "a")
            .await
            .unwrap_err(),
        UpstreamErrorKind::NotFound
    );
}

#[tokio::test]
async fn h13_a_429_is_not_repeated_until_its_time_is_over() {
    let fake = Fake::start(|_| {
        reply(
            429,
            &[("retry-after", "30"), ("ratelimit-remaining", "0;w=3600")],
            "",
        )
    })
    .await;
    let endpoint = endpoint(&config(&fake.url()));
    for _ in 0..2 {
        let error = manifest(&*endpoint, "a").await.unwrap_err();
        assert!(matches!(
            error,
            UpstreamErrorKind::RateLimited {
                retry_after: Some(_)
            }
        ));
    }
    assert_eq!(fake.seen().len(), 1);
    assert_eq!(endpoint.status().ratelimit_remaining, Some(0));
    let background = Call {
        priority: Priority::Background,
        ..call()
    };
    let error = endpoint
        .tags(background, &repository("a"), None, None)
        .await
        .unwrap_err();
    assert!(
        matches!(error.kind, UpstreamErrorKind::QueueFull { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_connection_that_broke_is_replaced_once() {
    let broken = AtomicBool::new(false);
    let fake = Fake::start(move |_| {
        if broken.swap(true, Ordering::Relaxed) {
            reply(200, &[], "{}")
        } else {
            Reply::Close(Vec::new())
        }
    })
    .await;
    manifest(&*endpoint(&config(&fake.url())), "a")
        .await
        .unwrap();
    assert_eq!(fake.seen().len(), 2);
}

#[tokio::test]
async fn a_place_is_held_until_the_body_is_dropped() {
    let fake = Fake::start(|_| reply(200, &[], "content")).await;
    let endpoint = endpoint(&config(&fake.url()));
    let stream = blob(&*endpoint, None).await.unwrap();
    assert_eq!(endpoint.status().in_flight, 1);
    drop(stream);
    assert_eq!(endpoint.status().in_flight, 0);
}

#[tokio::test]
async fn heads() {
    let fake = Fake::start(|seen| {
        let digest = digest().to_string();
        let headers = [
            ("etag", "W/\"x\""),
            ("docker-content-digest", digest.as_str()),
            ("content-type", "A/b; c=d"),
        ];
        match seen.header("if-none-match") {
            Some("W/\"x\"") => reply(304, &[], ""),
            _ => reply(200, &headers, "1234567"),
        }
    })
    .await;
    let (endpoint, name) = (endpoint(&config(&fake.url())), repository("a"));
    let checked = endpoint
        .head_manifest(call(), &name, &tag(), None)
        .await
        .unwrap();
    let Checked::Head(head) = checked else {
        panic!("{checked:?}")
    };
    assert_eq!(
        (head.size, head.media_type.as_str(), head.digest),
        (Some(7), "a/b", Some(digest()))
    );
    let checked = endpoint
        .head_manifest(call(), &name, &tag(), head.etag.as_deref())
        .await
        .unwrap();
    assert!(matches!(checked, Checked::NotModified));
    assert_eq!(
        endpoint.head_blob(call(), &name, &digest()).await.unwrap(),
        Some(7)
    );
    assert!(fake.seen().iter().all(|seen| seen.method == "HEAD"));
}

#[tokio::test]
async fn lists() {
    let next = |target: &str| format!("<{target}>; rel=\"next\"");
    let fake = Fake::start(move |seen| match seen.target.as_str() {
        "/v2/a/tags/list?n=2&last=b" => {
            reply(200, &[("link", &next("x"))], r#"{"tags":["c",7,"d"]}"#)
        }
        "/page2" => reply(200, &[], r#"{"manifests":[2]}"#),
        _ => reply(200, &[("link", &next("/page2"))], r#"{"manifests":[1]}"#),
    })
    .await;
    let (endpoint, name) = (endpoint(&config(&fake.url())), repository("a"));
    let tags = endpoint
        .tags(call(), &name, Some(2), Some("b"))
        .await
        .unwrap();
    assert_eq!(
        (tags.entries.join(","), tags.more),
        ("c,d".to_owned(), true)
    );
    let referrers = endpoint
        .referrers(call(), &name, &digest(), 1000)
        .await
        .unwrap();
    assert_eq!(
        (referrers.entries, referrers.more),
        (vec![1.into(), 2.into()], false)
    );
}

#[tokio::test]
async fn metrics_have_their_names() {
    let fake = Fake::start(|_| reply(200, &[("ratelimit-remaining", "7")], "content")).await;
    let mut registry = Registry::default();
    let metrics = UpstreamMetrics::register(&mut registry);
    let upstream = build(
        &config(&fake.url()),
        &Lent::default(),
        &metrics,
        &Tasks::new(),
    )
    .unwrap();
    bytes(blob(&*upstream.endpoints[0], None).await.unwrap())
        .await
        .unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"upstream_requests_total{upstream="registry.example",kind="blob",code="200"} 1"#,
        r#"upstream_bytes_total{upstream="registry.example"} 7"#,
        r#"upstream_ratelimit_remaining{upstream="registry.example"} 7"#,
        r#"breaker_open{upstream="registry.example"} 0"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn build_names_the_setting_and_the_file() {
    let metrics = UpstreamMetrics::register(&mut Registry::default());
    let refusal = |change: &dyn Fn(&mut UpstreamConfig)| {
        let mut config = config("http://registry.example");
        change(&mut config);
        build(&config, &Lent::default(), &metrics, &Tasks::new())
            .unwrap_err()
            .to_string()
    };
    let error = refusal(&|config| config.plain_http = false);
    assert!(
        error.contains("endpoints") && error.contains("plainHttp: true"),
        "{error}"
    );
    let error = refusal(&|config| config.tls.ca = Some("/no/such/ca.pem".into()));
    assert!(error.contains("tls.ca: /no/such/ca.pem"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let error = refusal(&|config| config.tls.ca = Some(empty.clone()));
    assert!(error.contains("empty.pem holds no certificate"), "{error}");
    let error = refusal(&|config| config.tls.client = Some((empty.clone(), empty.clone())));
    assert!(error.contains("tls.clientCertificate"), "{error}");
}
