//! The committed Rust of the CRI, and of what the warmer uses of containerd's own API, is what `proto/` generates. After a
//! new definition: `CORAL_REGENERATE=1 cargo test -p coral-warmer --test generated_is_current`.
//!
//! `proto/api.proto` is of kubernetes/cri-api, `proto/containerd/` of containerd/containerd/api v1.12.0; unchanged.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rstest::rstest;

/// What the warmer calls, per service. The rest of the definitions would be most of the code, and the scripted runtime
/// of the tests would have to answer all of it.
type Called = &'static [(&'static str, &'static [&'static str])];

const CRI: Called = &[
    ("RuntimeService", &["Version", "ListContainers"]),
    (
        "ImageService",
        &["ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"],
    ),
];
const CONTAINERD: Called = &[("Events", &["Subscribe"]), ("Images", &["List", "Update"])];

/// Fields whose types would bring a crate along, and that nobody reads.
const UNREAD: &[&str] = &[
    "timestamp",
    "event",
    "created_at",
    "updated_at",
    "source_date_epoch",
];

#[rstest]
#[case("proto", &["api.proto"], CRI, &["runtime.v1"])]
#[case(
    "proto/containerd",
    &["services/events/v1/events.proto", "services/images/v1/images.proto"],
    CONTAINERD,
    &["containerd.services.events.v1", "containerd.services.images.v1", "containerd.types", "google.protobuf"]
)]
fn generated_is_current(
    #[case] definitions: &str,
    #[case] files: &[&str],
    #[case] called: Called,
    #[case] packages: &[&str],
) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    generate(&root.join(definitions), files, called, folder.path());
    for package in packages {
        let committed = root.join(format!("src/cri/generated/{package}.rs"));
        let generated = fs::read_to_string(folder.path().join(format!("{package}.rs"))).unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "the switch that rewrites the committed file; tests have no cli"
        )]
        if std::env::var_os("CORAL_REGENERATE").is_some() {
            fs::write(&committed, &generated).unwrap();
        }
        assert!(
            fs::read_to_string(&committed).is_ok_and(|text| text == generated),
            "{} is not what {definitions} generates: run this test with CORAL_REGENERATE=1",
            committed.display()
        );
    }
}

/// Without comments, because leaving out messages would hand each comment to another one.
fn generate(proto: &Path, files: &[&str], called: Called, into: &Path) {
    let mut all = protox::compile(files, [proto]).expect("the definition compiles");
    let mut used: BTreeSet<String> = BTreeSet::new();
    for file in &mut all.file {
        file.source_code_info = None;
        file.extension.clear();
        for service in &mut file.service {
            let called = called
                .iter()
                .find_map(|(name, called)| (service.name() == *name).then_some(*called))
                .expect("every service is known");
            service
                .method
                .retain(|method| called.contains(&method.name()));
            assert_eq!(service.method.len(), called.len(), "a call has gone");
            for method in &service.method {
                used.insert(method.input_type().to_owned());
                used.insert(method.output_type().to_owned());
            }
        }
        for message in &mut file.message_type {
            if proto.ends_with("containerd") {
                message
                    .field
                    .retain(|field| !UNREAD.contains(&field.name()));
            }
        }
    }
    loop {
        let before = used.len();
        for file in &all.file {
            for message in &file.message_type {
                if used.contains(&format!(".{}.{}", file.package(), message.name())) {
                    let nested = message.nested_type.iter().flat_map(|entry| &entry.field);
                    let fields = message.field.iter().chain(nested);
                    used.extend(fields.map(|field| field.type_name().to_owned()));
                }
            }
        }
        if used.len() == before {
            break;
        }
    }
    for file in &mut all.file {
        let package = file.package().to_owned();
        let named = |name: &str| used.contains(&format!(".{package}.{name}"));
        file.message_type.retain(|message| named(message.name()));
        file.enum_type.retain(|kind| named(kind.name()));
    }
    tonic_prost_build::configure()
        .out_dir(into)
        .compile_well_known_types(true)
        .server_mod_attribute(".", "#[cfg(feature = \"fake-cri\")]")
        // It holds passwords; `cri::generated` prints what may be seen of it.
        .skip_debug(["runtime.v1.AuthConfig"])
        .compile_fds(all)
        .expect("the folder can be written");
}
