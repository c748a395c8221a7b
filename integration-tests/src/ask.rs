//! Questions of one line to a registry and to its admin listener.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use crate::client::Connection;
use crate::pull::{Got, get};

/// One HEAD on a connection of its own.
pub async fn head(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<Got> {
    without_body(address, Method::HEAD, path, headers).await
}

/// One request without a body; of the answer only what a HEAD shows.
pub async fn without_body(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> io::Result<Got> {
    let mut connection = Connection::open(address).await?;
    let reply = connection.request(method, path, headers).await?;
    Ok(Got {
        status: reply.status,
        headers: reply.headers,
        body: Bytes::new(),
        clean: true,
    })
}

/// The body as JSON; `null` when it is none.
pub fn json(got: &Got) -> Value {
    serde_json::from_slice(&got.body).unwrap_or_default()
}

/// The code of the error envelope; the empty text when there is none.
pub fn code(got: &Got) -> String {
    let code = &json(got)["errors"][0]["code"];
    code.as_str().unwrap_or_default().to_owned()
}

/// Posts JSON to the admin listener.
pub async fn post(admin: SocketAddr, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
    send(admin, Method::POST, path, body).await
}

/// Puts JSON to the admin listener.
pub async fn put(admin: SocketAddr, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
    send(admin, Method::PUT, path, body).await
}

async fn send(
    admin: SocketAddr,
    method: Method,
    path: &str,
    body: &Value,
) -> anyhow::Result<(u16, Value)> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{admin}{path}");
    let request = client.request(method, url);
    let request = request.header("content-type", "application/json");
    let response = request.body(body.to_string()).send().await?;
    let status = response.status().as_u16();
    Ok((
        status,
        serde_json::from_slice(&response.bytes().await?).unwrap_or_default(),
    ))
}

/// `GET /api/v1/status`
pub async fn status(admin: SocketAddr) -> io::Result<Value> {
    Ok(json(&get(admin, "/api/v1/status", &[]).await?))
}

/// The sum of all samples whose line starts with `name`, labels included.
pub async fn metric(admin: SocketAddr, name: &str) -> io::Result<f64> {
    let text = get(admin, "/metrics", &[]).await?.body;
    let text = String::from_utf8_lossy(&text);
    let samples = text.lines().filter(|line| line.starts_with(name));
    Ok(samples
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum())
}
