//! Pushes like a client, one request at a time, so that a test sees what each of them answers.

use std::io;
use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use coral_schema::oci::Digest;
use http::Method;

use crate::client::Connection;
use crate::images::{Blob, Image};
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
