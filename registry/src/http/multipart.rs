//! Several ranges of a blob in one answer: `multipart/byteranges` (RFC 9110, section 14.6).

use bytes::Bytes;
use coral_schema::oci::{Digest, media_type};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};

use super::answer::{Answer, Content};
use crate::pull::{BlobBody, BodyError};

/// Makes `answer` one that has these parts, first and last byte, of a blob of `size` bytes.
pub(super) fn set_parts(
    answer: &mut Answer,
    digest: &Digest,
    size: u64,
    parts: Vec<((u64, u64), BlobBody)>,
) {
    let boundary = boundary(digest);
    let ranges: Vec<_> = parts.iter().map(|(range, _)| *range).collect();
    let heads = heads(&boundary, size, &ranges);
    let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
    let content = ranges.iter().map(|(first, last)| last - first + 1);
    let frame = heads.iter().chain([&end]).map(|text| text.len() as u64);
    let length = content.sum::<u64>() + frame.sum::<u64>();
    answer.status = StatusCode::PARTIAL_CONTENT;
    let media_type = HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}"));
    let media_type = media_type.expect("hexadecimal digits are valid in a header");
    answer.headers.insert(CONTENT_TYPE, media_type);
    answer.set_length(length);
    let bodies = parts.into_iter().map(|(_, body)| body);
    answer.set_content(Content::Stream(body(heads, bodies.collect(), end)));
}

/// What stands before each part.
fn heads(boundary: &str, size: u64, ranges: &[(u64, u64)]) -> Vec<Bytes> {
    let head = |(place, (first, last)): (usize, &(u64, u64))| {
        let before = if place == 0 { "" } else { "\r\n" };
        let media_type = media_type::OCTET_STREAM;
        Bytes::from(format!(
            "{before}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n"
        ))
    };
    ranges.iter().enumerate().map(head).collect()
}

/// One part after the other; of the content one buffer at a time is in memory.
fn body(
    heads: Vec<Bytes>,
    bodies: Vec<BlobBody>,
    end: Bytes,
) -> BoxStream<'static, Result<Bytes, BodyError>> {
    let parts = heads.into_iter().zip(bodies);
    let parts = stream::iter(parts.map(Ok)).map_ok(|(head, body)| {
        let head = stream::once(async { Ok(head) });
        head.chain(body.into_stream(None))
    });
    let end = stream::once(async { Ok(end) });
    parts.try_flatten().chain(end).boxed()
}

/// Nobody can make content that holds its own digest.
fn boundary(digest: &Digest) -> String {
    // At most 70 characters (RFC 2046, section 5.1.1).
    digest.hex().chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::Outcome;
    use coral_schema::oci::Algorithm;
    use http::header::CONTENT_LENGTH;

    #[tokio::test]
    async fn the_length_is_that_of_what_is_sent() {
        let digest = Digest::of(Algorithm::Sha512, b"0123456789");
        let part = |first: usize, last: usize| {
            let bytes = Bytes::from_static(&b"0123456789"[first..=last]);
            let body = BlobBody::Arriving(stream::once(async { Ok(bytes) }).boxed());
            ((first as u64, last as u64), body)
        };
        let mut answer = Answer::new(StatusCode::OK, Outcome::Hit);
        set_parts(&mut answer, &digest, 10, vec![part(8, 9), part(0, 0)]);
        let Content::Stream(stream) = answer.content else {
            panic!("a stream");
        };
        let sent: Vec<Bytes> = stream.try_collect().await.unwrap();
        let sent = sent.concat();
        let boundary = &digest.hex()[..64];
        let expected = format!(
            "--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 8-9/10\r\n\r\n89\r\n\
             --{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 0-0/10\r\n\r\n0\r\n\
             --{boundary}--\r\n"
        );
        assert_eq!(String::from_utf8(sent).unwrap(), expected);
        assert_eq!(answer.headers[CONTENT_LENGTH], expected.len().to_string());
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
    }
}
