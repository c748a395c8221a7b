//! Who may read what: decided in one place, before any content is touched.
//!
//! A [`ReadCap`](cap::ReadCap) says that a caller may read one repository; only [`Access`] makes one. It names the
//! configuration snapshot that it was made from, so a request sees one configuration from its start to its end.

pub mod cap;
