//! What is hosted and what is not: nothing falls through, and nobody pushes who may not.

use bytes::Bytes;
use coral_integration_tests::ask::{code, head};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::images::Image;
use coral_integration_tests::pull::get;
use coral_integration_tests::push::{blob, image, manifest, send};
use coral_integration_tests::registry::configuration;
use coral_integration_tests::upstream::{Upstream, When};
use coral_schema::oci::Digest;
use http::Method;

use super::HOSTED;

/// H-23: a hosted name hides the same name upstream, also when it has nothing (dependency confusion).
#[tokio::test(flavor = "multi_thread")]
async fn h23_hosted_names_never_fall_through() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let theirs = Image::new(1, &[100]);
    upstream.publish("team/app", "v1", &theirs);
    upstream.publish("other/app", "v1", &theirs);
    let cache = Cache::start(&(configuration(&upstream, "") + HOSTED)).await?;
    let layer = theirs.layers()[0].digest;
    for path in [
        "team/app/manifests/v1".to_owned(),
        format!("team/app/manifests/{}", theirs.digest()),
        format!("team/app/blobs/{layer}"),
        "team/app/tags/list".to_owned(),
    ] {
        assert_eq!(
            get(cache.address(), &format!("/v2/{path}"), &[])
                .await?
                .status,
            404
        );
    }
    let referrers = format!("/v2/team/app/referrers/{}", theirs.digest());
    assert_eq!(get(cache.address(), &referrers, &[]).await?.status, 200);
    assert_eq!(upstream.requests(&When::any()), 0);

    let ours = Image::new(2, &[50]);
    image(cache.address(), "team/app", "v1", &ours).await?;
    let digest =
        |got: coral_integration_tests::pull::Got| got.header("docker-content-digest").to_owned();
    let hosted = get(cache.address(), "/v2/team/app/manifests/v1", &[]).await?;
    assert_eq!(digest(hosted), ours.digest().to_string());
    let named = "/v2/team/app/manifests/v1?ns=upstream.example";
    assert_eq!(
        digest(get(cache.address(), named, &[]).await?),
        theirs.digest().to_string()
    );
    let other = get(cache.address(), "/v2/other/app/manifests/v1", &[]).await?;
    assert_eq!(digest(other), theirs.digest().to_string());
    Ok(())
}

/// H-20: that the store has the bytes gives a hosted repository nothing, nor does its manifest give them to an upstream's.
#[tokio::test(flavor = "multi_thread")]
async fn h20_bytes_belong_to_those_who_brought_them() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let theirs = Image::new(1, &[100]);
    upstream.publish("other/app", "v1", &theirs);
    let cache = Cache::start(&(configuration(&upstream, "") + HOSTED)).await?;
    let layer = theirs.layers()[0].digest;
    let proxied = format!("/v2/other/app/blobs/{layer}");
    assert_eq!(get(cache.address(), &proxied, &[]).await?.status, 200);
    let bytes = theirs.manifest.content.read_all();
    let media_type = &theirs.manifest.media_type;
    manifest(cache.address(), ("team/app", "v1"), media_type, &bytes).await?;
    let hosted = format!("/v2/team/app/blobs/{layer}");
    assert_eq!(head(cache.address(), &hosted, &[]).await?.status, 404);

    let secret = blob(cache.address(), "team/secret", b"secret").await?;
    let stolen = format!("/v2/other/app/blobs/{secret}");
    assert_eq!(get(cache.address(), &stolen, &[]).await?.status, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn repositories_of_upstreams_take_nothing() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let cache = Cache::start(&(configuration(&upstream, "") + HOSTED)).await?;
    let digest = Digest::sha256(b"x");
    for (method, path) in [
        (Method::POST, "other/app/blobs/uploads/".to_owned()),
        (Method::PUT, "other/app/manifests/v1".to_owned()),
        (Method::DELETE, "other/app/manifests/v1".to_owned()),
        (
            Method::DELETE,
            format!("upstream.example/team/app/blobs/{digest}"),
        ),
    ] {
        let path = format!("/v2/{path}");
        let got = send(cache.address(), (method, &path), &[], b"{}").await?;
        assert_eq!((got.status, code(&got).as_str()), (405, "UNSUPPORTED"));
        assert_eq!(got.header("allow"), "GET, HEAD");
    }
    assert_eq!(upstream.requests(&When::any()), 0);
    Ok(())
}

/// Without `anonymousPush: true` nobody pushes: there are no users to push.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_pushes_without_being_asked_to() -> anyhow::Result<()> {
    let cache = Cache::start("hosted: [{ prefix: team }]\n").await?;
    let path = "/v2/team/app/blobs/uploads/";
    let got = send(cache.address(), (Method::POST, path), &[], b"").await?;
    assert_eq!((got.status, code(&got).as_str()), (403, "DENIED"));
    let bytes = Bytes::from_static(b"{}");
    let got = manifest(cache.address(), ("team/app", "v1"), "a/b", &bytes).await?;
    assert_eq!((got.status, code(&got).as_str()), (403, "DENIED"));
    assert!(cache.stored().is_empty());
    Ok(())
}

/// A client may name the registry that it means: us.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_address_as_ns_means_hosted() -> anyhow::Result<()> {
    let cache = Cache::start(&format!("address: cache.example:5000\n{HOSTED}")).await?;
    let digest = Digest::sha256(b"x");
    let path = "/v2/team/app/blobs/uploads/?ns=cache.example:5000";
    let got = send(cache.address(), (Method::POST, path), &[], b"").await?;
    assert_eq!(
        (got.status, got.header("oci-namespace")),
        (202, "cache.example:5000")
    );
    let ending = format!("{}&digest={digest}", got.header("location"));
    let got = send(cache.address(), (Method::PUT, &ending), &[], b"x").await?;
    assert_eq!(got.status, 201);
    assert_eq!(
        get(cache.address(), got.header("location"), &[])
            .await?
            .body,
        "x"
    );
    let got = get(
        cache.address(),
        "/v2/other/tags/list?ns=cache.example:5000",
        &[],
    )
    .await?;
    assert_eq!((got.status, code(&got).as_str()), (404, "NAME_UNKNOWN"));
    Ok(())
}
