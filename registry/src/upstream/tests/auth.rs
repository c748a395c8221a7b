//! Tokens, logins, and who may see them.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use coral_schema::oci::docker_config::DockerLogin;

use super::fake::{Fake, Reply, Seen, reply};
use super::*;

const OK: &str = "{}";

/// A registry that wants a token named after the scope, and its token service.
async fn registry() -> Fake {
    Fake::start(with_tokens).await
}

fn with_tokens(seen: &Seen) -> Reply {
    if let Some((_, scope)) = seen.target.split_once("scope=") {
        return reply(
            200,
            &[],
            &format!(
                r#"{{"token":"{}","expires_in":300}}"#,
                scope.replace("%3A", ".")
            ),
        );
    }
    let name = seen.target.split('/').nth(2).unwrap();
    if seen.authorization() == Some(&format!("Bearer repository.{name}.pull")) {
        return reply(200, &[], OK);
    }
    challenge(&seen.origin(), name)
}

fn challenge(realm: &str, name: &str) -> Reply {
    let challenge =
        format!(r#"Bearer realm="{realm}/token",service="s",scope="repository:{name}:pull""#);
    reply(401, &[("www-authenticate", &challenge)], "")
}

fn with_password(mut config: UpstreamConfig, folder: &Path) -> UpstreamConfig {
    let password_file = folder.join("password");
    std::fs::write(&password_file, "hidden\n").unwrap();
    let source = CredentialSource::Password {
        username: "user".to_owned(),
        password_file,
    };
    config.credentials.push(CredentialRule {
        prefix: String::new(),
        source,
    });
    config
}

/// Wants a password for what is not open; a wrong one is refused everywhere.
fn with_basic(seen: &Seen) -> Reply {
    let is_open = seen.target.contains("/open/") && seen.authorization().is_none();
    // user:good
    if is_open || seen.authorization() == Some("Basic dXNlcjpnb29k") {
        return reply(200, &[], OK);
    }
    reply(401, &[("www-authenticate", r#"Basic realm="x""#)], "")
}

fn lend(lent: &Lent, name: &str, passwords: &[&str]) {
    let repo: crate::name::RepoKey = format!("registry.example/{name}").parse().unwrap();
    let logins = passwords.iter().map(|password| {
        let login = DockerLogin::Password {
            username: "user".to_owned(),
            password: (*password).into(),
        };
        (repo.clone(), login)
    });
    let now = jiff::Timestamp::now();
    let later = now + jiff::SignedDuration::from_hours(1);
    assert!(lent.lend("s", logins.collect(), later, now));
}

/// L34: several are tried in their order, each once a minute; what was refused is not asked with again and again.
#[rstest::rstest]
#[case::of_nobody("closed", &[], false)]
#[case::good("closed", &["good"], true)]
#[case::a_bad_one_first("closed", &["bad", "good"], true)]
#[case::only_bad_ones("closed", &["bad", "worse"], false)]
#[case::a_bad_one_takes_nothing_from_the_public("open", &["bad"], true)]
#[tokio::test]
async fn l34_lent_logins_are_tried_in_order(
    #[case] name: &str,
    #[case] passwords: &[&str],
    #[case] works: bool,
) {
    let fake = Fake::start(with_basic).await;
    let lent = Lent::default();
    let metrics = UpstreamMetrics::register(&mut Registry::default());
    let upstream = build(&config(&fake.url()), &lent, &metrics, &Tasks::new()).unwrap();
    let endpoint = &*upstream.endpoints[0];
    // The first answer teaches how to log in.
    let _ = manifest(endpoint, "closed").await;
    if !passwords.is_empty() {
        lend(&lent, name, passwords);
    }
    let id = endpoint.credential_id(&repository(name));
    assert_eq!(id.is_anonymous(), passwords.is_empty());
    assert_eq!(manifest(endpoint, name).await.is_ok(), works);
    let before = fake.seen().len();
    assert_eq!(manifest(endpoint, name).await.is_ok(), works);
    assert_eq!(fake.seen().len() - before, 1, "bad ones are left alone");
    assert!(manifest(endpoint, "another").await.is_err(), "L30");
}

#[tokio::test]
async fn l34_lent_logins_come_after_the_administrators() {
    let fake = Fake::start(with_basic).await;
    let folder = tempfile::tempdir().unwrap();
    let config = with_password(config(&fake.url()), folder.path());
    let (lent, metrics) = (
        Lent::default(),
        UpstreamMetrics::register(&mut Registry::default()),
    );
    let upstream = build(&config, &lent, &metrics, &Tasks::new()).unwrap();
    let endpoint = &*upstream.endpoints[0];
    assert!(
        manifest(endpoint, "closed").await.is_err(),
        "it is not good for this"
    );
    lend(&lent, "closed", &["good"]);
    manifest(endpoint, "closed").await.unwrap();
    assert!(
        endpoint
            .credential_id(&repository("closed"))
            .0
            .starts_with("password:")
    );
}

/// T4: cold 401, token, request; another repository token, request; warm one request.
#[tokio::test]
async fn costs_no_more_round_trips_than_a_direct_client() {
    let fake = registry().await;
    let endpoint = endpoint(&config(&fake.url()));
    for (name, requests) in [("a", 3), ("a", 1), ("b", 2), ("b", 1), ("a", 1)] {
        let before = fake.seen().len();
        manifest(&*endpoint, name).await.unwrap();
        assert_eq!(fake.seen().len() - before, requests, "{name}");
    }
    assert!(
        fake.seen()
            .iter()
            .all(|seen| seen.header("accept-encoding") == Some("identity"))
    );
    assert!(fake.seen().iter().all(|seen| {
        seen.header("user-agent")
            .unwrap()
            .starts_with("coral-registry/")
    }));
}

#[tokio::test]
async fn all_who_need_a_token_share_one_fetch() {
    let fake = registry().await;
    let endpoint = endpoint(&config(&fake.url()));
    let calls = (0..20).map(|_| manifest(&*endpoint, "a"));
    assert!(
        futures::future::join_all(calls)
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(fake.count("/token"), 1);
}

/// One retry with a fresh token, not more.
#[rstest::rstest]
#[case(true)]
#[case(false)]
#[tokio::test]
async fn a_refused_token_is_replaced_once(#[case] recovers: bool) {
    let tokens = AtomicUsize::new(0);
    let fake =
        Fake::start(
            move |seen| match (seen.target.starts_with("/token"), seen.authorization()) {
                (true, _) => {
                    let number = tokens.fetch_add(1, Ordering::Relaxed);
                    reply(200, &[], &format!(r#"{{"token":"{number}"}}"#))
                }
                // The first token is good for one repository only, as one that expires early.
                (false, Some("Bearer 0")) if seen.target.contains("/first/") => reply(200, &[], OK),
                (false, Some("Bearer 1")) if recovers => reply(200, &[], OK),
                _ => {
                    let challenge =
                        format!(r#"Bearer realm="{}/token",scope="fixed""#, seen.origin());
                    reply(401, &[("www-authenticate", &challenge)], "")
                }
            },
        )
        .await;
    let endpoint = endpoint(&config(&fake.url()));
    manifest(&*endpoint, "first").await.unwrap();
    let result = manifest(&*endpoint, "second").await;
    assert_eq!(fake.count("/token"), 2);
    assert_eq!(fake.count("/v2/second/"), 2);
    if recovers {
        result.unwrap();
    } else {
        assert_eq!(
            result.unwrap_err(),
            UpstreamErrorKind::Refused { status: 401 }
        );
    }
}

/// H-19: a realm on a foreign host gets no credential, a listed one does; the endpoint's own host is trusted.
#[rstest::rstest]
#[case(false, false, false)]
#[case(false, true, true)]
#[case(true, false, true)]
#[tokio::test]
async fn h19_credentials_go_to_trusted_realms_only(
    #[case] own_host: bool,
    #[case] listed: bool,
    #[case] sent: bool,
) {
    let service = Fake::start(|_| reply(200, &[], r#"{"token":"t"}"#)).await;
    let realm = if own_host {
        service.url()
    } else {
        service.other_url()
    };
    let fake = Fake::start(move |seen| match seen.authorization() {
        Some("Bearer t") => reply(200, &[], OK),
        _ => challenge(&realm, "a"),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_password(config(&fake.url()), folder.path());
    if listed {
        config.token_realms.push("localhost".to_owned());
    }
    manifest(&*endpoint(&config), "a").await.unwrap();
    assert_eq!(service.seen().len(), 1);
    assert_eq!(service.seen()[0].authorization().is_some(), sent);
    assert!(
        fake.seen()
            .iter()
            .all(|seen| seen.authorization().is_none_or(|value| value == "Bearer t"))
    );
}

/// H-19: nor is a realm asked that only this machine could reach.
#[tokio::test]
async fn h19_a_realm_on_the_link_is_not_asked() {
    let fake = Fake::start(|_| challenge("http://169.254.169.254", "a")).await;
    let error = manifest(&*endpoint(&config(&fake.url())), "a")
        .await
        .unwrap_err();
    assert!(matches!(error, UpstreamErrorKind::Protocol(_)), "{error}");
}

#[tokio::test]
async fn a_basic_challenge_gets_the_password_and_the_anonymous_get_nothing() {
    let fake = Fake::start(|seen| match seen.authorization() {
        Some("Basic dXNlcjpoaWRkZW4=") => reply(200, &[], OK),
        _ => reply(401, &[("www-authenticate", "Basic realm=x")], ""),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let endpoint = endpoint(&with_password(config(&fake.url()), folder.path()));
    manifest(&*endpoint, "a").await.unwrap();
    manifest(&*endpoint, "b").await.unwrap();
    assert_eq!(
        fake.seen().len(),
        3,
        "the second brought the password along"
    );

    let anonymous = Call {
        identity: Identity::Anonymous,
        ..call()
    };
    let error = endpoint
        .manifest(anonymous, &repository("a"), &tag(), 10)
        .await
        .unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Refused { status: 401 });
    assert!(fake.seen().last().unwrap().authorization().is_none());
    assert_eq!(
        &*endpoint.credential_id(&repository("a")).0,
        "password::user"
    );
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_a_bearer_token_is_sent() {
    let fake = registry_with_refresh_tokens().await;
    let folder = tempfile::tempdir().unwrap();
    let (docker, token) = (
        folder.path().join("config.json"),
        folder.path().join("token"),
    );
    std::fs::write(
        &docker,
        r#"{"auths":{"registry.example/a":{"identitytoken":"hidden"}}}"#,
    )
    .unwrap();
    std::fs::write(&token, "direct\n").unwrap();
    let mut config = config(&fake.url());
    let rule = |source| CredentialRule {
        prefix: String::new(),
        source,
    };
    config.credentials = vec![
        rule(CredentialSource::DockerConfig(docker)),
        rule(CredentialSource::TokenFile(token)),
    ];
    let endpoint = endpoint(&config);
    manifest(&*endpoint, "b").await.unwrap();
    assert_eq!(fake.seen().len(), 1);
    manifest(&*endpoint, "a").await.unwrap();
    assert_eq!(fake.count("/token"), 1);
}

async fn registry_with_refresh_tokens() -> Fake {
    Fake::start(|seen| match seen.authorization() {
        _ if seen.target == "/token" => {
            assert_eq!(seen.method, "POST");
            assert!(seen.body.contains("grant_type=refresh_token"));
            assert!(seen.body.contains("refresh_token=hidden"));
            assert!(seen.body.contains("scope=repository%3Aa%3Apull"));
            reply(200, &[], r#"{"access_token":"exchanged"}"#)
        }
        Some("Bearer direct" | "Bearer exchanged") => reply(200, &[], OK),
        _ => challenge(&seen.origin(), "a"),
    })
    .await
}

#[tokio::test]
async fn nothing_prints_a_secret() {
    let fake = Fake::start(|seen| match seen.target.as_str() {
        "/cdn?signature=hidden" => Reply::Close(Vec::new()),
        _ => reply(307, &[("location", "/cdn?signature=hidden")], ""),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_password(config(&fake.url()), folder.path());
    let metrics = UpstreamMetrics::register(&mut Registry::default());
    let upstream = build(&config, &Lent::default(), &metrics, &Tasks::new()).unwrap();
    let error = manifest(&*upstream.endpoints[0], "a").await.unwrap_err();
    let status = upstream.endpoints[0].status();
    config.endpoints = vec![
        "https://user:hidden@r.example/?token=hidden"
            .parse()
            .unwrap(),
    ];
    let refused = build(&config, &Lent::default(), &metrics, &Tasks::new()).unwrap_err();
    let printed =
        format!("{upstream:?} {config:?} {error} {error:?} {status:?} {refused} {refused:?}");
    // The configuration shows the URL that it was given; build refuses such a one.
    let printed = printed.replace(&format!("{:?}", config.endpoints), "");
    assert!(!printed.contains("hidden"), "{printed}");
}
