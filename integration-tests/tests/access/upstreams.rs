//! What is pulled through: public content needs no login, whatever the rules; private content is for whom a rule names.

use coral_integration_tests::ask::code;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::{eventually, pull};
use coral_integration_tests::registry::configuration as of_upstream;
use coral_integration_tests::upstream::{Auth, Bearer, Login, Upstream};

use super::{CI, DEPLOY, DEV, RULES, Scene, basic};

/// `open/app` and `team/secret` upstream, the second for our login only; here `ci` may pull it.
async fn scene() -> anyhow::Result<(Upstream, Image, Scene)> {
    let upstream = Upstream::start().await?;
    let (public, private) = (Image::new(11, &[1000]), Image::new(12, &[2000]));
    upstream.publish("public/app", "v1", &public);
    upstream.publish("company/secret", "v1", &private);
    let bearer = Bearer {
        logins: vec![Login::new("coral", "swordfish")],
        private: vec!["company/secret".to_owned()],
        ..Bearer::default()
    };
    upstream.configure(|settings| settings.auth = Auth::Bearer(bearer));
    let password = tempfile::NamedTempFile::new()?.into_temp_path().keep()?;
    std::fs::write(&password, "swordfish\n")?;
    let login = format!(
        "    credentials:\n      - {{ username: coral, passwordFile: {} }}\n",
        password.display()
    );
    let rule = "  - { subjects: [\"user:ci\"], repositories: [\"upstream.example/company/**\"], verbs: [pull] }\n";
    let scene = Scene::with(&format!("{}{RULES}{rule}", of_upstream(&upstream, &login))).await?;
    std::fs::remove_file(password)?;
    Ok((upstream, private, scene))
}

/// Docker's `registry-mirrors`: ping, an anonymous token, and pulls with it; other mirrors just pull.
#[tokio::test(flavor = "multi_thread")]
async fn public_pulls_need_no_login_beside_rules() -> anyhow::Result<()> {
    let (_upstream, _, scene) = scene().await?;
    pull(scene.cache.address(), "public/app", "v1").await?;
    let mirror = "/v2/public/app/manifests/v1?ns=upstream.example";
    assert_eq!(scene.get(mirror, "").await.status, 200);

    assert_eq!(scene.get("/v2/", "").await.status, 401);
    let token = scene.token("", &["repository:public/app:pull"]).await;
    for login in [token, basic(DEV), format!("Bearer {DEPLOY}")] {
        assert_eq!(
            scene
                .get("/v2/public/app/manifests/v1", &login)
                .await
                .status,
            200
        );
        assert_eq!(scene.get(mirror, &login).await.status, 200);
    }
    Ok(())
}

/// H-20: a rule that names a login opens what only our credential can read; to all others it looks as if it were not there.
#[tokio::test(flavor = "multi_thread")]
async fn h20_a_rule_opens_private_content_to_whom_it_names() -> anyhow::Result<()> {
    let (_upstream, private, scene) = scene().await?;
    let layer = private.layers()[0].digest;
    let name = "upstream.example/company/secret";
    let paths = [
        format!("/v2/{name}/manifests/v1"),
        format!("/v2/{name}/blobs/{layer}"),
        format!("/v2/{name}/tags/list"),
    ];
    // Before and after somebody has pulled it.
    for _ in 0..2 {
        for path in &paths {
            assert_eq!(scene.get(path, &basic(DEV)).await.status, 404, "{path}");
            let got = scene.get(path, "").await;
            assert_eq!(got.status, 401, "a login may help: {path}");
            let scope = format!("scope=\"repository:{name}:pull\"");
            assert!(got.header("www-authenticate").ends_with(&scope));
            let none = scene.get(&path.replace("secret", "none"), "").await;
            assert_eq!((none.status, none.body), (401, got.body), "{path}");
        }
        for path in &paths {
            assert_eq!(scene.get(path, &basic(CI)).await.status, 200, "{path}");
        }
    }
    let token = scene
        .token(&basic(CI), &["repository:company/secret:pull"])
        .await;
    assert_eq!(
        scene
            .get("/v2/company/secret/manifests/v1", &token)
            .await
            .status,
        200
    );
    // containerd would answer a challenge with the pod's login for the upstream.
    let mirror = "/v2/company/secret/manifests/v1?ns=upstream.example";
    let got = scene.get(mirror, "").await;
    assert_eq!((got.status, got.header("www-authenticate")), (404, ""));
    assert_eq!(scene.get(mirror, &basic(CI)).await.status, 200);

    let stolen = format!("/v2/upstream.example/public/app/blobs/{layer}");
    for login in ["", &basic(DEV), &basic(CI)] {
        let got = scene.get(&stolen, login).await;
        assert_eq!((got.status, code(&got).as_str()), (404, "BLOB_UNKNOWN"));
    }
    let lists = async |login: &str| {
        let got = scene.get("/v2/_catalog", login).await;
        String::from_utf8_lossy(&got.body).contains(name)
    };
    eventually("it is listed for whom it is", async || {
        lists(&basic(CI)).await
    })
    .await;
    assert!(!lists("").await && !lists(&basic(DEV)).await);
    Ok(())
}

/// What is granted is granted while the upstream is away, too.
#[tokio::test(flavor = "multi_thread")]
async fn only_if_cached_is_for_whom_a_rule_names() -> anyhow::Result<()> {
    let (_upstream, _, scene) = scene().await?;
    let path = "/v2/upstream.example/company/secret/manifests/v1";
    assert_eq!(scene.get(path, &basic(CI)).await.status, 200);
    let ask = async |login: &str| {
        let headers = [
            ("cache-control", "only-if-cached"),
            ("authorization", login),
        ];
        let headers = &headers[..if login.is_empty() { 1 } else { 2 }];
        coral_integration_tests::pull::get(scene.cache.address(), path, headers)
            .await
            .unwrap()
            .status
    };
    assert_eq!(ask(&basic(CI)).await, 200);
    assert_eq!((ask(&basic(DEV)).await, ask("").await), (504, 504));
    Ok(())
}
