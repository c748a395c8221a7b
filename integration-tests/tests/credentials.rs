//! Lent credentials over the admin API: not where others could read them.

use coral_integration_tests::ask::{put, without_body};
use coral_integration_tests::cache::Cache;
use coral_integration_tests::registry::{UPSTREAM_NAME, configuration};
use coral_integration_tests::upstream::Upstream;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

const OPERATOR: &str = "/api/v1/credentials/operator/ml/inference";

#[tokio::test(flavor = "multi_thread")]
async fn l29_credentials_are_refused_over_plain_http() -> anyhow::Result<()> {
    let upstream = Upstream::start().await?;
    let cache = Cache::start(&configuration(&upstream, "")).await?;
    let repository = format!("{UPSTREAM_NAME}/team/app");
    let login = json!({ "repository": repository, "username": "u", "password": "hidden" });
    let expires = Timestamp::now() + SignedDuration::from_hours(1);
    let body = json!({ "entries": [login], "expires": expires });
    let (status, answer) = put(cache.admin(), OPERATOR, &body).await?;
    let error = answer["error"].as_str().unwrap();
    assert_eq!(status, 426, "{error}");
    assert!(
        error.contains("admin.tls") && !error.contains("hidden"),
        "{error}"
    );
    let deleted = without_body(cache.admin(), Method::DELETE, OPERATOR, &[]).await?;
    assert_eq!(deleted.status, 426);
    Ok(())
}
