//! What can be wrong with an answer, and which requests it happens to.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use tokio::sync::watch;

use super::{Kind, Target};

/// Chooses requests: everything that was said must hold.
#[derive(Debug, Clone, Default)]
pub struct When {
    kind: Option<Kind>,
    method: Option<Method>,
    repository: Option<String>,
    reference: Option<String>,
    ranged: Option<bool>,
}

impl When {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests of this kind.
    pub fn kind(kind: Kind) -> Self {
        Self {
            kind: Some(kind),
            ..Self::default()
        }
    }

    /// Requests for a blob, by its digest; on the registry's own address, not behind a signed URL.
    pub fn blob(digest: &(impl ToString + ?Sized)) -> Self {
        Self::kind(Kind::Blob).reference(digest)
    }

    /// Requests for a manifest, by tag or digest.
    pub fn manifest(reference: &(impl ToString + ?Sized)) -> Self {
        Self::kind(Kind::Manifest).reference(reference)
    }

    /// … with this method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// … in this repository.
    #[must_use]
    pub fn repository(mut self, repository: &str) -> Self {
        self.repository = Some(repository.to_owned());
        self
    }

    /// … for this tag or digest.
    #[must_use]
    pub fn reference(mut self, reference: &(impl ToString + ?Sized)) -> Self {
        self.reference = Some(reference.to_string());
        self
    }

    /// … with (or without) a `Range` header.
    #[must_use]
    pub fn ranged(mut self, ranged: bool) -> Self {
        self.ranged = Some(ranged);
        self
    }

    pub(super) fn matches(&self, target: &Target) -> bool {
        fn fits<T: PartialEq>(wanted: Option<&T>, found: Option<&T>) -> bool {
            wanted.is_none() || wanted == found
        }
        fits(self.kind.as_ref(), Some(&target.kind))
            && fits(self.method.as_ref(), Some(&target.method))
            && fits(self.repository.as_ref(), target.repository.as_ref())
            && fits(self.reference.as_ref(), target.reference.as_ref())
            && fits(self.ranged.as_ref(), Some(&target.ranged))
    }
}

/// Changes to one answer. Without any, the answer is right; several may be combined.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Fault {
    pub(super) delay: Duration,
    pub(super) ending: Option<Ending>,
    pub(super) status: Option<u16>,
    pub(super) headers: Vec<(String, Option<String>)>,
    pub(super) body: Option<Bytes>,
    pub(super) gzip: bool,
    pub(super) length: Length,
    pub(super) excess: Bytes,
    pub(super) cut: Option<Cut>,
    pub(super) rate: Option<u64>,
    pub(super) flip: Option<u64>,
    pub(super) ignore_range: bool,
    pub(super) stall: Option<u64>,
    pub(super) hold: Option<(u64, Gate)>,
}

/// Instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The connection stays open and nothing ever comes.
    Silence,
    /// The connection is reset.
    Reset,
}

/// An end in mid-body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// After this many bytes of this body.
    pub(super) after: u64,
    /// By RST; else by FIN.
    pub(super) reset: bool,
}

/// What the answer says about its length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Length {
    /// The truth.
    #[default]
    Right,
    /// Nothing; the body ends with the connection.
    Absent,
    /// Nothing; the body is chunked.
    Chunked,
    /// This many bytes.
    Says(u64),
}

impl Fault {
    /// Nothing wrong yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another status with a body like a registry's error, or of [`Fault::body`].
    pub fn status(status: u16) -> Self {
        Self {
            status: Some(status),
            ..Self::default()
        }
    }

    /// The request is read and never answered.
    pub fn silence() -> Self {
        Self {
            ending: Some(Ending::Silence),
            ..Self::default()
        }
    }

    /// The connection is reset instead of an answer.
    pub fn reset() -> Self {
        Self {
            ending: Some(Ending::Reset),
            ..Self::default()
        }
    }

    /// 307 to another place.
    pub fn redirect(location: &str) -> Self {
        Self::status(307).body("").header("location", location)
    }

    /// 200 with a page for people, as captive portals and login walls send it.
    pub fn html() -> Self {
        let page = "<!doctype html><title>Sign in</title><p>Please sign in to continue.</p>";
        Self::status(200)
            .body(page)
            .header("content-type", "text/html; charset=utf-8")
    }

    /// Waits before it answers.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sets a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers
            .push((name.to_ascii_lowercase(), Some(value.to_owned())));
        self
    }

    /// Leaves a header out.
    pub fn without_header(mut self, name: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), None));
        self
    }

    /// Another body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// The body gzip-coded, with `Content-Encoding: gzip`. The body is held in memory: for small ones.
    pub fn gzip(mut self) -> Self {
        self.gzip = true;
        self
    }

    /// No `Content-Length`: the body ends with the connection.
    pub fn without_length(mut self) -> Self {
        self.length = Length::Absent;
        self
    }

    /// No `Content-Length`, but `Transfer-Encoding: chunked`.
    pub fn chunked(mut self) -> Self {
        self.length = Length::Chunked;
        self
    }

    /// A `Content-Length` of `length`, whatever is sent; the connection ends after the body.
    pub fn declared_length(mut self, length: u64) -> Self {
        self.length = Length::Says(length);
        self
    }

    /// These bytes after the right body; `Content-Length` counts them.
    pub fn excess(mut self, bytes: impl Into<Bytes>) -> Self {
        self.excess = bytes.into();
        self
    }

    /// The connection is closed after `bytes` of this body.
    pub fn cut_after(mut self, bytes: u64) -> Self {
        self.cut = Some(Cut {
            after: bytes,
            reset: false,
        });
        self
    }

    /// The connection is reset after `bytes` of this body. The peer may lose the last ones of them.
    pub fn reset_after(mut self, bytes: u64) -> Self {
        self.cut = Some(Cut {
            after: bytes,
            reset: true,
        });
        self
    }

    /// The body flows at this rate, bytes per second.
    pub fn trickle(mut self, rate: u64) -> Self {
        self.rate = Some(rate);
        self
    }

    /// One wrong bit in the byte at `offset` of the whole content.
    pub fn flip_bit(mut self, offset: u64) -> Self {
        self.flip = Some(offset);
        self
    }

    /// 200 and everything, also when a range was asked for.
    pub fn ignore_range(mut self) -> Self {
        self.ignore_range = true;
        self
    }

    /// Nothing comes any more from `offset` of the whole content on; the connection stays open.
    pub fn stall_at(mut self, offset: u64) -> Self {
        self.stall = Some(offset);
        self
    }

    /// What stands at `offset` of the whole content and behind is held back until the gate opens.
    pub fn hold(mut self, gate: &Gate, offset: u64) -> Self {
        self.hold = Some((offset, gate.clone()));
        self
    }
}

/// Holds bodies back until the test lets them go; by it a test knows, without a clock, that what a client has by now
/// it got before the upstream sent the rest.
#[derive(Debug, Clone)]
pub struct Gate {
    open: watch::Sender<bool>,
    held: watch::Sender<usize>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self {
            open: watch::Sender::new(false),
            held: watch::Sender::new(0),
        }
    }

    /// Lets everything pass, now and later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until `bodies` of them, counted since the beginning, have come to the gate.
    pub async fn reached(&self, bodies: usize) {
        let mut held = self.held.subscribe();
        let reached = held.wait_for(|&held| held >= bodies).await;
        reached.expect("the gate itself holds the sender");
    }

    pub(super) async fn pass(&self) {
        self.held.send_modify(|held| *held += 1);
        let mut open = self.open.subscribe();
        let opened = open.wait_for(|&open| open).await;
        opened.expect("the gate itself holds the sender");
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// The faults that are still to happen.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Used once each, in order; the first row that matches a request counts.
    once: Vec<(When, VecDeque<Fault>)>,
    /// Asked when no row of `once` matches.
    always: Vec<(When, Fault)>,
}

impl Script {
    pub(super) fn add(&mut self, when: When, faults: VecDeque<Fault>) {
        self.once.push((when, faults));
    }

    pub(super) fn add_always(&mut self, when: When, fault: Fault) {
        self.always.push((when, fault));
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The fault for this request; the default one when there is none.
    pub(super) fn next(&mut self, target: &Target) -> Fault {
        self.once.retain(|(_, faults)| !faults.is_empty());
        let once = self.once.iter_mut().find(|(when, _)| when.matches(target));
        if let Some(fault) = once.and_then(|(_, faults)| faults.pop_front()) {
            return fault;
        }
        let always = self.always.iter().find(|(when, _)| when.matches(target));
        always.map(|(_, fault)| fault.clone()).unwrap_or_default()
    }
}
