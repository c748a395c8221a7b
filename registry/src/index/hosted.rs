//! What is pushed to hosted repositories. Nobody can ask for it again, so a write returns when it is committed.

use std::sync::Arc;

use coral_schema::oci::{Digest, Tag};
use rusqlite::Connection;

use super::{Index, IndexError, ManifestRow, TagRow, columns, garbage, manifests, members, tags};
use crate::name::RepoKey;

impl Index {
    /// This blob belongs to this hosted repository.
    pub async fn accept_member(&self, repo: &RepoKey, digest: &Digest) -> Result<(), IndexError> {
        let (name, digest) = (repo.to_string(), *digest);
        let marks = self.0.marks.known(repo, &[digest]);
        let write = move |db: &Connection| {
            garbage::forget(db, &name, &digest)?;
            members::insert_member(db, &name, &digest)
        };
        let written = self.0.worker.call(write).await;
        self.0.memory.members.forget(&(repo.clone(), digest));
        written.inspect(|()| self.0.marks.remove(&marks))
    }

    /// It does not any more.
    pub async fn remove_member(&self, repo: &RepoKey, digest: &Digest) -> Result<(), IndexError> {
        let (name, digest) = (repo.to_string(), *digest);
        let marks = self.0.marks.known(repo, &[digest]);
        let write = move |db: &Connection| {
            garbage::forget(db, &name, &digest)?;
            db.prepare_cached(DELETE_MEMBER)?
                .execute((&name, digest.bytes()))
                .map(drop)
        };
        let written = self.0.worker.call(write).await;
        self.0.memory.members.forget(&(repo.clone(), digest));
        written.inspect(|()| self.0.marks.remove(&marks))
    }

    /// The hosted repository has this manifest, and these tags; what the manifest names is needed from now on (H-02).
    pub async fn accept_manifest(
        &self,
        repo: &RepoKey,
        digest: &Digest,
        row: Arc<ManifestRow>,
        tags: Vec<(Tag, TagRow)>,
    ) -> Result<(), IndexError> {
        let (name, digest) = (repo.to_string(), *digest);
        let names: Vec<Tag> = tags.iter().map(|(tag, _)| tag.clone()).collect();
        let children = row.children.iter().map(|child| child.digest);
        let needed: Vec<Digest> = children.chain([digest]).collect();
        let marks = self.0.marks.known(repo, &needed);
        let write = move |db: &Connection| {
            needed
                .iter()
                .try_for_each(|digest| garbage::forget(db, &name, digest))?;
            manifests::insert(db, &name, &digest, &row)?;
            tags.iter()
                .try_for_each(|(tag, row)| tags::put(db, &name, tag, row))
        };
        let written = self.0.worker.call(write).await;
        self.forget_rows(repo, Some(&digest), &names);
        written.inspect(|()| self.0.marks.remove(&marks))
    }

    /// The hosted repository does not have these tags any more, nor this manifest.
    pub async fn remove_manifest(
        &self,
        repo: &RepoKey,
        digest: Option<Digest>,
        tags: Vec<Tag>,
    ) -> Result<(), IndexError> {
        let (name, names) = (repo.to_string(), tags.clone());
        let marks = self.0.marks.known(repo, digest.as_slice());
        let write = move |db: &Connection| {
            for tag in &tags {
                db.prepare_cached(tags::DELETE)?
                    .execute((&name, tag.as_str()))?;
            }
            match digest {
                Some(digest) => {
                    garbage::forget(db, &name, &digest)?;
                    db.prepare_cached(manifests::DELETE)?
                        .execute((&name, digest.bytes()))
                        .map(drop)
                }
                None => Ok(()),
            }
        };
        let written = self.0.worker.call(write).await;
        self.forget_rows(repo, digest.as_ref(), &names);
        written.inspect(|()| self.0.marks.remove(&marks))
    }

    /// The tags that mean this manifest.
    pub async fn tags_of(&self, repo: &RepoKey, digest: &Digest) -> Result<Vec<Tag>, IndexError> {
        let (name, digest) = (repo.to_string(), *digest);
        let query = move |db: &Connection| {
            let mut statement = db.prepare_cached(SELECT_TAGS)?;
            let rows =
                statement.query_map((&name, digest.bytes()), |row| columns::parsed(row, 0))?;
            rows.collect()
        };
        self.0.worker.scan(query).await
    }

    /// Was anything ever pushed to this repository that is still there?
    pub async fn has_repository(&self, repo: &RepoKey) -> Result<bool, IndexError> {
        let name = repo.to_string();
        let query = move |db: &Connection| db.prepare_cached(EXISTS)?.exists([&name]);
        self.0.worker.read(query).await
    }

    /// Hosted repositories that this blob belongs to, a few at most.
    pub async fn hosts_of(&self, digest: &Digest) -> Result<Vec<RepoKey>, IndexError> {
        let digest = *digest;
        let query = move |db: &Connection| {
            let mut statement = db.prepare_cached(SELECT_HOSTS)?;
            let rows = statement.query_map([digest.bytes()], |row| columns::parsed(row, 0))?;
            rows.collect()
        };
        self.0.worker.read(query).await
    }

    fn forget_rows(&self, repo: &RepoKey, digest: Option<&Digest>, tags: &[Tag]) {
        let memory = &self.0.memory;
        if let Some(digest) = digest {
            memory.manifests.forget(&(repo.clone(), *digest));
        }
        for tag in tags {
            memory.tags.forget(&(repo.clone(), tag.clone()));
        }
    }
}

pub(super) const DELETE_MEMBER: &str = "DELETE FROM members WHERE repo = ?1 AND digest = ?2";

const SELECT_TAGS: &str = "SELECT tag FROM tags WHERE repo = ?1 AND digest = ?2 ORDER BY tag";

const EXISTS: &str = "
SELECT 1 WHERE EXISTS (SELECT 1 FROM members WHERE repo = ?1)
    OR EXISTS (SELECT 1 FROM manifests WHERE repo = ?1)";

const SELECT_HOSTS: &str =
    "SELECT repo FROM members WHERE digest = ?1 AND hosted ORDER BY repo LIMIT 100";
