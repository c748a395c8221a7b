//! What an administrator sees: repositories, images, what they take, and forgetting a repository.

use std::sync::Arc;

use coral_schema::oci::{Digest, Tag};
use jiff::Timestamp;
use rusqlite::{Connection, Row};

use super::columns::{self, from_size};
use super::{Index, IndexError, RepoSummary};
use crate::name::RepoKey;

/// Which images to list.
#[derive(Debug, Clone, Default)]
pub struct ImageFilter {
    /// Only this repository.
    pub repo: Option<RepoKey>,
    /// Only those with this text in `repository:tag`.
    pub text: Option<String>,
    /// Only those behind this one.
    pub after: Option<(RepoKey, Option<Tag>, Digest)>,
}

/// A tag, or a manifest that no tag and no index leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its repository.
    pub repo: RepoKey,
    /// Its tag.
    pub tag: Option<Tag>,
    /// Its manifest or index.
    pub digest: Digest,
    /// Bytes held of it, shared ones included.
    pub held: u64,
    /// When something of it was last served; `None` when nothing is held.
    pub last_use: Option<Timestamp>,
}

impl Index {
    /// At most `limit` repositories behind `after`, by name. May miss the last seconds.
    pub async fn repos(
        &self,
        after: Option<&RepoKey>,
        limit: usize,
    ) -> Result<Vec<RepoSummary>, IndexError> {
        let after = after.map_or_else(String::new, ToString::to_string);
        let limit = from_size(limit as u64);
        let query = move |db: &Connection| {
            let mut statement = db.prepare_cached(SELECT_REPOS)?;
            let rows = statement.query_map((&after, limit), summary)?;
            rows.collect()
        };
        self.0.worker.scan(query).await
    }

    /// At most `limit` images, by repository, tag and digest, those without a tag first. May miss the last seconds.
    pub async fn images(
        &self,
        filter: &ImageFilter,
        limit: usize,
    ) -> Result<Vec<Image>, IndexError> {
        let repo = filter.repo.as_ref().map(ToString::to_string);
        let text = filter.text.clone().unwrap_or_default();
        let after = filter.after.clone().map(|(repo, tag, digest)| {
            let tag = tag.map_or_else(String::new, |tag| tag.to_string());
            (repo.to_string(), tag, digest)
        });
        let limit = from_size(limit as u64);
        let query = move |db: &Connection| {
            let (repo_after, tag_after, digest_after) = match &after {
                Some((repo, tag, digest)) => (repo.as_str(), tag.as_str(), digest.bytes()),
                None => ("", "", [].as_slice()),
            };
            let mut statement = db.prepare_cached(SELECT_IMAGES)?;
            let rows = statement.query_map(
                (&repo, &text, repo_after, tag_after, digest_after, limit),
                image,
            )?;
            rows.map(|image| with_held(db, image?)).collect()
        };
        self.0.worker.scan(query).await
    }

    /// Everything about this repository but its blobs, which others may have, too.
    pub async fn forget_repository(&self, repo: &RepoKey) -> Result<(), IndexError> {
        let name = repo.to_string();
        let frozen = Arc::clone(&self.0.frozen);
        let write = move |db: &Connection| {
            let mut all = FORGET.iter();
            all.try_for_each(|sql| db.execute(sql, [&name]).map(drop))?;
            frozen.read(db)
        };
        let written = self.0.worker.call(write).await;
        self.0.memory.forget_repositories();
        written
    }
}

fn summary(row: &Row<'_>) -> rusqlite::Result<RepoSummary> {
    Ok(RepoSummary {
        repo: columns::parsed(row, 0)?,
        tags: columns::size(row, 1)?,
        manifests: columns::size(row, 2)?,
    })
}

fn image(row: &Row<'_>) -> rusqlite::Result<Image> {
    let tag: Option<Tag> = match row.get_ref(1)?.as_str()? {
        "" => None,
        _ => Some(columns::parsed(row, 1)?),
    };
    Ok(Image {
        repo: columns::parsed(row, 0)?,
        tag,
        digest: columns::digest(row, 2)?,
        held: 0,
        last_use: None,
    })
}

fn with_held(db: &Connection, image: Image) -> rusqlite::Result<Image> {
    db.prepare_cached(SELECT_HELD)?.query_row(
        (image.repo.to_string(), image.digest.bytes()),
        |row| {
            Ok(Image {
                held: columns::size(row, 0)?,
                last_use: columns::time_if_any(row, 1)?,
                ..image
            })
        },
    )
}

const SELECT_REPOS: &str = "
SELECT repo, SUM(tags), SUM(manifests) FROM (
    SELECT repo, COUNT(*) AS tags, 0 AS manifests FROM tags WHERE repo > ?1 GROUP BY repo
    UNION ALL
    SELECT repo, 0, COUNT(*) FROM manifests WHERE repo > ?1 GROUP BY repo)
GROUP BY repo ORDER BY repo LIMIT ?2";

const SELECT_IMAGES: &str = "
SELECT repo, tag, digest FROM (
    SELECT repo, tag, digest FROM tags
    UNION ALL
    SELECT repo, '' AS tag, digest FROM manifests m
    WHERE NOT EXISTS (SELECT 1 FROM tags t WHERE t.repo = m.repo AND t.digest = m.digest)
    AND NOT EXISTS (SELECT 1 FROM children c WHERE c.child = m.digest AND c.repo = m.repo))
WHERE (?1 IS NULL OR repo = ?1) AND instr(repo || ':' || tag, ?2) > 0 AND (repo, tag, digest) > (?3, ?4, ?5)
ORDER BY repo, tag, digest LIMIT ?6";

const SELECT_HELD: &str = "
WITH RECURSIVE parts (digest) AS (
    VALUES (?2)
    UNION
    SELECT c.child FROM children c JOIN parts p ON c.parent = p.digest WHERE c.repo = ?1
)
SELECT COALESCE(SUM(b.size), 0), MAX(b.last_use) FROM parts p JOIN blobs b ON b.digest = p.digest WHERE b.state = 0";

const FORGET: [&str; 5] = [
    "DELETE FROM tags WHERE repo = ?1",
    "DELETE FROM manifests WHERE repo = ?1",
    "DELETE FROM members WHERE repo = ?1",
    "DELETE FROM visibility WHERE repo = ?1",
    "DELETE FROM pins WHERE repo = ?1",
];
