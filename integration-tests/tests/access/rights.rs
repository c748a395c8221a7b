//! Who may do what with hosted repositories.

use coral_integration_tests::ask::{code, head, json};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::pull;
use coral_integration_tests::push::{image, send};
use coral_schema::oci::Digest;
use http::Method;

use super::{CI, DEPLOY, DEV, READER, RULES, Scene, basic};

fn who(name: &str) -> String {
    match name {
        "ci" => basic(CI),
        "dev" => basic(DEV),
        "deploy" => format!("Bearer {DEPLOY}"),
        "reader" => format!("bearer  {READER}"),
        _ => String::new(),
    }
}

/// Statuses of: GET of the manifest, the tags, a blob; POST of an upload; DELETE of the tag, of a blob.
#[rstest::rstest]
#[case("anonymous", "team/app", [401, 401, 401, 401, 401, 401])]
#[case("anonymous", "team/none", [401, 401, 401, 401, 401, 401])]
#[case("dev", "team/app", [404, 404, 404, 403, 403, 403])]
#[case("dev", "team/none", [404, 404, 404, 403, 403, 403])]
#[case("dev", "team/drop", [404, 404, 404, 202, 403, 403])]
#[case("reader", "team/app", [404, 404, 404, 403, 403, 403])]
#[case("reader", "team/shared/x", [200, 200, 200, 403, 403, 403])]
#[case("dev", "team/shared/x", [200, 200, 200, 403, 403, 403])]
#[case("anonymous", "open/app", [200, 200, 200, 401, 401, 401])]
#[case("dev", "open/app", [200, 200, 200, 403, 403, 403])]
#[case("ci", "team/app", [200, 200, 200, 202, 403, 403])]
#[case("ci", "team/none", [404, 404, 404, 202, 403, 403])]
#[case("deploy", "team/app", [200, 200, 200, 403, 202, 202])]
#[case("deploy", "team/none", [404, 404, 404, 403, 403, 403])]
#[tokio::test(flavor = "multi_thread")]
async fn each_verb_is_for_whom_a_rule_names(
    #[case] name: &str,
    #[case] repository: &str,
    #[case] expected: [u16; 6],
) -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let who = who(name);
    let path = |rest: &str| format!("/v2/{repository}/{rest}");
    let blob = path(&format!("blobs/{}", scene.layer()));
    let mut found = Vec::new();
    for path in [&path("manifests/v1"), &path("tags/list"), &blob] {
        let got = scene.get(path, &who).await;
        found.push(got.status);
        let sent: &[_] = &[("authorization", who.as_str())][usize::from(who.is_empty())..];
        let head = head(scene.cache.address(), path, sent).await?;
        assert_eq!(head.status, got.status, "HEAD is GET without body");
    }
    found.push(scene.begin(repository, &who).await.status);
    for path in [&path("manifests/v1"), &blob] {
        found.push(scene.ask(Method::DELETE, path, &who).await.status);
    }
    assert_eq!(found, expected);
    Ok(())
}

/// H-20: whether there is something tells nothing to whoever may not see it, to the letter.
#[tokio::test(flavor = "multi_thread")]
async fn h20_forbidden_and_missing_look_the_same() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let layer = scene.layer();
    for who in ["", &who("dev"), &who("reader")] {
        for rest in [
            "manifests/v1".to_owned(),
            format!("manifests/{}", scene.image.digest()),
            format!("blobs/{layer}"),
            "tags/list".to_owned(),
            format!("referrers/{}", scene.image.digest()),
            "blobs/uploads/0123456789abcdef0123456789abcdef".to_owned(),
        ] {
            let there = scene.get(&format!("/v2/team/app/{rest}"), who).await;
            let nowhere = scene.get(&format!("/v2/team/none/{rest}"), who).await;
            assert_eq!(
                (there.status, &there.body),
                (nowhere.status, &nowhere.body),
                "{rest}"
            );
            let challenge = there
                .header("www-authenticate")
                .replace("team/app", "team/none");
            assert_eq!(challenge, nowhere.header("www-authenticate"));
        }
        for (method, rest) in [
            (Method::PUT, "manifests/v1".to_owned()),
            (Method::DELETE, "manifests/v1".to_owned()),
            (Method::DELETE, format!("blobs/{layer}")),
            (Method::POST, "blobs/uploads/".to_owned()),
            (
                Method::POST,
                format!("blobs/uploads/?mount={layer}&from=open/app"),
            ),
        ] {
            let there = scene
                .ask(method.clone(), &format!("/v2/team/app/{rest}"), who)
                .await;
            let nowhere = scene
                .ask(method, &format!("/v2/team/none/{rest}"), who)
                .await;
            assert_eq!(
                (there.status, &there.body),
                (nowhere.status, &nowhere.body),
                "{rest}"
            );
            let expected = if who.is_empty() {
                (401, "UNAUTHORIZED")
            } else {
                (403, "DENIED")
            };
            assert_eq!((there.status, code(&there).as_str()), expected, "{rest}");
        }
    }
    Ok(())
}

/// A session belongs to whoever may push to its repository, in all its steps.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_only_gone_on_with_by_who_may_push() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let location = scene
        .begin("team/app", &who("ci"))
        .await
        .header("location")
        .to_owned();
    for (name, status) in [("anonymous", 401), ("dev", 403), ("deploy", 403)] {
        for method in [Method::GET, Method::PATCH, Method::PUT, Method::DELETE] {
            let got = scene.ask(method, &location, &who(name)).await;
            assert_eq!(got.status, status, "{name}");
        }
    }
    let elsewhere = location.replace("team/app", "team/drop");
    assert_eq!(
        scene
            .ask(Method::DELETE, &elsewhere, &who("dev"))
            .await
            .status,
        404
    );
    assert_eq!(scene.get(&location, &who("ci")).await.status, 204);
    assert_eq!(
        scene
            .ask(Method::DELETE, &location, &who("ci"))
            .await
            .status,
        204
    );
    Ok(())
}

/// A mount is a read there and a push here; what may not be read is uploaded as if it were not there.
#[tokio::test(flavor = "multi_thread")]
async fn h20_a_mount_needs_the_right_to_read() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let layer = scene.layer();
    let mount = async |to: &str, from: &str, who: &str| {
        let path = format!("/v2/{to}/blobs/uploads/?mount={layer}{from}");
        scene.ask(Method::POST, &path, who).await.status
    };
    let (ci, dev) = (who("ci"), who("dev"));
    let only = Image::new(2, &[2000]);
    let secret = only.layers()[0].digest;
    let path = format!("/v2/team/app/blobs/uploads/?digest={secret}");
    let content = only.layers()[0].content.read_all();
    let sent = [("authorization", ci.as_str())];
    send(
        scene.cache.address(),
        (Method::POST, &path),
        &sent,
        &content,
    )
    .await?;
    let steal = async |from: &str| {
        let path = format!("/v2/team/drop/blobs/uploads/?mount={secret}{from}");
        scene.ask(Method::POST, &path, &dev).await.status
    };
    assert_eq!(steal("&from=team/app").await, 202);
    assert_eq!(steal("").await, 202);
    assert_eq!(steal("&from=team/none").await, 202);
    let stolen = format!("/v2/team/drop/blobs/{secret}");
    assert_eq!(scene.get(&stolen, &ci).await.status, 404);

    assert_eq!(mount("team/drop", "&from=team/shared/x", &dev).await, 201);
    assert_eq!(mount("team/new", "&from=team/app", &ci).await, 201);
    assert_eq!(mount("open/new", "", &ci).await, 201);

    let narrow = scene.token(&ci, &["repository:team/other:pull,push"]).await;
    assert_eq!(mount("team/other", "&from=team/app", &narrow).await, 202);
    let both = [
        "repository:team/other:pull,push",
        "repository:team/app:pull",
    ];
    let wide = scene.token(&ci, &both).await;
    assert_eq!(mount("team/other", "&from=team/app", &wide).await, 201);
    Ok(())
}

/// H-20: a digest that is somewhere in the store is nowhere else, whoever asks.
#[tokio::test(flavor = "multi_thread")]
async fn h20_rights_in_one_repository_give_nothing_of_another() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let secret = Digest::sha256(b"secret");
    let path = format!("/v2/team/app/blobs/uploads/?digest={secret}");
    let sent = [("authorization", basic(CI))];
    let sent = sent.each_ref().map(|(name, value)| (*name, value.as_str()));
    let got = send(
        scene.cache.address(),
        (Method::POST, &path),
        &sent,
        b"secret",
    )
    .await?;
    assert_eq!(got.status, 201);
    for repository in ["open/app", "team/shared/x"] {
        for who in ["dev", "ci"] {
            let got = scene
                .get(
                    &format!("/v2/{repository}/blobs/{secret}"),
                    &super::rights::who(who),
                )
                .await;
            assert_eq!((got.status, code(&got).as_str()), (404, "BLOB_UNKNOWN"));
        }
    }
    Ok(())
}

#[rstest::rstest]
#[case("anonymous", &["open/app"])]
#[case("reader", &["open/app", "team/shared/x"])]
#[case("deploy", &["open/app", "team/app", "team/shared/x"])]
#[case("ci", &["open/app", "team/app", "team/shared/x"])]
#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_has_what_the_caller_may_pull(
    #[case] name: &str,
    #[case] expected: &[&str],
) -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let listed = json(&scene.get("/v2/_catalog", &who(name)).await);
    assert_eq!(listed["repositories"], serde_json::json!(expected));
    // A page never ends at what may not be seen.
    let first = scene.get("/v2/_catalog?n=1", &who(name)).await;
    assert_eq!(first.header("link").is_empty(), expected.len() == 1);
    assert_eq!(
        json(&first)["repositories"],
        serde_json::json!(expected[..1])
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rules_hosted_repositories_are_for_nobody() -> anyhow::Result<()> {
    let cache = Cache::start("hosted: [{ prefix: team }]\nanonymousPush: true\n").await?;
    let pushed = Image::new(1, &[100]);
    image(cache.address(), "team/app", "v1", &pushed).await?;
    pull(cache.address(), "team/app", "v1").await?;
    let ping = head(cache.address(), "/v2/", &[("authorization", &basic(DEV))]).await?;
    assert_eq!(
        ping.status, 200,
        "nobody can log in, so a login means nothing"
    );
    assert_eq!(head(cache.address(), "/token", &[]).await?.status, 405);

    let mut cache = cache;
    std::fs::write(cache.configuration(), "hosted: [{ prefix: team }]\n")?;
    cache.restart().await?;
    let got = head(cache.address(), "/v2/team/app/manifests/v1", &[]).await?;
    assert_eq!(
        got.status, 404,
        "a login is not asked for, since nobody has one"
    );
    let path = "/v2/team/app/blobs/uploads/";
    let got = send(cache.address(), (Method::POST, path), &[], b"").await?;
    assert_eq!((got.status, code(&got).as_str()), (403, "DENIED"));
    let got = send(cache.address(), (Method::GET, "/token"), &[], b"").await?;
    assert_eq!(got.status, 404);
    let catalog = send(cache.address(), (Method::GET, "/v2/_catalog"), &[], b"").await?;
    assert_eq!(json(&catalog)["repositories"], serde_json::json!([]));
    Ok(())
}

/// `anonymousPush` beside rules: everybody does everything with what is hosted, but a wrong login still gets nothing.
#[tokio::test(flavor = "multi_thread")]
async fn anonymous_push_opens_everything_hosted() -> anyhow::Result<()> {
    let scene = Scene::with(&format!("anonymousPush: true\n{RULES}")).await?;
    image(
        scene.cache.address(),
        "team/app",
        "v2",
        &Image::new(3, &[10]),
    )
    .await?;
    pull(scene.cache.address(), "team/app", "v2").await?;
    let path = "/v2/team/app/manifests/v2";
    assert_eq!(scene.get(path, &basic(("ci", "wrong"))).await.status, 401);
    assert_eq!(scene.ask(Method::DELETE, path, "").await.status, 202);
    Ok(())
}
