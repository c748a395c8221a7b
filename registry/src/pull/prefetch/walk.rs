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
    /// Of these, the ones that no index has named yet.
    unnamed: Vec<&'a Platform>,
    /// An index said what one of its images runs on.
    told: bool,
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
            unnamed: platforms.iter().collect(),
            told: false,
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
        self.tick_off(&manifest.children);
        let platforms = self.platforms;
        for child in manifest
            .children
            .iter()
            .filter(|child| is_wanted(child, platforms))
        {
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

    /// An image that names no platform may be for any of them; a nested index speaks for itself.
    fn tick_off(&mut self, children: &[Child]) {
        for child in children
            .iter()
            .filter(|child| child.kind == ChildKind::Manifest)
        {
            match &child.platform {
                Some(platform) => {
                    self.told = true;
                    self.unnamed.retain(|wish| !wish.accepts(platform));
                }
                None if media_type::is_index(&child.media_type) => {}
                None => self.unnamed.clear(),
            }
        }
    }

    /// At the end of the walk: the wanted platforms that the image is not for. To be for none of them is an error: a node
    /// would find nothing in it, either.
    pub(super) fn missing(&self) -> Result<Vec<Platform>, Problem> {
        if !self.told {
            return Ok(Vec::new());
        }
        let missing: Vec<Platform> = self.unnamed.iter().copied().cloned().collect();
        if missing.len() == self.platforms.len() {
            return Err(no_image_for(&missing));
        }
        Ok(missing)
    }
}

/// All blobs but those that may be absent everywhere; of the manifests those that run on a wanted platform, or that name
/// none (artifacts, nested indexes).
fn is_wanted(child: &Child, platforms: &[Platform]) -> bool {
    match child.kind {
        ChildKind::Manifest => {
            let platform = child.platform.as_ref();
            platform.is_none_or(|platform| platforms.iter().any(|wish| wish.accepts(platform)))
        }
        ChildKind::Config | ChildKind::Layer => {
            !media_type::is_non_distributable(&child.media_type)
        }
    }
}

/// What is said of platforms that an image is not for.
pub(super) fn no_image_for(platforms: &[Platform]) -> Problem {
    let names: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    Problem {
        reason: PrefetchReason::PlatformMissing,
        message: format!("it has no image for {}", names.join(", ")),
    }
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
    fn l13_an_index_is_followed_to_the_wanted_platforms() {
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

    /// What is missing of `wishes` after a walk over these manifests.
    fn missing(wishes: &[&str], manifests: &[Manifest]) -> Result<String, Problem> {
        let wishes = platforms(wishes);
        let mut walk = Walk::new(root(), &wishes);
        for manifest in manifests {
            walk.next().expect("named by one before");
            walk.visit(manifest)?;
        }
        let names: Vec<String> = walk.missing()?.iter().map(ToString::to_string).collect();
        Ok(names.join(" "))
    }

    #[test]
    fn nothing_for_the_platforms_is_an_error() {
        let error = missing(&["linux/riscv64"], &[index(&[(1, Some("linux/amd64"))])]);
        let error = error.unwrap_err();
        assert_eq!(error.reason, PrefetchReason::PlatformMissing);
        assert!(error.message.contains("linux/riscv64"));
        let no_choice = [index(&[]), image(&[]), index(&[(1, None)])];
        for manifest in no_choice {
            assert_eq!(missing(&["linux/riscv64"], &[manifest]), Ok(String::new()));
        }
    }

    #[test]
    fn nothing_for_some_platforms_is_told() {
        let wishes = ["linux/amd64", "linux/arm64", "linux/s390x"];
        let amd64 = (1, Some("linux/amd64"));
        let attestation = (2, Some("unknown/unknown"));
        let only_one = index(&[amd64, attestation]);
        assert_eq!(
            missing(&wishes, &[only_one]),
            Ok("linux/arm64 linux/s390x".to_owned())
        );
        let all = index(&[amd64, (3, Some("linux/arm64")), (4, Some("linux/s390x"))]);
        assert_eq!(missing(&wishes, &[all]), Ok(String::new()));
        let may_be_for_any = index(&[amd64, (5, None)]);
        assert_eq!(missing(&wishes, &[may_be_for_any]), Ok(String::new()));
    }

    /// No index needs to have all of them.
    #[test]
    fn nested_indexes_are_looked_at_together() {
        let nested = |number: usize| {
            json!({
                "mediaType": media_type::OCI_INDEX, "digest": digest(number).to_string(), "size": 1
            })
        };
        let root = manifest(&json!({
            "mediaType": media_type::OCI_INDEX, "manifests": [nested(1), nested(2)]
        }));
        let first = index(&[(3, Some("linux/amd64"))]);
        let second = index(&[(4, Some("linux/arm64"))]);
        let found = missing(&["linux/arm64", "linux/s390x"], &[root, first, second]);
        assert_eq!(found, Ok("linux/s390x".to_owned()));
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
