//! The last wishes on disk: a small JSON file with a version, in the state folder.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coral_schema::crd::NodeCacheSpec;
use serde::{Deserialize, Serialize};

use crate::execute::Wishes;

const FILE: &str = "wishes.json";
const TEMPORARY: &str = "wishes.json.new";
const ASIDE: &str = "wishes.json.damaged";
const VERSION: u32 = 1;

/// The file of one node.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    folder: PathBuf,
    node: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    node: String,
    generation: i64,
    spec: NodeCacheSpec,
}

impl Kept {
    pub(super) fn new(folder: PathBuf, node: String) -> Self {
        Self { folder, node }
    }

    /// What was kept. What cannot be read is moved aside: the API server has it, too.
    pub(super) async fn load(&self) -> Option<Wishes> {
        let kept = self.clone();
        match tokio::task::spawn_blocking(move || kept.read()).await {
            Ok(Ok(wishes)) => wishes,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the last wishes cannot be read");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "the last wishes were not read");
                None
            }
        }
    }

    /// Keeps the wishes, or forgets them: then a restart must not go on with them.
    pub(super) async fn store(&self, wishes: Option<Arc<Wishes>>) {
        let kept = self.clone();
        let written = tokio::task::spawn_blocking(move || match wishes {
            Some(wishes) => kept.write(&wishes),
            None => kept.forget(),
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last wishes cannot be kept"),
            Err(error) => tracing::warn!(%error, "the last wishes were not kept"),
        }
    }

    fn read(&self) -> io::Result<Option<Wishes>> {
        let path = self.folder.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let problem = match serde_json::from_slice::<Stored>(&text) {
            Ok(stored) if stored.version != VERSION => format!("it has version {}", stored.version),
            Ok(stored) if stored.node != self.node => format!("it is of node {}", stored.node),
            Ok(Stored {
                version: _,
                node: _,
                generation,
                spec,
            }) => return Ok(Some(Wishes { generation, spec })),
            Err(error) => error.to_string(),
        };
        tracing::warn!(problem, "the file of the last wishes is moved aside");
        fs::rename(&path, self.folder.join(ASIDE))?;
        Ok(None)
    }

    fn write(&self, wishes: &Wishes) -> io::Result<()> {
        let stored = Stored {
            version: VERSION,
            node: self.node.clone(),
            generation: wishes.generation,
            spec: wishes.spec.clone(),
        };
        let temporary = self.folder.join(TEMPORARY);
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(&stored)?)?;
        file.sync_all()?;
        fs::rename(&temporary, self.folder.join(FILE))?;
        sync(&self.folder)
    }

    fn forget(&self) -> io::Result<()> {
        match fs::remove_file(self.folder.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => sync(&self.folder),
        }
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes() -> Wishes {
        let spec = serde_json::json!({
            "nodeUID": "u",
            "images": [{ "ref": "nginx:1.27" }],
            "purge": [{ "ref": "a", "notAfter": "2026-11-20T00:00:00Z" }],
            "mirror": { "url": "http://10.96.0.10:5000", "registries": ["docker.io"] },
        });
        Wishes {
            generation: 7,
            spec: serde_json::from_value(spec).unwrap(),
        }
    }

    fn kept(folder: &Path) -> Kept {
        Kept::new(folder.to_owned(), "n1".to_owned())
    }

    #[tokio::test]
    async fn l22_wishes_outlive_the_process_and_not_their_object() {
        let folder = tempfile::tempdir().unwrap();
        let kept = kept(folder.path());
        assert_eq!(kept.load().await, None);
        kept.store(Some(Arc::new(wishes()))).await;
        assert_eq!(kept.load().await, Some(wishes()));
        assert!(!folder.path().join(TEMPORARY).exists());
        kept.store(None).await;
        assert_eq!(kept.load().await, None);
        kept.store(None).await;
    }

    #[rstest::rstest]
    #[case::garbage("{\"version\":1,")]
    #[case::empty("")]
    #[case::of_a_later_version(
        r#"{"version":2,"node":"n1","generation":1,"spec":{"nodeUID":"u"}}"#
    )]
    #[case::of_another_node(r#"{"version":1,"node":"n2","generation":1,"spec":{"nodeUID":"u"}}"#)]
    #[tokio::test]
    async fn what_cannot_be_used_is_moved_aside(#[case] text: &str) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), text).unwrap();
        assert_eq!(kept(folder.path()).load().await, None);
        assert_eq!(fs::read_to_string(folder.path().join(ASIDE)).unwrap(), text);
        assert!(!folder.path().join(FILE).exists());
    }

    /// The file outlives the program that wrote it.
    #[tokio::test]
    async fn the_form_is_a_promise() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"version":1,"node":"n1","generation":3,"spec":{"nodeUID":"u","images":[{"ref":"nginx"}]}}"#;
        fs::write(folder.path().join(FILE), text).unwrap();
        let wishes = kept(folder.path()).load().await.unwrap();
        assert_eq!((wishes.generation, wishes.spec.images.len()), (3, 1));
    }
}
