//! H-18: where redirects lead, and what goes along.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::fake::{Fake, Reply, reply};
use super::*;

fn to(location: &str) -> Reply {
    reply(307, &[("location", location)], "")
}

#[tokio::test]
async fn h18_another_host_gets_no_credentials() {
    let storage = Fake::start(|_| reply(200, &[], "content")).await;
    let location = storage.other_url();
    let fake = Fake::start(move |seen| match seen.authorization() {
        None => reply(401, &[("www-authenticate", "Basic")], ""),
        Some(_) if seen.target.starts_with("/v2/") => to("/same-origin"),
        Some(_) => to(&location),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("password");
    std::fs::write(&password_file, "p").unwrap();
    let mut config = config(&fake.url());
    let source = CredentialSource::Password {
        username: "u".to_owned(),
        password_file,
    };
    config.credentials.push(CredentialRule {
        prefix: String::new(),
        source,
    });
    let stream = blob(&*endpoint(&config), None).await.unwrap();
    assert_eq!(bytes(stream).await.unwrap(), b"content");
    assert!(
        fake.seen().last().unwrap().authorization().is_some(),
        "the same origin gets them"
    );
    assert!(storage.seen()[0].authorization().is_none());
}

#[rstest::rstest]
#[case("http://169.254.169.254/latest/meta-data")]
#[case("http://[fe80::1]/")]
#[case("ftp://cdn.example/")]
#[case("https://")]
#[tokio::test]
async fn h18_forbidden_targets(#[case] location: &'static str) {
    let fake = Fake::start(move |_| to(location)).await;
    let error = blob(&*endpoint(&config(&fake.url())), None)
        .await
        .unwrap_err();
    assert!(matches!(error, UpstreamErrorKind::Protocol(_)), "{error}");
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn h18_at_most_five_hops() {
    let fake = Fake::start(|_| to("/again")).await;
    let error = blob(&*endpoint(&config(&fake.url())), None)
        .await
        .unwrap_err();
    assert!(matches!(error, UpstreamErrorKind::Protocol(_)), "{error}");
    assert_eq!(fake.seen().len(), 6);
}

/// H-18: an expired signed URL goes back to the registry once, with the range; storage never speaks for the registry.
#[rstest::rstest]
#[case(1, None)]
#[case(2, Some(UpstreamErrorKind::Status(403)))]
#[tokio::test]
async fn h18_an_expired_url_goes_back_to_the_registry(
    #[case] expired: usize,
    #[case] error: Option<UpstreamErrorKind>,
) {
    let asked = AtomicUsize::new(0);
    let storage = Fake::start(move |seen| {
        assert_eq!(seen.header("range"), Some("bytes=3-"));
        if asked.fetch_add(1, Ordering::Relaxed) < expired {
            reply(403, &[], "expired")
        } else {
            reply(206, &[("content-range", "bytes 3-6/7")], "tent")
        }
    })
    .await;
    let location = storage.other_url();
    let fake = Fake::start(move |_| to(&location)).await;
    let result = blob(
        &*endpoint(&config(&fake.url())),
        Some(ByteRange {
            start: 3,
            end: None,
        }),
    )
    .await;
    assert_eq!(fake.seen().len(), 2);
    if let Some(error) = error {
        assert_eq!(result.unwrap_err(), error);
        return;
    }
    let stream = result.unwrap();
    assert_eq!((stream.start, stream.total), (3, Some(7)));
    assert_eq!(bytes(stream).await.unwrap(), b"tent");
}

#[tokio::test]
async fn h18_a_404_of_storage_is_no_missing_blob() {
    let storage = Fake::start(|_| reply(404, &[], "")).await;
    let location = storage.other_url();
    let fake = Fake::start(move |_| to(&location)).await;
    let error = blob(&*endpoint(&config(&fake.url())), None)
        .await
        .unwrap_err();
    assert_eq!(error, UpstreamErrorKind::Status(404));
}
