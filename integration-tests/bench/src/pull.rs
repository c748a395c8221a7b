//! A client that pulls an image as a runtime does: manifest by tag, then blobs over three connections, with a token
//! where one is asked for. It holds nothing, and hashes only when told.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use coral_integration_tests::client::{Connection, Reply};
use coral_schema::oci::manifest::ChildKind;
use coral_schema::oci::{Digest, Manifest, media_type};
use http::Method;
use tokio::time::Instant;

/// What to pull, and from where.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) address: SocketAddr,
    pub(crate) repository: &'static str,
    pub(crate) tag: &'static str,
    /// What the tag must stand for.
    pub(crate) digest: Digest,
    /// Hash all bodies; else throw them away.
    pub(crate) verify: bool,
}

/// How long it took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulled {
    pub(crate) total: Duration,
    /// Until the first byte of the first layer.
    pub(crate) first_byte: Duration,
}

impl Order {
    /// Pulls the image.
    pub(crate) async fn pull(&self) -> anyhow::Result<Pulled> {
        let start = Instant::now();
        let mut session = Session::open(self.address).await?;
        let manifest = self.manifest(&mut session).await?;
        let (layers, others): (Vec<_>, Vec<_>) = manifest
            .children
            .into_iter()
            .partition(|child| child.kind == ChildKind::Layer);
        let queue = layers.into_iter().chain(others).map(|child| child.digest);
        let queue = Mutex::new(queue.collect::<VecDeque<_>>());
        let first_byte = Mutex::new(None);
        let token = session.token.clone();
        let lane = async |session: Option<Session>| -> anyhow::Result<()> {
            let mut session = session;
            while let Some(blob) = pop(&queue) {
                let mut open = match session.take() {
                    Some(session) => session,
                    None => Session::open(self.address).await?.with(token.as_ref()),
                };
                let first = self.blob(&mut open, &blob).await?;
                let mut known = first_byte.lock().unwrap_or_else(PoisonError::into_inner);
                let earliest = known.map_or(first, |known: Instant| known.min(first));
                *known = Some(earliest);
                session = Some(open);
            }
            Ok(())
        };
        tokio::try_join!(lane(Some(session)), lane(None), lane(None))?;
        let first = first_byte
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(Pulled {
            total: start.elapsed(),
            first_byte: first.context("the image has no layers")? - start,
        })
    }

    /// GETs and checks the manifest by tag.
    pub(crate) async fn manifest(&self, session: &mut Session) -> anyhow::Result<Manifest> {
        let path = format!("/v2/{}/manifests/{}", self.repository, self.tag);
        let mut reply = session.request(Method::GET, &path, &[ACCEPT]).await?;
        let bytes = session.connection.read_all(&mut reply).await?;
        ensure!(reply.status == 200, "manifest: {}", reply.status);
        ensure!(
            Digest::sha256(&bytes) == self.digest,
            "manifest: wrong bytes"
        );
        Ok(Manifest::parse(&bytes, None)?)
    }

    /// GETs a blob; returns when its first byte was there.
    pub(crate) async fn blob(
        &self,
        session: &mut Session,
        blob: &Digest,
    ) -> anyhow::Result<Instant> {
        let path = format!("/v2/{}/blobs/{blob}", self.repository);
        let mut reply = session.request(Method::GET, &path, &[]).await?;
        ensure!(reply.status == 200, "blob: {}", reply.status);
        session.connection.ready().await?;
        let first = Instant::now();
        if self.verify {
            let digest = session.connection.hash(&mut reply).await?;
            ensure!(digest == *blob, "blob: wrong bytes, cleanly ended");
        } else {
            session.connection.discard(&mut reply).await?;
        }
        Ok(first)
    }
}

fn pop(queue: &Mutex<VecDeque<Digest>>) -> Option<Digest> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    queue.pop_front()
}

/// Without it distribution says that there is no such manifest.
pub(crate) const ACCEPT: (&str, &str) = ("accept", media_type::ACCEPT_MANIFESTS);

/// A connection with the token that it was given.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: Connection,
    token: Option<String>,
}

impl Session {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            connection: Connection::open(address).await?,
            token: None,
        })
    }

    fn with(mut self, token: Option<&String>) -> Self {
        self.token = token.cloned();
        self
    }

    /// Sends a request; fetches a token and sends it again when it is challenged.
    pub(crate) async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Reply> {
        let mut reply = self.send(method.clone(), path, headers).await?;
        if reply.status != 401 || self.token.is_some() {
            return Ok(reply);
        }
        self.connection.discard(&mut reply).await?;
        let challenge = reply.header("www-authenticate").to_owned();
        self.token = Some(self.fetch_token(&challenge).await?);
        self.send(method, path, headers).await
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Reply> {
        let authorization = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let authorization = authorization
            .as_deref()
            .map(|value| ("authorization", value));
        let headers: Vec<_> = headers.iter().copied().chain(authorization).collect();
        Ok(self.connection.request(method, path, &headers).await?)
    }

    /// The token service is at the registry's own address here.
    async fn fetch_token(&mut self, challenge: &str) -> anyhow::Result<String> {
        let parameter = |name: &str| {
            let (_, rest) = challenge.split_once(&format!("{name}=\""))?;
            rest.split('"').next()
        };
        let scope = parameter("scope").unwrap_or_default();
        let path = format!("/token?service=scripted&scope={scope}");
        let mut reply = self.connection.get(&path, &[]).await?;
        let body = self.connection.read_all(&mut reply).await?;
        if reply.status != 200 {
            bail!("token service: {}", reply.status);
        }
        let json: serde_json::Value = serde_json::from_slice(&body)?;
        let token = json["token"].as_str().context("no token")?;
        Ok(token.to_owned())
    }
}
