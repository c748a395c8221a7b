//! `POST /api/v1/gc` takes away from hosted repositories what they do not need; with `?dryRun=true` it says what.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use coral_schema::admin::GcReport;
use http::StatusCode;
use serde::Deserialize;

use super::{Admin, Refusal};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Parameters {
    #[serde(default)]
    dry_run: bool,
}

/// Answers when the pass has ended, which goes on without whoever asked for it.
pub(super) async fn gc(
    State(admin): State<Arc<Admin>>,
    Query(Parameters { dry_run }): Query<Parameters>,
) -> Result<Json<GcReport>, Refusal> {
    let report = if dry_run {
        admin.hosted.garbage().await
    } else {
        admin.hosted.collect().await
    };
    let refused = |error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error);
    report.map(Json).map_err(refused)
}
