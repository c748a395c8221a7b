//! Hosted repositories take pushes: status, headers and body of every line of the specification that is about them.

#[path = "push/bad_input.rs"]
mod bad_input;
#[path = "push/content.rs"]
mod content;
#[path = "push/gc.rs"]
mod gc;
#[path = "push/lasting.rs"]
mod lasting;
#[path = "push/manifests.rs"]
mod manifests;
#[path = "push/names.rs"]
mod names;
#[path = "push/uploads.rs"]
mod uploads;

use coral_integration_tests::cache::Cache;

/// A registry whose repositories below `team` take pushes from everybody; those below `team/strict` as strictly as can be.
async fn registry() -> anyhow::Result<Cache> {
    Cache::start(HOSTED).await
}

const HOSTED: &str = "\
hosted:
  - { prefix: team }
  - { prefix: team/strict, sparse: false, immutableTags: [\"v*\"] }
anonymousPush: true
manifest: { maxBytes: 5Mi }
";
