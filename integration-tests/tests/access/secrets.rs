//! What people log in with never stands in a log, however much is logged.

use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coral_schema::process::telemetry::{Format, Telemetry};

use super::{CI, DEPLOY, HTPASSWD, READER, Scene, basic};

const CHILD: &str = "secrets::logs_in_and_out";

/// The logs are those of a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn logins_never_stand_in_logs() -> anyhow::Result<()> {
    let this = std::env::current_exe()?;
    let arguments = ["--exact", CHILD, "--nocapture"];
    let run = move || Command::new(this).args(arguments).output();
    let output = tokio::task::spawn_blocking(run).await??;
    let log = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{log}");
    assert!(
        log.contains("user:ci") && log.contains("the users are in force"),
        "{log}"
    );
    let encoded = BASE64_STANDARD.encode(format!("{}:{}", CI.0, CI.1));
    let hash = &HTPASSWD[10..40];
    for secret in [
        CI.1,
        "wrong-password",
        DEPLOY,
        READER,
        encoded.as_str(),
        "eyJ",
        hash,
        "hunter2",
    ] {
        assert!(!log.contains(secret), "{secret} stands in the log");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_in_and_out() -> anyhow::Result<()> {
    // A part of the test above, in a process of its own.
    if !std::env::args().any(|argument| argument == CHILD) {
        return Ok(());
    }
    let telemetry = Telemetry::init("trace,hyper=info,mio=info", Format::Json)?;
    let scene = Scene::new().await?;
    let path = "/v2/team/app/manifests/v1";
    let token = scene.token(&basic(CI), &["repository:team/app:pull"]).await;
    for login in [
        basic(CI),
        basic((CI.0, "wrong-password")),
        basic(("wrong-password", "")),
        format!("Bearer {DEPLOY}"),
        format!("Bearer {READER}"),
        token.clone(),
        format!("{token}x"),
    ] {
        scene.get(path, &login).await;
        scene.get("/token", &login).await;
    }
    let htpasswd = scene.secrets.path().join("htpasswd");
    std::fs::write(htpasswd, "ci:hunter2\n")?;
    let refused = async || {
        let status = coral_integration_tests::ask::status(scene.cache.admin()).await;
        status.unwrap()["config"]["state"] == "refused"
    };
    coral_integration_tests::pull::eventually("the bad file is refused", refused).await;
    assert!(telemetry.flush(Duration::from_secs(10)));
    Ok(())
}
