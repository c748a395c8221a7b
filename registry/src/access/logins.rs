//! Are a user and a password good? bcrypt takes tens of milliseconds for that, on purpose: so it runs beside the runtime, a
//! few at once, with few waiting, and what was found to be good is remembered for a while under a name that tells nothing.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use moka::future::Cache;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::key::Key;
use super::users::Users;

/// Checks passwords.
#[derive(Debug)]
pub(super) struct Logins {
    key: Key,
    good: Cache<String, ()>,
    /// Checks at once.
    running: Arc<Semaphore>,
    /// Checks that run or wait.
    places: Arc<Semaphore>,
}

/// Why a login is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoginError {
    /// There is no such user, or it is not its password.
    Wrong,
    /// Too many are being checked.
    Busy,
}

impl Logins {
    pub(super) fn new(key: Key) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            key,
            good: Cache::builder()
                .max_capacity(REMEMBERED)
                .time_to_idle(REMEMBER)
                .build(),
            running: Arc::new(Semaphore::new((cores / 2).clamp(1, MOST_AT_ONCE))),
            places: Arc::new(Semaphore::new(PLACES)),
        }
    }

    /// Is this the password of that user? The same question from many at once is looked into once.
    pub(super) async fn check(
        &self,
        users: &Users,
        user: &str,
        password: SecretString,
    ) -> Result<(), LoginError> {
        let (hash, is_known) = users.password(user);
        // With the hash in it a changed password is another question.
        let question = [user, password.expose_secret(), hash.expose_secret()].map(str::as_bytes);
        let question = self.key.seal(&question);
        let answer = async {
            let is_right = self.compare(password, hash).await?;
            (is_right && is_known)
                .then_some(())
                .ok_or(LoginError::Wrong)
        };
        let answer = self.good.try_get_with(question, answer).await;
        answer.map_err(|error| *error)
    }

    async fn compare(
        &self,
        password: SecretString,
        hash: SecretString,
    ) -> Result<bool, LoginError> {
        let busy = |_| LoginError::Busy;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(busy)?;
        let turn = timeout(PATIENCE, Arc::clone(&self.running).acquire_owned()).await;
        let turn = turn.ok().and_then(Result::ok).ok_or(LoginError::Busy)?;
        let comparing = tokio::task::spawn_blocking(move || {
            let right = bcrypt::verify(password.expose_secret(), hash.expose_secret());
            // Here, and not with the caller, who may leave.
            drop((turn, place));
            right.unwrap_or(false)
        });
        comparing.await.map_err(|_| LoginError::Busy)
    }
}

/// A password that nobody sends for so long is checked anew. A changed file ends it at once.
const REMEMBER: Duration = Duration::from_mins(5);
/// Logins that are remembered, some hundred bytes each.
const REMEMBERED: u64 = 10_000;
/// Most checks at once, however many cores there are: the others serve images.
const MOST_AT_ONCE: usize = 4;
/// Most checks that run or wait.
const PLACES: usize = 64;
/// How long one waits for its turn: clients give up after 30 s, and have more to ask.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
