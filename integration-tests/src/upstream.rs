//! A scripted upstream registry: the Distribution API for images that a test publishes, at a settable distance, with
//! counters, and with every fault that hazards.md names.
//!
//! It is a raw listener with its own HTTP/1.1, since an ordinary server can neither stall nor reset nor lie about a
//! length. It has two addresses, [`Upstream::url`] and [`Upstream::cdn_url`], with the same content behind both: to
//! its clients they are two origins. Everything ends when it is dropped.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use coral_integration_tests::{images::Image, upstream::{Fault, Upstream, When}};
//! let upstream = Upstream::start().await?;
//! let image = Image::new(1, &[1 << 20]);
//! upstream.publish("library/alpine", "3.20", &image);
//! let layer = image.layers()[0].digest;
//! upstream.script(When::blob(&layer), [Fault::status(500), Fault::new().cut_after(1000)]);
//! // … pull through the registry under test …
//! assert_eq!(upstream.requests(&When::blob(&layer)), 3);
//! # Ok(()) }
//! ```

mod answer;
mod auth;
mod connection;
mod fault;
mod gzip;
mod library;
mod pace;
mod record;
mod send;
mod tls;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use coral_schema::oci::Digest;
use coral_schema::process::tasks::Tasks;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::images::{Blob, Image};
pub use auth::{Auth, Bearer, Login};
pub use fault::{Fault, Gate, When};
pub use record::{Kind, Seen, Target};

/// How the upstream behaves when no fault is scripted.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Round trip time: passes once for a connection, once more for TLS, and once for each request.
    pub rtt: Duration,
    /// Of all bodies together, bytes per second.
    pub bandwidth: Option<u64>,
    /// Of each connection, bytes per second.
    pub connection_bandwidth: Option<u64>,
    /// Each connection is closed after so many bytes of bodies.
    pub connection_bytes: Option<u64>,
    /// Who may read.
    pub auth: Auth,
    /// Is there a referrers API? If not, 404.
    pub referrers: bool,
    /// Have manifests an `ETag`, and is `If-None-Match` honoured?
    pub etags: bool,
    /// Are ranges of blobs honoured? If not, 200 with everything.
    pub ranges: bool,
    /// Blobs are to be had at a signed URL; the registry's own address redirects there.
    pub signed_urls: Option<SignedUrls>,
    /// Most tags in one answer.
    pub page: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rtt: Duration::ZERO,
            bandwidth: None,
            connection_bandwidth: None,
            connection_bytes: None,
            auth: Auth::Open,
            referrers: true,
            etags: true,
            ranges: true,
            signed_urls: None,
            page: 1000,
        }
    }
}

/// Where blobs are redirected to.
#[derive(Debug, Clone)]
pub struct SignedUrls {
    /// Scheme, host and port, such as [`Upstream::cdn_url`].
    pub base: String,
    /// How often each URL works; then 403, as when it has expired.
    pub uses: u32,
}

/// A running upstream.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
    tasks: Tasks,
    main: Listener,
    cdn: Listener,
}

impl Upstream {
    /// Starts one on loopback, over plain HTTP.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(None).await
    }

    /// Starts one that speaks TLS with a certificate of a private authority, [`Upstream::ca_pem`].
    pub async fn start_tls() -> anyhow::Result<Self> {
        Self::start_with(Some(tls::Tls::new()?)).await
    }

    async fn start_with(tls: Option<tls::Tls>) -> anyhow::Result<Self> {
        let main = TcpListener::bind("127.0.0.1:0").await?;
        let cdn = TcpListener::bind("127.0.0.1:0").await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            url: format!("{scheme}://{}", main.local_addr()?),
            tls,
            ..Shared::default()
        });
        let tasks = Tasks::new();
        Ok(Self {
            main: Listener::start(main, &shared, &tasks)?,
            cdn: Listener::start(cdn, &shared, &tasks)?,
            shared,
            tasks,
        })
    }

    /// Its address, with scheme.
    pub fn url(&self) -> String {
        self.shared.url.clone()
    }

    /// Host and port of [`Upstream::url`].
    pub fn address(&self) -> SocketAddr {
        self.main.address
    }

    /// The second address, with scheme.
    pub fn cdn_url(&self) -> String {
        let scheme = if self.shared.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.cdn.address)
    }

    /// The authority's certificate; `None` without TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.shared.tls.as_ref().map(|tls| tls.ca_pem.as_str())
    }

    /// Changes the settings for all requests from now on.
    pub fn configure(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = lock(&self.shared.settings);
        let mut changed = Settings::clone(&settings);
        change(&mut changed);
        *settings = Arc::new(changed);
    }

    /// Adds an image with everything it names, and points the tag at it.
    pub fn publish(&self, repository: &str, tag: &str, image: &Image) {
        self.add(repository, image);
        self.tag(repository, tag, [image.digest()]);
    }

    /// Adds an image without a tag.
    pub fn add(&self, repository: &str, image: &Image) {
        self.shared.library().repository(repository).add(image);
    }

    /// Adds a blob that no manifest has to name.
    pub fn add_blob(&self, repository: &str, blob: &Blob) {
        let mut library = self.shared.library();
        let blobs = &mut library.repository(repository).blobs;
        blobs.insert(blob.digest.to_string(), blob.clone());
    }

    /// Points a tag at these manifests, one after the other with each request, from the start again at the end.
    pub fn tag(&self, repository: &str, tag: &str, manifests: impl IntoIterator<Item = Digest>) {
        let manifests = manifests.into_iter().collect();
        self.shared
            .library()
            .repository(repository)
            .tag(tag, manifests);
    }

    /// Forgets a tag, a manifest or a blob.
    pub fn remove(&self, repository: &str, reference: &(impl ToString + ?Sized)) {
        let mut library = self.shared.library();
        library
            .repository(repository)
            .remove(&reference.to_string());
    }

    /// Forgets a repository.
    pub fn remove_repository(&self, repository: &str) {
        self.shared.library().remove(repository);
    }

    /// What happens to the next requests that match: one fault each, in order; then answers are right again. Scripts
    /// that match the same request are used up in the order in which they were added.
    pub fn script(&self, when: When, faults: impl IntoIterator<Item = Fault>) {
        self.shared.script().add(when, faults.into_iter().collect());
    }

    /// What happens to every matching request that no script covers, until [`Upstream::clear_faults`].
    pub fn always(&self, when: When, fault: Fault) {
        self.shared.script().add_always(when, fault);
    }

    /// Ends all scripts. Answers that are on their way keep their fault.
    pub fn clear_faults(&self) {
        self.shared.script().clear();
    }

    /// No token works any more.
    pub fn revoke_tokens(&self) {
        lock(&self.shared.tokens).revoke();
    }

    /// No signed URL works any more.
    pub fn expire_signed_urls(&self) {
        lock(&self.shared.signatures).left.clear();
    }

    /// Closes the listeners and all connections: who connects is refused.
    pub async fn refuse(&mut self) {
        self.main.close().await;
        self.cdn.close().await;
    }

    /// Opens the listeners again, at the same ports.
    pub async fn accept(&mut self) -> anyhow::Result<()> {
        self.main.reopen(&self.shared, &self.tasks).await?;
        self.cdn.reopen(&self.shared, &self.tasks).await
    }

    /// Requests since the last [`Upstream::reset_counters`], refused ones included.
    pub fn requests(&self, when: &When) -> u64 {
        self.shared.record.requests(when)
    }

    /// Bytes of bodies that were handed to sockets, as they go.
    pub fn bytes(&self, when: &When) -> u64 {
        self.shared.record.bytes(when)
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.record.connections()
    }

    /// The last 20,000 requests word for word, oldest first.
    pub fn seen(&self, when: &When) -> Vec<Seen> {
        self.shared.record.seen(when)
    }

    /// Sets all counters to zero and forgets what was seen.
    pub fn reset_counters(&self) {
        self.shared.record.reset();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.main.closing.cancel();
        self.cdn.closing.cancel();
    }
}

/// One listening socket with its connections.
#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    closing: CancellationToken,
    accepting: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(listener: TcpListener, shared: &Arc<Shared>, tasks: &Tasks) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let closing = CancellationToken::new();
        let accepting = accept(listener, Arc::clone(shared), tasks.clone(), closing.clone());
        Ok(Self {
            address,
            accepting: Some(tasks.spawn("upstream accept", accepting)),
            closing,
        })
    }

    async fn close(&mut self) {
        self.closing.cancel();
        if let Some(accepting) = self.accepting.take() {
            accepting.await.expect("accepting does not panic");
        }
    }

    async fn reopen(&mut self, shared: &Arc<Shared>, tasks: &Tasks) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.address)
            .await
            .with_context(|| format!("reopening {}", self.address))?;
        *self = Self::start(listener, shared, tasks)?;
        Ok(())
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tasks: Tasks,
    closing: CancellationToken,
) {
    // Connections run within this task's life: when it has ended, the port and all its connections are closed.
    let connections = tokio_util::task::TaskTracker::new();
    while let Some(Ok((tcp, _))) = closing.run_until_cancelled(listener.accept()).await {
        let serving = connection::serve(tcp, Arc::clone(&shared));
        let serving = closing.clone().run_until_cancelled_owned(serving);
        tasks.spawn("upstream connection", connections.track_future(serving));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// What all connections see.
#[derive(Debug, Default)]
struct Shared {
    url: String,
    tls: Option<tls::Tls>,
    settings: Mutex<Arc<Settings>>,
    library: Mutex<library::Library>,
    script: Mutex<fault::Script>,
    tokens: Mutex<auth::Tokens>,
    signatures: Mutex<Signatures>,
    record: record::Record,
    line: pace::Line,
}

impl Shared {
    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&lock(&self.settings))
    }

    fn library(&self) -> MutexGuard<'_, library::Library> {
        lock(&self.library)
    }

    fn script(&self) -> MutexGuard<'_, fault::Script> {
        lock(&self.script)
    }

    fn tokens(&self) -> MutexGuard<'_, auth::Tokens> {
        lock(&self.tokens)
    }

    fn signatures(&self) -> MutexGuard<'_, Signatures> {
        lock(&self.signatures)
    }

    /// Waits for one round trip.
    async fn travel(&self) {
        tokio::time::sleep(self.settings().rtt).await;
    }
}

/// Signed URLs that still work.
#[derive(Debug, Default)]
struct Signatures {
    count: u64,
    left: HashMap<String, u32>,
}

impl Signatures {
    fn sign(&mut self, uses: u32) -> String {
        self.count += 1;
        let signature = format!("scripted-signature-{}", self.count);
        self.left.insert(signature.clone(), uses);
        signature
    }

    fn accept(&mut self, signature: &str) -> bool {
        let left = self.left.get_mut(signature).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
