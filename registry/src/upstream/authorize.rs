//! Which `Authorization` a request carries.
//!
//! A request costs what a direct client's would: what the endpoint wants is remembered, so that a warm one is sent
//! once, and a cold one at most as request, token, request.

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use reqwest::Response;

use super::challenge::{self, Bearer, Challenge};
use super::credentials::{Credential, Login};
use super::exchange::Attempt;
use super::token::{self, Fetch, Token, TokenKey};
use super::{CredentialId, Identity, UpstreamErrorKind, redirect};

/// An `Authorization` header, and the token that it holds, if it came from a token service.
pub(super) struct Sent {
    pub(super) header: HeaderValue,
    token: Option<(TokenKey, Token)>,
}

impl Attempt<'_> {
    /// The authorization that this endpoint will want, as far as we know; `None` asks without.
    pub(super) async fn expected_authorization(
        &self,
        credential: Option<&Credential>,
    ) -> Result<Option<Sent>, UpstreamErrorKind> {
        if let Some(Credential { login, .. }) = credential {
            // Our file with the login is unreadable: the same as a login that is refused.
            let login = login
                .as_ref()
                .ok_or(UpstreamErrorKind::Refused { status: 401 })?;
            if let Login::Bearer(token) = login {
                return Ok(token::bearer(token).map(|header| Sent {
                    header,
                    token: None,
                }));
            }
        }
        let Some(challenge) = self.shared.tokens.expect(self.repository) else {
            return Ok(None);
        };
        match self.satisfy(&challenge, credential, None).await {
            // Some registries have repositories that need no token beside those that do.
            Err(UpstreamErrorKind::Refused { .. }) => Ok(None),
            result => result,
        }
    }

    /// The authorization that a 401 asks for; `None` when there is none but what was refused already.
    pub(super) async fn answer_challenge(
        &self,
        response: &Response,
        credential: Option<&Credential>,
        refused: Option<Sent>,
    ) -> Result<Option<Sent>, UpstreamErrorKind> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> = headers
            .iter()
            .flat_map(|header| challenge::parse(header.as_bytes()))
            .collect();
        let is_bearer = |challenge: &&Challenge| matches!(challenge, Challenge::Bearer(_));
        let Some(challenge) = challenges.iter().find(is_bearer).or(challenges.first()) else {
            return Ok(None);
        };
        self.shared.tokens.learn(challenge, self.repository);
        self.satisfy(challenge, credential, refused).await
    }

    async fn satisfy(
        &self,
        challenge: &Challenge,
        credential: Option<&Credential>,
        refused: Option<Sent>,
    ) -> Result<Option<Sent>, UpstreamErrorKind> {
        let login = credential.and_then(|credential| credential.login.as_ref());
        match (challenge, login) {
            (Challenge::Basic, Some(Login::Password { username, password }))
                if refused.is_none() =>
            {
                let header = token::basic(username, password);
                Ok(header.map(|header| Sent {
                    header,
                    token: None,
                }))
            }
            (Challenge::Basic, _) | (Challenge::Bearer(_), Some(Login::Bearer(_))) => Ok(None),
            (Challenge::Bearer(bearer), _) => self.token(bearer, credential, refused).await,
        }
    }

    async fn token(
        &self,
        bearer: &Bearer,
        credential: Option<&Credential>,
        refused: Option<Sent>,
    ) -> Result<Option<Sent>, UpstreamErrorKind> {
        redirect::check(&self.shared.base, self.shared.nearness.get(), &bearer.realm).map_err(
            |reason| {
                UpstreamErrorKind::Protocol(
                    format!("its token realm is not asked: {reason}").into(),
                )
            },
        )?;
        let credential = credential.filter(|_| self.shared.trusts(&bearer.realm));
        let key = TokenKey {
            realm: bearer.realm.clone(),
            service: bearer.service.clone(),
            scope: bearer.scope.clone(),
            credential: credential
                .map_or_else(CredentialId::anonymous, |credential| credential.id.clone()),
        };
        if let Some((_, token)) = refused
            .and_then(|sent| sent.token)
            .filter(|(refused, _)| *refused == key)
        {
            if token.fetched >= self.started {
                return Ok(None);
            }
            self.shared.tokens.forget(&key, &token).await;
        }
        let identity = if credential.is_some() {
            self.call.identity
        } else {
            Identity::Anonymous
        };
        let fetch = Fetch {
            client: self.shared.client(identity),
            login: credential.and_then(|credential| credential.login.as_ref()),
            step: self.call.step,
            meter: &self.shared.meter,
        };
        let token = self.shared.tokens.get(&key, fetch).await?;
        self.watch.heard();
        Ok(Some(Sent {
            header: token.header.clone(),
            token: Some((key, token)),
        }))
    }
}
