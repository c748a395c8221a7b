//! What can be wrong with an answer.

use std::time::Duration;

use bytes::Bytes;

use super::Gate;

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
