//! What the process of every program has in common: its life, logs, tasks, stop signals, probes, the accept loop; and the
//! numbers and paths that a chart relies on.

pub mod entry;
pub mod health;
pub mod open_files;
pub mod serve;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;

/// Default port of the registry's OCI listener.
pub const OCI_PORT: u16 = 5000;
/// Default port of the registry's admin listener.
pub const ADMIN_PORT: u16 = 9090;
/// Default port of the operator's admin listener.
pub const OPERATOR_ADMIN_PORT: u16 = 9091;
/// Default port of the warmer's admin listener.
pub const WARMER_ADMIN_PORT: u16 = 9092;

/// Fails when the process should be restarted.
pub const LIVEZ: &str = "/livez";
/// Fails while no client should be sent here.
pub const READYZ: &str = "/readyz";
/// Metrics in OpenMetrics text.
pub const METRICS: &str = "/metrics";

/// Exit code: it was tried and failed; the reason is on standard error.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code: the command line is wrong.
pub const EXIT_USAGE: u8 = 2;
/// Exit code of the warmer: the runtime's socket refuses. A socket that is mounted as a file does so for ever after the
/// runtime has restarted; the next start of the container gets a fresh mount.
pub const EXIT_SOCKET_DEAD: u8 = 3;
