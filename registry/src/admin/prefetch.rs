//! `POST /api/v1/prefetch` starts a job; `GET /api/v1/prefetch/<id>` says how it stands, once or until its end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use coral_schema::admin::{PrefetchAccepted, PrefetchRequest, PrefetchStatus};
use futures::Stream;
use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Admin, Refusal};
use crate::pull::prefetch::PrefetchRefused;

pub(super) async fn start(
    State(admin): State<Arc<Admin>>,
    body: Bytes,
) -> Result<(StatusCode, Json<PrefetchAccepted>), Refusal> {
    let request: PrefetchRequest = serde_json::from_slice(&body).map_err(Refusal::bad_request)?;
    let id = admin.prefetcher.start(&request).map_err(|refused| {
        let status = match refused {
            PrefetchRefused::Invalid(_) => StatusCode::BAD_REQUEST,
            PrefetchRefused::Full => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal::new(status, refused)
    })?;
    let id = id.to_string();
    Ok((StatusCode::ACCEPTED, Json(PrefetchAccepted { id })))
}

pub(super) async fn status(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Some(status) = admin.prefetcher.status(&id) else {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "no such job is remembered; start it again, which costs nothing for what is held",
        ));
    };
    if wants_events(&headers) {
        Ok(Sse::new(events(status))
            .keep_alive(KeepAlive::default())
            .into_response())
    } else {
        let now = status.borrow().clone();
        Ok(Json(now).into_response())
    }
}

fn wants_events(headers: &HeaderMap) -> bool {
    headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"))
}

/// The status now, then after changes, at most every [`PAUSE`]; the last event shows the end.
fn events(
    status: watch::Receiver<PrefetchStatus>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let first = Some((status, true));
    futures::stream::unfold(first, |state| async move {
        let (mut status, first) = state?;
        if !first {
            sleep(PAUSE).await;
            // Without a sender there is nothing more to tell.
            status.changed().await.ok()?;
        }
        let now = status.borrow_and_update().clone();
        let event = Event::default().json_data(&now);
        let event = event.expect("plain data serialises");
        let goes_on = !now.state.is_over();
        Some((Ok(event), goes_on.then_some((status, false))))
    })
}

/// Between two events: as often as a person's eyes can follow.
const PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use coral_schema::admin::PrefetchState;
    use http_body_util::BodyExt as _;

    #[tokio::test(start_paused = true)]
    async fn events_until_the_end() {
        let (sender, receiver) = watch::channel(PrefetchStatus {
            id: "1".to_owned(),
            state: PrefetchState::Queued,
            images: Vec::new(),
        });
        let mut body = Sse::new(events(receiver)).into_response().into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(
            first.starts_with(b"data: {\"id\":\"1\",\"state\":\"queued\""),
            "{first:?}"
        );
        sender.send_modify(|status| status.state = PrefetchState::Running);
        sender.send_modify(|status| status.state = PrefetchState::Done);
        let rest = body.collect().await.unwrap().to_bytes();
        let rest = String::from_utf8(rest.to_vec()).unwrap();
        assert_eq!(
            rest.matches("data:").count(),
            1,
            "what changed in between is one event"
        );
        assert!(rest.contains("done"), "{rest}");
    }
}
