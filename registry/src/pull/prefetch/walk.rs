//! Pure: which children of a manifest a prefetch takes, and when it has seen enough.

use std::collections::{HashSet, VecDeque};

use coral_schema::admin::PrefetchReason;
use coral_schema::oci::manifest::{Child, ChildKind};
use coral_schema::oci::{Digest, Manifest, ManifestRef, Platform, media_type};

use super::Problem;

/// Deepest index within indexes (H-35); real images have two levels.
const MAX_DEPTH: usize = 4;
/// Most manifests and blobs of one image (H-35): an order of magnitude above real images.
const MAX_CONTENT: usize = 1000;

/// A walk over the manifests of one image. Each digest is visited once, however often it is named.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    platforms: &'a [Platform],
    /// Manifests to look at, with their depths.
    queue: VecDeque<(ManifestRef, usize)>,
    depth: usize,
    seen: HashSet<Digest>,
}

/// A config or layer, with its length, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

impl<'a> Walk<'a> {
    /// A walk that starts at `root`.
    pub(super) fn new(root: ManifestRef, platforms: &'a [Platform]) -> Self {
        Self {
            platforms,
            queue: VecDeque::from([(root, 0)]),
            depth: 0,
            seen: HashSet::new(),
        }
    }

    /// The next manifest to look at.
    pub(super) fn next(&mut self) -> Option<ManifestRef> {
        let (reference, depth) = self.queue.pop_front()?;
        self.depth = depth;
        Some(reference)
    }

    /// Takes in the manifest that [`Walk::next`] named; the blobs that it adds, in its order.
    pub(super) fn visit(&mut self, manifest: &Manifest) -> Result<Vec<Blob>, Problem> {
        let mut blobs = Vec::new();
        for child in wanted(manifest, self.platforms)? {
            if !self.seen.insert(child.digest) {
                continue;
            }
            if self.seen.len() > MAX_CONTENT {
                return Err(bomb(format!(
                    "it names more than {MAX_CONTENT} manifests and blobs"
                )));
            }
            match child.kind {
                ChildKind::Manifest if self.depth == MAX_DEPTH => {
                    return Err(bomb(format!(
                        "its indexes nest more than {MAX_DEPTH} levels deep"
                    )));
                }
                ChildKind::Manifest => {
                    let reference = ManifestRef::Digest(child.digest);
                    self.queue.push_back((reference, self.depth + 1));
                }
                ChildKind::Config | ChildKind::Layer => blobs.push(Blob {
                    digest: child.digest,
                    size: child.size,
                }),
            }
        }
        Ok(blobs)
    }
}

/// All blobs but those that may be absent everywhere; of the manifests those that run on a wanted platform, or that name
/// none (artifacts, nested indexes). An index without anything for the wanted platforms is an error: a node would find
/// nothing in it, either.
fn wanted<'m>(manifest: &'m Manifest, platforms: &[Platform]) -> Result<Vec<&'m Child>, Problem> {
    let runs = |child: &Child| {
        let platform = child.platform.as_ref();
        platform.is_none_or(|platform| platforms.iter().any(|wish| wish.accepts(platform)))
    };
    let chosen: Vec<&Child> = manifest
        .children
        .iter()
        .filter(|child| match child.kind {
            ChildKind::Manifest => runs(child),
            ChildKind::Config | ChildKind::Layer => {
                !media_type::is_non_distributable(&child.media_type)
            }
        })
        .collect();
    if chosen.is_empty()
        && manifest
            .children
            .iter()
            .any(|child| child.platform.is_some())
    {
        let names: Vec<String> = platforms.iter().map(ToString::to_string).collect();
        return Err(Problem {
            reason: PrefetchReason::PlatformMissing,
            message: format!("it has no image for {}", names.join(", ")),
        });
    }
    Ok(chosen)
}

fn bomb(message: String) -> Problem {
    Problem {
        reason: PrefetchReason::InvalidImage,
        message,
    }
}

/// What a job without platforms means: Linux on this machine's architecture, in any variant.
pub(super) fn own_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        same => same,
    };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn digest(number: usize) -> Digest {
        Digest::sha256(&number.to_le_bytes())
    }

    fn manifest(json: &Value) -> Manifest {
        Manifest::parse(json.to_string().as_bytes(), None).unwrap()
    }

    fn index(children: &[(usize, Option<&str>)]) -> Manifest {
        let child = |(number, platform): &(usize, Option<&str>)| {
            let mut child = json!({
                "mediaType": media_type::OCI_MANIFEST,
                "digest": digest(*number).to_string(),
                "size": 1
            });
            if let Some((os, architecture)) = platform.and_then(|text| text.split_once('/')) {
                child["platform"] = json!({ "os": os, "architecture": architecture });
            }
            child
        };
        let manifests: Vec<Value> = children.iter().map(child).collect();
        manifest(&json!({ "mediaType": media_type::OCI_INDEX, "manifests": manifests }))
    }

    fn image(layers: &[(usize, &str)]) -> Manifest {
        let layer = |(number, media_type): &(usize, &str)| json!({ "mediaType": media_type, "digest": digest(*number).to_string(), "size": number });
        manifest(&json!({
            "mediaType": media_type::OCI_MANIFEST,
            "config": layer(&(0, "config")),
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        }))
    }

    fn root() -> ManifestRef {
        "latest".parse().unwrap()
    }

    fn platforms(names: &[&str]) -> Vec<Platform> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn an_index_is_followed_to_the_wanted_platforms() {
        let wishes = platforms(&["linux/amd64", "linux/s390x"]);
        let mut walk = Walk::new(root(), &wishes);
        assert_eq!(walk.next(), Some(root()));
        let index = index(&[
            (1, Some("linux/arm64")),
            (2, Some("linux/amd64")),
            (3, Some("unknown/unknown")),
            (4, None),
            (2, Some("linux/amd64")),
        ]);
        assert_eq!(walk.visit(&index), Ok(vec![]));
        assert_eq!(walk.next(), Some(ManifestRef::Digest(digest(2))));
        let layers = image(&[
            (7, "layer"),
            (8, "application/vnd.oci.image.layer.nondistributable.v1.tar"),
        ]);
        let blobs = walk.visit(&layers).unwrap();
        assert_eq!(
            blobs,
            [
                Blob {
                    digest: digest(0),
                    size: 0
                },
                Blob {
                    digest: digest(7),
                    size: 7
                }
            ]
        );
        assert_eq!(walk.next(), Some(ManifestRef::Digest(digest(4))));
        assert_eq!(walk.visit(&layers), Ok(vec![]), "seen before");
        assert_eq!(walk.next(), None);
    }

    #[test]
    fn nothing_for_the_platform_is_an_error() {
        let wishes = platforms(&["linux/riscv64"]);
        let error = Walk::new(root(), &wishes).visit(&index(&[(1, Some("linux/amd64"))]));
        let error = error.unwrap_err();
        assert_eq!(error.reason, PrefetchReason::PlatformMissing);
        assert!(error.message.contains("linux/riscv64"));
        assert_eq!(
            Walk::new(root(), &wishes).visit(&index(&[])),
            Ok(vec![]),
            "an empty index"
        );
        assert!(
            Walk::new(root(), &wishes).visit(&image(&[])).is_ok(),
            "no index, no choice"
        );
    }

    #[test]
    fn h35_a_bomb_ends_soon() {
        let wishes = platforms(&["linux/amd64"]);
        let wide: Vec<_> = (0..2000).map(|number| (number, None)).collect();
        assert!(Walk::new(root(), &wishes).visit(&index(&wide)).is_err());

        let mut deep = Walk::new(root(), &wishes);
        let mut visits = 0;
        let result = loop {
            deep.next().expect("each level names the next");
            visits += 1;
            if let Err(error) = deep.visit(&index(&[(visits, None)])) {
                break error;
            }
        };
        assert!(result.message.contains("deep") && visits == MAX_DEPTH + 1);

        let mut cyclic = Walk::new(root(), &wishes);
        let mut visits = 0;
        while cyclic.next().is_some() {
            visits += 1;
            cyclic.visit(&index(&[(1, None), (2, None)])).unwrap();
        }
        assert_eq!(visits, 3, "the root and each child once");
    }
}
