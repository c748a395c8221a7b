use std::fs;

use super::*;

struct Scene {
    folder: tempfile::TempDir,
    users: Users,
}

impl Scene {
    fn new(htpasswd: &str, tokens: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        };
        let config = UsersConfig {
            htpasswd: file("htpasswd", htpasswd),
            tokens: file("tokens", tokens),
            realm: None,
        };
        let users = Users::new(config, Key::random().unwrap());
        Self { folder, users }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
        self.users.look();
    }

    fn knows(&self, user: &str) -> bool {
        self.users.password(user).1
    }
}

fn hash(cost: u32) -> String {
    bcrypt::hash("swordfish", cost).unwrap()
}

const TOKEN: &str = "0123456789abcdefghij";

#[test]
fn changed_files_are_taken_over_and_bad_ones_are_not() {
    let ann = format!("ann:{}\n", hash(4));
    let scene = Scene::new(&ann, &format!("ci: {TOKEN}\n"));
    assert!(scene.knows("ann") && !scene.knows("bob"));
    assert_eq!(scene.users.token(TOKEN), Some(Subject::Token("ci".into())));
    assert_eq!(scene.users.token("0123456789abcdefghik"), None);

    scene.write("htpasswd", &ann.replace("ann", "bob"));
    assert!(!scene.knows("ann") && scene.knows("bob"));

    scene.write("htpasswd", "ann:hunter2\n");
    let problem = scene.users.problem().unwrap();
    assert!(
        problem.contains("htpasswd: line 1: ") && !problem.contains("hunter2"),
        "{problem}"
    );
    assert!(scene.knows("bob"), "as before");
    scene.write("tokens", "ci: hunter2\n");
    assert_eq!(
        scene.users.problem().unwrap().lines().count(),
        2,
        "both files"
    );

    fs::remove_file(scene.folder.path().join("htpasswd")).unwrap();
    scene.users.look();
    assert!(scene.users.problem().is_some() && scene.knows("bob"));
    scene.write("tokens", "");
    assert!(
        scene.users.token(TOKEN).is_some(),
        "one file is missing: nothing is taken over"
    );
    scene.write("htpasswd", &ann);
    assert!(scene.users.problem().is_none() && scene.knows("ann"));
    assert_eq!(scene.users.token(TOKEN), None);
}

#[test]
fn an_unknown_user_costs_as_much_as_the_most_expensive_one() {
    let (cheap, dear) = (hash(4), hash(5));
    let scene = Scene::new(&format!("ann:{cheap}\nbob:{dear}\ncat:{cheap}\n"), "");
    let (decoy, is_known) = scene.users.password("nobody");
    assert!(!is_known);
    assert_eq!(decoy.expose_secret(), dear);
}

#[test]
fn without_users_a_password_is_compared_all_the_same() {
    let scene = Scene::new("", "");
    let (decoy, is_known) = scene.users.password("nobody");
    assert!(!is_known && !bcrypt::verify("swordfish", decoy.expose_secret()).unwrap());
}

#[test]
fn mistakes_are_told_by_key() {
    let scene = Scene::new("ann:hunter2\nbob:hunter2\n", "ci: hunter2\n");
    let found = mistakes(scene.users.config());
    let keys: Vec<_> = found.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, [HTPASSWD, HTPASSWD, TOKENS]);
    assert!(!format!("{found:?}{scene:?}", scene = scene.users).contains("hunter2"));
    let good = Scene::new(&format!("ann:{}\n", hash(4)), "");
    assert!(mistakes(good.users.config()).is_empty());
    let shown = format!("{:?}", good.users);
    assert!(!shown.contains("$2"), "{shown}");
}
