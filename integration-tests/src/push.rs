//! Pushes like a client, one request at a time, so that a test sees what each of them answers.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};
use coral_schema::oci::Digest;
use http::Method;

use crate::client::Connection;
use crate::images::{Blob, Content, Image};
use crate::pull::Got;

/// One request with a body, on a connection of its own, and all of the answer.
pub async fn send(
    address: SocketAddr,
    (method, path): (Method, &str),
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Got> {
    let mut connection = Connection::open(address).await?;
    let length = body.len().to_string();
    let length = [("content-length", length.as_str())];
    let headers: Vec<_> = headers.iter().chain(&length).copied().collect();
    connection.begin(&method, path, &headers).await?;
    connection.write(body).await?;
    finish(connection, &method).await
}

/// As [`send`], without saying how long the body is.
pub async fn stream(
    address: SocketAddr,
    (method, path): (Method, &str),
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Got> {
    let mut connection = Connection::open(address).await?;
    let coding = [("transfer-encoding", "chunked")];
    let headers: Vec<_> = headers.iter().chain(&coding).copied().collect();
    connection.begin(&method, path, &headers).await?;
    for piece in body.chunks(1000) {
        let mut chunk = BytesMut::new();
        chunk.put_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        chunk.put_slice(piece);
        chunk.put_slice(b"\r\n");
        connection.write(&chunk).await?;
    }
    connection.write(b"0\r\n\r\n").await?;
    finish(connection, &method).await
}

async fn finish(mut connection: Connection, method: &Method) -> io::Result<Got> {
    let mut reply = connection.reply(method).await?;
    let body = connection.read_all(&mut reply).await;
    Ok(Got {
        status: reply.status,
        headers: reply.headers,
        clean: body.is_ok(),
        body: body.unwrap_or_default(),
    })
}

/// Begins an upload session; answers its URL, ready for more parameters.
pub async fn begin(address: SocketAddr, repository: &str) -> anyhow::Result<String> {
    let path = format!("/v2/{repository}/blobs/uploads/");
    let got = send(address, (Method::POST, &path), &[], b"").await?;
    anyhow::ensure!(got.status == 202, "{}", got.status);
    Ok(got.header("location").to_owned())
}

/// A blob in one request.
pub async fn blob(address: SocketAddr, repository: &str, content: &[u8]) -> anyhow::Result<Digest> {
    let digest = Digest::sha256(content);
    let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
    let got = send(address, (Method::POST, &path), &[], content).await?;
    anyhow::ensure!(got.status == 201, "{}: {:?}", got.status, got.body);
    Ok(digest)
}

/// A manifest by tag or digest, with what the registry answers.
pub async fn manifest(
    address: SocketAddr,
    (repository, reference): (&str, &str),
    media_type: &str,
    bytes: &Bytes,
) -> io::Result<Got> {
    let path = format!("/v2/{repository}/manifests/{reference}");
    let headers = [("content-type", media_type)];
    send(address, (Method::PUT, &path), &headers, bytes).await
}

/// How a blob is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// POST, and everything with the PUT.
    Monolithic,
    /// POST, one PATCH after the other with its place, and an empty PUT.
    Chunked,
}

/// A client that pushes over one connection, and holds no more than it sends at a time.
#[derive(Debug)]
pub struct Pusher(Connection);

impl Pusher {
    /// Connects.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self(Connection::open(address).await?))
    }

    /// A blob.
    pub async fn blob(
        &mut self,
        repository: &str,
        blob: &Blob,
        style: Style,
    ) -> anyhow::Result<()> {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let mut location = self.send(Method::POST, &path, &[], None).await?;
        if style == Style::Chunked {
            let ends = (0..blob.size()).step_by(CHUNK);
            for start in ends {
                let end = blob.size().min(start + CHUNK as u64);
                let range = format!("{start}-{}", end - 1);
                let headers = [("content-range", range.as_str())];
                let body = Some((&blob.content, start..end));
                location = self.send(Method::PATCH, &location, &headers, body).await?;
            }
        }
        let separator = if location.contains('?') { '&' } else { '?' };
        let ending = format!("{location}{separator}digest={}", blob.digest);
        let body = (style == Style::Monolithic).then_some((&blob.content, 0..blob.size()));
        self.send(Method::PUT, &ending, &[], body).await?;
        Ok(())
    }

    /// An image of one platform under a tag, its manifest last.
    pub async fn image(
        &mut self,
        repository: &str,
        tag: &str,
        image: &Image,
    ) -> anyhow::Result<()> {
        for blob in &image.blobs {
            self.blob(repository, blob, Style::Monolithic).await?;
        }
        let manifest = &image.manifest;
        let path = format!("/v2/{repository}/manifests/{tag}");
        let headers = [("content-type", manifest.media_type.as_str())];
        let body = Some((&manifest.content, 0..manifest.size()));
        self.send(Method::PUT, &path, &headers, body).await?;
        Ok(())
    }

    /// Answers the path of the `Location`.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<(&Content, Range<u64>)>,
    ) -> anyhow::Result<String> {
        let length = body
            .as_ref()
            .map_or(0, |(_, range)| range.end - range.start);
        let length = length.to_string();
        let length = [("content-length", length.as_str())];
        let headers: Vec<_> = headers.iter().chain(&length).copied().collect();
        self.0.begin(&method, path, &headers).await?;
        if let Some((content, Range { mut start, end })) = body {
            while start < end {
                let left = usize::try_from(end - start).unwrap_or(usize::MAX);
                let piece = content.chunk(start, left);
                self.0.write(&piece).await?;
                start += piece.len() as u64;
            }
        }
        let mut reply = self.0.reply(&method).await?;
        let body = self.0.read_all(&mut reply).await?;
        let is_done = (200..300).contains(&reply.status);
        anyhow::ensure!(is_done, "{method} {path}: {}: {body:?}", reply.status);
        Ok(local(reply.header("location")).to_owned())
    }
}

/// The path of a URL that may name its host.
fn local(location: &str) -> &str {
    let behind_scheme = location.split_once("://").map(|(_, rest)| rest);
    let path = behind_scheme.and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    path.unwrap_or(location)
}

/// What containerd and others send at a time, bytes.
const CHUNK: usize = 5 << 20;

/// An image with all that it names, its manifest last.
pub async fn image(
    address: SocketAddr,
    repository: &str,
    reference: &str,
    image: &Image,
) -> anyhow::Result<()> {
    for child in &image.children {
        let reference = child.digest().to_string();
        Box::pin(self::image(address, repository, &reference, child)).await?;
    }
    for part in &image.blobs {
        blob(address, repository, &part.content.read_all()).await?;
    }
    let Blob {
        media_type,
        content,
        ..
    } = &image.manifest;
    let bytes = content.read_all();
    let got = manifest(address, (repository, reference), media_type, &bytes).await?;
    anyhow::ensure!(got.status == 201, "{}: {:?}", got.status, got.body);
    Ok(())
}
