//! An answer before it becomes a response, and the headers that several endpoints share.

use std::fmt;

use bytes::Bytes;
use coral_schema::oci::Digest;
use futures::stream::BoxStream;
use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH, WARNING,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::pull::{BodyError, Outcome};

/// `Docker-Content-Digest`
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What is sent after the headers.
pub(super) enum Content {
    /// Nothing.
    Empty,
    /// Bytes that are there.
    Full(Bytes),
    /// Bytes that arrive. An error aborts the connection.
    Stream(BoxStream<'static, Result<Bytes, BodyError>>),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// An answer without the headers that every answer has.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
    /// What `Content-Length` says; `None` when the length is not known.
    pub(super) length: Option<u64>,
    pub(super) outcome: Outcome,
    /// For the log: why it is not what was asked for.
    pub(super) error: Option<String>,
}

impl Answer {
    /// An answer without content.
    pub(super) fn new(status: StatusCode, outcome: Outcome) -> Self {
        Self {
            status,
            headers: HeaderMap::with_capacity(16),
            content: Content::Empty,
            length: None,
            outcome,
            error: None,
        }
    }

    /// 200 with a JSON document.
    pub(super) fn json(media_type: &'static str, outcome: Outcome, body: Vec<u8>) -> Self {
        let mut answer = Self::new(StatusCode::OK, outcome);
        let media_type = HeaderValue::from_static(media_type);
        answer.headers.insert(CONTENT_TYPE, media_type);
        answer.set_content(Content::Full(body.into()));
        answer
    }

    /// Content of known length.
    pub(super) fn set_content(&mut self, content: Content) {
        if let Content::Full(bytes) = &content {
            self.set_length(bytes.len() as u64);
        }
        self.content = content;
    }

    /// The length that is announced, also where the content stays away (HEAD).
    pub(super) fn set_length(&mut self, length: u64) {
        self.length = Some(length);
        self.headers.insert(CONTENT_LENGTH, length.into());
    }

    /// The headers that name the content: what the client asked for was immutable if it was a digest.
    pub(super) fn set_digest(&mut self, tag: &EntityTag, immutable: bool) {
        let cache_control = if immutable {
            "max-age=31536000, immutable"
        } else {
            "no-cache"
        };
        let headers = &mut self.headers;
        headers.insert(CONTENT_DIGEST, tag.digest_value());
        headers.insert(ETAG, tag.value());
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache_control));
    }

    /// A sentence that clients show (RFC 7234, section 5.5).
    pub(super) fn set_warning(&mut self, text: Option<&str>) {
        if let Some(text) = text {
            self.headers.insert(WARNING, warning_value(text));
        }
    }
}

/// Printable ASCII without what would end the quoted text, bounded as the distribution specification says.
fn warning_value(text: &str) -> HeaderValue {
    const MAX: usize = 1024;
    let plain = |c: char| match c {
        '"' | '\\' => '\'',
        ' '..='~' => c,
        _ => '?',
    };
    let text: String = text.chars().take(MAX).map(plain).collect();
    HeaderValue::try_from(format!("299 - \"{text}\"")).expect("printable ASCII is valid")
}

/// The `ETag` of content: its digest in quotes.
#[derive(Debug, Clone)]
pub(super) struct EntityTag(Bytes);

impl EntityTag {
    /// The tag of this content.
    pub(super) fn of(digest: &Digest) -> Self {
        Self(format!("\"{digest}\"").into())
    }

    /// With its quotes.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Does the client have it already? (RFC 9110, section 13.1.2: weak comparison)
    pub(super) fn is_held(&self, headers: &HeaderMap) -> bool {
        headers.get_all(IF_NONE_MATCH).iter().any(|value| {
            value.as_bytes().split(|byte| *byte == b',').any(|tag| {
                let tag = tag.trim_ascii();
                tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == self.as_bytes()
            })
        })
    }

    fn value(&self) -> HeaderValue {
        HeaderValue::from_maybe_shared(self.0.clone()).expect("a digest is valid in a header")
    }

    fn digest_value(&self) -> HeaderValue {
        let unquoted = self.0.slice(1..self.0.len() - 1);
        HeaderValue::from_maybe_shared(unquoted).expect("a digest is valid in a header")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_stay_one_printable_line() {
        assert_eq!(
            warning_value("stale: \"x\"\r\nSet-Cookie: ü"),
            "299 - \"stale: 'x'??Set-Cookie: ?\""
        );
        assert!(warning_value(&"x".repeat(9000)).len() < 4096);
    }

    #[rstest::rstest]
    #[case(
        "\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
        true
    )]
    #[case(
        "W/\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
        true
    )]
    #[case(
        "\"a\", \"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
        true
    )]
    #[case("*", true)]
    #[case("\"a\"", false)]
    #[case(
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        false
    )]
    #[case("", false)]
    fn if_none_match(#[case] header: &'static str, #[case] held: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static(header));
        assert_eq!(EntityTag::of(&Digest::sha256(b"")).is_held(&headers), held);
    }
}
