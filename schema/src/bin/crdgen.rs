//! Writes the definitions of our resources into a folder, `helm/crds` of the repository by default.

use std::fs;
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/crds")),
        PathBuf::from,
    );
    fs::create_dir_all(&folder)?;
    for (name, content) in coral_schema::crd::definition_files() {
        fs::write(folder.join(name), content)?;
    }
    Ok(())
}
