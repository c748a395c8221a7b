//! From the store's records to the index's rows, and back. Pure.

use jiff::Timestamp;

use crate::index::{ChildRow, ManifestRow, Restored, TagRow, VisibilityRow};
use crate::store::key::{Entry, RecordKey};
use crate::store::record::{
    ChildRecord, ManifestRecord, RecordError, RepoKind, RepoRecord, TagRecord, Visibility, decode,
};

/// The row that a record stands for, if it stands for one.
pub(super) fn restored(key: &RecordKey, record: &[u8]) -> Result<Option<Restored>, RecordError> {
    let repo = key.repo.clone();
    Ok(match &key.entry {
        Entry::Repo => {
            let RepoRecord {
                kind: _,
                visibility,
                missing_since: _,
            } = decode(record)?;
            visibility.map(|visibility| Restored::Visibility(repo, visibility_row(&visibility)))
        }
        Entry::Manifest(digest) => Some(Restored::Manifest(
            repo,
            *digest,
            manifest_row(decode(record)?),
        )),
        Entry::Tag(tag) => Some(Restored::Tag(repo, tag.clone(), tag_row(decode(record)?))),
        Entry::Blob(digest) => Some(Restored::Member(repo, *digest)),
    })
}

/// Does the record of a repository say that it is hosted? One that cannot be read does not say that it is not.
pub(super) fn may_be_hosted(record: &[u8]) -> bool {
    let record: Result<RepoRecord, _> = decode(record);
    record.map_or(true, |record| record.kind == RepoKind::Hosted)
}

/// The record of a manifest; `origin` is the endpoint that it came from.
pub fn manifest_record(row: &ManifestRow, origin: Option<String>) -> ManifestRecord {
    let children = row.children.iter().map(|child| ChildRecord {
        kind: child.kind,
        digest: child.digest,
        size: child.size,
        media_type: child.media_type.clone(),
        platform: child.platform.clone(),
    });
    ManifestRecord {
        media_type: row.media_type.clone(),
        size: row.size,
        artifact_type: row.artifact_type.clone(),
        subject: row.subject,
        annotations: row.annotations.clone(),
        children: children.collect(),
        origin,
        stored: row.stored,
    }
}

/// The record of a tag that means `manifest`; `origin` is the endpoint that said so.
pub fn tag_record(row: &TagRow, manifest: &ManifestRow, origin: Option<String>) -> TagRecord {
    TagRecord {
        digest: row.digest,
        previous: row.previous,
        media_type: manifest.media_type.clone(),
        size: manifest.size,
        updated: row.updated,
        checked: row.checked,
        origin,
    }
}

fn visibility_row(record: &Visibility) -> VisibilityRow {
    let Visibility {
        public,
        checked,
        refused_since,
    } = *record;
    VisibilityRow {
        public,
        checked,
        refused_since,
    }
}

fn manifest_row(record: ManifestRecord) -> ManifestRow {
    let ManifestRecord {
        media_type,
        size,
        artifact_type,
        subject,
        annotations,
        children,
        origin: _,
        stored,
    } = record;
    ManifestRow {
        media_type,
        size,
        subject,
        artifact_type,
        annotations,
        children: children.into_iter().map(child_row).collect(),
        stored,
    }
}

fn child_row(record: ChildRecord) -> ChildRow {
    let ChildRecord {
        kind,
        digest,
        size,
        media_type,
        platform,
    } = record;
    ChildRow {
        digest,
        kind,
        size,
        media_type,
        platform,
    }
}

/// It counts as never checked, however recent the record: what happened since is not in it.
fn tag_row(record: TagRecord) -> TagRow {
    let TagRecord {
        digest,
        previous,
        media_type: _,
        size: _,
        updated,
        checked: _,
        origin,
    } = record;
    TagRow {
        digest,
        previous,
        etag: None,
        updated,
        checked: Timestamp::UNIX_EPOCH,
        missing_since: None,
        origin: origin.unwrap_or_default().into(),
    }
}
