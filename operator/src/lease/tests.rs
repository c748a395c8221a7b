//! Two candidates, one scripted API server, and a paused clock.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use rstest::rstest;

use super::*;

/// One Lease, as an API server keeps it.
#[derive(Clone, Default)]
struct Server {
    lease: Arc<Mutex<Option<Lease>>>,
    weather: Arc<AtomicU8>,
}

const FAIR: u8 = 0;
/// Requests are never answered.
const SILENT: u8 = 1;
/// Writes are done, but their answers get lost.
const DEAF: u8 = 2;

impl Server {
    fn candidate(&self, identity: &str) -> Candidate {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let client = Client::new(service, "coral");
        Candidate::new(
            Api::namespaced(client, "coral"),
            identity.to_owned(),
            Times::default(),
        )
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let weather = self.weather.load(Ordering::Relaxed);
        if weather == SILENT {
            std::future::pending::<()>().await;
        }
        let method = request.method().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let answer = self.execute(&method, &body);
        if weather == DEAF && method != Method::GET {
            std::future::pending::<()>().await;
        }
        match answer {
            Ok(lease) => respond(StatusCode::OK, serde_json::to_vec(&lease).unwrap()),
            Err(code) => {
                let status = kube::core::Status::failure("no", "No").with_code(code.as_u16());
                respond(code, serde_json::to_vec(&status).unwrap())
            }
        }
    }

    fn execute(&self, method: &Method, body: &[u8]) -> Result<Lease, StatusCode> {
        let mut stored = self.lease.lock().unwrap();
        if *method == Method::GET {
            return stored.clone().ok_or(StatusCode::NOT_FOUND);
        }
        let mut lease: Lease = serde_json::from_slice(body).unwrap();
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        let next = match &*stored {
            Some(_) if *method == Method::POST => return Err(StatusCode::CONFLICT),
            Some(stored) if version(stored) != version(&lease) => {
                return Err(StatusCode::CONFLICT);
            }
            None if *method == Method::PUT => return Err(StatusCode::NOT_FOUND),
            stored => stored
                .as_ref()
                .and_then(version)
                .map_or(1, |version| version.parse::<u64>().unwrap() + 1),
        };
        lease.metadata.resource_version = Some(next.to_string());
        *stored = Some(lease.clone());
        Ok(lease)
    }

    fn holder(&self) -> Option<String> {
        self.lease
            .lock()
            .unwrap()
            .as_ref()
            .and_then(holder)
            .cloned()
    }

    fn set(&self, weather: u8) {
        self.weather.store(weather, Ordering::Relaxed);
    }
}

fn respond(code: StatusCode, body: Vec<u8>) -> Response<Body> {
    Response::builder()
        .status(code)
        .body(Body::from(body))
        .unwrap()
}

const SOON: Duration = Duration::from_mins(1);

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    timeout(limit, future).await.ok()
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_other_follows_after_a_release() {
    let server = Server::default();
    let (first, second) = (server.candidate("first"), server.candidate("second"));
    let mut tenure = first.acquire().await;
    {
        // As long as it is renewed nobody else gets it.
        let keep = tenure.keep();
        tokio::pin!(keep);
        tokio::select! {
            lost = &mut keep => panic!("{lost:?}"),
            _ = second.acquire() => panic!("two hold the lease"),
            () = sleep(Duration::from_hours(1)) => {}
        }
    }
    tenure.release().await;
    let start = Instant::now();
    within(SOON, second.acquire()).await.unwrap();
    assert_eq!(server.holder().as_deref(), Some("second"));
    assert_eq!(start.elapsed(), Duration::ZERO, "released, not expired");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_vanished_is_followed_after_the_duration_on_our_clock() {
    let server = Server::default();
    drop(server.candidate("first").acquire().await);
    // The wall clock of the other may say anything.
    let future = "2100-01-01T00:00:00Z".parse().unwrap();
    if let Some(lease) = server.lease.lock().unwrap().as_mut() {
        lease.spec.as_mut().unwrap().renew_time = Some(MicroTime(future));
    }
    let start = Instant::now();
    server.candidate("second").acquire().await;
    let times = Times::default();
    assert!(start.elapsed() >= times.duration);
    assert!(start.elapsed() <= times.duration + times.retry);
}

#[tokio::test(start_paused = true)]
async fn work_stops_before_another_may_begin() {
    let server = Server::default();
    let (first, second) = (server.candidate("first"), server.candidate("second"));
    let mut tenure = first.acquire().await;
    // The holder is cut off from the server, the other is not: it sees nothing change.
    let silent = Server {
        lease: Arc::clone(&server.lease),
        weather: Arc::new(AtomicU8::new(SILENT)),
    };
    tenure.candidate.api = silent.candidate("first").api;
    let (stopped, began) = tokio::join!(
        async {
            let lost = tenure.keep().await;
            (lost, Instant::now())
        },
        async {
            second.acquire().await;
            Instant::now()
        },
    );
    assert_eq!(stopped.0, Lost::Expired);
    assert!(stopped.1 < began, "{stopped:?} {began:?}");
}

#[tokio::test(start_paused = true)]
async fn who_finds_another_holder_stops_at_once() {
    let server = Server::default();
    let mut tenure = server.candidate("first").acquire().await;
    if let Some(lease) = server.lease.lock().unwrap().as_mut() {
        lease.spec.as_mut().unwrap().holder_identity = Some("usurper".to_owned());
        lease.metadata.resource_version = Some("77".to_owned());
    }
    let start = Instant::now();
    assert_eq!(tenure.keep().await, Lost::Taken);
    assert_eq!(start.elapsed(), Times::default().retry);
}

#[tokio::test(start_paused = true)]
async fn who_seizes_it_waits_until_the_holder_has_stopped() {
    let server = Server::default();
    let (first, second) = (server.candidate("first"), server.candidate("second"));
    let mut running = first.acquire().await;
    let (lost, mut seized) = tokio::join!(running.keep(), second.seize());
    assert_eq!(lost, Lost::Taken);
    {
        let keep = seized.keep();
        tokio::pin!(keep);
        tokio::select! {
            lost = &mut keep => panic!("{lost:?}"),
            _ = first.acquire() => panic!("two hold the lease"),
            () = sleep(Duration::from_hours(1)) => {}
        }
    }
    // Nobody leads for a while afterwards.
    let start = Instant::now();
    seized.bar(SOON).await;
    first.acquire().await;
    assert!(start.elapsed() >= SOON);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_is_cut_off_has_stopped_when_its_lease_was_seized() {
    let server = Server::default();
    let mut cut_off = server.candidate("first").acquire().await;
    let silent = Server {
        lease: Arc::clone(&server.lease),
        weather: Arc::new(AtomicU8::new(SILENT)),
    };
    cut_off.candidate.api = silent.candidate("first").api;
    let second = server.candidate("second");
    let (stopped, began) = tokio::join!(
        async {
            let lost = cut_off.keep().await;
            (lost, Instant::now())
        },
        async {
            second.seize().await;
            Instant::now()
        },
    );
    assert_eq!(stopped.0, Lost::Expired);
    assert!(stopped.1 <= began, "{stopped:?} {began:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_does_not_lose_the_lease() {
    let server = Server::default();
    let mut tenure = server.candidate("first").acquire().await;
    server.set(DEAF);
    // The write arrives, its answer does not: the next one would collide with our own.
    assert!(tenure.renew().await.is_err());
    server.set(FAIR);
    assert!(tenure.renew().await.unwrap());
    assert!(tenure.renew().await.unwrap());
    *server.lease.lock().unwrap() = None;
    assert_eq!(tenure.keep().await, Lost::Taken);
}

#[tokio::test(start_paused = true)]
async fn of_two_that_write_at_once_one_wins() {
    let server = Server::default();
    let (first, second) = (server.candidate("first"), server.candidate("second"));
    let won = tokio::select! {
        tenure = first.acquire() => tenure,
        tenure = second.acquire() => tenure,
    };
    assert_eq!(server.holder().as_deref(), Some(&*won.candidate.identity));
}

fn lease(holder: Option<&str>, seconds: Option<i32>) -> Lease {
    Lease {
        metadata: ObjectMeta::default(),
        spec: Some(LeaseSpec {
            holder_identity: holder.map(ToOwned::to_owned),
            lease_duration_seconds: seconds,
            ..LeaseSpec::default()
        }),
    }
}

#[rstest]
#[case::absent(None, 0, true)]
#[case::released(Some(lease(None, Some(15))), 0, true)]
#[case::released_by_others(Some(lease(Some(""), Some(15))), 0, true)]
#[case::ours(Some(lease(Some("me"), Some(15))), 0, true)]
#[case::fresh(Some(lease(Some("other"), Some(15))), 14, false)]
#[case::expired(Some(lease(Some("other"), Some(15))), 15, true)]
#[case::longer(Some(lease(Some("other"), Some(60))), 59, false)]
#[case::nonsense(Some(lease(Some("other"), Some(-1))), 14, false)]
#[tokio::test(start_paused = true)]
async fn who_may_take_it(
    #[case] lease: Option<Lease>,
    #[case] unchanged_for: u64,
    #[case] expected: bool,
) {
    let since = Instant::now();
    let sighting = Sighting {
        version: Some("1".to_owned()),
        since,
    };
    let now = since + Duration::from_secs(unchanged_for);
    assert_eq!(may_take(lease.as_ref(), "me", &sighting, now), expected);
}

#[tokio::test(start_paused = true)]
async fn a_change_starts_the_wait_again() {
    let mut known = None;
    let start = Instant::now();
    let later = start + Duration::from_secs(9);
    assert_eq!(Sighting::update(&mut known, Some("1"), start).since, start);
    assert_eq!(Sighting::update(&mut known, Some("1"), later).since, start);
    assert_eq!(Sighting::update(&mut known, Some("2"), later).since, later);
}
