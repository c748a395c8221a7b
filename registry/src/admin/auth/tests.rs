use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::routing::get;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;
use tower::ServiceExt as _;

use super::keys::Location;
use super::*;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const OPERATOR: &str = "system:serviceaccount:coral-system:coral-operator";

/// A key pair of the issuer.
struct Signer {
    id: &'static str,
    key: EncodingKey,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        Self {
            id,
            key: EncodingKey::from_ec_der(pair.serialized_der()),
        }
    }

    fn public(&self) -> Jwk {
        let mut key = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        key.common.key_id = Some(self.id.to_owned());
        key
    }

    /// A good token, but for what `change` says.
    fn token(&self, change: &serde_json::Value) -> String {
        let mut claims = json!({
            "iss": ISSUER, "aud": ["coral-registry"], "sub": OPERATOR, "exp": now() + 600, "nbf": now() - 5,
        });
        let fields = claims.as_object_mut().unwrap();
        for (name, value) in change.as_object().unwrap() {
            if value.is_null() {
                fields.remove(name);
            } else {
                fields.insert(name.clone(), value.clone());
            }
        }
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.to_owned());
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs()
}

fn publish(file: &Path, signers: &[&Signer]) {
    let keys = signers.iter().map(|signer| signer.public()).collect();
    std::fs::write(file, serde_json::to_vec(&JwkSet { keys }).unwrap()).unwrap();
}

fn config(file: &Path) -> AuthConfig {
    AuthConfig {
        issuer: Some(ISSUER.to_owned()),
        audience: "coral-registry".to_owned(),
        subjects: vec![OPERATOR.to_owned()],
        keys: KeySource {
            location: Location::File(file.to_owned()),
            ca: None,
            token: None,
        },
    }
}

/// The status, the challenge, and the sentence in the answer.
async fn ask(router: &Router, authorization: Option<&str>) -> (u16, bool, String) {
    let mut request = http::Request::get("/api/v1/status");
    if let Some(value) = authorization {
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let challenged = response.headers().contains_key(WWW_AUTHENTICATE);
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 1 << 16).await;
    let body = String::from_utf8(body.unwrap().to_vec()).unwrap();
    (status, challenged, body)
}

fn protected(config: AuthConfig) -> Router {
    let router = Router::new().route("/api/v1/status", get(async || "fine"));
    authenticated(router, config)
}

#[tokio::test]
async fn a_good_token_of_a_listed_subject_passes() {
    let folder = tempfile::tempdir().unwrap();
    let (file, signer) = (folder.path().join("jwks"), Signer::new("a"));
    publish(&file, &[&signer]);
    let router = protected(config(&file));
    let good = signer.token(&json!({}));
    for scheme in ["Bearer", "bearer", "BEARER "] {
        let (status, ..) = ask(&router, Some(&format!("{scheme} {good}"))).await;
        assert_eq!(status, 200, "{scheme}");
    }
    // H-30: a clock may be a little wrong.
    for change in [json!({"exp": now() - 30}), json!({"nbf": now() + 30})] {
        let token = format!("Bearer {}", signer.token(&change));
        assert_eq!(ask(&router, Some(&token)).await.0, 200, "{change}");
    }
}

#[tokio::test]
async fn any_other_token_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let (file, signer) = (folder.path().join("jwks"), Signer::new("a"));
    publish(&file, &[&signer]);
    let router = protected(config(&file));
    let changes = [
        json!({"iss": "https://elsewhere"}),
        json!({"aud": ["https://kubernetes.default.svc"]}),
        json!({"exp": now() - 300}),
        json!({"nbf": now() + 300}),
        json!({"exp": null}),
        json!({"aud": null}),
        json!({"iss": null}),
        json!({"sub": null}),
    ];
    for change in changes {
        let token = format!("Bearer {}", signer.token(&change));
        let (status, challenged, body) = ask(&router, Some(&token)).await;
        assert_eq!((status, challenged), (401, true), "{change}");
        assert!(
            body.contains("coral-registry") && !body.contains(&token[7..]),
            "{body}"
        );
    }
    let impostor = Signer::new("a").token(&json!({}));
    let stranger = Signer::new("b").token(&json!({}));
    let mut cut = signer.token(&json!({}));
    cut.truncate(cut.len() - 4);
    for wrong in [
        format!("Bearer {impostor}"),
        format!("Bearer {stranger}"),
        format!("Bearer {cut}"),
        "Bearer ".to_owned(),
        "Bearer a.b.c".to_owned(),
        format!("Basic {}", signer.token(&json!({}))),
    ] {
        assert_eq!(ask(&router, Some(&wrong)).await.0, 401);
    }
    assert_eq!(ask(&router, None).await.0, 401);
}

#[tokio::test]
async fn who_is_not_listed_is_forbidden() {
    let folder = tempfile::tempdir().unwrap();
    let (file, signer) = (folder.path().join("jwks"), Signer::new("a"));
    publish(&file, &[&signer]);
    let token = signer.token(&json!({"sub": "system:serviceaccount:default:default"}));
    let (status, _, body) = ask(&protected(config(&file)), Some(&format!("Bearer {token}"))).await;
    assert_eq!(status, 403);
    assert!(
        body.contains("default:default is not listed in admin.auth.subjects"),
        "{body}"
    );
}

/// Whoever knows the public key cannot sign with it (RFC 8725 section 2.1).
#[tokio::test]
async fn a_public_key_is_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let (file, signer) = (folder.path().join("jwks"), Signer::new("a"));
    publish(&file, &[&signer]);
    let public = std::fs::read(&file).unwrap();
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("a".to_owned());
    let claims =
        json!({"iss": ISSUER, "aud": "coral-registry", "sub": OPERATOR, "exp": now() + 600});
    let forged =
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(&public)).unwrap();
    let (status, _, body) = ask(&protected(config(&file)), Some(&format!("Bearer {forged}"))).await;
    assert_eq!(status, 401);
    assert!(body.contains("key pair"), "{body}");
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_found_and_a_lost_issuer_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks");
    let router = protected(config(&file));
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let old_token = format!("Bearer {}", old.token(&json!({})));
    let new_token = format!("Bearer {}", new.token(&json!({})));
    let (status, _, body) = ask(&router, Some(&old_token)).await;
    assert_eq!(status, 503);
    assert!(body.contains("jwks"), "{body}");

    publish(&file, &[&old]);
    assert_eq!(
        ask(&router, Some(&old_token)).await.0,
        503,
        "asked just now"
    );
    tokio::time::advance(MIN_AGE).await;
    assert_eq!(ask(&router, Some(&old_token)).await.0, 200);

    publish(&file, &[&old, &new]);
    assert_eq!(ask(&router, Some(&new_token)).await.0, 401, "read just now");
    tokio::time::advance(MIN_AGE).await;
    assert_eq!(ask(&router, Some(&new_token)).await.0, 200);

    std::fs::remove_file(&file).unwrap();
    tokio::time::advance(MAX_AGE).await;
    assert_eq!(ask(&router, Some(&old_token)).await.0, 200);

    publish(&file, &[&new]);
    tokio::time::advance(MAX_AGE).await;
    assert_eq!(ask(&router, Some(&old_token)).await.0, 401, "taken back");
}

/// Without `issuer`, tokens are good from whoever issued ours.
#[tokio::test]
async fn our_own_token_names_the_issuer() {
    let folder = tempfile::tempdir().unwrap();
    let (file, own) = (folder.path().join("jwks"), folder.path().join("token"));
    let signer = Signer::new("a");
    publish(&file, &[&signer]);
    std::fs::write(
        &own,
        signer.token(&json!({"iss": "https://oidc.example/cluster"})),
    )
    .unwrap();
    let mut config = config(&file);
    config.issuer = None;
    config.keys.token = Some(own.clone());
    let router = protected(config.clone());
    let theirs = signer.token(&json!({"iss": "https://oidc.example/cluster"}));
    assert_eq!(ask(&router, Some(&format!("Bearer {theirs}"))).await.0, 200);
    let other = signer.token(&json!({}));
    assert_eq!(ask(&router, Some(&format!("Bearer {other}"))).await.0, 401);

    std::fs::write(&own, "garbage").unwrap();
    let (status, _, body) = ask(&protected(config), Some(&format!("Bearer {theirs}"))).await;
    assert_eq!(status, 503);
    assert!(
        body.contains("admin.auth.issuer") && !body.contains("garbage"),
        "{body}"
    );
}
