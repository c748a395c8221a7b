//! Pure decisions about one try of a request: is it the answer, is it worth another try, and which error is it?

use std::time::Duration;

use jiff::Timestamp;

use super::UpstreamErrorKind;
use super::breaker::Outcome;

/// Longest `Retry-After` that is believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);

/// What one try led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried {
    /// A status of the registry itself.
    Registry(u16),
    /// A status of another origin that the registry redirected to.
    Elsewhere(u16),
    /// The connection was there and broke before an answer, as pooled ones do that the other side just closed.
    Broken,
}

/// What to do then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It is the answer, good or bad.
    Take,
    /// Get a token, or a fresh one, and ask again.
    Authenticate,
    /// Ask the registry once more, as before.
    Again,
}

/// The tries that one request has spent.
#[derive(Debug, Default)]
pub(super) struct Spent {
    tokens: u32,
    returns: u32,
    reconnects: u32,
}

/// Tokens for one request: the remembered one, and one after it was refused; one more if the refusal was for another
/// realm or scope than we knew.
const TOKENS: u32 = 2;

impl Spent {
    /// Decides, and counts the try.
    pub(super) fn next(&mut self, tried: Tried) -> Next {
        let (spent, limit, next) = match tried {
            Tried::Registry(401) => (&mut self.tokens, TOKENS, Next::Authenticate),
            // What storage services answer to a signature that has expired (S3 and Azure 403, GCS 400 or 401).
            Tried::Elsewhere(400 | 401 | 403) => (&mut self.returns, 1, Next::Again),
            Tried::Broken => (&mut self.reconnects, 1, Next::Again),
            Tried::Registry(_) | Tried::Elsewhere(_) => return Next::Take,
        };
        if *spent >= limit {
            return Next::Take;
        }
        *spent += 1;
        next
    }
}

/// The error that a status other than the expected ones means. A storage service that the registry sent us to does
/// not speak for the registry: its 404 is no "does not exist", its 403 no refusal.
pub(super) fn failure(tried: Tried, retry_after: Option<Duration>) -> UpstreamErrorKind {
    match tried {
        Tried::Registry(404) => UpstreamErrorKind::NotFound,
        Tried::Registry(status @ (401 | 403)) => UpstreamErrorKind::Refused { status },
        Tried::Registry(429) | Tried::Elsewhere(429) => {
            UpstreamErrorKind::RateLimited { retry_after }
        }
        Tried::Registry(status) | Tried::Elsewhere(status) => UpstreamErrorKind::Status(status),
        Tried::Broken => {
            UpstreamErrorKind::Connection("it closed the connection without an answer".into())
        }
    }
}

/// What a call's result says about the endpoint's health; `None` when it says nothing.
pub(super) fn outcome(error: Option<&UpstreamErrorKind>) -> Option<Outcome> {
    use UpstreamErrorKind as Kind;
    match error {
        None
        | Some(
            Kind::NotFound | Kind::Refused { .. } | Kind::RateLimited { .. } | Kind::TooLarge(_),
        ) => Some(Outcome::Answered),
        Some(Kind::Status(status)) if *status < 500 => Some(Outcome::Answered),
        Some(Kind::Status(_) | Kind::Connection(_) | Kind::Protocol(_)) => Some(Outcome::Failed),
        Some(Kind::Timeout(_)) => Some(Outcome::Silent),
        Some(Kind::BreakerOpen { .. } | Kind::QueueFull { .. }) => None,
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds or a date, at most an hour.
pub(super) fn retry_after(header: Option<&str>, now: Timestamp) -> Option<Duration> {
    let header = header?.trim();
    let wait = if let Ok(seconds) = header.parse() {
        Duration::from_secs(seconds)
    } else {
        let date = jiff::fmt::rfc2822::parse(header).ok()?.timestamp();
        Duration::try_from(date.duration_since(now)).unwrap_or_default()
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case(&[Tried::Registry(200)], Next::Take)]
    #[case(&[Tried::Registry(404)], Next::Take)]
    #[case(&[Tried::Registry(503)], Next::Take)]
    #[case(&[Tried::Registry(403)], Next::Take)]
    #[case(&[Tried::Registry(401)], Next::Authenticate)]
    #[case(&[Tried::Registry(401), Tried::Registry(401)], Next::Authenticate)]
    #[case(&[Tried::Registry(401), Tried::Registry(401), Tried::Registry(401)], Next::Take)]
    #[case(&[Tried::Elsewhere(403)], Next::Again)]
    #[case(&[Tried::Elsewhere(403), Tried::Elsewhere(403)], Next::Take)]
    #[case(&[Tried::Elsewhere(404)], Next::Take)]
    #[case(&[Tried::Broken], Next::Again)]
    #[case(&[Tried::Broken, Tried::Broken], Next::Take)]
    #[case(&[Tried::Registry(401), Tried::Elsewhere(403), Tried::Broken], Next::Again)]
    fn decides(#[case] tried: &[Tried], #[case] expected: Next) {
        let mut spent = Spent::default();
        let last = tried.iter().map(|tried| spent.next(*tried)).last();
        assert_eq!(last, Some(expected));
    }

    #[rstest::rstest]
    #[case("0", Some(0))]
    #[case(" 120 ", Some(120))]
    #[case("999999999999", Some(3600))]
    #[case("Fri, 31 Dec 1999 23:59:59 GMT", Some(59))]
    #[case("Fri, 31 Dec 1999 23:00:00 GMT", Some(0))]
    #[case("Sat, 31 Dec 2033 23:59:59 GMT", Some(3600))]
    #[case("soon", None)]
    #[case("-1", None)]
    #[case("", None)]
    fn reads_retry_after(#[case] header: &str, #[case] expected: Option<u64>) {
        let now = "1999-12-31T23:59:00Z".parse().unwrap();
        assert_eq!(
            retry_after(Some(header), now),
            expected.map(Duration::from_secs)
        );
    }

    #[test]
    fn storage_does_not_speak_for_the_registry() {
        assert_eq!(
            failure(Tried::Registry(404), None),
            UpstreamErrorKind::NotFound
        );
        assert_eq!(
            failure(Tried::Elsewhere(404), None),
            UpstreamErrorKind::Status(404)
        );
        assert_eq!(
            failure(Tried::Elsewhere(403), None),
            UpstreamErrorKind::Status(403)
        );
    }
}
