//! The control groups of one node: what a kubelet takes for the root of all.

use std::path::{Path, PathBuf};

use crate::harness;

/// One group in every hierarchy, gone with this value. `integration-tests/run` removes those of a run that
/// was killed, by the start of their names.
pub(crate) struct Cgroups {
    name: String,
}

impl Cgroups {
    /// Makes them, empty.
    pub(crate) fn create(name: &str) -> Self {
        for hierarchy in hierarchies() {
            let group = hierarchy.join(name);
            std::fs::create_dir(&group).unwrap();
            // A group of this hierarchy takes no process before these are set.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = std::fs::read(hierarchy.join(file)) {
                    std::fs::write(group.join(file), all).unwrap();
                }
            }
        }
        Self {
            name: name.to_owned(),
        }
    }
}

/// The name for a node of the cluster in this folder: no other node of any run has it.
pub(crate) fn name(cluster: &Path, node: &str) -> String {
    let cluster = cluster.file_name().unwrap().to_string_lossy();
    format!("{}-{cluster}-{node}", harness::run_name())
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for hierarchy in hierarchies() {
            remove(&hierarchy.join(&self.name));
        }
    }
}

/// Where they are mounted, the one of v2 among them: programs make groups there too.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        kind.starts_with("cgroup").then(|| path.into())
    });
    mounts.collect()
}

/// Groups have no files that could be removed, only groups.
fn remove(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}
