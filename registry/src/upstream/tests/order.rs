//! Which endpoint is asked when, and which failure is told.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use super::*;
use crate::upstream::failover::{Answer, Failure, first};

/// An endpoint that is never asked itself: the tests' operation looks at its name.
#[derive(Debug)]
struct Named {
    name: &'static str,
}

impl Endpoint for Named {
    fn url(&self) -> &str {
        self.name
    }
    fn available(&self) -> Result<(), Duration> {
        match self.name {
            "open" => Err(LONG),
            _ => Ok(()),
        }
    }
    fn responsive(&self) -> bool {
        !matches!(self.name, "silent" | "open")
    }
    fn credential_id(&self, _: &RepositoryName) -> CredentialId {
        unreachable!()
    }
    fn status(&self) -> EndpointStatus {
        unreachable!()
    }
    fn head_manifest<'a>(
        &'a self,
        _: Call,
        _: &'a RepositoryName,
        _: &'a ManifestRef,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Checked, UpstreamError>> {
        unreachable!()
    }
    fn manifest<'a>(
        &'a self,
        _: Call,
        _: &'a RepositoryName,
        _: &'a ManifestRef,
        _: u64,
    ) -> BoxFuture<'a, Result<FetchedManifest, UpstreamError>> {
        unreachable!()
    }
    fn head_blob<'a>(
        &'a self,
        _: Call,
        _: &'a RepositoryName,
        _: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<u64>, UpstreamError>> {
        unreachable!()
    }
    fn blob<'a>(
        &'a self,
        _: BlobCall,
        _: &'a RepositoryName,
        _: &'a Digest,
        _: Option<ByteRange>,
    ) -> BoxFuture<'a, Result<BlobStream, UpstreamError>> {
        unreachable!()
    }
    fn tags<'a>(
        &'a self,
        _: Call,
        _: &'a RepositoryName,
        _: Option<usize>,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Page<String>, UpstreamError>> {
        unreachable!()
    }
    fn referrers<'a>(
        &'a self,
        _: Call,
        _: &'a RepositoryName,
        _: &'a Digest,
        _: u64,
    ) -> BoxFuture<'a, Result<Page<serde_json::Value>, UpstreamError>> {
        unreachable!()
    }
}

/// `good` answers at once, `missing` says 404, `slow` answers after 5 s, `dead` and `open`, whose
/// breaker is open, fail at once, `silent` never answers.
async fn ask(names: &[&'static str], only_ready: bool) -> Result<Answer<()>, Failure> {
    let fake = |name: &&'static str| -> Arc<dyn Endpoint> { Arc::new(Named { name }) };
    let config = config("http://unused.example");
    let upstream = Upstream {
        name: config.name,
        endpoints: names.iter().map(fake).collect(),
        timeouts: config.timeouts,
        policy: config.policy,
    };
    first(&upstream, only_ready, |endpoint| {
        operation(endpoint.url()).boxed()
    })
    .await
}

async fn operation(name: &str) -> Result<(), UpstreamError> {
    match name {
        "good" => Ok(()),
        "missing" => Err(failed(UpstreamErrorKind::NotFound)),
        "dead" | "open" => Err(failed(UpstreamErrorKind::Status(502))),
        "slow" => {
            sleep(Duration::from_secs(5)).await;
            Ok(())
        }
        _ => std::future::pending().await,
    }
}

fn failed(kind: UpstreamErrorKind) -> UpstreamError {
    UpstreamError {
        endpoint: "test".into(),
        kind,
    }
}

#[rstest::rstest]
#[case(&["good", "good"], 0, 0, true)]
#[case(&["open", "good"], 1, 0, true)]
#[case(&["dead", "good"], 1, 0, false)]
#[case(&["open", "dead", "good"], 2, 0, false)]
#[case(&["missing", "good"], 1, 0, false)]
#[case(&["silent", "good"], 1, 3, false)]
#[case(&["silent", "silent", "good"], 2, 6, false)]
#[case(&["slow", "silent"], 0, 5, true)]
#[case(&["slow", "dead", "good"], 2, 3, false)]
#[tokio::test(start_paused = true)]
async fn asks_in_order(
    #[case] names: &[&'static str],
    #[case] winner: usize,
    #[case] seconds: u64,
    #[case] first_healthy: bool,
) {
    let start = Instant::now();
    let answer = ask(names, false).await.unwrap();
    assert_eq!(
        (answer.endpoint, answer.first_healthy),
        (winner, first_healthy)
    );
    assert_eq!(start.elapsed().as_secs(), seconds);
}

#[tokio::test(start_paused = true)]
async fn h11_who_holds_a_stale_answer_waits_for_nobody_silent() {
    assert_eq!(ask(&["silent", "good"], true).await.unwrap().endpoint, 1);
    let failure = ask(&["silent"], true).await.unwrap_err();
    assert!(matches!(
        failure.telling.kind,
        UpstreamErrorKind::BreakerOpen { .. }
    ));
}

#[rstest::rstest]
#[case(&[UpstreamErrorKind::NotFound, UpstreamErrorKind::NotFound], 0)]
#[case(&[UpstreamErrorKind::NotFound, UpstreamErrorKind::Timeout("x")], 1)]
#[case(&[UpstreamErrorKind::Connection("x".into()), UpstreamErrorKind::NotFound], 0)]
#[case(&[UpstreamErrorKind::NotFound, UpstreamErrorKind::Refused { status: 403 }], 1)]
#[case(&[UpstreamErrorKind::Refused { status: 403 }, UpstreamErrorKind::BreakerOpen { retry_after: LONG }], 1)]
#[case(&[UpstreamErrorKind::Timeout("x"), UpstreamErrorKind::RateLimited { retry_after: None }], 1)]
#[case(&[UpstreamErrorKind::Status(500), UpstreamErrorKind::Timeout("x")], 1)]
#[case(&[UpstreamErrorKind::Refused { status: 401 }, UpstreamErrorKind::Refused { status: 403 }], 0)]
fn one_failure_of_many(#[case] kinds: &[UpstreamErrorKind], #[case] telling: usize) {
    let errors = kinds.iter().cloned().map(failed).enumerate().collect();
    assert_eq!(Failure::of(errors).unwrap().telling.kind, kinds[telling]);
}

#[test]
fn no_failure_of_none() {
    assert!(Failure::of(Vec::new()).is_none());
}
