//! `prefetch` against a scripted admin listener.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use coral_registry::cli::api::{AdminFlags, ApiError};
use coral_registry::cli::prefetch::{Prefetch, PrefetchError, run};
use coral_schema::admin::{
    AdminError, PrefetchAccepted, PrefetchImage, PrefetchReason, PrefetchRequest, PrefetchState,
    PrefetchStatus,
};
use coral_schema::process::serve::{Drain, Limits, Server};
use coral_schema::process::tasks::Tasks;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Answers with these states, one per question.
fn registry(script: &[PrefetchState], images: &Arc<Mutex<Vec<String>>>) -> Router {
    let left = Arc::new(Mutex::new(script.to_vec()));
    let asked = Arc::clone(images);
    let accept = async move |Json(request): Json<PrefetchRequest>| {
        *asked.lock().unwrap() = request.images;
        let accepted = PrefetchAccepted { id: "7".to_owned() };
        (StatusCode::ACCEPTED, Json(accepted))
    };
    let status = async move |Path(id): Path<String>| {
        let state = left.lock().unwrap().remove(0);
        let failed = state == PrefetchState::Failed;
        Json(PrefetchStatus {
            id,
            state,
            images: vec![PrefetchImage {
                state,
                reason: failed.then_some(PrefetchReason::NotFound),
                message: failed.then(|| "no such tag".to_owned()),
                ..PrefetchImage::queued("nginx")
            }],
        })
    };
    Router::new()
        .route("/api/v1/prefetch", post(accept))
        .route("/api/v1/prefetch/{id}", get(status))
}

fn server(admin: &str) -> AdminFlags {
    AdminFlags {
        admin: admin.parse().unwrap(),
        admin_token_file: None,
        admin_ca: None,
    }
}

async fn command(router: Router) -> Prefetch {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = format!("http://{}", listener.local_addr().unwrap());
    let listening = Server {
        listener,
        router,
        handshake: None,
        limits: Limits::default(),
        drain: Drain {
            linger: Duration::ZERO,
            grace: Duration::ZERO,
        },
    };
    let tasks = Tasks::new();
    let owner = tasks.clone();
    tasks.spawn("admin", async move {
        listening.run(&owner, CancellationToken::new()).await
    });
    Prefetch {
        images: vec!["nginx".to_owned()],
        platforms: Vec::new(),
        server: server(&admin),
        detach: false,
        refresh: false,
    }
}

#[tokio::test]
async fn watches_until_everything_is_held() {
    let images = Arc::default();
    let states = [
        PrefetchState::Queued,
        PrefetchState::Running,
        PrefetchState::Done,
    ];
    let command = command(registry(&states, &images)).await;
    run(&command).await.unwrap();
    assert_eq!(*images.lock().unwrap(), ["nginx"]);
}

#[tokio::test]
async fn says_which_image_failed_and_why() {
    let states = [PrefetchState::Running, PrefetchState::Failed];
    let command = command(registry(&states, &Arc::default())).await;
    let error = run(&command).await.unwrap_err();
    assert_eq!(error.to_string(), "not fetched: nginx: no such tag");
}

#[tokio::test]
async fn detached_it_does_not_watch() {
    let command = Prefetch {
        detach: true,
        ..command(registry(&[], &Arc::default())).await
    };
    run(&command).await.unwrap();
}

#[tokio::test]
async fn repeats_what_the_registry_refuses() {
    let refuse = async || {
        let error = "\"NGINX\" is not an image name".to_owned();
        (StatusCode::BAD_REQUEST, Json(AdminError { error }))
    };
    let router = Router::new().route("/api/v1/prefetch", post(refuse));
    let error = run(&command(router).await).await.unwrap_err();
    assert!(
        error.to_string().contains("is not an image name"),
        "{error}"
    );
    let error = run(&command(Router::new()).await).await.unwrap_err();
    assert!(
        error.to_string().contains("not the admin listener"),
        "{error}"
    );
}

#[tokio::test]
async fn says_where_nobody_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let command = Prefetch {
        server: server(&admin),
        ..command(Router::new()).await
    };
    let error = run(&command).await.unwrap_err();
    assert!(matches!(error, PrefetchError::Api(ApiError::Silent { .. })));
    let text = error.to_string();
    assert!(text.contains(&admin) && text.contains("--admin"), "{text}");
}
