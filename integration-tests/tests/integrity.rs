//! Promise 3, never wrong bytes: whatever the upstream sends, a client sees the right blob or an error, and the store
//! holds the right blob or nothing.

use coral_integration_tests::cache::Cache;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::{Blob, Image};
use coral_integration_tests::pull::{Got, eventually, get, pull};
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::{Fault, Gate, Kind, SignedUrls, Upstream, When};
use http::Method;

const REPOSITORY: &str = "team/app";
const SIZE: u64 = 600_000;

/// A registry before an upstream that has one blob.
struct Scene {
    upstream: Upstream,
    cache: Cache,
    blob: Blob,
}

impl Scene {
    async fn new(size: u64, more: &str) -> anyhow::Result<Self> {
        let upstream = Upstream::start().await?;
        let blob = Blob::layer(size, size);
        upstream.add_blob(REPOSITORY, &blob);
        let cache = Cache::start(&format!("{}{more}", configuration(&upstream, ""))).await?;
        Ok(Self {
            upstream,
            cache,
            blob,
        })
    }

    async fn get(&self, headers: &[(&str, &str)]) -> anyhow::Result<Got> {
        Ok(get(self.cache.address(), &path(&self.blob), headers).await?)
    }

    fn holds_blob(&self) -> bool {
        self.cache.stored().contains_key(&self.blob.digest)
    }

    /// The client has all of it, and so has the store, in the end.
    async fn assert_served(&self, got: &Got) {
        assert_eq!(got.status, 200);
        assert!(got.clean, "the body did not end as its head promised");
        assert!(got.body == self.blob.content.read_all(), "other bytes");
        eventually("the blob is stored", async || self.holds_blob()).await;
        self.assert_nothing_else().await;
    }

    /// The client cannot take it for the blob, and nothing of it stays.
    async fn assert_refused(&self, got: &Got) {
        assert!(
            got.is_refusal(),
            "the client believes {} bytes",
            got.body.len()
        );
        assert!(!self.holds_blob());
        self.assert_nothing_else().await;
    }

    async fn assert_nothing_else(&self) {
        self.cache.assert_sound();
        eventually("no part file", async || self.cache.parts().is_empty()).await;
    }

    fn blob_requests(&self) -> u64 {
        self.upstream
            .requests(&When::kind(Kind::Blob).method(Method::GET))
    }
}

fn path(blob: &Blob) -> String {
    format!("/v2/{REPOSITORY}/blobs/{}", blob.digest)
}

fn two_endpoints(first: &Upstream, second: &Upstream, more: &str) -> String {
    let (first, second) = (first.url(), second.url());
    format!(
        "upstreams:\n  {UPSTREAM_NAME}:\n    endpoints: [\"{first}\", \"{second}\"]\n    plainHttp: true\n{more}\n\
         defaultUpstream: {UPSTREAM_NAME}\n"
    )
}

#[rstest::rstest]
#[case::first_byte(0)]
#[case::middle(SIZE / 2)]
#[case::last_byte(SIZE - 1)]
#[tokio::test(flavor = "multi_thread")]
async fn h05_a_flipped_bit_is_an_error_and_poisons_its_source(
    #[case] at: u64,
) -> anyhow::Result<()> {
    let scene = Scene::new(SIZE, "").await?;
    scene
        .upstream
        .always(When::kind(Kind::Blob), Fault::new().flip_bit(at));
    let got = scene.get(&[]).await?;
    assert!(
        got.body.len() < usize::try_from(SIZE)?,
        "the last byte is held back"
    );
    scene.assert_refused(&got).await;

    let asked = scene.blob_requests();
    let again = scene.get(&[]).await?;
    assert_eq!((again.status, again.clean), (502, true), "refused at once");
    assert_eq!(
        scene.blob_requests(),
        asked,
        "the source is left alone for a while"
    );
    let failures = format!("verify_failures_total{{upstream=\"{UPSTREAM_NAME}\"}}");
    assert_eq!(scene.cache.metric(&failures).await?, Some(1.0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h05_after_wrong_bytes_the_next_endpoint_serves() -> anyhow::Result<()> {
    let (bad, good) = (Upstream::start().await?, Upstream::start().await?);
    let blob = Blob::layer(1, SIZE);
    bad.add_blob(REPOSITORY, &blob);
    good.add_blob(REPOSITORY, &blob);
    bad.always(When::kind(Kind::Blob), Fault::new().flip_bit(7));
    let cache = Cache::start(&two_endpoints(&bad, &good, "")).await?;
    let got = get(cache.address(), &path(&blob), &[]).await?;
    assert!(got.is_refusal());
    assert!(cache.stored().is_empty());
    let got = get(cache.address(), &path(&blob), &[]).await?;
    assert!(got.status == 200 && got.clean && got.body == blob.content.read_all());
    assert_eq!(bad.requests(&When::blob(&blob.digest)), 1);
    assert_eq!(good.requests(&When::blob(&blob.digest)), 1);
    cache.assert_sound();
    Ok(())
}

/// A blob of one byte and one of none have nothing to hold back but their heads.
#[rstest::rstest]
#[case(0)]
#[case(1)]
#[case(2)]
#[tokio::test(flavor = "multi_thread")]
async fn tiny_blobs_are_verified_too(#[case] size: u64) -> anyhow::Result<()> {
    let scene = Scene::new(size, "").await?;
    let wrong = Fault::new().body(vec![b'x'; usize::try_from(size.max(1))?]);
    scene.upstream.script(When::kind(Kind::Blob), [wrong]);
    match scene.get(&[]).await {
        Ok(got) => scene.assert_refused(&got).await,
        // With so little to send the connection may be cut before the head has left.
        Err(_) => assert!(!scene.holds_blob()),
    }
    Ok(())
}

#[rstest::rstest]
#[case::right(Fault::new(), 1)]
#[case::chunked(Fault::new().chunked(), 1)]
#[case::no_length(Fault::new().without_length(), 1)]
#[case::octets_behind_the_length(Fault::new().excess("more").declared_length(SIZE), 1)]
#[case::truncated(Fault::new().cut_after(100_000), 2)]
#[case::truncated_by_a_reset(Fault::new().reset_after(100_000), 2)]
#[case::truncated_at_once(Fault::new().cut_after(0), 2)]
#[case::chunked_and_truncated(Fault::new().chunked().cut_after(100_000), 2)]
#[tokio::test(flavor = "multi_thread")]
async fn h06_what_can_be_mended_is_served(
    #[case] fault: Fault,
    #[case] requests: u64,
) -> anyhow::Result<()> {
    let scene = Scene::new(SIZE, "").await?;
    scene.upstream.script(When::kind(Kind::Blob), [fault]);
    let got = scene.get(&[]).await?;
    scene.assert_served(&got).await;
    assert_eq!(scene.blob_requests(), requests);
    Ok(())
}

#[rstest::rstest]
#[case::says_less(Fault::new().declared_length(SIZE / 2))]
#[case::says_more(Fault::new().declared_length(SIZE + 1))]
#[case::is_longer(Fault::new().excess("more"))]
#[case::is_longer_and_chunked(Fault::new().excess("more").chunked())]
#[case::shorter_without_length(Fault::new().without_length().cut_after(100_000))]
#[case::html(Fault::html())]
#[case::h17_gzip(Fault::new().gzip())]
#[case::h18_to_link_local(Fault::redirect("http://169.254.169.254/latest/meta-data"))]
#[case::h18_to_another_scheme(Fault::redirect("ftp://127.0.0.1/blob"))]
#[tokio::test(flavor = "multi_thread")]
async fn h06_what_cannot_be_mended_is_refused(#[case] fault: Fault) -> anyhow::Result<()> {
    let scene = Scene::new(SIZE, "").await?;
    scene
        .upstream
        .always(When::kind(Kind::Blob).ranged(false), fault);
    let got = scene.get(&[]).await?;
    scene.assert_refused(&got).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h06_a_resumption_that_tells_another_length_is_not_used() -> anyhow::Result<()> {
    let scene = Scene::new(SIZE, "").await?;
    let other = format!("bytes 100000-{}/{}", SIZE - 1, SIZE + 1);
    let faults = [
        Fault::new().cut_after(100_000),
        Fault::new().header("content-range", &other),
    ];
    scene.upstream.script(When::kind(Kind::Blob), faults);
    let got = scene.get(&[]).await?;
    scene.assert_served(&got).await;
    assert_eq!(scene.blob_requests(), 3);
    Ok(())
}

/// Each connection ends after a while, and some ignore ranges.
#[tokio::test(flavor = "multi_thread")]
async fn broken_downloads_cost_no_byte_twice() -> anyhow::Result<()> {
    let scene = Scene::new(1 << 20, "").await?;
    scene
        .upstream
        .configure(|settings| settings.connection_bytes = Some(300_000));
    let got = scene.get(&[]).await?;
    scene.assert_served(&got).await;
    assert_eq!(scene.blob_requests(), 4);
    assert_eq!(scene.upstream.bytes(&When::kind(Kind::Blob)), 1 << 20);
    let ranges: Vec<_> = scene.upstream.seen(&When::kind(Kind::Blob));
    let ranges: Vec<_> = ranges.iter().map(|seen| seen.header("range")).collect();
    assert_eq!(
        ranges,
        ["", "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    );
    assert_eq!(
        scene.cache.metric("upstream_resumes_total").await?,
        Some(3.0)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_is_skipped_forward() -> anyhow::Result<()> {
    let scene = Scene::new(SIZE, "").await?;
    let faults = [Fault::new().cut_after(200_000), Fault::new().ignore_range()];
    scene.upstream.script(When::kind(Kind::Blob), faults);
    let got = scene.get(&[]).await?;
    scene.assert_served(&got).await;
    assert_eq!(
        scene.upstream.bytes(&When::kind(Kind::Blob)),
        SIZE + 200_000
    );
    Ok(())
}

#[rstest::rstest]
#[case::trickle(Fault::new().trickle(1000))]
#[case::stall(Fault::new().stall_at(100_000))]
#[tokio::test(flavor = "multi_thread")]
async fn h07_a_slow_endpoint_is_left_for_the_next(#[case] slow: Fault) -> anyhow::Result<()> {
    let (first, second) = (Upstream::start().await?, Upstream::start().await?);
    let blob = Blob::layer(2, SIZE);
    first.add_blob(REPOSITORY, &blob);
    second.add_blob(REPOSITORY, &blob);
    first.always(When::kind(Kind::Blob), slow);
    let more = "    timeouts: { stall: 500ms, minRate: 1Mi }\n";
    let cache = Cache::start(&two_endpoints(&first, &second, more)).await?;
    let got = get(cache.address(), &path(&blob), &[]).await?;
    assert!(got.status == 200 && got.clean && got.body == blob.content.read_all());
    assert_eq!(first.requests(&When::blob(&blob.digest)), 1);
    let resumed = second.seen(&When::blob(&blob.digest));
    assert_eq!(resumed.len(), 1);
    assert!(
        resumed[0].header("range").starts_with("bytes="),
        "what is here is not sent again"
    );
    cache.assert_sound();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h18_an_expired_url_is_asked_for_again_from_where_it_was() -> anyhow::Result<()> {
    let scene = Scene::new(SIZE, "").await?;
    let base = scene.upstream.cdn_url();
    let signed_urls = Some(SignedUrls { base, uses: 1 });
    scene
        .upstream
        .configure(|settings| settings.signed_urls = signed_urls);
    scene
        .upstream
        .script(When::kind(Kind::Signed), [Fault::new().cut_after(SIZE / 2)]);
    let got = scene.get(&[]).await?;
    scene.assert_served(&got).await;
    let signed = scene.upstream.seen(&When::kind(Kind::Signed));
    let signed: Vec<_> = signed
        .iter()
        .map(|s| (s.status, s.header("range")))
        .collect();
    let half = format!("bytes={}-", SIZE / 2);
    assert_eq!(signed, [(Some(200), ""), (Some(206), half.as_str())]);
    assert_eq!(scene.blob_requests(), 2, "each URL came from the registry");
    assert_eq!(scene.upstream.bytes(&When::kind(Kind::Signed)), SIZE);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h18_redirects_that_do_not_end_are_refused() -> anyhow::Result<()> {
    let scene = Scene::new(SIZE, "").await?;
    let here = path(&scene.blob);
    scene
        .upstream
        .always(When::kind(Kind::Blob), Fault::redirect(&here));
    scene.assert_refused(&scene.get(&[]).await?).await;
    assert!(scene.blob_requests() <= 6, "at most 5 hops");
    Ok(())
}

const FIVE: u64 = 5 << 20;
const TINY_STORE: &str = "store: { maxBytes: 1Mi }\n";

#[rstest::rstest]
#[case::right(Fault::new())]
#[case::chunked(Fault::new().chunked())]
#[case::broken(Fault::new().cut_after(3 << 20))]
#[tokio::test(flavor = "multi_thread")]
async fn h04_h08_a_full_store_does_not_fail_a_client(#[case] fault: Fault) -> anyhow::Result<()> {
    let scene = Scene::new(FIVE, TINY_STORE).await?;
    scene.upstream.script(When::kind(Kind::Blob), [fault]);
    let got = scene.get(&[]).await?;
    assert!(got.status == 200 && got.clean && got.body == scene.blob.content.read_all());
    assert!(!scene.holds_blob(), "it is larger than the store may be");
    scene.assert_nothing_else().await;
    Ok(())
}

/// Together they are more than there is room for, and nothing can be evicted: those that find no room are passed
/// through, and the alarm about it ends by itself.
#[tokio::test(flavor = "multi_thread")]
async fn h08_what_has_no_room_is_passed_through_until_there_is_room() -> anyhow::Result<()> {
    let scene = Scene::new(1000, TINY_STORE).await?;
    let blobs: Vec<_> = (0..6).map(|seed| Blob::layer(seed, 900_000)).collect();
    let gate = Gate::new();
    scene
        .upstream
        .always(When::kind(Kind::Blob), Fault::new().hold(&gate, 600_000));
    let mut pulls = Vec::new();
    for blob in &blobs {
        scene.upstream.add_blob(REPOSITORY, blob);
        let (address, path) = (scene.cache.address(), path(blob));
        pulls.push(async move { get(address, &path, &[]).await });
    }
    let pulls = futures::future::try_join_all(pulls);
    let alarm = async {
        eventually("an alarm", async || {
            matches!(scene.cache.metric("store_degraded").await, Ok(Some(1.0)))
        })
        .await;
        gate.open();
    };
    let (pulled, ()) = tokio::join!(pulls, alarm);
    for (got, blob) in pulled?.into_iter().zip(&blobs) {
        assert!(got.status == 200 && got.clean && got.body == blob.content.read_all());
    }
    scene.assert_nothing_else().await;
    eventually("the alarm ends without a pull", async || {
        matches!(scene.cache.metric("store_degraded").await, Ok(Some(0.0)))
    })
    .await;
    scene.assert_served(&scene.get(&[]).await?).await;
    Ok(())
}

#[rstest::rstest]
#[case::before_the_store_was_full(1000)]
#[case::after_it_was_full(3 << 20)]
#[case::last_byte(FIVE - 1)]
#[tokio::test(flavor = "multi_thread")]
async fn h04_h05_wrong_bytes_do_not_end_cleanly_when_the_store_is_full(
    #[case] at: u64,
) -> anyhow::Result<()> {
    let scene = Scene::new(FIVE, TINY_STORE).await?;
    scene
        .upstream
        .always(When::kind(Kind::Blob), Fault::new().flip_bit(at));
    scene.assert_refused(&scene.get(&[]).await?).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h38_a_get_that_fails_after_its_head_is_a_clean_error() -> anyhow::Result<()> {
    let scene = Scene::new(SIZE, "").await?;
    let image = Image::new(4, &[1000]);
    scene.upstream.publish(REPOSITORY, "v1", &image);
    let mut connection = Connection::open(scene.cache.address()).await?;
    let manifest = format!("/v2/{REPOSITORY}/manifests/v1");
    let mut reply = connection.get(&manifest, &[]).await?;
    connection.read_all(&mut reply).await?;
    let layer = &image.layers()[0];
    let head = connection.request(Method::HEAD, &path(layer), &[]).await?;
    assert_eq!((head.status, head.header("content-length")), (200, "1000"));
    assert_eq!(
        scene.upstream.requests(&When::kind(Kind::Blob)),
        0,
        "the manifest said it"
    );
    scene
        .upstream
        .always(When::kind(Kind::Blob), Fault::status(500));
    let got = get(scene.cache.address(), &path(layer), &[]).await?;
    assert_eq!((got.status, got.clean), (502, true));
    assert!(got.body.starts_with(b"{\"errors\":["));
    assert!(!scene.cache.stored().contains_key(&layer.digest));
    Ok(())
}

const LENGTH: u64 = 100_000;

#[rstest::rstest]
#[case::first("bytes=0-0", Some((0, 0)))]
#[case::some("bytes=10-29", Some((10, 29)))]
#[case::many("bytes=10-59999", Some((10, 59_999)))]
#[case::all("bytes=0-99999", Some((0, 99_999)))]
#[case::last("bytes=99999-99999", Some((99_999, 99_999)))]
#[case::beyond("bytes=99990-200000", Some((99_990, 99_999)))]
#[case::open("bytes=5-", Some((5, 99_999)))]
#[case::open_from_the_start("bytes=0-", Some((0, 99_999)))]
#[case::suffix("bytes=-7", Some((99_993, 99_999)))]
#[case::long_suffix("bytes=-200000", Some((0, 99_999)))]
#[case::other_unit("lines=0-1", None)]
#[case::malformed("bytes=a-b", None)]
#[tokio::test(flavor = "multi_thread")]
async fn ranges_have_the_right_bytes_cold_and_warm(
    #[case] range: &str,
    #[case] part: Option<(usize, usize)>,
) -> anyhow::Result<()> {
    let scene = Scene::new(LENGTH, "").await?;
    let layer = scene.blob.clone();
    // Known to belong to an image, as a lazy loader has it.
    let image = Image::with_layers("linux/amd64", vec![layer]);
    scene.upstream.publish(REPOSITORY, "v1", &image);
    let manifest = format!("/v2/{REPOSITORY}/manifests/v1");
    get(scene.cache.address(), &manifest, &[]).await?;
    let content = scene.blob.content.read_all();
    for warm in [false, true] {
        if warm {
            scene.assert_served(&scene.get(&[]).await?).await;
            scene.upstream.always(When::any(), Fault::status(500));
        }
        let got = scene.get(&[("range", range)]).await?;
        assert!(got.clean);
        let Some((first, last)) = part else {
            assert_eq!(got.status, 200, "ignored");
            assert!(got.body == content);
            continue;
        };
        assert_eq!(got.status, 206);
        let said = format!("bytes {first}-{last}/{LENGTH}");
        assert_eq!(got.header("content-range"), said);
        assert!(
            got.body == content[first..=last],
            "other bytes, warm: {warm}"
        );
    }
    scene.cache.assert_sound();
    Ok(())
}

/// What still arrives is served whole; what is held in parts.
#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_are_parts_of_what_is_held() -> anyhow::Result<()> {
    let scene = Scene::new(LENGTH, "").await?;
    let range = [("range", "bytes=0-1,5-6")];
    scene.assert_served(&scene.get(&range).await?).await;
    let got = scene.get(&range).await?;
    assert_eq!((got.status, got.clean), (206, true));
    let kind = got.header("content-type");
    assert!(
        kind.starts_with("multipart/byteranges; boundary="),
        "{kind}"
    );
    let content = scene.blob.content.read_all();
    for (place, part) in [("0-1", &content[..2]), ("5-6", &content[5..7])] {
        let mut part_of_body = format!("bytes {place}/{LENGTH}\r\n\r\n").into_bytes();
        part_of_body.extend_from_slice(part);
        let mut windows = got.body.windows(part_of_body.len());
        assert!(windows.any(|window| window == part_of_body), "{place}");
    }
    Ok(())
}

#[rstest::rstest]
#[case("bytes=100000-")]
#[case("bytes=100000-100001")]
#[case("bytes=-0")]
#[case("bytes=5-4")]
#[tokio::test(flavor = "multi_thread")]
async fn ranges_outside_are_refused_cold_and_warm(#[case] range: &str) -> anyhow::Result<()> {
    let scene = Scene::new(LENGTH, "").await?;
    for warm in [false, true] {
        if warm {
            scene.assert_served(&scene.get(&[]).await?).await;
        }
        let got = scene.get(&[("range", range)]).await?;
        assert_eq!((got.status, got.clean), (416, true), "warm: {warm}");
        assert_eq!(got.header("content-range"), format!("bytes */{LENGTH}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn far_ranges_pass_through_without_a_fill() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let image = Image::new(5, &[32 << 20]);
    upstream.publish(REPOSITORY, "v1", &image);
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    let manifest = format!("/v2/{REPOSITORY}/manifests/v1");
    get(cache.address(), &manifest, &[]).await?;
    let layer = &image.layers()[0];
    let (first, last) = (20 << 20, (20 << 20) + 65_535);
    let range = format!("bytes={first}-{last}");
    let got = get(cache.address(), &path(layer), &[("range", &range)]).await?;
    assert_eq!((got.status, got.clean), (206, true));
    let mut expected = layer.content.chunk(first, 65_536).to_vec();
    expected.extend_from_slice(
        &layer
            .content
            .chunk(first + expected.len() as u64, 65_536 - expected.len()),
    );
    assert!(got.body == expected);
    assert_eq!(
        upstream.bytes(&When::kind(Kind::Blob)),
        65_536,
        "exactly that range"
    );
    assert!(cache.parts().is_empty() && !cache.stored().contains_key(&layer.digest));
    let unverified = cache.metric("unverified_range_bytes_total").await?;
    assert_eq!(unverified, Some(65_536.0));
    // A whole pull later takes it all, once.
    pull(cache.address(), REPOSITORY, "v1").await?;
    assert_eq!(
        upstream.requests(&When::blob(&layer.digest).ranged(false)),
        1
    );
    cache.assert_sound();
    Ok(())
}
