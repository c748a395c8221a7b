//! `/token`, as docker, containerd and crane use it, and tokens that nobody got there.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use coral_integration_tests::ask::{code, json};
use coral_integration_tests::push::send;
use http::Method;
use serde_json::Value;

use super::{CI, DEPLOY, DEV, Scene, basic, bearer};

/// `docker login`: ping, token with Basic and without a scope, ping; then `docker push` with a scope.
#[tokio::test(flavor = "multi_thread")]
async fn docker_logs_in_and_pushes() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    assert_eq!(scene.get("/v2/", "").await.status, 401);
    let path = "/token?account=ci&client_id=docker&offline_token=true&service=coral-registry";
    let got = scene.get(path, &basic(CI)).await;
    assert_eq!(got.header("cache-control"), "no-store");
    let answer = json(&got);
    assert_eq!(answer["token"], answer["access_token"]);
    assert_eq!(answer["expires_in"], 300);
    assert!(
        answer["issued_at"].as_str().unwrap().ends_with('Z'),
        "{answer}"
    );
    assert_eq!(scene.get("/v2/", &bearer(&got)).await.status, 200);

    let scope = "repository%3Ateam%2Fdocker%3Apull%2Cpush";
    let token = scene.token(&basic(CI), &[scope]).await;
    scene.push("team/docker", &token).await;
    let got = scene.get("/v2/team/docker/manifests/v1", &token).await;
    assert_eq!(got.status, 200);
    Ok(())
}

/// containerd posts a form first, and comes back with Basic when it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn containerd_posts_a_form() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let post = async |form: &str| {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let to = (Method::POST, "/token");
        send(scene.cache.address(), to, &headers, form.as_bytes())
            .await
            .unwrap()
    };
    let form = "client_id=containerd-client&grant_type=password&service=coral-registry\
                &scope=repository%3Ateam%2Fapp%3Apull+repository%3Ateam%2Fx%3Apull";
    let got = post(&format!("{form}&username=ci&password=sesame-of-ci")).await;
    let token = bearer(&got);
    assert_eq!(
        scene.get("/v2/team/app/manifests/v1", &token).await.status,
        200
    );
    let wrong = post(&format!("{form}&username=ci&password=wrong")).await;
    assert_eq!((wrong.status, code(&wrong).as_str()), (401, "UNAUTHORIZED"));
    for other in [
        "grant_type=refresh_token&refresh_token=x&service=coral-registry",
        "grant_type=password&username=ci",
        "",
        &format!(
            "grant_type=password&username=ci&password={}",
            "x".repeat(20_000)
        ),
    ] {
        assert_eq!(post(other).await.status, 400);
    }
    Ok(())
}

#[rstest::rstest]
#[case(&["repository:team/app:pull"], "team/app", 200, 401)]
#[case(&["repository:team/app:pull,push"], "team/app", 200, 202)]
#[case(&["repository:team/app:*"], "team/app", 200, 202)]
#[case(&["repository:team/app:push"], "team/app", 401, 202)]
#[case(&["repository:team/other:pull,push"], "team/app", 401, 401)]
#[case(&["repository:team/other:pull", "repository:team/app:pull,push"], "team/app", 200, 202)]
#[case(&["repository:team/other:pull%20repository:team/app:pull"], "team/app", 200, 401)]
#[case(&["registry:catalog:*"], "team/app", 401, 401)]
#[case(&[], "team/app", 401, 401)]
#[case(&[], "open/app", 200, 401)]
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_the_scopes_that_were_asked_for(
    #[case] scopes: &[&str],
    #[case] repository: &str,
    #[case] pull: u16,
    #[case] push: u16,
) -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let token = scene.token(&basic(CI), scopes).await;
    let pulled = scene
        .get(&format!("/v2/{repository}/manifests/v1"), &token)
        .await;
    let begun = scene.begin(repository, &token).await;
    assert_eq!((pulled.status, begun.status), (pull, push));
    for (got, action) in [(&pulled, "pull"), (&begun, "pull,push")] {
        if got.status == 401 {
            let more =
                format!(",scope=\"repository:{repository}:{action}\",error=\"insufficient_scope\"");
            let challenge = got.header("www-authenticate");
            assert!(challenge.ends_with(&more), "{challenge}");
        }
    }
    Ok(())
}

/// A token says what was asked for, and the rules decide: it gives nobody a right, and tells nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_scope_is_no_right() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let scopes = [
        "repository:team/app:pull,push,delete",
        "repository:team/none:pull,push",
    ];
    let token = scene.token(&basic(DEV), &scopes).await;
    for repository in ["team/app", "team/none"] {
        let got = scene
            .get(&format!("/v2/{repository}/manifests/v1"), &token)
            .await;
        assert_eq!((got.status, code(&got).as_str()), (404, "MANIFEST_UNKNOWN"));
        let got = scene.begin(repository, &token).await;
        assert_eq!((got.status, code(&got).as_str()), (403, "DENIED"));
    }
    let anonymous = scene.token("", &scopes).await;
    for repository in ["team/app", "team/none"] {
        let got = scene
            .get(&format!("/v2/{repository}/manifests/v1"), &anonymous)
            .await;
        assert_eq!(got.status, 401);
    }
    assert_eq!(
        scene
            .get("/v2/open/app/manifests/v1", &anonymous)
            .await
            .status,
        200
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_repositories_has_a_scope_of_its_own() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let listed = async |token: String| {
        json(&scene.get("/v2/_catalog", &token).await)["repositories"].clone()
    };
    let all = scene.token(&basic(CI), &["registry:catalog:*"]).await;
    assert_eq!(
        listed(all).await,
        serde_json::json!(["open/app", "team/app", "team/shared/x"])
    );
    let one = scene.token(&basic(CI), &["repository:team/app:pull"]).await;
    let expected = serde_json::json!(["open/app", "team/app"]);
    assert_eq!(
        listed(one).await,
        expected,
        "its own, and what everybody may"
    );
    Ok(())
}

/// A token gets no token, or it would never end; a static one does.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_ours_gets_no_other() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    for login in [basic(CI), String::new()] {
        let token = scene.token(&login, &["repository:team/app:pull"]).await;
        assert_eq!(scene.get("/token", &token).await.status, 401);
    }
    let scopes = ["repository:team/app:pull"];
    let token = scene.token(&format!("Bearer {DEPLOY}"), &scopes).await;
    assert_eq!(
        scene.get("/v2/team/app/manifests/v1", &token).await.status,
        200
    );
    let many: Vec<_> = vec!["scope=repository:a:pull"; 33];
    let got = scene.get(&format!("/token?{}", many.join("&")), "").await;
    assert_eq!(got.status, 400);
    Ok(())
}

/// RFC 8725: no algorithm, another key, other claims, a token that has ended.
#[tokio::test(flavor = "multi_thread")]
async fn forged_tokens_are_refused() -> anyhow::Result<()> {
    let (scene, other) = (Scene::new().await?, Scene::new().await?);
    let scopes = ["repository:team/app:pull,push"];
    let good = scene.token(&basic(CI), &scopes).await;
    let foreign = other.token(&basic(CI), &scopes).await;
    let parts: Vec<_> = good.trim_start_matches("Bearer ").split('.').collect();
    let [header, claims, signature] = parts[..] else {
        panic!("no JWT")
    };
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(claims)?;
    let decoded: Value = serde_json::from_slice(&decoded)?;
    assert_eq!(decoded["sub"], "user:ci");
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let changed = |name: &str, value: Value| {
        let mut claims = decoded.clone();
        claims[name] = value;
        encode(&claims)
    };
    let none = encode(&serde_json::json!({ "alg": "none", "typ": "JWT" }));
    let forged = [
        format!("{none}.{claims}."),
        format!("{none}.{claims}.{signature}"),
        format!("{header}.{claims}."),
        format!("{header}.{}.{signature}", changed("sub", "user:dev".into())),
        format!(
            "{header}.{}.{signature}",
            changed("exp", 99_999_999_999_i64.into())
        ),
        format!("{header}.{claims}"),
    ];
    for token in forged
        .iter()
        .map(|token| format!("Bearer {token}"))
        .chain([foreign])
    {
        for path in [
            "/v2/",
            "/v2/open/app/manifests/v1",
            "/v2/team/app/manifests/v1",
        ] {
            let got = scene.get(path, &token).await;
            assert_eq!(got.status, 401, "{token}");
            let challenge = got.header("www-authenticate");
            assert!(
                challenge.ends_with(",error=\"invalid_token\""),
                "{challenge}"
            );
        }
    }
    assert_eq!(scene.get("/v2/", &good).await.status, 200);
    Ok(())
}

/// A push goes on through a restart of the registry.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_outlive_a_restart() -> anyhow::Result<()> {
    let mut scene = Scene::new().await?;
    let token = scene.token(&basic(CI), &["repository:team/app:pull"]).await;
    scene.cache.restart().await?;
    assert_eq!(
        scene.get("/v2/team/app/manifests/v1", &token).await.status,
        200
    );
    Ok(())
}
