//! Each fault of the scripted upstream does what it says. A test that trusts a fault which does nothing passes for
//! the wrong reason; so these come first.

#![expect(
    clippy::unwrap_used,
    reason = "tests and their helpers fail by panicking"
)]

use std::io::ErrorKind;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use coral_integration_tests::chaos::Chaos;
use coral_integration_tests::client::{Connection, Reply};
use coral_integration_tests::images::{Blob, Image};
use coral_integration_tests::upstream::{
    Auth, Bearer, Fault, Gate, Kind, Login, SignedUrls, Upstream, When,
};
use coral_schema::oci::Digest;
use http::Method;
use tokio::time::timeout;

const REPOSITORY: &str = "library/test";

/// An upstream with one image of one layer, and a connection to it.
struct Scene {
    upstream: Upstream,
    image: Image,
    connection: Connection,
}

impl Scene {
    async fn new() -> Self {
        let upstream = Upstream::start().await.unwrap();
        let image = Image::new(1, &[SIZE]);
        upstream.publish(REPOSITORY, "1", &image);
        let connection = Connection::open(upstream.address()).await.unwrap();
        Self {
            upstream,
            image,
            connection,
        }
    }

    fn layer(&self) -> &Blob {
        &self.image.layers()[0]
    }

    fn path(&self) -> String {
        format!("/v2/{REPOSITORY}/blobs/{}", self.layer().digest)
    }

    /// The layer is asked for once with this fault.
    async fn with(&mut self, fault: Fault) -> Reply {
        let when = When::blob(&self.layer().digest);
        self.upstream.script(when, [fault]);
        self.get(&[]).await
    }

    async fn get(&mut self, headers: &[(&str, &str)]) -> Reply {
        let path = self.path();
        self.connection.get(&path, headers).await.unwrap()
    }

    /// Bytes until the body ended, and how it ended: `None` is a clean end.
    async fn read(&mut self, reply: &mut Reply) -> (Vec<u8>, Option<ErrorKind>) {
        let mut bytes = Vec::new();
        loop {
            match self.connection.chunk(reply).await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return (bytes, None),
                Err(error) => return (bytes, Some(error.kind())),
            }
        }
    }

    /// A right answer on a new connection: the fault is over.
    async fn is_right_again(&mut self) {
        self.connection = Connection::open(self.upstream.address()).await.unwrap();
        let mut reply = self.get(&[]).await;
        assert_eq!(reply.status, 200);
        let digest = self.connection.hash(&mut reply).await.unwrap();
        assert_eq!(digest, self.layer().digest);
    }
}

/// Not a multiple of anything.
const SIZE: u64 = (1 << 20) + 4321;

#[tokio::test]
async fn serves_an_image_by_tag_digest_and_range() {
    let mut scene = Scene::new().await;
    let path = format!("/v2/{REPOSITORY}/manifests/1");
    let mut reply = scene.connection.get(&path, &[]).await.unwrap();
    let digest = scene.image.digest().to_string();
    assert_eq!(reply.header("docker-content-digest"), digest);
    let etag = reply.header("etag").to_owned();
    let manifest = scene.connection.read_all(&mut reply).await.unwrap();
    assert_eq!(Digest::sha256(&manifest), scene.image.digest());
    let conditional = [("if-none-match", etag.as_str())];
    let reply = scene.connection.get(&path, &conditional).await.unwrap();
    assert_eq!(reply.status, 304);
    let reply = scene.connection.request(Method::HEAD, &path, &[]).await;
    assert_eq!(
        reply.unwrap().header("content-length"),
        manifest.len().to_string()
    );

    let mut reply = scene.get(&[("range", "bytes=1048570-1048589")]).await;
    assert_eq!(reply.status, 206);
    let range = format!("bytes 1048570-1048589/{SIZE}");
    assert_eq!(reply.header("content-range"), range);
    let part = scene.connection.read_all(&mut reply).await.unwrap();
    assert_eq!(part, scene.layer().content.read_all()[1_048_570..1_048_590]);
    let mut reply = scene.get(&[("range", "bytes=99999999-")]).await;
    assert_eq!(reply.status, 416);
    scene.connection.discard(&mut reply).await.unwrap();

    let blobs = When::kind(Kind::Blob);
    assert_eq!(scene.upstream.requests(&blobs.clone().ranged(true)), 2);
    assert_eq!(scene.upstream.connections(), 1);
    let manifests = When::kind(Kind::Manifest).method(Method::HEAD);
    assert_eq!(scene.upstream.requests(&manifests), 1);
    scene.upstream.reset_counters();
    scene.is_right_again().await;
    assert_eq!(scene.upstream.bytes(&blobs), SIZE);
}

#[tokio::test]
async fn status_sequences_are_used_up_in_order() {
    let mut scene = Scene::new().await;
    let when = When::blob(&scene.layer().digest);
    let limited = Fault::status(429).header("Retry-After", "7");
    let more = [401, 403, 404, 500].map(Fault::status);
    scene
        .upstream
        .script(when, [limited].into_iter().chain(more));
    let mut reply = scene.get(&[]).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, "7"));
    let body = scene.connection.read_all(&mut reply).await.unwrap();
    assert!(body.starts_with(b"{\"errors\""));
    for expected in [401, 403, 404, 500] {
        let mut reply = scene.get(&[]).await;
        assert_eq!(reply.status, expected);
        scene.connection.discard(&mut reply).await.unwrap();
    }
    scene.is_right_again().await;
}

#[tokio::test]
async fn silence_reads_the_request_and_says_nothing() {
    let mut scene = Scene::new().await;
    scene.upstream.always(When::any(), Fault::silence());
    let path = scene.path();
    let waiting = scene.connection.get(&path, &[]);
    assert!(timeout(Duration::from_millis(50), waiting).await.is_err());
    assert_eq!(scene.upstream.seen(&When::any())[0].status, None);
    scene.upstream.clear_faults();
    scene.is_right_again().await;
}

#[tokio::test]
async fn refusing_closes_the_port_and_accepting_opens_the_same_one() {
    let mut scene = Scene::new().await;
    scene.upstream.refuse().await;
    let error = Connection::open(scene.upstream.address())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(scene.connection.get("/v2/", &[]).await.is_err());
    scene.upstream.accept().await.unwrap();
    scene.is_right_again().await;
}

#[tokio::test]
async fn cuts_and_resets_end_the_body_where_they_say() {
    let mut scene = Scene::new().await;
    let mut reply = scene.with(Fault::new().cut_after(70_000)).await;
    let (bytes, end) = scene.read(&mut reply).await;
    assert_eq!((bytes.len(), end), (70_000, Some(ErrorKind::UnexpectedEof)));
    scene.is_right_again().await;

    let mut reply = scene.with(Fault::new().reset_after(70_000)).await;
    let (bytes, end) = scene.read(&mut reply).await;
    assert!(bytes.len() <= 70_000);
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
    scene.connection = Connection::open(scene.upstream.address()).await.unwrap();
    scene.upstream.always(When::any(), Fault::reset());
    let path = scene.path();
    let error = scene.connection.get(&path, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    scene.upstream.clear_faults();

    scene
        .upstream
        .configure(|settings| settings.connection_bytes = Some(SIZE + 100));
    scene.is_right_again().await;
    let mut reply = scene.get(&[]).await;
    let (bytes, end) = scene.read(&mut reply).await;
    assert_eq!((bytes.len(), end), (100, Some(ErrorKind::UnexpectedEof)));
}

#[tokio::test]
async fn a_trickle_is_slow_and_a_stall_says_nothing_more() {
    let mut scene = Scene::new().await;
    let mut reply = scene.with(Fault::new().trickle(1)).await;
    let second = async {
        let first = scene.connection.chunk(&mut reply).await.unwrap().unwrap();
        assert_eq!(first.len(), 1);
        scene.connection.chunk(&mut reply).await
    };
    assert!(timeout(Duration::from_millis(1500), second).await.is_err());

    scene.is_right_again().await;
    let mut reply = scene.with(Fault::new().stall_at(5000)).await;
    let mut received = 0;
    while received < 5000 {
        let chunk = scene.connection.chunk(&mut reply).await.unwrap().unwrap();
        received += chunk.len();
    }
    assert_eq!(received, 5000);
    let more = scene.connection.chunk(&mut reply);
    assert!(timeout(Duration::from_millis(50), more).await.is_err());
}

#[tokio::test]
async fn one_bit_is_wrong_where_it_was_said_also_in_a_range() {
    let mut scene = Scene::new().await;
    let right = scene.layer().content.read_all();
    for offset in [0, SIZE / 2, SIZE - 1] {
        let mut reply = scene.with(Fault::new().flip_bit(offset)).await;
        let (bytes, end) = scene.read(&mut reply).await;
        assert_eq!((bytes.len(), end), (right.len(), None));
        let different = bytes
            .iter()
            .zip(&right)
            .enumerate()
            .filter(|(_, (a, b))| a != b);
        let different: Vec<_> = different.map(|(at, (a, b))| (at as u64, a ^ b)).collect();
        assert_eq!(different, [(offset, 1)]);
    }
    let when = When::kind(Kind::Blob).ranged(true);
    scene.upstream.script(when, [Fault::new().flip_bit(1001)]);
    let mut reply = scene.get(&[("range", "bytes=1000-1002")]).await;
    let (bytes, _) = scene.read(&mut reply).await;
    assert_eq!(bytes, [right[1000], right[1001] ^ 1, right[1002]]);
}

#[tokio::test]
async fn lengths_are_wrong_missing_too_long_or_chunked() {
    let mut scene = Scene::new().await;
    let size = usize::try_from(SIZE).unwrap();
    let mut reply = scene.with(Fault::new().declared_length(SIZE + 10)).await;
    assert_eq!(
        scene.read(&mut reply).await.1,
        Some(ErrorKind::UnexpectedEof)
    );
    scene.is_right_again().await;

    let mut reply = scene.with(Fault::new().declared_length(10)).await;
    assert_eq!(scene.read(&mut reply).await.0.len(), 10);
    scene.is_right_again().await;

    let mut reply = scene.with(Fault::new().without_length()).await;
    assert_eq!(reply.header("content-length"), "");
    assert_eq!(scene.read(&mut reply).await.0.len(), size);
    scene.is_right_again().await;

    let mut reply = scene.with(Fault::new().chunked()).await;
    assert_eq!(reply.header("transfer-encoding"), "chunked");
    let digest = scene.connection.hash(&mut reply).await.unwrap();
    assert_eq!(digest, scene.layer().digest);

    let mut reply = scene.with(Fault::new().excess("more")).await;
    assert_eq!(reply.header("content-length"), (SIZE + 4).to_string());
    let (bytes, end) = scene.read(&mut reply).await;
    assert!(end.is_none() && bytes.ends_with(b"more"));
    scene.is_right_again().await;
}

#[tokio::test]
async fn pages_for_people_and_coded_replies() {
    let mut scene = Scene::new().await;
    let mut reply = scene.with(Fault::html()).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/html; charset=utf-8");
    assert!(scene.read(&mut reply).await.0.starts_with(b"<!doctype"));

    let mut reply = scene.with(Fault::new().gzip()).await;
    assert_eq!(reply.header("content-encoding"), "gzip");
    let coded = scene.read(&mut reply).await.0;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("coded");
    std::fs::write(&file, coded).unwrap();
    let decoded = tokio::process::Command::new("gzip")
        .arg("-dc")
        .arg(file)
        .output()
        .await
        .unwrap();
    assert!(decoded.status.success());
    assert_eq!(Digest::sha256(&decoded.stdout), scene.layer().digest);
}

#[tokio::test]
async fn redirects_go_anywhere_and_signed_urls_expire() {
    let mut scene = Scene::new().await;
    let elsewhere = "http://169.254.169.254/latest/meta-data";
    let reply = scene.with(Fault::redirect(elsewhere)).await;
    assert_eq!((reply.status, reply.header("location")), (307, elsewhere));

    let base = scene.upstream.cdn_url();
    let signed_urls = Some(SignedUrls {
        base: base.clone(),
        uses: 1,
    });
    scene
        .upstream
        .configure(|settings| settings.signed_urls = signed_urls);
    let reply = scene.get(&[]).await;
    let signed = reply
        .header("location")
        .strip_prefix(&base)
        .unwrap()
        .to_owned();
    let cdn = base.strip_prefix("http://").unwrap().parse().unwrap();
    let mut cdn = Connection::open(cdn).await.unwrap();
    let mut refused = cdn
        .get(&signed, &[("authorization", "Bearer x")])
        .await
        .unwrap();
    assert_eq!(refused.status, 400);
    cdn.discard(&mut refused).await.unwrap();
    let mut reply = cdn.get(&signed, &[]).await.unwrap();
    assert_eq!(cdn.hash(&mut reply).await.unwrap(), scene.layer().digest);
    assert_eq!(cdn.get(&signed, &[]).await.unwrap().status, 403);
    let leaked = scene.upstream.seen(&When::kind(Kind::Signed));
    assert_eq!(leaked[0].header("authorization"), "Bearer x");
}

#[tokio::test]
async fn an_upstream_may_ignore_ranges() {
    let mut scene = Scene::new().await;
    let when = When::blob(&scene.layer().digest);
    scene.upstream.script(when, [Fault::new().ignore_range()]);
    let mut reply = scene.get(&[("range", "bytes=10-19")]).await;
    assert_eq!(reply.status, 200);
    assert_eq!(scene.connection.discard(&mut reply).await.unwrap(), SIZE);
    let mut reply = scene.get(&[("range", "bytes=10-19")]).await;
    assert_eq!(reply.status, 206);
    scene.connection.discard(&mut reply).await.unwrap();
    scene.upstream.configure(|settings| settings.ranges = false);
    assert_eq!(scene.get(&[("range", "bytes=10-19")]).await.status, 200);
}

#[tokio::test]
async fn a_gate_holds_the_rest_back_until_it_opens() {
    let mut scene = Scene::new().await;
    let gate = Gate::new();
    let mut reply = scene.with(Fault::new().hold(&gate, 3000)).await;
    gate.reached(1).await;
    let mut received = 0;
    while received < 3000 {
        received += scene
            .connection
            .chunk(&mut reply)
            .await
            .unwrap()
            .unwrap()
            .len();
    }
    assert_eq!(received, 3000);
    assert_eq!(scene.upstream.bytes(&When::kind(Kind::Blob)), 3000);
    gate.open();
    assert_eq!(
        scene.connection.discard(&mut reply).await.unwrap(),
        SIZE - 3000
    );
}

#[tokio::test]
async fn tokens_are_asked_for_scoped_counted_and_revoked() {
    let mut scene = Scene::new().await;
    scene.upstream.configure(|settings| {
        settings.auth = Auth::Bearer(Bearer {
            logins: vec![Login::new("robot", "secret")],
            private: vec!["library/private".to_owned()],
            ..Bearer::default()
        });
    });
    let mut reply = scene.get(&[]).await;
    assert_eq!(reply.status, 401);
    let url = scene.upstream.url();
    assert_eq!(
        reply.header("www-authenticate"),
        format!(
            "Bearer realm=\"{url}/token\",service=\"scripted\",scope=\"repository:{REPOSITORY}:pull\""
        )
    );
    scene.connection.discard(&mut reply).await.unwrap();
    let issued = token(&mut scene, REPOSITORY, None).await.unwrap();
    let bearer = format!("Bearer {issued}");
    assert_eq!(blob_status(&mut scene, &bearer).await, 200);
    assert_eq!(scene.upstream.requests(&When::kind(Kind::Token)), 1);

    let foreign = token_for(&mut scene, "library/other", None).await;
    assert_eq!(blob_status(&mut scene, &foreign).await, 401);
    let private = "/v2/library/private/manifests/1";
    let token_without_login = token_for(&mut scene, "library/private", None).await;
    let headers = [("authorization", token_without_login.as_str())];
    let mut reply = scene.connection.get(private, &headers).await.unwrap();
    assert_eq!(reply.status, 401);
    scene.connection.discard(&mut reply).await.unwrap();
    let with_login = token_for(&mut scene, "library/private", Some("robot:secret")).await;
    let headers = [("authorization", with_login.as_str())];
    let mut reply = scene.connection.get(private, &headers).await.unwrap();
    assert_eq!(reply.status, 404);
    scene.connection.discard(&mut reply).await.unwrap();
    assert!(
        token(&mut scene, REPOSITORY, Some("robot:wrong"))
            .await
            .is_none()
    );

    scene.upstream.revoke_tokens();
    assert_eq!(blob_status(&mut scene, &bearer).await, 401);
}

async fn blob_status(scene: &mut Scene, authorization: &str) -> u16 {
    let mut reply = scene.get(&[("authorization", authorization)]).await;
    scene.connection.discard(&mut reply).await.unwrap();
    reply.status
}

async fn token_for(scene: &mut Scene, repository: &str, login: Option<&str>) -> String {
    format!("Bearer {}", token(scene, repository, login).await.unwrap())
}

async fn token(scene: &mut Scene, repository: &str, login: Option<&str>) -> Option<String> {
    let path = format!("/token?service=scripted&scope=repository:{repository}:pull");
    let basic = login.map(|login| format!("Basic {}", BASE64_STANDARD.encode(login)));
    let headers: Vec<_> = basic
        .iter()
        .map(|basic| ("authorization", basic.as_str()))
        .collect();
    let mut reply = scene.connection.get(&path, &headers).await.unwrap();
    let body = scene.connection.read_all(&mut reply).await.unwrap();
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    json["token"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn basic_logins_are_asked_for() {
    let mut scene = Scene::new().await;
    let logins = vec![Login::new("robot", "secret")];
    scene
        .upstream
        .configure(|settings| settings.auth = Auth::Basic(logins));
    let mut reply = scene.get(&[]).await;
    assert_eq!(reply.status, 401);
    assert_eq!(reply.header("www-authenticate"), "Basic realm=\"scripted\"");
    scene.connection.discard(&mut reply).await.unwrap();
    let right = format!("Basic {}", BASE64_STANDARD.encode("robot:secret"));
    assert_eq!(blob_status(&mut scene, &right).await, 200);
    let wrong = format!("Basic {}", BASE64_STANDARD.encode("robot:guess"));
    assert_eq!(blob_status(&mut scene, &wrong).await, 401);
}

#[tokio::test]
async fn tags_move_with_each_request_and_lists_have_pages() {
    let mut scene = Scene::new().await;
    let other = Image::new(2, &[10]);
    scene.upstream.add(REPOSITORY, &other);
    let both = [scene.image.digest(), other.digest()];
    scene.upstream.tag(REPOSITORY, "moving", both);
    for expected in [both[0], both[1], both[0]] {
        let path = format!("/v2/{REPOSITORY}/manifests/moving");
        let reply = scene
            .connection
            .request(Method::HEAD, &path, &[])
            .await
            .unwrap();
        assert_eq!(reply.header("docker-content-digest"), expected.to_string());
    }
    let path = format!("/v2/{REPOSITORY}/tags/list?n=1");
    let mut reply = scene.connection.get(&path, &[]).await.unwrap();
    let link = reply.header("link");
    assert_eq!(
        link,
        format!("</v2/{REPOSITORY}/tags/list?n=1&last=1>; rel=\"next\"")
    );
    let body = scene.connection.read_all(&mut reply).await.unwrap();
    assert_eq!(
        body,
        format!("{{\"name\":\"{REPOSITORY}\",\"tags\":[\"1\"]}}")
    );
    let path = format!("/v2/{REPOSITORY}/tags/list?n=1&last=1");
    let reply = scene.connection.get(&path, &[]).await.unwrap();
    assert_eq!(reply.header("link"), "");
}

#[tokio::test]
async fn referrers_may_be_asked_for_or_not() {
    let mut scene = Scene::new().await;
    let signature = Image::referrer(3, &scene.image.manifest, "application/example");
    scene.upstream.add(REPOSITORY, &signature);
    let path = format!("/v2/{REPOSITORY}/referrers/{}", scene.image.digest());
    let mut reply = scene.connection.get(&path, &[]).await.unwrap();
    let body = scene.connection.read_all(&mut reply).await.unwrap();
    let index: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        index["manifests"][0]["digest"],
        signature.digest().to_string()
    );
    let filtered = format!("{path}?artifactType=application/other");
    let mut reply = scene.connection.get(&filtered, &[]).await.unwrap();
    assert_eq!(reply.header("oci-filters-applied"), "artifactType");
    let body = scene.connection.read_all(&mut reply).await.unwrap();
    let index: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 0);
    scene
        .upstream
        .configure(|settings| settings.referrers = false);
    assert_eq!(scene.connection.get(&path, &[]).await.unwrap().status, 404);
}

#[tokio::test]
async fn tls_is_trusted_only_with_its_own_authority() {
    let upstream = Upstream::start_tls().await.unwrap();
    let image = Image::new(1, &[SIZE]);
    upstream.publish(REPOSITORY, "1", &image);
    let layer = &image.layers()[0];
    let url = format!("{}/v2/{REPOSITORY}/blobs/{}", upstream.url(), layer.digest);
    let ca = reqwest::Certificate::from_pem(upstream.ca_pem().unwrap().as_bytes()).unwrap();
    let trusting = reqwest::Client::builder()
        .tls_certs_only([ca])
        .no_proxy()
        .build();
    let body = trusting.unwrap().get(&url).send().await.unwrap();
    let body = body.bytes().await.unwrap();
    assert_eq!(Digest::sha256(&body), layer.digest);
    let strange = Upstream::start_tls().await.unwrap();
    let ca = reqwest::Certificate::from_pem(strange.ca_pem().unwrap().as_bytes()).unwrap();
    let strange = reqwest::Client::builder()
        .tls_certs_only([ca])
        .no_proxy()
        .build();
    assert!(
        strange
            .unwrap()
            .get(&url)
            .send()
            .await
            .unwrap_err()
            .is_connect()
    );
}

#[tokio::test]
async fn distance_and_bandwidth_take_at_least_their_time() {
    let mut scene = Scene::new().await;
    scene.upstream.configure(|settings| {
        settings.rtt = Duration::from_millis(40);
        settings.bandwidth = Some(10 * SIZE);
    });
    let start = tokio::time::Instant::now();
    let mut reply = scene.get(&[]).await;
    assert!(start.elapsed() >= Duration::from_millis(40));
    scene.connection.discard(&mut reply).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(140));
}

#[tokio::test]
async fn a_wire_is_cut_stalled_refused_and_restored() {
    let mut scene = Scene::new().await;
    let chaos = Chaos::start(scene.upstream.address()).await.unwrap();
    scene.connection = Connection::open(chaos.address()).await.unwrap();
    let gate = Gate::new();
    let mut reply = scene.with(Fault::new().hold(&gate, 3000)).await;
    gate.reached(1).await;
    chaos.cut();
    assert_eq!(
        scene.read(&mut reply).await.1,
        Some(ErrorKind::ConnectionReset)
    );

    chaos.stall();
    scene.connection = Connection::open(chaos.address()).await.unwrap();
    let path = scene.path();
    let waiting = scene.connection.get(&path, &[]);
    assert!(timeout(Duration::from_millis(50), waiting).await.is_err());
    chaos.refuse();
    assert!(scene.connection.get(&path, &[]).await.is_err());
    chaos.restore();
    scene.connection = Connection::open(chaos.address()).await.unwrap();
    let mut reply = scene.get(&[]).await;
    let digest = scene.connection.hash(&mut reply).await.unwrap();
    assert_eq!(digest, scene.layer().digest);
    assert_eq!(chaos.connections(), 3);
    assert!(chaos.downstream_bytes() > SIZE);
}
