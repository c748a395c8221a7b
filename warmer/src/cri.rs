//! The container runtime, as the warmer sees it. What travels over its socket stays inside this folder.

use std::fmt;

use coral_schema::crd::Reason;
use coral_schema::oci::docker_config::DockerLogin;
use futures::future::BoxFuture;

pub mod alive;
pub mod client;
pub mod containerd;
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unused_qualifications,
    reason = "generated from proto/containerd/"
)]
#[rustfmt::skip]
#[path = "cri/generated/containerd.rs"]
pub mod containerd_generated;
pub mod failure;
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unused_qualifications,
    reason = "generated from proto/api.proto"
)]
#[rustfmt::skip]
#[path = "cri/generated/runtime.v1.rs"]
pub mod generated;

pub use self::client::Client;

/// A container runtime. Queries have short deadlines; a pull takes as long as it takes, and ends when its future is
/// dropped.
pub trait Runtime: fmt::Debug + Send + Sync {
    /// Who answers.
    fn version(&self) -> BoxFuture<'_, Result<Version, CriError>>;

    /// What the runtime finds under a spelling: `None` is the only proof of absence.
    fn image<'a>(
        &'a self,
        spelling: &'a str,
    ) -> BoxFuture<'a, Result<Option<ImageFacts>, CriError>>;

    /// Every container, in any state.
    fn containers(&self) -> BoxFuture<'_, Result<Vec<ContainerFacts>, CriError>>;

    /// Bytes that images take, unpacked.
    fn image_bytes(&self) -> BoxFuture<'_, Result<u64, CriError>>;

    /// Pulls under exactly this spelling. Without a login the runtime uses what its own configuration says.
    fn pull<'a>(
        &'a self,
        spelling: &'a str,
        login: Option<&'a DockerLogin>,
    ) -> BoxFuture<'a, Result<(), CriError>>;

    /// Removes the image with *all* its names, also from under running containers. No error if there is none.
    fn remove<'a>(&'a self, spelling: &'a str) -> BoxFuture<'a, Result<(), CriError>>;
}

/// Who answers on the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Like `containerd`.
    pub name: String,
    /// Its own version, as it writes it.
    pub version: String,
}

/// One image that the runtime holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// The runtime's own identifier: one for all names.
    pub id: String,
    /// Its names with tags, written out.
    pub tags: Vec<String>,
    /// Its names with digests, written out.
    pub digests: Vec<String>,
    /// Bytes, as the runtime counts them: containerd counts compressed content.
    pub size_bytes: u64,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFacts {
    /// Identifier.
    pub id: String,
    /// Every word under which it names its image: runtimes disagree on which field holds the identifier.
    pub image: Vec<String>,
}

/// The runtime refused, failed, or could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CriError {
    /// What it comes down to.
    pub reason: Reason,
    /// Nobody listens on the socket.
    pub refused: bool,
    /// The runtime's words, without the query part of addresses: content networks sign them there.
    pub message: String,
}
