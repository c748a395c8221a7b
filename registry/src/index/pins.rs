//! Pins: images that a source (the operator of a cluster, an administrator) wants kept, until a time.
//!
//! A pin is a reference, not content: a tag holds what it means at each moment, and what is fetched later is held from
//! its arrival. Which blobs these are is found out when eviction looks for victims. Pins live in the index only: after
//! its loss a source has to renew them.

use std::collections::HashSet;
use std::sync::Arc;

use coral_schema::oci::manifest::ChildKind;
use coral_schema::oci::{Digest, ManifestRef, Platform};
use jiff::Timestamp;
use rusqlite::{Connection, Row};

use super::columns::{self, from_time};
use super::{ChildRow, Index, IndexError, manifests};
use crate::name::RepoKey;

/// What a source pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    /// Which images.
    pub images: Vec<PinnedImage>,
    /// Which children of an index; without any: all.
    pub platforms: Vec<Platform>,
    /// Until when.
    pub until: Timestamp,
}

/// One image of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedImage {
    /// Its repository.
    pub repo: RepoKey,
    /// Which manifest.
    pub reference: ManifestRef,
    /// What the tag means from now on for everybody who asks: see [`Index::frozen`].
    pub frozen: Option<Digest>,
}

/// A source that pins something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinSource {
    /// Its name.
    pub source: String,
    /// How many images it pins.
    pub images: u64,
    /// Until when.
    pub until: Timestamp,
}

impl Index {
    /// From now on `source` pins this; what it pinned before, it does not any more. `false`: nothing changed, since that
    /// would be more than [`MAX_PIN_SOURCES`] sources or [`MAX_PINS`] images in all.
    pub async fn pin(&self, source: &str, pins: Pins) -> Result<bool, IndexError> {
        let source = source.to_owned();
        let (now, frozen) = (from_time(self.now()), Arc::clone(&self.0.frozen));
        let write = move |db: &Connection| {
            db.execute(DELETE_EXPIRED, [now])?;
            let room = db.query_row(COUNT_OTHERS, [&source], |row| {
                let (sources, images) = (columns::size(row, 0)?, columns::size(row, 1)?);
                Ok(sources < MAX_PIN_SOURCES && images + pins.images.len() as u64 <= MAX_PINS)
            })?;
            if room {
                replace(db, &source, &pins)?;
                frozen.read(db)?;
            }
            Ok(room)
        };
        self.0.worker.call(write).await
    }

    /// `source` pins nothing any more.
    pub async fn unpin(&self, source: &str) -> Result<(), IndexError> {
        let source = source.to_owned();
        let frozen = Arc::clone(&self.0.frozen);
        let write = move |db: &Connection| {
            db.execute(DELETE, [&source])?;
            frozen.read(db)
        };
        self.0.worker.call(write).await
    }

    /// Who pins something now, by name; at most [`MAX_PIN_SOURCES`].
    pub async fn pin_sources(&self) -> Result<Vec<PinSource>, IndexError> {
        let now = from_time(self.now());
        let query = move |db: &Connection| {
            let mut statement = db.prepare_cached(SELECT_SOURCES)?;
            let rows = statement.query_map([now], source)?;
            rows.collect()
        };
        self.0.worker.scan(query).await
    }

    /// Forgets pins that hold nothing any more.
    pub async fn drop_expired_pins(&self) -> Result<(), IndexError> {
        let now = from_time(self.now());
        let write = move |db: &Connection| db.execute(DELETE_EXPIRED, [now]).map(drop);
        self.0.worker.call(write).await
    }
}

/// Most sources: one for each object of a large cluster that wants images.
pub const MAX_PIN_SOURCES: u64 = 4096;

/// Most pinned images of all sources: following them all takes eviction about a second.
pub const MAX_PINS: u64 = 100_000;

fn replace(db: &Connection, source: &str, pins: &Pins) -> rusqlite::Result<()> {
    let platforms = columns::to_json(&pins.platforms)?;
    db.execute(DELETE, [source])?;
    db.execute(INSERT_SOURCE, (source, from_time(pins.until), platforms))?;
    let mut statement = db.prepare_cached(INSERT)?;
    for image in &pins.images {
        let (repo, reference) = (image.repo.to_string(), image.reference.to_string());
        let frozen = image.frozen.as_ref().map(Digest::bytes);
        statement.execute((source, repo, reference, frozen))?;
    }
    Ok(())
}

fn source(row: &Row<'_>) -> rusqlite::Result<PinSource> {
    Ok(PinSource {
        source: row.get(0)?,
        images: columns::size(row, 1)?,
        until: columns::time(row, 2)?,
    })
}

/// Everything that is pinned at `now`, held or not: manifests, the children of indexes for the wanted platforms, configs
/// and layers.
pub(super) fn pinned(db: &Connection, now: Timestamp) -> rusqlite::Result<HashSet<Digest>> {
    let mut pinned = HashSet::new();
    let mut statement = db.prepare_cached(SELECT_ROOTS)?;
    let mut rows = statement.query([from_time(now)])?;
    let mut walk = Walk::default();
    while let Some(row) = rows.next()? {
        let (platforms, repo) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
        if (platforms, repo) != (&walk.platforms, &walk.repo) {
            pinned.extend(walk.seen.drain());
            walk.wanted = columns::json(row, 0)?;
            (walk.platforms, walk.repo) = (platforms.to_owned(), repo.to_owned());
        }
        if let Some(root) = root(row)? {
            walk.follow(db, root)?;
        }
    }
    pinned.extend(walk.seen);
    Ok(pinned)
}

/// What a pin means now, or is frozen at; `None` for a tag that is not known.
fn root(row: &Row<'_>) -> rusqlite::Result<Option<Digest>> {
    match columns::parsed(row, 2)? {
        ManifestRef::Digest(digest) => Ok(Some(digest)),
        ManifestRef::Tag(_) => columns::digest_if_any(row, 3),
    }
}

/// From the pinned images of one repository, for the same platforms, to all that they name.
#[derive(Default)]
struct Walk {
    platforms: String,
    repo: String,
    wanted: Vec<Platform>,
    seen: HashSet<Digest>,
}

impl Walk {
    fn follow(&mut self, db: &Connection, root: Digest) -> rusqlite::Result<()> {
        let mut manifests = vec![root];
        while let Some(manifest) = manifests.pop() {
            // Named twice, or a cycle of a hostile index.
            if !self.seen.insert(manifest) {
                continue;
            }
            for child in manifests::children(db, &self.repo, &manifest)? {
                match child.kind {
                    ChildKind::Manifest if self.wants(&child) => manifests.push(child.digest),
                    ChildKind::Manifest => {}
                    ChildKind::Config | ChildKind::Layer => {
                        self.seen.insert(child.digest);
                    }
                }
            }
        }
        Ok(())
    }

    fn wants(&self, child: &ChildRow) -> bool {
        let runs = |platform: &Platform| self.wanted.iter().any(|wish| wish.accepts(platform));
        self.wanted.is_empty() || child.platform.as_ref().is_none_or(runs)
    }
}

const DELETE: &str = "DELETE FROM pin_sources WHERE source = ?1";

const DELETE_EXPIRED: &str = "DELETE FROM pin_sources WHERE until <= ?1";

const COUNT_OTHERS: &str = "
SELECT (SELECT COUNT(*) FROM pin_sources WHERE source <> ?1), (SELECT COUNT(*) FROM pins WHERE source <> ?1)";

const INSERT_SOURCE: &str =
    "INSERT INTO pin_sources (source, until, platforms) VALUES (?1, ?2, ?3)";

const INSERT: &str =
    "INSERT OR IGNORE INTO pins (source, repo, reference, frozen) VALUES (?1, ?2, ?3, ?4)";

const SELECT_SOURCES: &str = "
SELECT source, (SELECT COUNT(*) FROM pins p WHERE p.source = s.source), until
FROM pin_sources s WHERE until > ?1 ORDER BY source";

const SELECT_ROOTS: &str = "
SELECT s.platforms, p.repo, p.reference, COALESCE(p.frozen, t.digest)
FROM pin_sources s JOIN pins p ON p.source = s.source LEFT JOIN tags t ON t.repo = p.repo AND t.tag = p.reference
WHERE s.until > ?1 ORDER BY s.platforms, p.repo";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::{ManifestRow, TagRow, migrations, tags};
    use super::*;

    const REPO: &str = "docker.io/library/nginx";

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn insert(db: &Connection, name: &str, children: &[(&str, ChildKind, Option<&str>)]) {
        let child = |(name, kind, platform): &(&str, ChildKind, Option<&str>)| ChildRow {
            digest: digest(name),
            kind: *kind,
            size: 1,
            media_type: "a/b".to_owned(),
            platform: platform.map(|platform| platform.parse().unwrap()),
        };
        let row = ManifestRow {
            media_type: "a/b".to_owned(),
            size: 1,
            subject: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
            children: children.iter().map(child).collect(),
            stored: at(0),
        };
        manifests::insert(db, REPO, &digest(name), &row).unwrap();
    }

    fn tag(db: &Connection, name: &str, means: &str) {
        let row = TagRow {
            digest: digest(means),
            previous: None,
            etag: None,
            updated: at(0),
            checked: at(0),
            missing_since: None,
            origin: "https://registry.example".into(),
        };
        tags::put(db, REPO, &name.parse().unwrap(), &Arc::new(row)).unwrap();
    }

    /// An index `i` with an image for each of two platforms, an attestation without one, and itself; an image `other`.
    fn filled() -> Connection {
        let mut db = Connection::open_in_memory().unwrap();
        migrations::migrate(&mut db).unwrap();
        db.pragma_update(None, "foreign_keys", true).unwrap();
        let of = |platform| move |name| (name, ChildKind::Manifest, platform);
        let children = [
            of(Some("linux/amd64"))("amd"),
            of(Some("linux/arm64/v8"))("arm"),
            of(None)("proof"),
            of(None)("i"),
        ];
        insert(&db, "i", &children);
        for image in ["amd", "arm", "proof", "other"] {
            let (config, layer) = (format!("{image} config"), format!("{image} layer"));
            let blobs = [
                (&*config, ChildKind::Config, None),
                (&*layer, ChildKind::Layer, None),
            ];
            insert(&db, image, &blobs);
        }
        tag(&db, "latest", "i");
        db
    }

    fn pin(db: &Connection, source: &str, references: &[&str], platforms: &[&str], until: i64) {
        let image = |text: &&str| {
            let (reference, frozen) = text.split_once('=').unwrap_or((text, ""));
            PinnedImage {
                repo: REPO.parse().unwrap(),
                reference: reference.parse().unwrap(),
                frozen: (!frozen.is_empty()).then(|| digest(frozen)),
            }
        };
        let pins = Pins {
            images: references.iter().map(image).collect(),
            platforms: platforms.iter().map(|text| text.parse().unwrap()).collect(),
            until: at(until),
        };
        replace(db, source, &pins).unwrap();
    }

    /// Of all that is known, what is pinned, by name.
    fn names(db: &Connection, now: i64) -> Vec<String> {
        let pinned = pinned(db, at(now)).unwrap();
        let images = ["amd", "arm", "other", "proof"];
        let parts = images.iter().flat_map(|image| {
            [
                (*image).to_owned(),
                format!("{image} config"),
                format!("{image} layer"),
            ]
        });
        let all = parts.chain(["i".to_owned()]);
        all.filter(|name| pinned.contains(&digest(name))).collect()
    }

    #[test]
    fn a_pin_holds_what_its_index_names_for_the_platforms() {
        let db = filled();
        pin(&db, "a", &["latest"], &["linux/arm64"], 10);
        let arm = ["arm", "arm config", "arm layer"];
        let proof = ["proof", "proof config", "proof layer", "i"];
        assert_eq!(names(&db, 9), [arm.as_slice(), &proof].concat());
        pin(&db, "a", &["latest"], &[], 10);
        assert_eq!(names(&db, 9).len(), 10, "without platforms all of them");
        // Another source asks for another platform of the same.
        pin(&db, "a", &["latest"], &["linux/arm64"], 10);
        pin(&db, "b", &["latest"], &["linux/amd64"], 10);
        assert_eq!(names(&db, 9).len(), 10);
    }

    #[test]
    fn a_tag_holds_what_it_means_now_and_a_digest_itself() {
        let db = filled();
        let by_digest = digest("other").to_string();
        pin(&db, "a", &["latest", "unknown"], &["linux/s390x"], 10);
        pin(&db, "b", &[&by_digest], &["linux/s390x"], 10);
        let other = ["other", "other config", "other layer"];
        let proof = ["proof", "proof config", "proof layer", "i"];
        assert_eq!(names(&db, 9), [other.as_slice(), &proof].concat());
        tag(&db, "latest", "amd");
        let amd = ["amd", "amd config", "amd layer"];
        assert_eq!(names(&db, 9), [amd, other].concat());
        assert!(pinned(&db, at(9)).unwrap().contains(&digest("amd layer")));
    }

    #[test]
    fn a_frozen_tag_holds_what_it_is_frozen_at() {
        let db = filled();
        pin(&db, "a", &["latest=other"], &[], 10);
        let other = ["other", "other config", "other layer"];
        assert_eq!(names(&db, 9), other, "and not what it means");
    }

    #[test]
    fn a_pin_ends_with_its_time_and_when_it_is_replaced() {
        let db = filled();
        let by_digest = digest("other").to_string();
        pin(&db, "a", &[&by_digest], &[], 10);
        pin(&db, "b", &["latest"], &[], 20);
        assert_eq!(names(&db, 10).len(), 10, "of b");
        assert!(names(&db, 20).is_empty());
        pin(&db, "b", &[], &[], 30);
        assert_eq!(names(&db, 9), ["other", "other config", "other layer"]);
        db.execute(DELETE_EXPIRED, [from_time(at(10))]).unwrap();
        let left: i64 = db
            .query_row("SELECT COUNT(*) FROM pins", [], |row| row.get(0))
            .unwrap();
        assert_eq!(left, 0, "its images went with the source");
    }
}
