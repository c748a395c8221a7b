//! Probes and metrics: `/livez`, `/readyz` and `/metrics` of the admin listener.
//!
//! Live means: restarting would not help. Ready means: send clients here. Neither asks an upstream, a disk or another
//! process, so a fault outside never restarts a program that works.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep};

use super::tasks::Tasks;
use super::{LIVEZ, METRICS, READYZ};

/// Without a beat for this long a part counts as stuck.
const STUCK_AFTER: Duration = Duration::from_mins(1);
/// Between two beats of the event loop.
const BEAT: Duration = Duration::from_secs(5);

/// What the probes look at. Filled while the parts are built, then served by [`router`].
#[derive(Debug, Default)]
pub struct Health {
    live: Vec<Check>,
    ready: Vec<Check>,
}

impl Health {
    /// Live and ready until something is added.
    pub fn new() -> Self {
        Self::default()
    }

    /// Not live while `check` says false.
    pub fn live_while(
        &mut self,
        name: &'static str,
        check: impl Fn() -> bool + Send + Sync + 'static,
    ) {
        self.live.push(Check::new(name, check));
    }

    /// Not ready while `check` says false.
    pub fn ready_while(
        &mut self,
        name: &'static str,
        check: impl Fn() -> bool + Send + Sync + 'static,
    ) {
        self.ready.push(Check::new(name, check));
    }

    /// Not ready while this latch is closed, as it is at first.
    pub fn latch(&mut self, name: &'static str) -> Latch {
        let latch = Latch::default();
        let seen = latch.clone();
        self.ready_while(name, move || seen.is_open());
        latch
    }

    /// Not live when this heart was silent for 60 s. For threads and loops that nothing else watches.
    pub fn heartbeat(&mut self, name: &'static str) -> Heartbeat {
        let heart = Heartbeat::new();
        let seen = heart.clone();
        self.live_while(name, move || seen.silence() < STUCK_AFTER);
        heart
    }

    /// Not live when the event loop did not get round to a task of its own for 60 s.
    pub fn watch_event_loop(&mut self, tasks: &Tasks) {
        let heart = self.heartbeat("event loop");
        let stopping = tasks.stopping();
        tasks.spawn("heartbeat", async move {
            let beats = async {
                loop {
                    heart.beat();
                    sleep(BEAT).await;
                }
            };
            stopping.run_until_cancelled(beats).await
        });
    }

    /// The names of what keeps this process from being ready; none when it is.
    pub fn not_ready(&self) -> Vec<&'static str> {
        failing(&self.ready)
    }
}

/// Opened when a part is ready, closed when it is not any more. Clones are one latch.
#[derive(Debug, Clone, Default)]
pub struct Latch(Arc<AtomicBool>);

impl Latch {
    /// Ready.
    pub fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Not ready.
    pub fn close(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Is it ready?
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Beaten by whoever makes progress. Clones are one heart.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    start: Instant,
    /// Of the last beat, milliseconds after `start`.
    last: Arc<AtomicU64>,
}

impl Heartbeat {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last: Arc::default(),
        }
    }

    /// Progress was made.
    pub fn beat(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Serves the probes over `health`, and the metrics of `registry`.
pub fn router(health: Arc<Health>, registry: Arc<Registry>) -> Router {
    Router::new()
        .route(
            LIVEZ,
            get(|State(health): State<Arc<Health>>| async move { verdict(&failing(&health.live)) }),
        )
        .route(
            READYZ,
            get(|State(health): State<Arc<Health>>| async move { verdict(&health.not_ready()) }),
        )
        .with_state(health)
        .route(METRICS, get(|| async move { metrics(&registry) }))
}

fn verdict(failing: &[&str]) -> Response {
    if failing.is_empty() {
        "ok\n".into_response()
    } else {
        let text = format!("not yet, or not any more: {}\n", failing.join(", "));
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

fn metrics(registry: &Registry) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

struct Check {
    name: &'static str,
    passes: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Check {
    fn new(name: &'static str, passes: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            name,
            passes: Box::new(passes),
        }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

fn failing(checks: &[Check]) -> Vec<&'static str> {
    checks
        .iter()
        .filter(|check| !(check.passes)())
        .map(|check| check.name)
        .collect()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt as _;

    use super::*;

    async fn get(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ready_when_every_latch_is_open() {
        let mut health = Health::new();
        let index = health.latch("index");
        let listeners = health.latch("listeners");
        let router = router(Arc::new(health), Arc::default());
        index.open();
        let (status, text) = get(&router, READYZ).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("listeners") && !text.contains("index"));
        listeners.open();
        assert_eq!(get(&router, READYZ).await.0, StatusCode::OK);
        listeners.close();
        assert_eq!(
            get(&router, READYZ).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(get(&router, LIVEZ).await.0, StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn dead_after_sixty_seconds_without_progress() {
        let tasks = Tasks::new();
        let mut health = Health::new();
        health.watch_event_loop(&tasks);
        let index = health.heartbeat("index");
        let router = router(Arc::new(health), Arc::default());
        sleep(Duration::from_secs(59)).await;
        assert_eq!(get(&router, LIVEZ).await.0, StatusCode::OK);
        index.beat();
        sleep(Duration::from_secs(59)).await;
        assert_eq!(get(&router, LIVEZ).await.0, StatusCode::OK);
        sleep(Duration::from_secs(2)).await;
        let (status, text) = get(&router, LIVEZ).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("index") && !text.contains("event loop"));
        assert!(tasks.stop(Duration::from_secs(1)).await);
    }

    #[tokio::test]
    async fn metrics_are_open_metrics_text() {
        let mut registry = Registry::default();
        let requests = Counter::<u64>::default();
        registry.register("requests", "Requests", requests.clone());
        requests.inc();
        let router = router(Arc::new(Health::new()), Arc::new(registry));
        let (status, text) = get(&router, METRICS).await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("\nrequests_total 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
