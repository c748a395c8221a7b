//! `GET /api/v1/status`: everything at one glance.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use coral_schema::admin::{EndpointStatus, IndexStatus, Status, UpstreamStatus};

use super::Admin;
use crate::upstream::{self, Upstream};

pub(super) async fn status(State(admin): State<Arc<Admin>>) -> Json<Status> {
    let mut upstreams: Vec<_> = (admin.upstreams)().iter().map(|up| show(up)).collect();
    upstreams.sort_by(|a, b| a.name.cmp(&b.name));
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: admin.started.to_string(),
        ready: (admin.ready)(),
        disk: (admin.disk)(),
        config: (admin.config)(),
        upstreams,
        transfers: (admin.transfers)(),
        index: IndexStatus {
            state: (admin.index_state)(),
        },
    })
}

fn show(upstream: &Upstream) -> UpstreamStatus {
    let endpoints = upstream.endpoints.iter();
    UpstreamStatus {
        name: upstream.name.to_string(),
        endpoints: endpoints
            .map(|endpoint| show_endpoint(endpoint.status()))
            .collect(),
    }
}

fn show_endpoint(endpoint: upstream::EndpointStatus) -> EndpointStatus {
    let upstream::EndpointStatus {
        url,
        breaker_open,
        in_flight,
        ratelimit_remaining,
        last_error,
    } = endpoint;
    EndpointStatus {
        url,
        breaker_open,
        in_flight: in_flight as u64,
        ratelimit_remaining,
        last_error,
    }
}
