//! Single values. Every parser is total, and its error goes on after the value: "is not …; write …".

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use coral_schema::duration::{HumanDuration, HumanDurationError};
use coral_schema::mirror_config::HostPort;
use coral_schema::quantity::ByteSize;
use url::Url;

/// `true` or `false`.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

/// One of a few words.
pub(super) fn word<T: Copy>(words: &[(&str, T)]) -> impl Fn(&str) -> Result<T, String> {
    move |text| {
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!("is not known here; write one of {}", words.join(", "))
        })
    }
}

/// A whole number within limits.
pub(super) fn number(limits: RangeInclusive<u32>) -> impl Fn(&str) -> Result<u32, String> {
    move |text| {
        Some(text)
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .filter(|number| limits.contains(number))
            .ok_or_else(|| {
                let (least, most) = (limits.start(), limits.end());
                format!("is not a whole number from {least} to {most}")
            })
    }
}

/// A size within limits, in bytes.
pub(super) fn size(limits: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let ByteSize(bytes) = text
            .parse()
            .map_err(|error| format!("is not a size; {error}"))?;
        if limits.contains(&bytes) {
            return Ok(bytes);
        }
        let (least, most) = (ByteSize(*limits.start()), ByteSize(*limits.end()));
        Err(if bytes < least.0 {
            format!("is too small; write at least {least}")
        } else {
            format!("is too large; write at most {most}")
        })
    }
}

/// `none`, or what `parse` reads.
pub(super) fn or_none<T>(
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| {
        if text == "none" {
            return Ok(None);
        }
        parse(text)
            .map(Some)
            .map_err(|problem| format!("{problem}, or none"))
    }
}

/// A duration of at most ten years, zero allowed.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let length: HumanDuration = text
        .parse()
        .map_err(|error: HumanDurationError| error.to_string())?;
    Ok(length.0)
}

/// A duration that something waits for: at least a millisecond, at most `most`.
pub(super) fn wait(most: Duration) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let length = duration(text)?;
        if length.is_zero() {
            return Err("would not wait at all; write at least 1ms".to_owned());
        }
        if length > most {
            return Err(format!("is too long; write at most {}s", most.as_secs()));
        }
        Ok(length)
    }
}

/// An IP address and a port to listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "is not an IP address with a port; write one like 127.0.0.1:5000, 0.0.0.0:5000 or [::]:5000"
            .to_owned()
    })
}

/// A host with an optional port.
pub(super) fn host_port(text: &str) -> Result<HostPort, String> {
    if text.contains("://") {
        return Err("is a URL; write the host alone, with its port if it has one".to_owned());
    }
    text.parse()
        .map_err(|error| format!("is not a host; {error}"))
}

/// A host name or an IP address without a port.
pub(super) fn host(text: &str) -> Result<String, String> {
    match host_port(text)? {
        host if host.port().is_none() => Ok(host.host().to_owned()),
        _ => Err("has a port; write the host alone".to_owned()),
    }
}

/// One line of text, taken as it is.
pub(super) fn text(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err("is not a line of text".to_owned());
    }
    Ok(text.to_owned())
}

/// A URL of something to read: encrypted, without a login.
pub(super) fn https(text: &str) -> Result<Url, String> {
    let url = http_url(text)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a login; leave it out".to_owned());
    }
    if url.scheme() != "https" {
        return Err("is not encrypted; write https".to_owned());
    }
    Ok(url)
}

/// The path of a file or folder.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("is not a path".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// `scheme://host[:port]`, nothing else; `https`, or also `http`.
pub(super) fn endpoint(plain_http: bool) -> impl Fn(&str) -> Result<Url, String> {
    move |text| {
        let url = http_url(text)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("holds a login; write it under credentials".to_owned());
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err("has a path; write the scheme, the host and the port only".to_owned());
        }
        if url.scheme() == "http" && !plain_http {
            return Err("is not encrypted; write https, or set plainHttp: true".to_owned());
        }
        Ok(url)
    }
}

/// A proxy's URL; it may hold a login.
pub(super) fn proxy(text: &str) -> Result<Url, String> {
    let url = http_url(text)?;
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err("has a path; write it like http://proxy.example:3128".to_owned());
    }
    Ok(url)
}

fn http_url(text: &str) -> Result<Url, String> {
    let malformed = || "is not a URL; write it like https://registry.example:5000".to_owned();
    // `Url` repairs what a person should see: blanks, a missing slash, backslashes.
    if text.contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == '\\')
    {
        return Err(malformed());
    }
    let has_scheme = |scheme: &str| {
        text.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    if !has_scheme("http://") && !has_scheme("https://") {
        return Err(malformed());
    }
    Url::parse(text)
        .ok()
        .filter(|url| url.host_str().is_some_and(|host| !host.is_empty()) && url.port() != Some(0))
        .ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("https://registry.example", true)]
    #[case("HTTPS://Registry.example:5000/", true)]
    #[case("http://10.0.0.5:5000", false)]
    #[case("https://user:secret@registry.example", false)]
    #[case("https://registry.example/v2", false)]
    #[case("https://registry.example?x", false)]
    #[case("https:/registry.example", false)]
    #[case("https:registry.example", false)]
    #[case("registry.example", false)]
    #[case("ftp://registry.example", false)]
    #[case("https://", false)]
    #[case("https://a b", false)]
    #[case("https://a\\b", false)]
    #[case("https://a:0", false)]
    fn endpoints(#[case] text: &str, #[case] good: bool) {
        assert_eq!(endpoint(false)(text).is_ok(), good, "{text}");
    }
}
