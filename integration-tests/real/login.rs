//! Clients that log in, as their users do.

use tempfile::TempDir;

use crate::clients::Client;
use crate::containerd::{Containerd, Kind};
use crate::coral::{Config, Coral};
use crate::docker::Docker;
use crate::harness;
use crate::upstream::{Upstream, seed};

const USER: &str = "ci";
const PASSWORD: &str = "sesame-of-ci";
/// May only pull.
const READER: (&str, &str) = ("dev", "sesame-of-dev");

/// Their passwords, with the least cost that bcrypt knows.
const HTPASSWD: &str = "\
ci:$2b$04$ANyRcm3w0renMBRfid5Y9uF1Iba/CmiCQZo/QfFq2M0niHTyUHbJ.
dev:$2b$04$PFB7TuO169XDYhqP438hhOr5qixd8GhaK6J2PD.HRZkA6OEChySju
";

/// A registry before an upstream, whose repositories below `own` ask for a login.
async fn with_users(upstream: &Upstream) -> (Coral, TempDir) {
    let secrets = harness::scratch();
    let file = harness::write(secrets.path(), "htpasswd", HTPASSWD);
    let rules = format!(
        "hosted: [{{ prefix: own }}]\nusers: {{ htpasswd: {} }}\naccess:\n\
         - {{ subjects: [\"user:{USER}\"], repositories: [\"own/**\"], verbs: [pull, push, delete] }}\n\
         - {{ subjects: [authenticated], repositories: [\"own/**\"], verbs: [pull] }}\n",
        file.display()
    );
    let coral = Coral::start(Config::of(upstream).more(&rules)).await;
    (coral, secrets)
}

fn assert_silent(coral: &Coral) {
    let log = coral.log();
    for secret in [PASSWORD, READER.1] {
        assert!(!log.contains(secret), "the log holds a password");
    }
}

#[tokio::test]
async fn the_docker_daemon_logs_in_pushes_and_pulls() {
    let upstream = Upstream::plain().await;
    let (coral, _secrets) = with_users(&upstream).await;
    let docker = Docker::start(&coral).await;
    let image = &seed().await.twenty;
    // A mirror of Docker Hub needs no login for what is public, whoever else has to log in.
    docker.pull(image).await.unwrap();
    let (host, name) = (coral.address(), coral.own("app:1"));
    docker.docker(&["tag", &image.name(), &name]).await.unwrap();
    docker.docker(&["push", &name]).await.unwrap_err();

    let login = async |user: &str, password: &str| {
        let arguments = ["login", "--username", user, "--password", password, &host];
        docker.docker(&arguments).await
    };
    let refused = login(USER, "wrong").await.unwrap_err();
    assert!(refused.contains("unauthorized"), "{refused}");
    login(READER.0, READER.1).await.unwrap();
    let denied = docker.docker(&["push", &name]).await.unwrap_err();
    assert!(denied.contains("denied"), "{denied}");

    login(USER, PASSWORD).await.unwrap();
    docker.docker(&["push", &name]).await.unwrap();
    let remove = ["image", "rm", "--force", &name];
    docker.docker(&remove).await.unwrap();
    docker.docker(&["pull", &name]).await.unwrap();
    docker.docker(&remove).await.unwrap();
    docker.docker(&["logout", &host]).await.unwrap();
    docker.docker(&["pull", &name]).await.unwrap_err();
    assert_silent(&coral);
}

#[tokio::test]
async fn skopeo_and_crane_log_in() {
    let upstream = Upstream::plain().await;
    let (coral, secrets) = with_users(&upstream).await;
    let image = &seed().await.small;
    let (host, file) = (coral.address(), secrets.path().join("auth.json"));
    let own = coral.own("skopeo:1");
    let from = format!("docker://{}", coral.pulled_through(image));
    let to = format!("docker://{own}");
    let skopeo = async |arguments: &[&str]| {
        let mut command = harness::command("skopeo");
        command.arg("--insecure-policy").args(arguments);
        command.env("REGISTRY_AUTH_FILE", &file);
        harness::run(command).await.result()
    };
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let what = ["copy", "--all", "--preserve-digests"];
    let copy = [&what[..], &insecure, &[&from, &to]].concat();
    skopeo(&copy).await.unwrap_err();
    let login = async |password: &str| {
        let user = ["login", "--tls-verify=false", "--username", USER];
        skopeo(&[&user[..], &["--password", password, &host]].concat()).await
    };
    login("wrong").await.unwrap_err();
    login(PASSWORD).await.unwrap();
    skopeo(&copy).await.unwrap();

    let folder = harness::scratch();
    let crane = async |arguments: &[&str]| {
        let mut command = harness::command(harness::tool("CORAL_REAL_CRANE"));
        command.args(arguments).env("DOCKER_CONFIG", folder.path());
        harness::run(command).await.result()
    };
    crane(&["digest", &own]).await.unwrap_err();
    let login = ["auth", "login", &host, "-u", READER.0, "-p", READER.1];
    crane(&login).await.unwrap();
    let digest = crane(&["digest", &own]).await.unwrap();
    assert_eq!(digest.trim(), image.digest().to_string());
    let denied = crane(&["delete", &own]).await.unwrap_err();
    assert!(denied.contains("DENIED"), "{denied}");
    assert_silent(&coral);
}

#[tokio::test]
async fn containerd_logs_in() {
    let upstream = Upstream::plain().await;
    let (coral, _secrets) = with_users(&upstream).await;
    let image = &seed().await.twenty;
    for (kind, name) in [(Kind::Current, "current"), (Kind::Old, "old")] {
        let to = coral.own(&format!("{name}:1"));
        let containerd = Containerd::holding(kind, &coral, image, &to).await;
        let push = async |user: &str| {
            let arguments = ["images", "push", "--plain-http", "--user", user, &to];
            containerd.ctr(&arguments).await
        };
        push(&format!("{USER}:wrong")).await.unwrap_err();
        push(&format!("{}:{}", READER.0, READER.1))
            .await
            .unwrap_err();
        let user = format!("{USER}:{PASSWORD}");
        push(&user).await.unwrap();
        let fetch = ["content", "fetch", "--plain-http", "--user", &user, &to];
        containerd.ctr(&fetch).await.unwrap();
    }
    assert_silent(&coral);
}
