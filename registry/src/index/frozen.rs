//! Tags that a pin holds at one digest, whatever they mean upstream: every request for such a tag asks, so all of them
//! are in memory. There are few: only what a person froze.

use std::collections::HashMap;

use arc_swap::ArcSwap;
use coral_schema::oci::{Digest, ManifestRef, Tag};
use jiff::Timestamp;
use rusqlite::Connection;

use super::{Index, columns};
use crate::name::RepoKey;

/// All frozen tags.
#[derive(Debug, Default)]
pub(super) struct Frozen(ArcSwap<Tags>);

/// Per tag, by source: at which digest, until when.
type Tags = HashMap<(RepoKey, Tag), Vec<(Digest, Timestamp)>>;

impl Index {
    /// What the tag is held at now. Of several sources the first by name decides.
    pub fn frozen(&self, repo: &RepoKey, tag: &Tag) -> Option<Digest> {
        let all = self.0.frozen.0.load();
        if all.is_empty() {
            return None;
        }
        let holders = all.get(&(repo.clone(), tag.clone()))?;
        let now = self.now();
        let mut valid = holders.iter().filter(|(_, until)| *until > now);
        valid.next().map(|(digest, _)| *digest)
    }
}

impl Frozen {
    /// Reads them all. On the writing thread after each change of pins, so that changes stay in order.
    pub(super) fn read(&self, db: &Connection) -> rusqlite::Result<()> {
        let mut all = Tags::new();
        let mut statement = db.prepare_cached(SELECT)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let ManifestRef::Tag(tag) = columns::parsed(row, 1)? {
                let holder = (columns::digest(row, 2)?, columns::time(row, 3)?);
                let key = (columns::parsed(row, 0)?, tag);
                all.entry(key).or_default().push(holder);
            }
        }
        self.0.store(all.into());
        Ok(())
    }
}

const SELECT: &str = "
SELECT p.repo, p.reference, p.frozen, s.until
FROM pins p JOIN pin_sources s ON s.source = p.source WHERE p.frozen IS NOT NULL ORDER BY p.source";
