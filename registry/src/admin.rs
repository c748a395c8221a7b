//! The admin API: what the cache is doing, and the few things that an administrator can ask of it. JSON bodies stand in
//! [`coral_schema::admin`].
//!
//! It trusts whoever reaches its listener, except browsers: a page on the same machine must not be able to use it, so
//! every request passes [`guard`]. Where more than this machine reaches it, [`auth`] asks for a token. It owns nothing; it reads what the parts publish, and none of these readings waits.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use coral_schema::admin::{
    AdminError, ConfigStatus, DiskStatus, IndexState, RegistryEntry, TransferStatus,
};
use coral_schema::oci::ImageReference;
use http::StatusCode;

use self::mirror_config::Mirrors;
use crate::hosted::Hosted;
use crate::index::Index;
use crate::name::RepoKey;
use crate::pull::prefetch::Prefetcher;
use crate::upstream::Upstream;
use crate::upstream::lent::Lent;

pub mod auth;
mod credentials;
mod gc;
pub mod guard;
mod images;
pub mod mirror_config;
pub mod page;
mod pins;
mod prefetch;
mod status;

/// Reads what some part published last; does not wait.
pub type Reading<T> = Box<dyn Fn() -> T + Send + Sync>;

/// Which repository an image means here, also one of a registry that is not configured; `None` if none can be.
pub type Naming = Box<dyn Fn(&ImageReference) -> Option<RepoKey> + Send + Sync>;

/// What the API shows and uses.
pub struct Admin {
    /// What `/readyz` says.
    pub ready: Reading<bool>,
    /// As last measured.
    pub disk: Reading<DiskStatus>,
    /// Of the file.
    pub config: Reading<ConfigStatus>,
    /// Of the configuration in force.
    pub upstreams: Reading<Vec<Arc<Upstream>>>,
    /// Running now.
    pub transfers: Reading<Vec<TransferStatus>>,
    /// Of the index.
    pub index_state: Reading<IndexState>,
    /// Which registries are served, for whoever prefetches.
    pub registries: Reading<Vec<RegistryEntry>>,
    /// What nodes are told about this cache.
    pub mirrors: Reading<Mirrors>,
    /// For the images of pins.
    pub repository: Naming,
    /// For the list of images, and for pins.
    pub index: Index,
    /// Where lent logins go, if this listener is fit for them: they are taken over TLS only, from listed callers.
    pub lent: Option<Lent>,
    /// Collects what nobody needs.
    pub hosted: Hosted,
    /// Takes jobs.
    pub prefetcher: Prefetcher,
    /// When the process started.
    pub started: jiff::Timestamp,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

/// `/api/v1/…`. To be served behind [`guard::guarded`], together with the probes and metrics.
pub fn router(admin: Admin) -> Router {
    let credentials = put(credentials::put).delete(credentials::delete);
    let pins = put(pins::put)
        .delete(pins::delete)
        .layer(DefaultBodyLimit::max(pins::MAX_BODY));
    Router::new()
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/images", get(images::images))
        .route("/api/v1/prefetch", post(prefetch::start))
        .route("/api/v1/prefetch/{id}", get(prefetch::status))
        .route("/api/v1/pins", get(pins::list))
        .route("/api/v1/pins/{*source}", pins)
        .route("/api/v1/credentials/{*source}", credentials)
        .route("/api/v1/gc", post(gc::gc))
        .route("/api/v1/registries", get(registries))
        .route("/api/v1/mirror-config", get(mirror_config::mirror_config))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(admin))
}

/// `GET /api/v1/registries`
async fn registries(State(admin): State<Arc<Admin>>) -> axum::Json<Vec<RegistryEntry>> {
    axum::Json((admin.registries)())
}

/// Longest request body, bytes: some thousand image references.
const MAX_BODY: usize = 1024 * 1024;

/// A request that is not answered, with a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    error: String,
}

impl Refusal {
    fn new(status: StatusCode, error: impl fmt::Display) -> Self {
        Self {
            status,
            error: error.to_string(),
        }
    }

    fn bad_request(error: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, error } = self;
        (status, axum::Json(AdminError { error })).into_response()
    }
}
