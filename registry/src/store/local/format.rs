//! `v1/format`: which format the store has, and which cluster it belongs to. Written once, with a sync.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::create_file;
use crate::store::spool::folder::remove_if_there;
use crate::store::{OpenError, key, run};

/// The highest format that we know, and the one that we write.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Format {
    version: u32,
    cluster_id: String,
}

/// The version may be all that we understand of a later format.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Refuses a newer format; writes ours where there is none.
pub(super) fn check(root: &Path) -> Result<(), OpenError> {
    let path = root.join(key::FORMAT);
    let stored = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        stored => Some(stored.map_err(OpenError::io(&path))?),
    };
    match stored.as_deref().map(serde_json::from_slice) {
        Some(Ok(Version { version })) if version > VERSION => Err(OpenError::Newer {
            folder: root.to_owned(),
            found: version,
            known: VERSION,
        }),
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => {
            tracing::warn!(path = %path.display(), %error, "the store's format file is damaged and is written anew");
            write(&path).map_err(OpenError::io(&path))
        }
        None => write(&path).map_err(OpenError::io(&path)),
    }
}

fn write(path: &Path) -> io::Result<()> {
    let format = Format {
        version: VERSION,
        cluster_id: run::uuid()?,
    };
    let temporary = path.with_extension("tmp");
    remove_if_there(&temporary)?;
    let mut file = create_file(&temporary)?;
    file.write_all(&serde_json::to_vec(&format)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
