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
mod gate;
mod gzip;
mod library;
mod listener;
mod pace;
mod record;
mod script;
mod send;
mod settings;
mod tls;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coral_schema::oci::Digest;
use coral_schema::process::tasks::Tasks;
use tokio::net::TcpListener;

use crate::images::{Blob, Image};
pub use auth::{Auth, Bearer, Login};
pub use fault::Fault;
pub use gate::Gate;
use listener::Listener;
pub use record::{Kind, Seen, Target};
pub use script::When;
use settings::Signatures;
pub use settings::{Settings, SignedUrls};

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
        self.shared.tokens().revoke();
    }

    /// No signed URL works any more.
    pub fn expire_signed_urls(&self) {
        self.shared.signatures().expire();
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

/// What all connections see.
#[derive(Debug, Default)]
struct Shared {
    url: String,
    tls: Option<tls::Tls>,
    settings: Mutex<Arc<Settings>>,
    library: Mutex<library::Library>,
    script: Mutex<script::Script>,
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

    fn script(&self) -> MutexGuard<'_, script::Script> {
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
        let rtt = self.settings().rtt;
        pause(rtt).await;
    }
}

/// Sleeps; not at all for no time, which a timer would round up to a millisecond.
async fn pause(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
