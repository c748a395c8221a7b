//! Whose request is it? A login that is wrong is refused, wherever it is sent: nobody with a wrong password is served as if
//! there were none. As long as nobody is configured to log in, logins mean nothing and are not looked at.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use secrecy::SecretString;

use super::identity::{Caller, Scopes, Subject};
use super::logins::LoginError;
use super::metrics::By;
use super::users::Users;
use super::{Access, AccessError, token};

impl Access {
    /// Who sends a request with this `Authorization`?
    pub async fn identify(&self, authorization: Option<&[u8]>) -> Result<Caller, AccessError> {
        let snapshot = self.snapshot();
        let (Some(users), Some(sent)) = (&snapshot.users, authorization) else {
            return Ok(Caller::anonymous());
        };
        let sent = std::str::from_utf8(sent).unwrap_or_default().trim();
        let (scheme, rest) = sent.split_once(' ').unwrap_or((sent, ""));
        let rest = rest.trim_start();
        if scheme.eq_ignore_ascii_case("basic") {
            let (user, password) = basic(rest).ok_or(AccessError::WrongLogin)?;
            return self.check(users, &user, password).await;
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            let known = users.token(rest).map(Caller::logged_in);
            let known = known.or_else(|| token::open(&self.key, users, rest));
            let known = known.ok_or(AccessError::WrongToken);
            self.metrics.shown(By::Token, &known);
            return known;
        }
        Err(AccessError::WrongLogin)
    }

    /// Who logs in with this user and password?
    pub async fn log_in(&self, user: &str, password: SecretString) -> Result<Caller, AccessError> {
        let snapshot = self.snapshot();
        let users = snapshot.users.as_ref().ok_or(AccessError::WrongLogin)?;
        self.check(users, user, password).await
    }

    /// A token for `caller`, made at `now`. A token gets nobody another one: it would never end.
    pub fn token(
        &self,
        caller: &Caller,
        scopes: &Scopes,
        now: Timestamp,
    ) -> Result<String, AccessError> {
        if caller.has_token() {
            return Err(AccessError::WrongLogin);
        }
        let snapshot = self.snapshot();
        let users = snapshot.users.as_ref().ok_or(AccessError::WrongLogin)?;
        let token = token::make(&self.key, users, (caller.subject(), scopes), now);
        token.ok_or(AccessError::WrongLogin)
    }

    /// Does anybody get tokens here?
    pub fn gives_tokens(&self) -> bool {
        self.snapshot.load().users.is_some()
    }

    /// Should this caller be told how to log in? Clients ask for that once, before all else (end-1).
    pub fn greet(&self, caller: &Caller) -> Result<(), AccessError> {
        let has_shown_nothing = caller.is_anonymous() && !caller.has_token();
        if has_shown_nothing && self.snapshot.load().grants.need_login() {
            return Err(AccessError::LoginNeeded(None));
        }
        Ok(())
    }

    /// Takes over what the files of users say, if they have changed. Blocks.
    pub fn look_at_users(&self) {
        if let Some(users) = &self.snapshot().users {
            users.look();
        }
    }

    /// Why what the files of users say is not in force, if that is so.
    pub fn users_problem(&self) -> Option<std::sync::Arc<str>> {
        self.snapshot.load().users.as_ref()?.problem()
    }

    async fn check(
        &self,
        users: &Users,
        user: &str,
        password: SecretString,
    ) -> Result<Caller, AccessError> {
        let checked = self.logins.check(users, user, password).await;
        let checked = checked.map_err(|error| match error {
            LoginError::Wrong => AccessError::WrongLogin,
            LoginError::Busy => AccessError::Busy,
        });
        self.metrics.shown(By::Password, &checked);
        checked.map(|()| Caller::logged_in(Subject::User(user.into())))
    }
}

/// User and password (RFC 7617).
fn basic(text: &str) -> Option<(String, SecretString)> {
    let decoded = BASE64_STANDARD.decode(text).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.into()))
}
