//! Rows of manifests with what they name: the proof that a digest belongs to a repository, and its referrers.

use std::collections::HashMap;
use std::sync::Arc;

use coral_schema::oci::Digest;
use coral_schema::oci::manifest::ChildKind;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::columns::{self, from_size, from_time};
use super::{ChildRow, Index, IndexError, ManifestRow};
use crate::name::RepoKey;

impl Index {
    /// The manifest's row in this repository.
    pub async fn manifest(
        &self,
        repo: &RepoKey,
        digest: &Digest,
    ) -> Result<Option<Arc<ManifestRow>>, IndexError> {
        let memory = &self.0.memory.manifests;
        let key = (repo.clone(), *digest);
        let since = match memory.get(&key) {
            Ok(known) => return Ok(known),
            Err(since) => since,
        };
        let (repo, digest) = key.clone();
        let query = move |db: &Connection| select(db, &repo.to_string(), &digest);
        let row = self.0.worker.read(query).await?.map(Arc::new);
        Ok(memory.fill(key, row, since))
    }

    /// The repository has this manifest, so it has what the manifest names.
    pub async fn put_manifest(
        &self,
        repo: &RepoKey,
        digest: &Digest,
        row: Arc<ManifestRow>,
    ) -> Result<(), IndexError> {
        let memory = self.0.memory.clone();
        let key = (repo.clone(), *digest);
        // Base layers occur twice in one manifest; the last entry of a digest is as good as the first.
        let children: HashMap<Digest, &ChildRow> = row
            .children
            .iter()
            .map(|child| (child.digest, child))
            .collect();
        let children: Vec<_> = children
            .into_iter()
            .map(|(child, row)| {
                let key = (repo.clone(), child);
                let version = memory.children.set(key.clone(), Some(row.clone()));
                (key, version)
            })
            .collect();
        let version = memory.manifests.set(key.clone(), Some(row.clone()));
        let (name, digest) = (repo.to_string(), *digest);
        self.0
            .worker
            .submit(
                move |db| insert(db, &name, &digest, &row),
                move || {
                    memory.manifests.settled(&key, version);
                    for (key, version) in children {
                        memory.children.settled(&key, version);
                    }
                },
            )
            .await
    }

    /// What a manifest of this repository says of this digest, if one names it.
    pub async fn child(
        &self,
        repo: &RepoKey,
        digest: &Digest,
    ) -> Result<Option<ChildRow>, IndexError> {
        let memory = &self.0.memory.children;
        let key = (repo.clone(), *digest);
        let since = match memory.get(&key) {
            Ok(known) => return Ok(known),
            Err(since) => since,
        };
        let (repo, digest) = key.clone();
        let query = move |db: &Connection| {
            db.prepare_cached(SELECT_CHILD)?
                .query_row((digest.bytes(), repo.to_string()), child)
                .optional()
        };
        let row = self.0.worker.read(query).await?;
        Ok(memory.fill(key, row, since))
    }

    /// Manifests of this repository that refer to `subject`, of this type if one is named: at most `limit` behind `after`,
    /// by digest.
    pub async fn referrers(
        &self,
        repo: &RepoKey,
        subject: &Digest,
        artifact_type: Option<&str>,
        (after, limit): (Option<Digest>, usize),
    ) -> Result<Vec<(Digest, Arc<ManifestRow>)>, IndexError> {
        let (name, subject) = (repo.to_string(), *subject);
        let kind = artifact_type.map(str::to_owned);
        // Asked before the file, so that a row committed in between is found in one of them.
        let pending = self.0.memory.manifests.pending(|(of, _)| of == repo);
        let most = from_size((limit.saturating_add(pending.len())) as u64);
        let query = move |db: &Connection| {
            let after = after.as_ref().map_or([].as_slice(), Digest::bytes);
            referrers(db, &name, (&subject, kind.as_deref()), (after, most))
        };
        let mut found = self.0.worker.read(query).await?;
        let is_wanted = |digest: &Digest, row: &ManifestRow| {
            let is_named = artifact_type.is_none() || row.artifact_type.as_deref() == artifact_type;
            let is_behind = after.is_none_or(|after| digest.bytes() > after.bytes());
            is_named && is_behind && row.subject == Some(subject)
        };
        for ((_, digest), row) in pending {
            found.retain(|(known, _)| *known != digest);
            found.extend(
                row.filter(|row| is_wanted(&digest, row))
                    .map(|row| (digest, row)),
            );
        }
        found.sort_unstable_by(|(one, _), (other, _)| one.bytes().cmp(other.bytes()));
        found.truncate(limit);
        Ok(found)
    }

    /// The repository does not have this manifest any more, nor what only it named.
    pub async fn forget_manifest(&self, repo: &RepoKey, digest: &Digest) -> Result<(), IndexError> {
        let (name, digest) = (repo.to_string(), *digest);
        let write = move |db: &Connection| {
            db.prepare_cached(DELETE)?
                .execute((&name, digest.bytes()))
                .map(drop)
        };
        let written = self.0.worker.call(write).await;
        self.0.memory.forget_repositories();
        written
    }
}

fn select(db: &Connection, repo: &str, digest: &Digest) -> rusqlite::Result<Option<ManifestRow>> {
    let row = db
        .prepare_cached(SELECT)?
        .query_row((repo, digest.bytes()), |row| manifest(row, 0))
        .optional()?;
    row.map(|row| with_children(db, repo, digest, row))
        .transpose()
}

fn referrers(
    db: &Connection,
    repo: &str,
    (subject, artifact_type): (&Digest, Option<&str>),
    (after, limit): (&[u8], i64),
) -> rusqlite::Result<Vec<(Digest, Arc<ManifestRow>)>> {
    let mut statement = db.prepare_cached(SELECT_REFERRERS)?;
    let wanted = (repo, subject.bytes(), artifact_type, after, limit);
    let rows = statement.query_map(wanted, |row| {
        Ok((columns::digest(row, 0)?, manifest(row, 1)?))
    })?;
    rows.map(|found| {
        let (digest, row) = found?;
        Ok((digest, Arc::new(with_children(db, repo, &digest, row)?)))
    })
    .collect()
}

fn manifest(row: &Row<'_>, at: usize) -> rusqlite::Result<ManifestRow> {
    Ok(ManifestRow {
        media_type: row.get(at)?,
        size: columns::size(row, at + 1)?,
        subject: columns::digest_if_any(row, at + 2)?,
        artifact_type: row.get(at + 3)?,
        annotations: columns::json(row, at + 4)?,
        stored: columns::time(row, at + 5)?,
        children: Vec::new(),
    })
}

fn with_children(
    db: &Connection,
    repo: &str,
    digest: &Digest,
    row: ManifestRow,
) -> rusqlite::Result<ManifestRow> {
    let children = children(db, repo, digest)?;
    Ok(ManifestRow { children, ..row })
}

/// What a manifest names, in its order.
pub(super) fn children(
    db: &Connection,
    repo: &str,
    digest: &Digest,
) -> rusqlite::Result<Vec<ChildRow>> {
    let mut statement = db.prepare_cached(SELECT_CHILDREN)?;
    let rows = statement.query_map((digest.bytes(), repo), child)?;
    rows.collect()
}

fn child(row: &Row<'_>) -> rusqlite::Result<ChildRow> {
    Ok(ChildRow {
        digest: columns::digest(row, 0)?,
        kind: kind(row, 1)?,
        size: columns::size(row, 2)?,
        media_type: row.get(3)?,
        platform: columns::if_any(row, 4, columns::json)?,
    })
}

fn kind(row: &Row<'_>, column: usize) -> rusqlite::Result<ChildKind> {
    match row.get_ref(column)?.as_str()? {
        MANIFEST => Ok(ChildKind::Manifest),
        CONFIG => Ok(ChildKind::Config),
        LAYER => Ok(ChildKind::Layer),
        other => Err(columns::unreadable(
            column,
            rusqlite::types::Type::Text,
            format!("{other} is no kind of child"),
        )),
    }
}

/// Puts the row in the place of an earlier one.
pub(super) fn insert(
    db: &Connection,
    repo: &str,
    digest: &Digest,
    row: &ManifestRow,
) -> rusqlite::Result<()> {
    db.prepare_cached(DELETE)?.execute((repo, digest.bytes()))?;
    db.prepare_cached(INSERT)?.execute((
        repo,
        digest.bytes(),
        &row.media_type,
        from_size(row.size),
        row.subject.as_ref().map(Digest::bytes),
        &row.artifact_type,
        columns::to_json(&row.annotations)?,
        from_time(row.stored),
    ))?;
    let mut statement = db.prepare_cached(INSERT_CHILD)?;
    for (position, child) in row.children.iter().enumerate() {
        let kind = match child.kind {
            ChildKind::Manifest => MANIFEST,
            ChildKind::Config => CONFIG,
            ChildKind::Layer => LAYER,
        };
        let platform = child.platform.as_ref().map(columns::to_json).transpose()?;
        statement.execute((
            repo,
            digest.bytes(),
            from_size(position as u64),
            child.digest.bytes(),
            kind,
            from_size(child.size),
            &child.media_type,
            platform,
        ))?;
    }
    Ok(())
}

/// Is there a row?
pub(super) fn exists(db: &Connection, repo: &str, digest: &Digest) -> rusqlite::Result<bool> {
    db.prepare_cached(EXISTS)?.exists((repo, digest.bytes()))
}

const MANIFEST: &str = "manifest";
const CONFIG: &str = "config";
const LAYER: &str = "layer";

const EXISTS: &str = "SELECT 1 FROM manifests WHERE repo = ?1 AND digest = ?2";

const SELECT: &str = "
SELECT media_type, size, subject, artifact_type, annotations, stored
FROM manifests WHERE repo = ?1 AND digest = ?2";

const SELECT_REFERRERS: &str = "
SELECT digest, media_type, size, subject, artifact_type, annotations, stored
FROM manifests WHERE repo = ?1 AND subject = ?2 AND digest > ?4 AND (?3 IS NULL OR artifact_type = ?3)
ORDER BY digest LIMIT ?5";

const SELECT_CHILDREN: &str = "
SELECT child, kind, size, media_type, platform
FROM children WHERE parent = ?1 AND repo = ?2 ORDER BY position";

const SELECT_CHILD: &str = "
SELECT child, kind, size, media_type, platform
FROM children WHERE child = ?1 AND repo = ?2 LIMIT 1";

const INSERT: &str = "
INSERT INTO manifests (repo, digest, media_type, size, subject, artifact_type, annotations, stored)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

const INSERT_CHILD: &str = "
INSERT INTO children (repo, parent, position, child, kind, size, media_type, platform)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// Its children follow by their foreign key.
pub(super) const DELETE: &str = "DELETE FROM manifests WHERE repo = ?1 AND digest = ?2";
