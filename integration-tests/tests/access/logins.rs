//! Users and static tokens, challenges, and what a wrong login gets.

use anyhow::Context as _;
use coral_integration_tests::ask::code;
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::Image;
use coral_integration_tests::registry::configuration as of_upstream;
use coral_integration_tests::upstream::Upstream;
use futures::future::join_all;
use http::Method;

use super::{CI, DEPLOY, RULES, Scene, basic, configuration};

/// end-1: clients learn from it how to log in.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_answer_says_where_to_log_in() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let got = scene.get("/v2/", "").await;
    assert_eq!((got.status, code(&got).as_str()), (401, "UNAUTHORIZED"));
    let address = scene.cache.address();
    let expected = format!("Bearer realm=\"http://{address}/token\",service=\"coral-registry\"");
    assert_eq!(got.header("www-authenticate"), expected);
    assert_eq!(
        got.header("docker-distribution-api-version"),
        "registry/2.0"
    );

    let got = scene.get("/v2/team/app/manifests/v1", "").await;
    let pull = format!("{expected},scope=\"repository:team/app:pull\"");
    assert_eq!(got.header("www-authenticate"), pull);
    let got = scene.begin("team/app", "").await;
    let push = format!("{expected},scope=\"repository:team/app:pull,push\"");
    assert_eq!(got.header("www-authenticate"), push);
    let got = scene
        .ask(Method::DELETE, "/v2/team/app/manifests/v1", "")
        .await;
    let delete = format!("{expected},scope=\"repository:team/app:pull,delete\"");
    assert_eq!(got.header("www-authenticate"), delete);

    for good in [
        basic(CI),
        format!("Bearer {DEPLOY}"),
        scene.token("", &[]).await,
    ] {
        let got = scene.get("/v2/", &good).await;
        assert_eq!(
            (got.status, got.header("www-authenticate")),
            (200, ""),
            "{good}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_realm_is_what_the_configuration_says() -> anyhow::Result<()> {
    let secrets = tempfile::tempdir()?;
    std::fs::write(secrets.path().join("htpasswd"), super::HTPASSWD)?;
    let text = format!(
        "hosted: [{{ prefix: team }}]\nusers: {{ htpasswd: {}/htpasswd, realm: https://registry.example/token }}\n\
         access: [{{ subjects: [authenticated], repositories: [\"**\"], verbs: [pull] }}]\n",
        secrets.path().display()
    );
    let cache = Cache::start(&text).await?;
    let got = coral_integration_tests::pull::get(cache.address(), "/v2/", &[]).await?;
    let expected = "Bearer realm=\"https://registry.example/token\",service=\"coral-registry\"";
    assert_eq!(got.header("www-authenticate"), expected);
    Ok(())
}

/// Never served as if there were no login: not where everybody may read, not what is nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_login_gets_nothing() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    upstream.publish("public/app", "v1", &Image::new(7, &[100]));
    let scene = Scene::with(&(of_upstream(&upstream, "") + RULES)).await?;
    let wrong = [
        basic(("ci", "wrong")),
        basic(("ci", "")),
        basic(("nobody", "sesame-of-ci")),
        basic(("", "")),
        basic(("deploy", DEPLOY)),
        basic(CI).to_lowercase(),
        "Basic".to_owned(),
        "Basic !!!".to_owned(),
        "Bearer".to_owned(),
        format!("Bearer {DEPLOY}x"),
        "Digest username=ci".to_owned(),
        " ".to_owned(),
    ];
    for path in [
        "/v2/",
        "/v2/public/app/manifests/v1",
        "/v2/public/app/manifests/v1?ns=upstream.example",
        "/v2/open/app/manifests/v1",
        "/v2/team/app/manifests/v1",
        "/v2/elsewhere.example/app/manifests/v1",
        "/v2/_catalog",
        "/token",
    ] {
        for wrong in &wrong {
            let got = scene.get(path, wrong).await;
            assert_eq!(
                (got.status, code(&got).as_str()),
                (401, "UNAUTHORIZED"),
                "{path} {wrong}"
            );
            assert!(!got.header("www-authenticate").is_empty(), "{path} {wrong}");
        }
    }
    for (method, path) in [
        (Method::POST, "/v2/open/app/blobs/uploads/"),
        (Method::PUT, "/v2/open/app/manifests/v2"),
        (Method::DELETE, "/v2/open/app/manifests/v1"),
    ] {
        assert_eq!(scene.ask(method, path, &wrong[0]).await.status, 401);
    }
    let without = scene.get("/v2/public/app/manifests/v1", "").await;
    assert_eq!(without.status, 200);
    Ok(())
}

/// Two logins in one request: who would it be?
#[tokio::test(flavor = "multi_thread")]
async fn two_logins_are_none() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let (good, other) = (basic(CI), format!("Bearer {DEPLOY}"));
    let headers = [
        ("authorization", good.as_str()),
        ("authorization", other.as_str()),
    ];
    let got = coral_integration_tests::pull::get(scene.cache.address(), "/v2/", &headers).await?;
    assert_eq!(got.status, 401);
    Ok(())
}

/// Passwords that were right, wrong, and too many; tokens that were right and wrong.
async fn counted(cache: &Cache) -> anyhow::Result<[f64; 5]> {
    let mut counts = [0.0; 5];
    let labels = [
        "password ok",
        "password wrong",
        "password busy",
        "token ok",
        "token wrong",
    ];
    for (count, labels) in counts.iter_mut().zip(labels) {
        let (by, result) = labels.split_once(' ').unwrap();
        let name = format!("logins_total{{by=\"{by}\",result=\"{result}\"}}");
        *count = cache.metric(&name).await?.context(name)?;
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_wrong_passwords_at_once() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let before = counted(&scene.cache).await?;
    let wrong = (0..10).map(|number| basic(("ci", &format!("wrong-{number}"))));
    let (wrong, good) = (wrong.collect::<Vec<_>>(), basic(CI));
    let path = "/v2/team/app/manifests/v1";
    let asked = wrong.iter().map(|wrong| scene.get(path, wrong));
    let right = (0..10).map(|_| scene.get(path, &good));
    let (refused, served) = tokio::join!(join_all(asked), join_all(right));
    assert!(refused.iter().all(|got| got.status == 401));
    assert!(served.iter().all(|got| got.status == 200));
    let token = "Bearer of-nobody-who-is-known-here";
    assert_eq!(scene.get(path, token).await.status, 401);
    let after = counted(&scene.cache).await?;
    let more: Vec<f64> = after.iter().zip(before).map(|(it, was)| it - was).collect();
    assert_eq!(more, [10.0, 10.0, 0.0, 0.0, 1.0]);
    Ok(())
}

/// More than can be checked: some are told to come back, and whoever is known goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_wrong_passwords_is_bounded() -> anyhow::Result<()> {
    let secrets = tempfile::tempdir()?;
    let costly = super::HTPASSWD
        .lines()
        .next()
        .unwrap()
        .replace("$04$", "$12$")
        .replace("ci:", "slow:");
    std::fs::write(
        secrets.path().join("htpasswd"),
        format!("{}{costly}\n", super::HTPASSWD),
    )?;
    std::fs::write(secrets.path().join("tokens.yaml"), "")?;
    let rules = "access: [{ subjects: [\"user:ci\"], repositories: [\"**\"], verbs: [pull] }]\n";
    let cache = Cache::start(&(configuration(secrets.path()) + rules)).await?;
    let address = cache.address();
    let ask = async |login: String| {
        let headers = [("authorization", login.as_str())];
        coral_integration_tests::pull::get(address, "/v2/", &headers)
            .await
            .unwrap()
    };
    assert_eq!(ask(basic(CI)).await.status, 200);
    let flood = (0..80).map(|number| {
        let password = format!("wrong-{number}");
        async move { ask(basic(("slow", &password))).await }
    });
    let known = async {
        let mut seen = Vec::new();
        for _ in 0..10 {
            seen.push(ask(basic(CI)).await.status);
        }
        seen
    };
    let (flood, known) = tokio::join!(join_all(flood), known);
    assert_eq!(known, [200; 10]);
    let busy: Vec<_> = flood.iter().filter(|got| got.status == 503).collect();
    assert!(!busy.is_empty());
    assert!(busy.iter().all(|got| !got.header("retry-after").is_empty()));
    assert!(flood.iter().all(|got| [401, 503].contains(&got.status)));
    Ok(())
}
