//! Pins: images that a source (the operator of a cluster, an administrator) wants kept, until a time.

use coral_schema::oci::Digest;
use jiff::Timestamp;
use rusqlite::Connection;

use super::columns::from_time;
use super::{Index, IndexError};
use crate::name::RepoKey;

impl Index {
    /// From now on, and until `until`, `source` pins these manifests and all that they name; what it pinned before, it
    /// does not any more.
    pub async fn pin(
        &self,
        source: &str,
        images: Vec<(RepoKey, Digest)>,
        until: Timestamp,
    ) -> Result<(), IndexError> {
        let source = source.to_owned();
        let write = move |db: &Connection| {
            db.execute(DELETE, [&source])?;
            let mut statement = db.prepare_cached(INSERT)?;
            for (repo, digest) in &images {
                statement.execute((&source, repo.to_string(), digest.bytes(), from_time(until)))?;
            }
            Ok(())
        };
        self.0.worker.call(write).await
    }
}

const DELETE: &str = "DELETE FROM pins WHERE source = ?1";

const INSERT: &str =
    "INSERT OR IGNORE INTO pins (source, repo, digest, until) VALUES (?1, ?2, ?3, ?4)";
