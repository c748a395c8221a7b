//! The words of the OCI image and distribution specifications, each parsed once into a type that cannot be wrong.

pub mod digest;
pub mod docker_config;
pub mod error_code;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod reference;
pub mod repository;
pub mod tag;

pub use digest::{Algorithm, Digest, Hasher};
pub use docker_config::DockerConfig;
pub use error_code::ErrorCode;
pub use manifest::Manifest;
pub use platform::Platform;
pub use reference::{ImageReference, ManifestRef};
pub use repository::RepositoryName;
pub use tag::Tag;
