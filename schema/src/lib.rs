//! The agreements between Coral's programs, and between a program and its chart.
//!
//! | Contract | Module |
//! |---|---|
//! | names, digests, references, manifests, error codes of OCI | [`oci`] |
//! | ports, probe paths, log set-up, tasks, the accept loop | `process` (feature `process`) |
//! | URLs that print without their secrets | [`redacted`] |
//! | durations as people write them | [`duration`] |
//! | sizes and shares as Kubernetes writes them | [`quantity`] |
//! | the resources of group `coral.dev` | `crd` (feature `crd`) |
//! | what makes a node's runtime ask the cache first | [`mirror_config`] |
//! | JSON bodies of the admin API | [`admin`] |
//!
//! Without features this crate knows no runtime, no HTTP and no database.

pub mod admin;
#[cfg(feature = "crd")]
pub mod crd;
pub mod duration;
pub mod mirror_config;
pub mod oci;
#[cfg(feature = "process")]
pub mod process;
pub mod quantity;
pub mod redacted;
