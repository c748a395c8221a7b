//! A client against a scripted listener.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use coral_schema::process::tasks::Tasks;
use rstest::rstest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// Answers every request the same, and remembers what was asked.
async fn listener(status: u16, body: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&asked);
    Tasks::new().spawn("listener", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = String::new();
            while !is_whole(&request) {
                let mut part = [0; 4096];
                let length = stream.read(&mut part).await.unwrap();
                request.push_str(std::str::from_utf8(&part[..length]).unwrap());
            }
            log.lock().unwrap().push(request);
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (address, asked)
}

fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

fn client(address: SocketAddr, token: Option<PathBuf>) -> Registry {
    let admin = format!("http://{address}").parse().unwrap();
    Registry::new(Config {
        admin,
        token,
        ca: None,
    })
    .unwrap()
}

#[rstest]
#[case(403, RegistryError::Denied { status: 403, reason: "no".to_owned() })]
#[case(404, RegistryError::Forgotten)]
#[case(429, RegistryError::Busy { status: 429, reason: "no".to_owned() })]
#[case(503, RegistryError::Busy { status: 503, reason: "no".to_owned() })]
#[case(500, RegistryError::Away("500: no".to_owned()))]
#[case(302, RegistryError::Refused { status: 302, reason: "no".to_owned() })]
#[case(400, RegistryError::Refused { status: 400, reason: "no".to_owned() })]
#[tokio::test]
async fn statuses_are_decisions(#[case] status: u16, #[case] expected: RegistryError) {
    let (address, _) = listener(status, r#"{"error":"no"}"#).await;
    let error = client(address, None).progress("7").await.unwrap_err();
    assert_eq!(error, expected);
}

#[tokio::test]
async fn another_program_and_nobody_are_away() {
    let (address, _) = listener(200, "hello").await;
    let error = client(address, None).registries().await.unwrap_err();
    assert!(matches!(error, RegistryError::Away(_)), "{error}");
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let error = client(address, None).registries().await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Away(why) if why.contains("refused")),
        "{error}"
    );
}

#[tokio::test]
async fn the_token_is_read_for_each_call_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    let (address, asked) = listener(202, r#"{"id":"7"}"#).await;
    let registry = client(address, Some(token.clone()));
    let wanted: PrefetchRequest = serde_json::from_str(r#"{"images":["nginx"]}"#).unwrap();
    assert!(matches!(
        registry.start(&wanted).await,
        Err(RegistryError::Denied { .. })
    ));
    for secret in ["first", "second"] {
        std::fs::write(&token, format!("{secret}\n")).unwrap();
        assert_eq!(registry.start(&wanted).await.unwrap(), "7");
        let request = asked.lock().unwrap().pop().unwrap();
        assert!(request.starts_with("POST /api/v1/prefetch "), "{request}");
        assert!(request.contains(&format!("authorization: Bearer {secret}\r\n")));
        assert!(request.ends_with(r#"{"images":["nginx"],"priority":0,"refresh":false}"#));
        assert!(!format!("{registry:?}").contains(secret));
    }
}

#[tokio::test]
async fn a_source_is_a_path() {
    let (address, asked) = listener(204, "").await;
    let registry = client(address, None);
    let pin = PinRequest {
        images: vec!["nginx".to_owned()],
        frozen: Vec::new(),
        platforms: Vec::new(),
        expires: "2026-01-31T12:00:00Z".to_owned(),
    };
    registry.pin("operator/ml/a", &pin).await.unwrap();
    registry.unpin("operator/ml/a").await.unwrap();
    let asked = asked.lock().unwrap();
    assert!(
        asked[0].starts_with("PUT /api/v1/pins/operator/ml/a "),
        "{asked:?}"
    );
    assert!(
        asked[1].starts_with("DELETE /api/v1/pins/operator/ml/a "),
        "{asked:?}"
    );
}

#[test]
fn certificates_that_are_none() {
    let config = Config {
        admin: "https://registry:9090".parse().unwrap(),
        token: None,
        ca: Some(b"nonsense".to_vec()),
    };
    assert!(matches!(Registry::new(config), Err(ConfigError::Ca)));
}
