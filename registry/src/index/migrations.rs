//! The tables, as a list of steps that only ever grows: a file's `user_version` says how many it has seen.
//!
//! Keys that are digests are stored raw (32 or 64 bytes), times as microseconds since 1970, repositories as their
//! canonical text, so that a person can read the file with any SQLite tool.

use rusqlite::{Connection, TransactionBehavior};

/// Steps to the current tables. Append only; a released step never changes.
pub(super) const MIGRATIONS: &[&str] = &[STEP_1, STEP_2, STEP_3, STEP_4, STEP_5, STEP_6];

/// A file from a newer program has seen more steps than there are.
pub(super) fn is_newer(version: usize) -> bool {
    version > MIGRATIONS.len()
}

/// How many steps this file has seen.
pub(super) fn version(db: &Connection) -> rusqlite::Result<usize> {
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

/// Takes the missing steps.
pub(super) fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    let seen = version(db)?;
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(seen) {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(sql)?;
        let version = i64::try_from(step + 1).unwrap_or(i64::MAX);
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

const STEP_1: &str = "
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE blobs (
    digest BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    state INTEGER NOT NULL,       -- 0 present, 1 deleting
    public INTEGER NOT NULL,
    manifest INTEGER NOT NULL,
    durability INTEGER NOT NULL,  -- 0 written in this boot, 1 durable, 2 suspect
    stored INTEGER NOT NULL,      -- 0 when a rebuild found it
    last_use INTEGER NOT NULL,
    bare_since INTEGER            -- manifests: since when no child is held
) STRICT, WITHOUT ROWID;
CREATE INDEX blobs_by_use ON blobs (last_use);
CREATE INDEX blobs_not_durable ON blobs (stored) WHERE durability = 0;
CREATE INDEX blobs_deleting ON blobs (state) WHERE state = 1;

CREATE TABLE totals (
    manifest INTEGER PRIMARY KEY,
    bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO totals VALUES (0, 0), (1, 0);
CREATE TRIGGER blobs_added AFTER INSERT ON blobs BEGIN
    UPDATE totals SET bytes = bytes + NEW.size WHERE manifest = NEW.manifest;
END;
CREATE TRIGGER blobs_removed AFTER DELETE ON blobs BEGIN
    UPDATE totals SET bytes = bytes - OLD.size WHERE manifest = OLD.manifest;
END;
CREATE TRIGGER blobs_changed AFTER UPDATE OF size, manifest ON blobs BEGIN
    UPDATE totals SET bytes = bytes - OLD.size WHERE manifest = OLD.manifest;
    UPDATE totals SET bytes = bytes + NEW.size WHERE manifest = NEW.manifest;
END;

CREATE TABLE manifests (
    repo TEXT NOT NULL,
    digest BLOB NOT NULL,
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    subject BLOB,
    artifact_type TEXT,
    annotations TEXT NOT NULL,    -- JSON
    stored INTEGER NOT NULL,
    PRIMARY KEY (repo, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX manifests_by_subject ON manifests (repo, subject) WHERE subject IS NOT NULL;
CREATE INDEX manifests_by_digest ON manifests (digest);

CREATE TABLE children (
    repo TEXT NOT NULL,
    parent BLOB NOT NULL,
    position INTEGER NOT NULL,
    child BLOB NOT NULL,
    kind TEXT NOT NULL,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    platform TEXT,                -- JSON
    PRIMARY KEY (parent, repo, position),
    FOREIGN KEY (repo, parent) REFERENCES manifests (repo, digest) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX children_by_child ON children (child, repo);

CREATE TABLE tags (
    repo TEXT NOT NULL,
    tag TEXT NOT NULL,
    digest BLOB NOT NULL,
    previous BLOB,
    etag TEXT,
    updated INTEGER NOT NULL,
    checked INTEGER NOT NULL,
    missing_since INTEGER,
    origin TEXT NOT NULL,
    PRIMARY KEY (repo, tag)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_by_digest ON tags (repo, digest);

CREATE TABLE members (
    repo TEXT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (repo, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_by_digest ON members (digest);

CREATE TABLE visibility (
    repo TEXT PRIMARY KEY,
    public INTEGER NOT NULL,
    checked INTEGER NOT NULL,
    refused_since INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE pins (
    source TEXT NOT NULL,
    repo TEXT NOT NULL,
    digest BLOB NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (source, repo, digest)
) STRICT, WITHOUT ROWID;
";

/// Nothing has ever written into the first table of pins.
const STEP_2: &str = "
DROP TABLE pins;
CREATE TABLE pin_sources (
    source TEXT PRIMARY KEY,
    until INTEGER NOT NULL,
    platforms TEXT NOT NULL       -- JSON; an empty list means all
) STRICT, WITHOUT ROWID;
CREATE TABLE pins (
    source TEXT NOT NULL,
    repo TEXT NOT NULL,
    reference TEXT NOT NULL,      -- a tag or a digest
    PRIMARY KEY (source, repo, reference),
    FOREIGN KEY (source) REFERENCES pin_sources (source) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
";

const STEP_3: &str = "
ALTER TABLE pins ADD COLUMN frozen BLOB;  -- the digest that a tag is held at
CREATE INDEX pins_frozen ON pins (source) WHERE frozen IS NOT NULL;
";

/// Hosted repositories have no host before their name, as `RepoKey` writes it. Nobody else has what is theirs.
const STEP_4: &str = "
ALTER TABLE members ADD COLUMN hosted INTEGER NOT NULL AS (
    instr(substr(repo, 1, instr(repo, '/')), '.') = 0
    AND instr(substr(repo, 1, instr(repo, '/')), ':') = 0
    AND repo NOT GLOB 'localhost/*') VIRTUAL;
ALTER TABLE manifests ADD COLUMN hosted INTEGER NOT NULL AS (
    instr(substr(repo, 1, instr(repo, '/')), '.') = 0
    AND instr(substr(repo, 1, instr(repo, '/')), ':') = 0
    AND repo NOT GLOB 'localhost/*') VIRTUAL;
";

/// Files older than that step call a repository of an upstream named `mirror` `mirror/app`, now `mirror:443/app`: it counts
/// as hosted, is never found again, and would never be evicted. A file cannot tell it from what was pushed, the records
/// can: all of them go, and a rebuild brings back what is hosted.
const STEP_5: &str = "
UPDATE meta SET value = '0' WHERE key = 'complete' AND (
    EXISTS (SELECT 1 FROM manifests WHERE hosted) OR EXISTS (SELECT 1 FROM members WHERE hosted));
DELETE FROM tags WHERE repo IN (SELECT repo FROM manifests WHERE hosted);
DELETE FROM visibility WHERE repo IN (
    SELECT repo FROM manifests WHERE hosted UNION SELECT repo FROM members WHERE hosted);
DELETE FROM manifests WHERE hosted;
DELETE FROM members WHERE hosted;
";

const STEP_6: &str = "
CREATE TABLE garbage (
    repo TEXT NOT NULL,
    digest BLOB NOT NULL,
    manifest INTEGER NOT NULL,    -- 0: a blob of the repository
    since INTEGER NOT NULL,       -- when it was marked
    taken INTEGER NOT NULL,       -- 1: the repository does not have it any more
    PRIMARY KEY (repo, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX garbage_taken ON garbage (taken) WHERE taken;
CREATE INDEX members_hosted ON members (repo) WHERE hosted;
CREATE INDEX manifests_hosted ON manifests (repo) WHERE hosted;
CREATE INDEX pins_by_repo ON pins (repo);
";

#[cfg(test)]
mod tests {
    use super::*;
    use coral_schema::oci::Digest;

    /// Files in the field have seen these steps. If this fails, undo the change and append a step instead.
    #[test]
    fn released_steps_do_not_change() {
        let seen: Vec<String> = MIGRATIONS
            .iter()
            .map(|step| Digest::sha256(step.as_bytes()).hex()[..16].to_owned())
            .collect();
        assert_eq!(
            seen,
            [
                "ccf70813650ca28d",
                "afafb40645e671a0",
                "6ee10a0b5c2423b2",
                "5e45da8bcbfd46c9",
                "7d01b60c4baf2dcc",
                "b0fcb66ced16d2b7"
            ]
        );
    }

    /// Rows of these repositories, in a file that has seen `steps` steps and knows all that the store holds.
    fn file(steps: usize, repos: &[&str]) -> Connection {
        let db = Connection::open_in_memory().unwrap();
        for step in &MIGRATIONS[..steps] {
            db.execute_batch(step).unwrap();
        }
        db.pragma_update(None, "user_version", i64::try_from(steps).unwrap())
            .unwrap();
        db.execute("INSERT INTO meta VALUES ('complete', '1')", ())
            .unwrap();
        for repo in repos {
            db.execute_batch(&format!(
                "INSERT INTO manifests (repo, digest, media_type, size, annotations, stored)
                    VALUES ('{repo}', x'01', 'a/b', 1, '{{}}', 1);
                INSERT INTO children VALUES ('{repo}', x'01', 0, x'02', 'layer', 1, 'a/b', NULL);
                INSERT INTO tags VALUES ('{repo}', 'v1', x'01', NULL, NULL, 1, 1, NULL, '');
                INSERT INTO members (repo, digest) VALUES ('{repo}', x'02');
                INSERT INTO visibility VALUES ('{repo}', 1, 1, NULL);"
            ))
            .unwrap();
        }
        db
    }

    fn is_complete(db: &Connection) -> bool {
        let query = "SELECT value = '1' FROM meta WHERE key = 'complete'";
        db.query_row(query, (), |row| row.get(0)).unwrap()
    }

    #[rstest::rstest]
    #[case(2)]
    #[case(3)]
    #[case(4)]
    fn what_only_looks_hosted_goes(#[case] steps: usize) {
        let mut db = file(steps, &["mirror/app", "ghcr.io/app", "localhost/app"]);
        migrate(&mut db).unwrap();
        for table in ["manifests", "children", "tags", "members", "visibility"] {
            let query = format!("SELECT repo FROM {table} ORDER BY repo");
            let mut left = db.prepare(&query).unwrap();
            let left = left.query_map((), |row| row.get(0)).unwrap();
            let left: Vec<String> = left.collect::<Result<_, _>>().unwrap();
            assert_eq!(left, ["ghcr.io/app", "localhost/app"], "{table}");
        }
        assert!(!is_complete(&db), "what was pushed has to be brought back");
    }

    #[test]
    fn a_file_in_which_nothing_looks_hosted_stays_complete() {
        let mut db = file(3, &["ghcr.io/app"]);
        migrate(&mut db).unwrap();
        assert!(is_complete(&db));
    }

    #[test]
    fn migrating_twice_changes_nothing() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db).unwrap();
        migrate(&mut db).unwrap();
        assert_eq!(version(&db).unwrap(), MIGRATIONS.len());
        assert!(!is_newer(MIGRATIONS.len()) && is_newer(MIGRATIONS.len() + 1));
    }
}
