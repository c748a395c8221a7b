//! Pure: does the cache serve an image's registry and repository? Its own rules, as its admin API tells them.

use coral_schema::admin::RegistryEntry;
use coral_schema::oci::ImageReference;
use globset::{GlobBuilder, GlobMatcher};

/// The registries that the cache stands in front of.
#[derive(Debug, Clone)]
pub struct Registries {
    entries: Vec<Served>,
}

#[derive(Debug, Clone)]
struct Served {
    names: Vec<String>,
    allow: Vec<GlobMatcher>,
    deny: Vec<GlobMatcher>,
}

impl Registries {
    /// A pattern that this version cannot read matches nothing in `allow`, and everything in `deny`: nodes are then not
    /// sent to a cache that might refuse them.
    pub fn new(entries: &[RegistryEntry]) -> Self {
        let entries = entries.iter().map(|entry| Served {
            names: std::iter::once(&entry.name)
                .chain(&entry.aliases)
                .map(|name| name.to_ascii_lowercase())
                .collect(),
            allow: if entry.allow.is_empty() {
                vec![everything()]
            } else {
                entry.allow.iter().filter_map(|text| glob(text)).collect()
            },
            deny: entry
                .deny
                .iter()
                .map(|text| glob(text).unwrap_or_else(everything))
                .collect(),
        });
        Self {
            entries: entries.collect(),
        }
    }

    /// Would the cache answer for this image?
    pub fn serve(&self, image: &ImageReference) -> bool {
        let repository = image.repository.as_str();
        self.entries
            .iter()
            .filter(|entry| entry.names.contains(&image.host))
            .any(|entry| {
                entry.allow.iter().any(|glob| glob.is_match(repository))
                    && !entry.deny.iter().any(|glob| glob.is_match(repository))
            })
    }

    /// Their names as they stand in references, aliases included, sorted: what nodes' mirror settings list.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .entries
            .iter()
            .flat_map(|entry| entry.names.iter().cloned())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// As the registry reads them: `*` stays within a component.
fn glob(text: &str) -> Option<GlobMatcher> {
    let glob = GlobBuilder::new(text)
        .literal_separator(true)
        .build()
        .ok()?;
    Some(glob.compile_matcher())
}

fn everything() -> GlobMatcher {
    glob("**").expect("a literal pattern")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("nginx", true)]
    #[case("index.docker.io/library/nginx", true)]
    #[case("ghcr.io/team/app", true)]
    #[case("GHCR.io/team/app", true)]
    #[case("mirror.example/team/app", true)]
    #[case("ghcr.io/team/deep/app", false)]
    #[case("ghcr.io/team/secret", false)]
    #[case("ghcr.io/other/app", false)]
    #[case("quay.io/team/app", false)]
    fn serves(#[case] image: &str, #[case] expected: bool) {
        let entry = |name: &str, aliases: &[&str], allow: &[&str], deny: &[&str]| RegistryEntry {
            name: name.to_owned(),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            allow: allow.iter().map(ToString::to_string).collect(),
            deny: deny.iter().map(ToString::to_string).collect(),
        };
        let registries = Registries::new(&[
            entry("docker.io", &[], &[], &[]),
            entry("ghcr.io", &["mirror.example"], &["team/*"], &["*/secret"]),
            entry("quay.io", &[], &[], &["[unreadable"]),
        ]);
        assert_eq!(registries.serve(&image.parse().unwrap()), expected);
        assert_eq!(
            registries.names(),
            ["docker.io", "ghcr.io", "mirror.example", "quay.io"]
        );
    }
}
