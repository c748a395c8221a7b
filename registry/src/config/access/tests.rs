use std::path::PathBuf;

use crate::config::{Config, Loaded, Mistakes, Overrides, from_bytes};

use super::*;

const HASH: &str = "$2y$04$C6UzMDM.H6dfI/f/IKcEe.7uRRZOlhVVVHhjEVqNiWpHyCrZSFyDW";

struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let scene = Self(folder);
        scene.write("htpasswd", &format!("ci:{HASH}\n"));
        scene.write("tokens", "deploy: 01234567890123456789\n");
        scene
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// `HTPASSWD` and `TOKENS` stand for the files.
    fn parse(&self, text: &str) -> Result<Loaded, Mistakes> {
        let file = |name| self.0.path().join(name).display().to_string();
        let text = text
            .replace("HTPASSWD", &file("htpasswd"))
            .replace("TOKENS", &file("tokens"));
        from_bytes("coral.yaml", text.as_bytes(), &Overrides::default())
    }

    fn config(&self, text: &str) -> Config {
        let parsed = self.parse(text);
        parsed
            .unwrap_or_else(|mistakes| panic!("{mistakes}"))
            .config
    }
}

const GOOD: &str = "\
hosted: [{ prefix: team }]
upstreams: { docker.io: {}, ghcr.io: { aliases: [packages.example] } }
users: { htpasswd: HTPASSWD, tokens: TOKENS, realm: https://registry.example/token }
access:
  - { subjects: [anonymous, authenticated, \"user:ci\", \"token:deploy\"], repositories: [\"team/**\", team], verbs: [pull] }
  - { subjects: [\"user:ci\"], repositories: [\"**\"], verbs: [push, delete] }
  - { subjects: [authenticated], repositories: [\"packages.example/company/**\", \"index.docker.io/library/*\"], verbs: [pull] }
";

#[test]
fn rules_and_users() {
    let scene = Scene::new();
    let config = scene.config(GOOD);
    let users = config.users.unwrap();
    assert_eq!(users.htpasswd, Some(scene.0.path().join("htpasswd")));
    assert_eq!(
        users.realm.unwrap().as_str(),
        "https://registry.example/token"
    );
    let [open, ci, company] = &config.access[..] else {
        panic!("{:?}", config.access)
    };
    assert_eq!(open.subjects[..2], [Who::Everybody, Who::Authenticated]);
    assert_eq!(open.subjects[3], Who::One("token:deploy".parse().unwrap()));
    assert_eq!(ci.verbs, [Verb::Push, Verb::Delete]);
    let upstreams = company
        .repositories
        .iter()
        .map(|some| some.upstream.as_ref().unwrap().as_str());
    assert_eq!(
        upstreams.collect::<Vec<_>>(),
        ["ghcr.io", "docker.io"],
        "aliases mean what they are for"
    );
    assert_eq!(company.repositories[0].pattern.0.as_str(), "company/**");

    let none = scene.config("{ users: {}, access: [] }");
    assert!(none.users.is_none() && none.access.is_empty());
}

#[rstest::rstest]
#[case(
    "users: { realm: https://registry.example/token }",
    "users: nobody can log in"
)]
#[case(
    "users: { htpasswd: /nowhere/at/all }",
    "users.htpasswd: the file cannot be read"
)]
#[case(
    "users: { htpasswd: HTPASSWD, realm: registry.example }",
    "users.realm: \"registry.example\" is not where"
)]
#[case(
    "users: { htpasswd: HTPASSWD, realm: \"https://u:p@registry.example/token\" }",
    "users.realm: the value is not where"
)]
#[case("users: { htpasswd: HTPASSWD, ldap: x }", "users.ldap: unknown key")]
#[case(
    "access: [{ subjects: [\"user:ci\"] }]",
    "access[0]: repositories is missing"
)]
#[case("access: [{ subjects: [\"user:ci\"] }]", "access[0]: verbs is missing")]
#[case(
    "access: [{ subjects: [\"user:ci\"] }]",
    "access[0].subjects[0]: \"user:ci\" means nobody; write users.htpasswd"
)]
#[case(
    "access: [{ subjects: [\"token:ci\"] }]",
    "means nobody; write users.tokens"
)]
#[case(
    "access: [{ subjects: [authenticated] }]",
    "\"authenticated\" means nobody"
)]
#[case("access: [{ subjects: [ci] }]", "\"ci\" is nobody; write user:NAME")]
#[case("access: [{ subjects: [\"user:\"] }]", "is nobody")]
#[case(
    "access: [{ verbs: [write] }]",
    "access[0].verbs[0]: \"write\" is not known here; write one of pull, push, delete"
)]
#[case(
    "access: [{ repositories: [\"Team/**\"] }]",
    "is not a repository pattern"
)]
#[case("access: [{ repositories: [\"**/x\"] }]", "has ** before its end")]
#[case(
    "access: [{ repositories: [\"tema/**\"] }]",
    "\"tema/**\" matches nothing: no prefix under hosted"
)]
#[case(
    "access: [{ repositories: [\"quay.io/x/**\"] }]",
    "none of the upstreams"
)]
#[case(
    "access: [{ repositories: [\"*.io/x/**\"] }]",
    "access[0].repositories[0]: "
)]
#[case(
    "access: [{ repositories: [\"docker.io/nginx\"] }]",
    "matches nothing on Docker Hub"
)]
#[case(
    "access: [{ repositories: [\"ghcr.io/a/*\"], verbs: [pull, push] }]",
    "are only pulled"
)]
#[case(
    "access: [{ repositories: [\"ghcr.io/a/*\"], subjects: [anonymous] }]",
    "is not for anonymous"
)]
#[case("access: [{ who: x }]", "access[0].who: unknown key")]
fn mistakes(#[case] text: &str, #[case] expected: &str) {
    let base = "hosted: [{ prefix: team/apps }]\nupstreams: { docker.io: {}, ghcr.io: {} }\n";
    let mistakes = Scene::new()
        .parse(&format!("{base}{text}\n"))
        .unwrap_err()
        .to_string();
    assert!(mistakes.contains(expected), "{mistakes}");
}

/// All at once, with the line in the file of users, and never with what stands in it.
#[test]
fn mistakes_in_the_files_of_users() {
    let scene = Scene::new();
    scene.write("htpasswd", "ci:hunter2\nbob:{SHA}hunter2\n");
    scene.write("tokens", "deploy: hunter2\n");
    let mistakes = scene.parse("users: { htpasswd: HTPASSWD, tokens: TOKENS }\nlisten: x\n");
    let text = mistakes.unwrap_err().to_string();
    let starts = [
        "coral.yaml: users.htpasswd: line 1: the password is not hashed by bcrypt",
        "coral.yaml: users.htpasswd: line 2: ",
        "coral.yaml: users.tokens: line 1: a token has at least 20",
        "coral.yaml:2:9: listen: ",
    ];
    assert_eq!(text.lines().count(), starts.len(), "{text}");
    for (line, start) in text.lines().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[rstest::rstest]
#[case("hosted: [{ prefix: team }]", &["hosted names repositories, but nobody can use them"])]
#[case("hosted: [{ prefix: team }]\nanonymousPush: true", &["anonymousPush is true"])]
#[case("hosted: [{ prefix: team }]\naccess: [{ subjects: [anonymous], repositories: [\"**\"], verbs: [pull] }]", &[])]
#[case("users: { htpasswd: HTPASSWD }", &["users can log in, but none of the rules"])]
#[case(GOOD, &[])]
#[case("listen: 0.0.0.0:5000\naddress: a:5000\nusers: { htpasswd: HTPASSWD }", &["users can log in", "users log in over plain HTTP"])]
#[case("listen: 0.0.0.0:5000\naddress: a:5000\nusers: { htpasswd: HTPASSWD, realm: https://a/token }", &["users can log in"])]
fn warnings(#[case] text: &str, #[case] expected: &[&str]) {
    let warnings = Scene::new().parse(text).unwrap().warnings;
    assert_eq!(warnings.len(), expected.len(), "{warnings:#?}");
    for (warning, start) in warnings.iter().zip(expected) {
        assert!(warning.starts_with(start), "{warning}");
    }
}
