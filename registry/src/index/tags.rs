//! Rows of tags.

use std::sync::Arc;

use coral_schema::oci::{Digest, Tag};
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::columns::{self, from_time};
use super::{Index, IndexError, TagRow};
use crate::name::RepoKey;

impl Index {
    /// The tag's row.
    pub async fn tag(&self, repo: &RepoKey, tag: &Tag) -> Result<Option<Arc<TagRow>>, IndexError> {
        let memory = &self.0.memory.tags;
        let key = (repo.clone(), tag.clone());
        let since = match memory.get(&key) {
            Ok(known) => return Ok(known),
            Err(since) => since,
        };
        let (repo, tag) = key.clone();
        let query = move |db: &Connection| {
            db.prepare_cached(SELECT)?
                .query_row((repo.to_string(), tag.as_str()), from_row)
                .optional()
        };
        let row = self.0.worker.read(query).await?.map(Arc::new);
        Ok(memory.fill(key, row, since))
    }

    /// The tag means this now, or was checked.
    pub async fn put_tag(
        &self,
        repo: &RepoKey,
        tag: &Tag,
        row: Arc<TagRow>,
    ) -> Result<(), IndexError> {
        let kept = row.clone();
        let apply = move |db: &Connection, repo: &str, tag: &Tag| put(db, repo, tag, &row);
        self.write_tag(repo, tag, Some(kept), apply).await
    }

    /// The repository does not have this tag any more.
    pub async fn forget_tag(&self, repo: &RepoKey, tag: &Tag) -> Result<(), IndexError> {
        let apply = |db: &Connection, repo: &str, tag: &Tag| {
            db.prepare_cached(DELETE)?
                .execute((repo, tag.as_str()))
                .map(drop)
        };
        self.write_tag(repo, tag, None, apply).await
    }

    /// At most `limit` tags behind `after`, in ASCII order.
    pub async fn tags(
        &self,
        repo: &RepoKey,
        after: Option<&Tag>,
        limit: usize,
    ) -> Result<Vec<Tag>, IndexError> {
        let name = repo.to_string();
        let start = after.map_or_else(String::new, |tag| tag.as_str().to_owned());
        // Asked before the file, so that a row committed in between is found in one of them.
        let pending = self
            .0
            .memory
            .tags
            .pending(|(of, tag)| of == repo && after.is_none_or(|after| tag > after));
        let most = columns::from_size((limit.saturating_add(pending.len())) as u64);
        let query = move |db: &Connection| {
            let mut statement = db.prepare_cached(LIST)?;
            let rows = statement.query_map((&name, &start, most), |row| columns::parsed(row, 0))?;
            rows.collect::<Result<Vec<Tag>, _>>()
        };
        let mut tags = self.0.worker.scan(query).await?;
        for ((_, tag), row) in pending {
            tags.retain(|known| *known != tag);
            tags.extend(row.map(|_| tag));
        }
        tags.sort_unstable();
        tags.truncate(limit);
        Ok(tags)
    }

    async fn write_tag(
        &self,
        repo: &RepoKey,
        tag: &Tag,
        row: Option<Arc<TagRow>>,
        apply: impl Fn(&Connection, &str, &Tag) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), IndexError> {
        let memory = self.0.memory.clone();
        let key = (repo.clone(), tag.clone());
        let version = memory.tags.set(key.clone(), row);
        let (name, tag) = (repo.to_string(), tag.clone());
        self.0
            .worker
            .submit(
                move |db| apply(db, &name, &tag),
                move || memory.tags.settled(&key, version),
            )
            .await
    }
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<TagRow> {
    Ok(TagRow {
        digest: columns::digest(row, 0)?,
        previous: columns::digest_if_any(row, 1)?,
        etag: row.get(2)?,
        updated: columns::time(row, 3)?,
        checked: columns::time(row, 4)?,
        missing_since: columns::time_if_any(row, 5)?,
        origin: row.get_ref(6)?.as_str()?.into(),
    })
}

/// Puts the row in the place of an earlier one.
pub(super) fn put(db: &Connection, repo: &str, tag: &Tag, row: &TagRow) -> rusqlite::Result<()> {
    execute(db, PUT, (repo, tag), row)
}

/// Puts the row where none is.
pub(super) fn restore(
    db: &Connection,
    repo: &str,
    tag: &Tag,
    row: &TagRow,
) -> rusqlite::Result<()> {
    execute(db, RESTORE, (repo, tag), row)
}

fn execute(
    db: &Connection,
    sql: &str,
    (repo, tag): (&str, &Tag),
    row: &TagRow,
) -> rusqlite::Result<()> {
    db.prepare_cached(sql)?.execute((
        repo,
        tag.as_str(),
        row.digest.bytes(),
        row.previous.as_ref().map(Digest::bytes),
        &row.etag,
        from_time(row.updated),
        from_time(row.checked),
        row.missing_since.map(from_time),
        &*row.origin,
    ))?;
    Ok(())
}

const SELECT: &str = "
SELECT digest, previous, etag, updated, checked, missing_since, origin
FROM tags WHERE repo = ?1 AND tag = ?2";

const LIST: &str = "SELECT tag FROM tags WHERE repo = ?1 AND tag > ?2 ORDER BY tag LIMIT ?3";

const PUT: &str = "
INSERT OR REPLACE INTO tags
    (repo, tag, digest, previous, etag, updated, checked, missing_since, origin)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

const RESTORE: &str = "
INSERT OR IGNORE INTO tags
    (repo, tag, digest, previous, etag, updated, checked, missing_since, origin)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

pub(super) const DELETE: &str = "DELETE FROM tags WHERE repo = ?1 AND tag = ?2";
