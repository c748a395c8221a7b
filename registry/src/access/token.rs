//! The tokens that this registry gives out: who somebody is and what for, signed, for a few minutes.
//!
//! A token says who asked for it and which scopes were asked for; what that allows is decided anew with each request. It
//! is of no use any more when the password or the token it was got with is changed or taken away.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::identity::{Caller, Scopes, Subject};
use super::key::Key;
use super::users::Users;

/// The `service` of challenges, and whom our tokens are for.
pub const SERVICE: &str = "coral-registry";
/// How long a token is good. Clients get a new one when it ends.
pub const LIFE: Duration = Duration::from_mins(5);

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: String,
    sub: String,
    scope: String,
    /// See [`Users::proof`].
    proof: String,
    /// Seconds since 1970.
    iat: i64,
    exp: i64,
}

/// A token for `subject`, made at `now`; `None` when the subject is not there any more.
pub(super) fn make(
    key: &Key,
    users: &Users,
    (subject, scopes): (&Subject, &Scopes),
    now: Timestamp,
) -> Option<String> {
    let iat = now.as_second();
    Some(key.sign(&Claims {
        aud: SERVICE.to_owned(),
        sub: subject.to_string(),
        scope: scopes.to_string(),
        proof: users.proof(subject)?,
        iat,
        exp: iat.saturating_add_unsigned(LIFE.as_secs()),
    }))
}

/// Who shows this token; `None` when it is not ours, or not good any more.
pub(super) fn open(key: &Key, users: &Users, token: &str) -> Option<Caller> {
    let claims: Claims = key.open(token, SERVICE)?;
    let subject = claims.sub.parse().ok()?;
    if users.proof(&subject)? != claims.proof {
        return None;
    }
    let scopes = Scopes::parse([claims.scope.as_str()], |name| name.parse().ok());
    Some(Caller::with_token(subject, scopes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::users::UsersConfig;
    use jsonwebtoken::{EncodingKey, Header};

    struct Scene {
        folder: tempfile::TempDir,
        key: Key,
        users: Users,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("tokens");
            std::fs::write(
                &file,
                "ci: 01234567890123456789\nbot: 9876543210abcdefghij\n",
            )
            .unwrap();
            let config = UsersConfig {
                htpasswd: None,
                tokens: Some(file),
                realm: None,
            };
            let key = Key::random().unwrap();
            let users = Users::new(config, key.clone());
            Self { folder, key, users }
        }

        fn make(&self, subject: &Subject, now: Timestamp) -> String {
            let scopes = Scopes::parse(["repository:team/app:pull"], |name| name.parse().ok());
            make(&self.key, &self.users, (subject, &scopes), now).unwrap()
        }

        fn open(&self, token: &str) -> Option<Subject> {
            let caller = open(&self.key, &self.users, token)?;
            assert!(caller.has_token());
            Some(caller.subject().clone())
        }
    }

    fn ci() -> Subject {
        Subject::Token("ci".into())
    }

    #[test]
    fn a_token_is_good_for_its_life() {
        let scene = Scene::new();
        let now = Timestamp::now();
        for subject in [ci(), Subject::Anonymous] {
            let token = scene.make(&subject, now);
            assert_eq!(scene.open(&token), Some(subject.clone()));
            assert_eq!(
                scene.open(&scene.make(&subject, now - LIFE - Duration::from_secs(2))),
                None,
                "it has ended"
            );
            assert_eq!(scene.open(&format!("{token}x")), None);
        }
        let nobody = Subject::User("nobody".into());
        assert_eq!(
            make(&scene.key, &scene.users, (&nobody, &Scopes::default()), now),
            None
        );
    }

    /// RFC 8725, sections 2.1 and 2.2: no algorithm, another one, another key, another audience.
    #[test]
    fn a_forged_token_is_nobodys() {
        let scene = Scene::new();
        let good = scene.make(&ci(), Timestamp::now());
        let claims = good.split('.').nth(1).unwrap();
        // {"alg":"none","typ":"JWT"}
        let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.");
        assert_eq!(scene.open(&none), None);
        let other = Key::random().unwrap();
        let scopes = Scopes::default();
        let theirs = make(&other, &scene.users, (&ci(), &scopes), Timestamp::now()).unwrap();
        assert_eq!(scene.open(&theirs), None);
        let said: Claims = scene.key.open(&good, SERVICE).unwrap();
        let header = Header::new(jsonwebtoken::Algorithm::HS512);
        let secret = EncodingKey::from_secret(b"guessed");
        let strong = jsonwebtoken::encode(&header, &said, &secret).unwrap();
        assert_eq!(scene.open(&strong), None);
        let elsewhere = Claims {
            aud: "other".to_owned(),
            ..said
        };
        assert_eq!(scene.open(&scene.key.sign(&elsewhere)), None);
    }

    /// H-22: what was taken away is over at once, for tokens that were got with it, too.
    #[test]
    fn h22_a_token_ends_with_what_it_was_got_with() {
        let scene = Scene::new();
        let token = scene.make(&ci(), Timestamp::now());
        let anonymous = scene.make(&Subject::Anonymous, Timestamp::now());
        for content in ["bot: 9876543210abcdefghij\n", "ci: zzzzzzzzzz0123456789\n"] {
            std::fs::write(scene.folder.path().join("tokens"), content).unwrap();
            scene.users.look();
            assert_eq!(scene.open(&token), None);
            assert_eq!(scene.open(&anonymous), Some(Subject::Anonymous));
        }
    }
}
