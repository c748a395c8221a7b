//! Files of users and rules that change while the registry runs. They are looked at every few seconds; the tests wait until
//! the change is seen.

use std::path::Path;

use coral_integration_tests::ask::status;
use coral_integration_tests::cache::Cache;
use coral_integration_tests::pull::eventually;

use super::{CI, DEPLOY, DEV, HTPASSWD, RULES, Scene, basic, configuration};

/// Renamed into place: nobody reads half of it.
fn replace(file: &Path, text: &str) {
    let next = file.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(&next, file).unwrap();
}

/// H-22: who was taken away is out, with all tokens.
#[tokio::test(flavor = "multi_thread")]
async fn h22_a_removed_user_is_out() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let (ci, dev) = (basic(CI), basic(DEV));
    let (path, shared) = (
        "/v2/team/app/manifests/v1",
        "/v2/team/shared/x/manifests/v1",
    );
    let token = scene.token(&ci, &["repository:team/app:pull"]).await;
    assert_eq!(scene.get(path, &token).await.status, 200);
    assert_eq!(scene.get(shared, &dev).await.status, 200);

    let htpasswd = scene.secrets.path().join("htpasswd");
    replace(&htpasswd, HTPASSWD.lines().last().unwrap());
    eventually("ci is out", async || {
        scene.get(path, &ci).await.status == 401
    })
    .await;
    assert_eq!(scene.get(path, &token).await.status, 401);
    assert_eq!(scene.get(shared, &dev).await.status, 200);

    // Two people exchange their passwords.
    let exchanged = HTPASSWD
        .replace("ci:", "x:")
        .replace("dev:", "ci:")
        .replace("x:", "dev:");
    replace(&htpasswd, &exchanged);
    let (ci, dev) = (basic(("ci", DEV.1)), basic(("dev", CI.1)));
    eventually("ci is back", async || {
        scene.get(path, &ci).await.status == 200
    })
    .await;
    assert_eq!(
        scene.get(path, &token).await.status,
        401,
        "it was got with another password"
    );
    assert_eq!(scene.get(shared, &dev).await.status, 200);
    assert_eq!(scene.get(shared, &basic(DEV)).await.status, 401);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_change_nothing_and_are_shown() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let config = async || status(scene.cache.admin()).await.unwrap()["config"].clone();
    assert_eq!(config().await["state"], "current");
    let tokens = scene.secrets.path().join("tokens.yaml");
    replace(&tokens, "deploy: hunter2\n");
    eventually("it is refused", async || {
        config().await["state"] == "refused"
    })
    .await;
    let error = config().await["error"].to_string();
    assert!(
        error.contains("tokens.yaml: line 1: ") && !error.contains("hunter2"),
        "{error}"
    );
    let deploy = format!("Bearer {DEPLOY}");
    assert_eq!(
        scene.get("/v2/team/app/manifests/v1", &deploy).await.status,
        200
    );
    assert_eq!(scene.get("/v2/", "Bearer hunter2").await.status, 401);

    replace(&tokens, "");
    eventually("it is in force", async || {
        config().await["state"] == "current"
    })
    .await;
    assert_eq!(scene.get("/v2/", &deploy).await.status, 401);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_rules_are_in_force_for_tokens_too() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let path = "/v2/team/app/manifests/v1";
    let token = scene.token(&basic(CI), &["repository:team/app:pull"]).await;
    assert_eq!(scene.get(path, &token).await.status, 200);
    let fewer = RULES.replace("\"team/**\", ", "");
    replace(
        &scene.cache.configuration(),
        &(configuration(scene.secrets.path()) + &fewer),
    );
    eventually("ci may not any more", async || {
        scene.get(path, &token).await.status == 404
    })
    .await;
    assert_eq!(scene.get(path, &basic(CI)).await.status, 404);
    Ok(())
}

/// A registry that would let nobody in, or somebody whom it should not, does not start.
#[tokio::test(flavor = "multi_thread")]
async fn bad_files_are_refused_at_the_start() -> anyhow::Result<()> {
    let secrets = tempfile::tempdir()?;
    std::fs::write(secrets.path().join("htpasswd"), "ci:hunter2\n")?;
    std::fs::write(secrets.path().join("tokens.yaml"), "")?;
    let refused = Cache::start(&configuration(secrets.path())).await;
    let text = format!("{:#}", refused.unwrap_err());
    assert!(
        text.contains("users.htpasswd: line 1: ") && !text.contains("hunter2"),
        "{text}"
    );
    Ok(())
}
