//! From what a runtime says to a reason: the code where it says something, else the words. containerd puts most
//! registry failures under `Unknown`.

use coral_schema::crd::Reason;
use tonic::Code;

/// Words that settle the reason whatever the code, the more specific ones first: a missing platform also ends in
/// `not found`, a full disk may also mention the request that was running.
const WORDS: &[(&str, Reason)] = &[
    ("no space left on device", Reason::InsufficientStorage),
    ("disk quota exceeded", Reason::InsufficientStorage),
    ("no match for platform", Reason::PlatformMissing),
    ("no image found in image index", Reason::PlatformMissing),
    ("no image found in manifest list", Reason::PlatformMissing),
    ("unexpected commit digest", Reason::DigestMismatch),
    ("unexpected commit size", Reason::DigestMismatch),
    ("does not match expected digest", Reason::DigestMismatch),
    ("SignatureValidationFailed", Reason::PolicyDenied),
    ("blocked pull of", Reason::PolicyDenied),
    ("429 Too Many Requests", Reason::RateLimited),
    ("toomanyrequests", Reason::RateLimited),
    ("401 Unauthorized", Reason::Unauthorized),
    ("insufficient_scope", Reason::Unauthorized),
    ("authorization failed", Reason::Unauthorized),
    ("no basic auth credentials", Reason::Unauthorized),
    ("missing username or secret", Reason::Unauthorized),
    ("unauthorized:", Reason::Unauthorized),
    ("authentication required", Reason::Unauthorized),
    ("403 Forbidden", Reason::Forbidden),
    ("denied:", Reason::Forbidden),
    // The runtime's own guard against pulls without progress; a pull that we cancel has nobody who reads its error.
    ("context canceled", Reason::Stalled),
    ("500 Internal Server Error", Reason::UpstreamUnavailable),
    ("502 Bad Gateway", Reason::UpstreamUnavailable),
    ("503 Service Unavailable", Reason::UpstreamUnavailable),
    ("504 Gateway Timeout", Reason::UpstreamUnavailable),
    ("RegistryUnavailable", Reason::UpstreamUnavailable),
    ("failed to do request", Reason::UpstreamUnavailable),
    ("pinging container registry", Reason::UpstreamUnavailable),
    ("dial tcp", Reason::UpstreamUnavailable),
    ("connection reset by peer", Reason::UpstreamUnavailable),
    ("i/o timeout", Reason::UpstreamUnavailable),
    ("unexpected EOF", Reason::UpstreamUnavailable),
    ("server is not initialized yet", Reason::RuntimeUnavailable),
    ("manifest unknown", Reason::NotFound),
    ("name unknown", Reason::NotFound),
];

/// What a failed call comes down to.
pub fn classify(code: Code, message: &str) -> Reason {
    let by_words = WORDS
        .iter()
        .find_map(|(words, reason)| message.contains(words).then_some(*reason));
    by_words.unwrap_or(match code {
        Code::NotFound => Reason::NotFound,
        Code::Unauthenticated => Reason::Unauthorized,
        Code::PermissionDenied => Reason::Forbidden,
        Code::Cancelled => Reason::Stalled,
        Code::DeadlineExceeded => Reason::Timeout,
        Code::Unavailable => Reason::RuntimeUnavailable,
        Code::Unknown if message.ends_with(": not found") => Reason::NotFound,
        _ => Reason::Internal,
    })
}

/// Without what follows the `?` of an address.
pub fn without_queries(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while let Some((before, query)) = rest.split_once('?') {
        shown.push_str(before);
        let end = query
            .find(|sign: char| sign.is_whitespace() || matches!(sign, '"' | '\'' | '>' | ')'))
            .unwrap_or(query.len());
        if end > 0 {
            shown.push_str("?…");
        } else {
            shown.push('?');
        }
        rest = &query[end..];
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As containerd 2.4.2 and 1.6.20 put them together (`remotes/docker`, `images`, `content`, `pkg/cri`).
    #[rstest::rstest]
    #[case(Code::NotFound, r#"failed to pull and unpack image "r.test/a:1": failed to resolve image: r.test/a:1: not found"#, Reason::NotFound)]
    #[case(Code::NotFound, r#"failed to pull and unpack image "r.test/a:1": failed to resolve reference "r.test/a:1": r.test/a:1: not found"#, Reason::NotFound)]
    #[case(
        Code::Unknown,
        r#"failed to pull and unpack image "r.test/a:1": r.test/a:1: not found"#,
        Reason::NotFound
    )]
    #[case(Code::NotFound, r#"failed to pull and unpack image "r.test/a:1": no match for platform in manifest: not found"#, Reason::PlatformMissing)]
    #[case(Code::NotFound, r#"failed to pull and unpack image "r.test/a:1": no match for platform in manifest sha256:00: not found"#, Reason::PlatformMissing)]
    #[case(Code::Unknown, r#"choosing image instance: no image found in image index for architecture "arm64", variant "v8", OS "linux""#, Reason::PlatformMissing)]
    #[case(Code::Unknown, r#"failed to pull and unpack image "r.test/a:1": failed to resolve reference "r.test/a:1": pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed"#, Reason::Unauthorized)]
    #[case(Code::Unknown, r#"failed to resolve reference "r.test/a:1": failed to authorize: failed to fetch anonymous token: unexpected status from GET request to https://auth.test/token: 401 Unauthorized"#, Reason::Unauthorized)]
    #[case(Code::Unknown, r#"failed to resolve reference "r.test/a:1": failed to authorize: failed to fetch anonymous token: unexpected status: 401 Unauthorized"#, Reason::Unauthorized)]
    #[case(Code::Unknown, r#"failed to resolve reference "r.test/a:1": unexpected status from HEAD request to https://r.test/v2/a/manifests/1: 403 Forbidden"#, Reason::Forbidden)]
    #[case(
        Code::Unknown,
        "pulling from host r.test failed with status code [manifests 1]: 403 Forbidden",
        Reason::Forbidden
    )]
    #[case(
        Code::Unknown,
        "unexpected status from HEAD request to https://registry-1.docker.io/v2/library/a/manifests/1: 429 Too Many Requests",
        Reason::RateLimited
    )]
    #[case(
        Code::Unknown,
        "unexpected status code https://r.test/v2/a/blobs/sha256:00: 429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit.",
        Reason::RateLimited
    )]
    #[case(
        Code::Unknown,
        "pulling from host r.test failed with status code [manifests 1]: 503 Service Unavailable",
        Reason::UpstreamUnavailable
    )]
    #[case(Code::Unknown, r#"failed to do request: Head "https://r.test/v2/a/manifests/1": dial tcp 10.0.0.1:443: connect: connection refused"#, Reason::UpstreamUnavailable)]
    #[case(Code::Unknown, r#"failed to do request: Head "https://r.test/v2/a/manifests/1": dial tcp: lookup r.test: no such host"#, Reason::UpstreamUnavailable)]
    #[case(Code::Unknown, r#"failed to do request: Head "https://r.test/v2/a/manifests/1": tls: failed to verify certificate: x509: certificate signed by unknown authority"#, Reason::UpstreamUnavailable)]
    #[case(Code::DeadlineExceeded, r#"failed to do request: Head "https://r.test/v2/a/manifests/1": context deadline exceeded"#, Reason::UpstreamUnavailable)]
    #[case(Code::Unknown, r#"failed to copy: httpReadSeeker: failed open: failed to do request: Get "https://r.test/v2/a/blobs/sha256:00": context canceled"#, Reason::Stalled)]
    #[case(
        Code::Cancelled,
        r#"failed to pull and unpack image "r.test/a:1": context canceled"#,
        Reason::Stalled
    )]
    #[case(Code::FailedPrecondition, r#"failed commit on ref "layer-sha256:00": unexpected commit digest sha256:11, expected sha256:00: failed precondition"#, Reason::DigestMismatch)]
    #[case(Code::FailedPrecondition, r#"failed commit on ref "layer-sha256:00": unexpected commit size 1, expected 2: failed precondition"#, Reason::DigestMismatch)]
    #[case(
        Code::Unknown,
        "failed to extract layer sha256:00: write /x/fs/a: no space left on device: unknown",
        Reason::InsufficientStorage
    )]
    #[case(
        Code::Unknown,
        "failed to copy: failed to send write: write /x/ingest/1/data: no space left on device: unknown",
        Reason::InsufficientStorage
    )]
    #[case(
        Code::Unknown,
        "image verifier signatures blocked pull of r.test/a:1 with digest sha256:00 for reason: unsigned",
        Reason::PolicyDenied
    )]
    #[case(
        Code::Unknown,
        "server is not initialized yet",
        Reason::RuntimeUnavailable
    )]
    #[case(
        Code::Unavailable,
        "server is not initialized yet: unavailable",
        Reason::RuntimeUnavailable
    )]
    #[case(Code::DeadlineExceeded, "context deadline exceeded", Reason::Timeout)]
    #[case(
        Code::InvalidArgument,
        r#"failed to parse image reference "A": invalid reference format"#,
        Reason::Internal
    )]
    fn classifies(#[case] code: Code, #[case] message: &str, #[case] reason: Reason) {
        assert_eq!(classify(code, message), reason, "{message}");
    }

    #[rstest::rstest]
    #[case(
        r#"Get "https://cdn.test/x?sig=secret&a=b": EOF"#,
        r#"Get "https://cdn.test/x?…": EOF"#
    )]
    #[case("https://cdn.test/x?sig=secret", "https://cdn.test/x?…")]
    #[case("really? yes", "really? yes")]
    #[case("nothing", "nothing")]
    fn queries_stay_out_of_messages(#[case] message: &str, #[case] shown: &str) {
        assert_eq!(without_queries(message), shown);
    }
}
