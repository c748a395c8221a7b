use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use super::*;
use crate::access::users::UsersConfig;

async fn scene(cost: u32) -> (tempfile::TempDir, Logins, Users) {
    let making = tokio::task::spawn_blocking(move || {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("htpasswd");
        let hash = bcrypt::hash("swordfish", cost).unwrap();
        std::fs::write(&file, format!("ann:{hash}\n")).unwrap();
        let config = UsersConfig {
            htpasswd: Some(file),
            tokens: None,
            realm: None,
        };
        let key = Key::random().unwrap();
        let users = Users::new(config, key.clone());
        (folder, Logins::new(key), users)
    });
    making.await.unwrap()
}

impl Logins {
    /// Takes all places, as if so many passwords were being checked.
    fn full(&self) -> tokio::sync::OwnedSemaphorePermit {
        let places = u32::try_from(PLACES).unwrap();
        Arc::clone(&self.places)
            .try_acquire_many_owned(places)
            .unwrap()
    }
}

#[tokio::test]
async fn a_right_password_is_remembered_and_a_wrong_one_is_not() {
    let (folder, logins, users) = scene(4).await;
    let check = |user, password: &'static str| logins.check(&users, user, password.into());
    assert_eq!(check("ann", "swordfish").await, Ok(()));
    for (user, password) in [
        ("ann", "Swordfish"),
        ("ann", ""),
        ("bob", "swordfish"),
        ("", ""),
    ] {
        assert_eq!(
            check(user, password).await,
            Err(LoginError::Wrong),
            "{user} {password}"
        );
    }
    let _full = logins.full();
    assert_eq!(
        check("ann", "swordfish").await,
        Ok(()),
        "nothing had to be compared"
    );
    assert_eq!(check("ann", "Swordfish").await, Err(LoginError::Busy));
    assert_eq!(
        check("bob", "swordfish").await,
        Err(LoginError::Busy),
        "as for one who is known"
    );

    let hash = bcrypt::hash("another", 4).unwrap();
    std::fs::write(folder.path().join("htpasswd"), format!("ann:{hash}\n")).unwrap();
    users.look();
    assert_eq!(
        check("ann", "swordfish").await,
        Err(LoginError::Busy),
        "it was changed, so it is not remembered"
    );
}

#[tokio::test]
async fn the_same_question_is_looked_into_once() {
    let (_folder, logins, users) = scene(6).await;
    let checks = (0..3 * PLACES).map(|_| logins.check(&users, "ann", "swordfish".into()));
    let answers = futures::future::join_all(checks).await;
    assert!(
        answers.iter().all(Result::is_ok),
        "they would not all have found a place"
    );
}

#[tokio::test]
async fn more_different_questions_than_places_are_refused_at_once() {
    let (_folder, logins, users) = scene(4).await;
    let turns = u32::try_from(logins.running.available_permits()).unwrap();
    let turns = Arc::clone(&logins.running).try_acquire_many_owned(turns);
    let mut checks: FuturesUnordered<_> = (0..PLACES + 10)
        .map(|number| logins.check(&users, "ann", number.to_string().into()))
        .collect();
    for _ in 0..10 {
        assert_eq!(checks.next().await, Some(Err(LoginError::Busy)));
    }
    drop(turns);
    let others: Vec<_> = checks.collect().await;
    assert_eq!(others, [Err(LoginError::Wrong); PLACES]);
    let right = logins.check(&users, "ann", "swordfish".into());
    assert_eq!(right.await, Ok(()), "there is room again");
}
