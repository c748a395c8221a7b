//! Promise 7, never leaking: where our credentials go, and who gets content that only they can read. Every test looks
//! at what the client saw and at what the upstream was asked.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coral_integration_tests::ask::{code, head, metric, status};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::{Got, eventually, get, pull};
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::{
    Auth, Bearer, Fault, Gate, Kind, Login, SignedUrls, Upstream, When,
};
use coral_registry::config::{self, Overrides};
use coral_schema::oci::{Digest, media_type};
use http::Method;
use serde_json::json;
use tempfile::TempDir;

const PASSWORD: &str = "swordfish-in-the-attic";

/// An upstream with a token service; `team/secret` needs our login, `open/app` needs none. Both have an image.
struct Scene {
    upstream: Upstream,
    public: Image,
    private: Image,
    secrets: TempDir,
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        let upstream = Upstream::start().await?;
        let (public, private) = (Image::new(1, &[1000]), Image::new(2, &[3 << 20]));
        upstream.publish("open/app", "v1", &public);
        upstream.publish("team/secret", "v1", &private);
        let bearer = Bearer {
            logins: vec![Login::new("coral", PASSWORD)],
            private: vec!["team/secret".to_owned()],
            ..Bearer::default()
        };
        upstream.configure(|settings| settings.auth = Auth::Bearer(bearer));
        let secrets = tempfile::tempdir()?;
        std::fs::write(secrets.path().join("password"), format!("{PASSWORD}\n"))?;
        Ok(Self {
            upstream,
            public,
            private,
            secrets,
        })
    }

    fn password(&self) -> PathBuf {
        self.secrets.path().join("password")
    }

    async fn cache(&self, more: &str) -> anyhow::Result<Cache> {
        let more = format!("{}{more}", login(&self.password()));
        Cache::start(&configuration(&self.upstream, &more)).await
    }

    fn secret_layer(&self) -> Digest {
        self.private.layers()[0].digest
    }

    /// A public repository whose manifest names the private image's layer, as anybody can push it.
    fn lay_trap(&self) -> Image {
        let layer = self.private.layers()[0].clone();
        let trap = Image::with_layers("linux/amd64", vec![layer]);
        let (config, manifest) = (&trap.blobs[0], trap.manifest.clone());
        let bait = Image {
            manifest,
            blobs: vec![config.clone()],
            children: Vec::new(),
        };
        self.upstream.publish("open/trap", "v1", &bait);
        bait
    }
}

fn login(password: &Path) -> String {
    let file = password.display();
    format!("    credentials:\n      - {{ username: coral, passwordFile: {file} }}\n")
}

async fn at(cache: &Cache, path: &str) -> Got {
    get(cache.address(), path, &[]).await.unwrap()
}

fn basic(password: &str) -> String {
    format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("coral:{password}"))
    )
}

/// Did our password, in any form, reach this upstream's token service or registry?
fn got_password(upstream: &Upstream) -> bool {
    let seen = upstream.seen(&When::any());
    seen.iter()
        .any(|seen| seen.header("authorization") == basic(PASSWORD))
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_once_with_their_scope_and_kept() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let cache = scene.cache("    visibility: shared\n").await?;
    let pulls = (0..20).map(|_| pull(cache.address(), "team/secret", "v1"));
    for pulled in futures::future::join_all(pulls).await {
        assert_eq!(pulled?.len(), 2);
    }
    let tokens = scene.upstream.seen(&When::kind(Kind::Token));
    assert_eq!(tokens.len(), 1, "{tokens:#?}");
    assert!(
        tokens[0]
            .uri
            .contains("scope=repository%3Ateam%2Fsecret%3Apull"),
        "{}",
        tokens[0].uri
    );
    assert!(tokens[0].uri.contains("service=scripted"));
    assert_eq!(tokens[0].header("authorization"), basic(PASSWORD));
    for seen in scene.upstream.seen(&When::any().repository("team/secret")) {
        let sent = seen.header("authorization");
        assert!(
            sent.is_empty() || sent.starts_with("Bearer scripted-token-"),
            "{sent}"
        );
    }

    scene.upstream.revoke_tokens();
    scene
        .upstream
        .publish("team/secret", "v2", &Image::new(3, &[100]));
    pull(cache.address(), "team/secret", "v2").await?;
    assert_eq!(
        scene.upstream.requests(&When::kind(Kind::Token)),
        2,
        "a new one, once"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_is_used() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.upstream.configure(|settings| {
        settings.auth = Auth::Basic(vec![Login::new("coral", PASSWORD)]);
    });
    let cache = scene.cache("    visibility: shared\n").await?;
    pull(cache.address(), "team/secret", "v1").await?;
    let next = vec![Login::new("coral", "next")];
    scene
        .upstream
        .configure(|settings| settings.auth = Auth::Basic(next));
    // As Kubernetes does it: another file takes the name.
    let file = scene.secrets.path().join("next");
    std::fs::write(&file, "next")?;
    std::fs::rename(&file, scene.password())?;
    // Refusals are remembered, each for its tag.
    let mut tries = 0;
    eventually("the new password is used", async || {
        tries += 1;
        let tag = format!("v{tries}");
        scene.upstream.publish("open/app", &tag, &scene.public);
        at(&cache, &format!("/v2/open/app/manifests/{tag}"))
            .await
            .status
            == 200
    })
    .await;
    let seen = scene.upstream.seen(&When::any());
    assert_eq!(seen.last().unwrap().header("authorization"), basic("next"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_config_file_is_a_credential() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.upstream.configure(|settings| {
        settings.auth = Auth::Basic(vec![Login::new("coral", PASSWORD)]);
    });
    let auth = BASE64_STANDARD.encode(format!("coral:{PASSWORD}"));
    let file = scene.secrets.path().join("config.json");
    let auths = json!({ "auths": { UPSTREAM_NAME: { "auth": auth }, "other.example": { "auth": "eDp5" } } });
    std::fs::write(&file, auths.to_string())?;
    let more = format!(
        "    visibility: shared\n    credentials:\n      - {{ dockerConfig: {} }}\n",
        file.display()
    );
    let cache = Cache::start(&configuration(&scene.upstream, &more)).await?;
    pull(cache.address(), "team/secret", "v1").await?;
    assert!(got_password(&scene.upstream));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h19_a_foreign_realm_gets_no_credential() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let thief = Upstream::start().await?;
    thief.configure(|settings| settings.auth = Auth::Bearer(Bearer::default()));
    // Another name for the same address is another host.
    let realm = format!("http://localhost:{}/token", thief.address().port());
    scene.upstream.configure(|settings| {
        if let Auth::Bearer(bearer) = &mut settings.auth {
            bearer.realm = Some(realm);
        }
    });
    let cache = scene.cache("    visibility: shared\n").await?;
    let got = at(&cache, "/v2/team/secret/manifests/v1").await;
    assert_eq!((got.status, code(&got).as_str()), (403, "DENIED"));
    assert!(!got_password(&thief) && !got_password(&scene.upstream));
    for seen in thief.seen(&When::any()) {
        assert_eq!(seen.header("authorization"), "");
        assert!(
            !seen.uri.contains("coral") && !seen.uri.contains(PASSWORD),
            "{}",
            seen.uri
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h18_redirected_requests_carry_no_credential() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let base = scene.upstream.cdn_url();
    scene.upstream.configure(|settings| {
        settings.signed_urls = Some(SignedUrls { base, uses: 9 });
    });
    let cache = scene.cache("    visibility: shared\n").await?;
    pull(cache.address(), "team/secret", "v1").await?;
    let redirected = scene.upstream.seen(&When::kind(Kind::Signed));
    assert_eq!(redirected.len(), 2);
    for seen in redirected {
        assert_eq!(seen.status, Some(200));
        assert_eq!(seen.header("authorization"), "");
        assert_eq!(seen.header("cookie"), "");
    }
    let text = String::from_utf8(get(cache.admin(), "/metrics", &[]).await?.body.to_vec())?;
    assert!(!text.contains("X-Signature") && !text.contains("scripted-signature"));
    Ok(())
}

/// Nodes whose pods have a pull secret send it to whoever asks for one: nobody does, and what comes all the same decides
/// nothing and goes nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn l33a_a_nodes_login_is_neither_asked_for_nor_passed_on() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let cache = scene.cache("").await?;
    let base = at(&cache, "/v2/").await;
    assert_eq!(base.status, 200);
    assert!(!base.headers.contains_key("www-authenticate"));
    let theirs = basic("of-a-pod");
    for (repository, status) in [("open/app", 200), ("team/secret", 404)] {
        let path = format!("/v2/{repository}/manifests/v1");
        let got = get(cache.address(), &path, &[("authorization", &theirs)]).await?;
        assert_eq!(got.status, status, "{repository}");
        assert!(!got.headers.contains_key("www-authenticate"));
    }
    let seen = scene.upstream.seen(&When::any());
    assert!(!seen.is_empty());
    assert!(
        seen.iter()
            .all(|seen| seen.header("authorization") != theirs)
    );
    Ok(())
}

/// The private image through its own name, in every mode of visibility.
#[rstest::rstest]
#[case("auto", false)]
#[case("shared", true)]
#[case("public", true)]
#[tokio::test(flavor = "multi_thread")]
async fn h20_l31_visibility_decides_who_reads_what_our_credential_opens(
    #[case] mode: &str,
    #[case] served: bool,
) -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let cache = scene.cache(&format!("    visibility: {mode}\n")).await?;
    pull(cache.address(), "open/app", "v1").await?;
    if served {
        pull(cache.address(), "team/secret", "v1").await?;
        return Ok(());
    }
    let unknown = at(&cache, "/v2/team/none/manifests/v1").await;
    let layer = scene.secret_layer();
    for _ in 0..2 {
        let private = at(&cache, "/v2/team/secret/manifests/v1").await;
        assert_eq!(
            (private.status, code(&private).as_str()),
            (404, "MANIFEST_UNKNOWN")
        );
        assert_eq!(
            private.body, unknown.body,
            "forbidden and unknown look the same"
        );
        let blob = at(&cache, &format!("/v2/team/secret/blobs/{layer}")).await;
        assert_eq!((blob.status, code(&blob).as_str()), (404, "BLOB_UNKNOWN"));
        let tags = at(&cache, "/v2/team/secret/tags/list").await;
        assert_eq!((tags.status, code(&tags).as_str()), (404, "NAME_UNKNOWN"));
    }
    let private = When::any().repository("team/secret");
    assert_eq!(
        scene.upstream.requests(&private.method(Method::GET)),
        0,
        "asked by HEAD only"
    );
    let catalog = String::from_utf8(at(&cache, "/v2/_catalog").await.body.to_vec())?;
    assert!(
        catalog.contains("open/app") && !catalog.contains("team/secret"),
        "{catalog}"
    );
    Ok(())
}

/// {hit, miss} × {member, not}: the private layer is asked for through a public repository.
#[rstest::rstest]
#[tokio::test(flavor = "multi_thread")]
async fn h20_a_private_blob_is_not_readable_through_a_public_repository(
    #[values(true, false)] held: bool,
    #[values(true, false)] named: bool,
) -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    // Private content is in the store since whoever may use this cache may read it under its own name; what is told
    // apart is membership.
    let cache = scene.cache("    visibility: shared\n").await?;
    if held {
        pull(cache.address(), "team/secret", "v1").await?;
    }
    let repository = if named {
        scene.lay_trap();
        assert_eq!(at(&cache, "/v2/open/trap/manifests/v1").await.status, 200);
        "open/trap"
    } else {
        "open/app"
    };
    let path = format!("/v2/{repository}/blobs/{}", scene.secret_layer());
    for _ in 0..2 {
        let got = at(&cache, &path).await;
        assert_eq!((got.status, code(&got).as_str()), (404, "BLOB_UNKNOWN"));
        let ranged = get(cache.address(), &path, &[("range", "bytes=0-99")]).await?;
        assert_eq!(ranged.status, 404);
    }
    let there = scene
        .upstream
        .seen(&When::blob(&scene.secret_layer()).repository(repository));
    assert!(!there.is_empty(), "its own upstream was asked");
    // 401 is the question for a token.
    let refused = [Some(401), Some(404)];
    assert!(there.iter().all(|seen| refused.contains(&seen.status)));
    Ok(())
}

/// What a public repository really has is served from what a private one brought, once its upstream has said so.
#[tokio::test(flavor = "multi_thread")]
async fn h20_a_shared_blob_is_served_after_a_head_and_never_fetched_twice() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let cache = scene.cache("    visibility: shared\n").await?;
    pull(cache.address(), "team/secret", "v1").await?;
    scene.upstream.publish("open/copy", "v1", &scene.private);
    pull(cache.address(), "open/copy", "v1").await?;
    let layer = When::blob(&scene.secret_layer());
    assert_eq!(
        scene.upstream.requests(&layer.clone().method(Method::GET)),
        1
    );
    assert_eq!(
        scene
            .upstream
            .requests(&layer.method(Method::HEAD).repository("open/copy")),
        1
    );
    Ok(())
}

/// The same while the blob is on its way: neither bytes nor its progress leak.
#[rstest::rstest]
#[tokio::test(flavor = "multi_thread")]
async fn h21_a_running_transfer_is_not_joined_without_membership(
    #[values(true, false)] named: bool,
) -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let layer = scene.secret_layer();
    let gate = Gate::new();
    let private = When::blob(&layer).repository("team/secret");
    scene
        .upstream
        .always(private.clone(), Fault::new().hold(&gate, 1 << 20));
    let cache = scene.cache("    visibility: shared\n").await?;
    let address = cache.address();
    let tasks = coral_schema::process::tasks::Tasks::new();
    let owner = tasks.spawn(
        "owner",
        async move { pull(address, "team/secret", "v1").await },
    );
    gate.reached(1).await;
    let repository = if named {
        scene.lay_trap();
        assert_eq!(at(&cache, "/v2/open/trap/manifests/v1").await.status, 200);
        "open/trap"
    } else {
        "open/app"
    };
    let path = format!("/v2/{repository}/blobs/{layer}");
    for range in [None, Some("bytes=0-99"), Some("bytes=0-")] {
        let headers: Vec<_> = range.map(|range| ("range", range)).into_iter().collect();
        let got = get(address, &path, &headers).await?;
        assert_eq!(
            (got.status, code(&got).as_str()),
            (404, "BLOB_UNKNOWN"),
            "{range:?}"
        );
    }
    gate.open();
    assert_eq!(owner.await??.len(), 2);
    assert_eq!(scene.upstream.requests(&private), 1);
    Ok(())
}

/// The attacker comes first: its request starts the transfer, and must get nothing of what others add to it.
#[tokio::test(flavor = "multi_thread")]
async fn h21_who_comes_first_without_membership_gets_nothing() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let layer = scene.secret_layer();
    scene.lay_trap();
    let gate = Gate::new();
    let trap = When::blob(&layer).repository("open/trap");
    // The registry takes its time to say that the trap has no such blob.
    scene
        .upstream
        .always(trap.clone(), Fault::status(404).hold(&gate, 0));
    let cache = scene.cache("    visibility: shared\n").await?;
    assert_eq!(at(&cache, "/v2/open/trap/manifests/v1").await.status, 200);
    let (address, path) = (cache.address(), format!("/v2/open/trap/blobs/{layer}"));
    let tasks = coral_schema::process::tasks::Tasks::new();
    let attacker = tasks.spawn("attacker", async move { get(address, &path, &[]).await });
    eventually("the trap is asked", async || {
        scene.upstream.requests(&trap) > 0
    })
    .await;
    let owner = pull(address, "team/secret", "v1");
    let opened = async {
        eventually("the owner came", async || {
            let manifest = When::kind(Kind::Manifest).repository("team/secret");
            scene.upstream.requests(&manifest) > 0
        })
        .await;
        gate.open();
    };
    let (pulled, ()) = tokio::join!(owner, opened);
    assert_eq!(pulled?.len(), 2, "the owner has its image");
    let got = attacker.await??;
    assert_ne!(got.status, 200);
    assert!(got.body.len() < 1000, "an error, not content");
    Ok(())
}

/// A manifest of a private repository is not readable by its digest elsewhere, either.
#[tokio::test(flavor = "multi_thread")]
async fn h20_manifests_belong_to_their_repositories() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let cache = scene.cache("    visibility: shared\n").await?;
    pull(cache.address(), "team/secret", "v1").await?;
    let path = format!("/v2/open/app/manifests/{}", scene.private.digest());
    assert_eq!(at(&cache, &path).await.status, 404);
    assert_eq!(head(cache.address(), &path, &[]).await?.status, 404);
    // Named as a child by a hostile index.
    let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
        { "mediaType": scene.private.manifest.media_type, "digest": scene.private.digest(), "size": scene.private.manifest.size() }
    ]});
    let index = Image::raw(media_type::OCI_INDEX, index.to_string());
    scene.upstream.publish("open/trap", "v1", &index);
    assert_eq!(at(&cache, "/v2/open/trap/manifests/v1").await.status, 200);
    let path = format!("/v2/open/trap/manifests/{}", scene.private.digest());
    assert_eq!(at(&cache, &path).await.status, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_shown_anywhere() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let encoded = BASE64_STANDARD.encode(format!("coral:{PASSWORD}"));
    let cache = scene.cache("    visibility: shared\n").await?;
    pull(cache.address(), "team/secret", "v1").await?;
    let proxy = format!("    proxy: http://coral:{PASSWORD}@127.0.0.1:9\n    visibility: shared\n");
    let proxied = scene.cache(&proxy).await?;
    scene.upstream.configure(|settings| {
        if let Auth::Bearer(bearer) = &mut settings.auth {
            bearer.logins.clear();
        }
    });
    scene.upstream.revoke_tokens();
    let mut shown = String::new();
    for cache in [&cache, &proxied] {
        for path in ["/v2/team/secret/manifests/new", "/v2/team/secret/tags/list"] {
            let got = at(cache, path).await;
            assert_ne!(got.status, 200);
            write!(shown, "{:?} {:?}", got.headers, got.body)?;
        }
        shown += &status(cache.admin()).await?.to_string();
        for path in ["/metrics", "/api/v1/registries", "/api/v1/images"] {
            let got = get(cache.admin(), path, &[]).await?;
            assert_eq!(got.status, 200);
            shown += &String::from_utf8_lossy(&got.body);
        }
        let loaded = config::load(Some(&cache.configuration()), &Overrides::default())?;
        write!(shown, "{:?}", loaded.config)?;
    }
    for secret in [PASSWORD, encoded.as_str(), "scripted-token"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert!(metric(cache.admin(), "coral_registry_upstream_requests_total").await? > 0.0);
    Ok(())
}
