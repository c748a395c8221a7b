//! Calls of the Kubernetes API: each has a deadline, since the client has none, and fails in one of a few ways.

use std::fmt::Debug;
use std::time::Duration;

use kube::Api;
use kube::api::ListParams;
use kube::core::Status;
use prometheus_client::encoding::EncodeLabelValue;
use serde::de::DeserializeOwned;

/// How long one call may take. Shorter than a leader may go without renewing its lease.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// Why a call did not do what it was to do: each is something else to do next.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no such object.
    #[error("the API server does not have it")]
    NotFound,
    /// Somebody else wrote it first, or another manager owns the field: read it again.
    #[error("somebody else wrote it: {}", .0.message)]
    Conflict(Box<Status>),
    /// It will be refused again, until a person changes something.
    #[error("the API server refuses: {}", .0.message)]
    Refused(Box<Status>),
    /// Try again later.
    #[error("the API server does not do it now: {0}")]
    Unavailable(#[source] Box<kube::Error>),
    /// No answer; it may have been done.
    #[error("the API server did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
}

/// [`ApiError`] as a label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Category {
    /// [`ApiError::NotFound`]
    NotFound,
    /// [`ApiError::Conflict`]
    Conflict,
    /// [`ApiError::Refused`]
    Refused,
    /// [`ApiError::Unavailable`]
    Unavailable,
    /// [`ApiError::Silent`]
    Silent,
}

impl ApiError {
    /// Its category.
    pub fn category(&self) -> Category {
        match self {
            Self::NotFound => Category::NotFound,
            Self::Conflict(_) => Category::Conflict,
            Self::Refused(_) => Category::Refused,
            Self::Unavailable(_) => Category::Unavailable,
            Self::Silent => Category::Silent,
        }
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Unavailable(Box::new(error));
        };
        match status.code {
            404 => Self::NotFound,
            409 => Self::Conflict(status),
            // 401 comes and goes with rotated tokens.
            400 | 403 | 405 | 406 | 410 | 413 | 415 | 422 => Self::Refused(status),
            _ => Self::Unavailable(Box::new(kube::Error::Api(status))),
        }
    }
}

/// Waits for the answer, at most [`ANSWER_WITHIN`].
pub async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(ANSWER_WITHIN, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ApiError::Silent),
    }
}

/// The same where the object may be absent.
pub async fn find<T>(
    request: impl Future<Output = kube::Result<T>>,
) -> Result<Option<T>, ApiError> {
    match call(request).await {
        Ok(found) => Ok(Some(found)),
        Err(ApiError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All objects of a kind as the API server has them now, page by page.
pub async fn list<K>(api: &Api<K>) -> Result<Vec<K>, ApiError>
where
    K: Clone + Debug + DeserializeOwned,
{
    list_with(api, ListParams::default()).await
}

/// The same for a selection.
pub async fn list_with<K>(api: &Api<K>, selection: ListParams) -> Result<Vec<K>, ApiError>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut all = Vec::new();
    let mut params = selection.limit(PAGE);
    loop {
        let page = call(api.list(&params)).await?;
        all.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(all),
        }
    }
}

/// Objects per answer: one has to arrive within the deadline.
const PAGE: u32 = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_not_waited_for() {
        let silent = std::future::pending::<kube::Result<()>>();
        assert!(matches!(call(silent).await, Err(ApiError::Silent)));
    }

    #[tokio::test]
    async fn statuses_are_decisions() {
        for (code, category) in [
            (404, Category::NotFound),
            (409, Category::Conflict),
            (403, Category::Refused),
            (422, Category::Refused),
            (401, Category::Unavailable),
            (429, Category::Unavailable),
            (500, Category::Unavailable),
        ] {
            let status = Status::failure("no", "No").with_code(code).boxed();
            let answer = call(async { Err::<(), _>(kube::Error::Api(status)) }).await;
            assert_eq!(answer.unwrap_err().category(), category, "{code}");
        }
    }
}
