//! The committed Rust of the CRI is what `proto/api.proto` generates. After a new definition:
//! `CORAL_REGENERATE=1 cargo test -p coral-warmer --test generated_is_current`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What the warmer calls, per service. The rest of the definition would be most of the code, and the scripted runtime
/// of the tests would have to answer all of it.
const CALLED: &[(&str, &[&str])] = &[
    ("RuntimeService", &["Version", "ListContainers"]),
    (
        "ImageService",
        &["ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"],
    ),
];

#[test]
fn generated_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/cri/generated/runtime.v1.rs");
    let folder = tempfile::tempdir().unwrap();
    generate(&root.join("proto"), folder.path());
    let generated = fs::read_to_string(folder.path().join("runtime.v1.rs")).unwrap();
    #[expect(
        clippy::disallowed_methods,
        reason = "the switch that rewrites the committed file; tests have no cli"
    )]
    if std::env::var_os("CORAL_REGENERATE").is_some() {
        fs::write(&committed, &generated).unwrap();
    }
    assert!(
        fs::read_to_string(&committed).is_ok_and(|text| text == generated),
        "{} is not what proto/api.proto generates: run this test with CORAL_REGENERATE=1",
        committed.display()
    );
}

/// Without comments, because leaving out messages would hand each comment to another one.
fn generate(proto: &Path, into: &Path) {
    let mut files = protox::compile(["api.proto"], [proto]).expect("the definition compiles");
    let file = &mut files.file[0];
    file.source_code_info = None;
    let mut used: BTreeSet<String> = BTreeSet::new();
    for service in &mut file.service {
        let called = CALLED
            .iter()
            .find_map(|(name, called)| (service.name() == *name).then_some(*called))
            .expect("both services are known");
        service
            .method
            .retain(|method| called.contains(&method.name()));
        assert_eq!(service.method.len(), called.len(), "a call has gone");
        for method in &service.method {
            used.insert(method.input_type().to_owned());
            used.insert(method.output_type().to_owned());
        }
    }
    loop {
        let before = used.len();
        for message in &file.message_type {
            if used.contains(&format!(".runtime.v1.{}", message.name())) {
                let nested = message.nested_type.iter().flat_map(|entry| &entry.field);
                let fields = message.field.iter().chain(nested);
                used.extend(fields.map(|field| field.type_name().to_owned()));
            }
        }
        if used.len() == before {
            break;
        }
    }
    let named = |name: &str| used.contains(&format!(".runtime.v1.{name}"));
    file.message_type.retain(|message| named(message.name()));
    file.enum_type.retain(|kind| named(kind.name()));
    tonic_prost_build::configure()
        .out_dir(into)
        .server_mod_attribute(".", "#[cfg(feature = \"fake-cri\")]")
        // It holds passwords; `cri::generated` prints what may be seen of it.
        .skip_debug(["runtime.v1.AuthConfig"])
        .compile_fds(files)
        .expect("the folder can be written");
}
