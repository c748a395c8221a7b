//! A token service as registries have them in front: it signs what distribution's `auth: token` accepts.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, SigningKey};
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness;

/// The only account. Anonymous callers may pull what is not under `private/`.
pub(crate) const USER: &str = "coral";
pub(crate) const PASSWORD: &str = "a-secret-of-the-tests";

const SERVICE: &str = "registry.test";
const ISSUER: &str = "coral-tests";

/// A running token service; it ends with this value.
pub(crate) struct TokenService {
    pub(crate) port: u16,
    _server: JoinSet<()>,
}

struct Signer {
    key: KeyPair,
    certificate: String,
}

impl TokenService {
    /// Starts it and returns the `auth` section of a distribution that trusts it; its certificate lies in `folder`.
    pub(crate) async fn start(folder: &Path) -> (Self, String) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let certificate = CertificateParams::new([ISSUER.to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let bundle = harness::write(folder, "token.pem", &certificate.pem());
        let signer = Arc::new(Signer {
            key,
            certificate: STANDARD.encode(certificate.der()),
        });

        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let routes = Router::new().route("/token", get(issue)).with_state(signer);
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        let auth = format!(
            "auth:\n  token:\n    realm: http://127.0.0.1:{port}/token\n    service: {SERVICE}\n    issuer: {ISSUER}\n    \
             rootcertbundle: {}\n",
            bundle.display()
        );
        (
            Self {
                port,
                _server: server,
            },
            auth,
        )
    }
}

/// <https://distribution.github.io/distribution/spec/auth/token/>: grants what the account may have of what is asked.
async fn issue(
    State(signer): State<Arc<Signer>>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let account = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let known = match headers.get(header::AUTHORIZATION) {
        None => false,
        Some(given) if given.as_bytes() == account.as_bytes() => true,
        Some(_) => {
            return (
                StatusCode::UNAUTHORIZED,
                r#"{"details":"incorrect username or password"}"#,
            )
                .into_response();
        }
    };
    let scopes = query.get("scope").map_or("", String::as_str);
    let access: Vec<_> = scopes
        .split(' ')
        .filter_map(|scope| granted(scope, known))
        .collect();
    let token = signer.sign(&access);
    axum::Json(json!({ "token": token, "access_token": token, "expires_in": 300 })).into_response()
}

fn granted(scope: &str, known: bool) -> Option<serde_json::Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, _) = rest.rsplit_once(':')?;
    let allowed = known || !name.starts_with("private/");
    allowed.then(|| json!({ "type": kind, "name": name, "actions": ["pull"] }))
}

impl Signer {
    fn sign(&self, access: &[serde_json::Value]) -> String {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let header = json!({ "typ": "JWT", "alg": "EdDSA", "x5c": [self.certificate] });
        let claims = json!({
            "iss": ISSUER, "aud": SERVICE, "sub": "", "jti": now.to_string(), "iat": now, "nbf": now - 10,
            "exp": now + 300, "access": access,
        });
        let encode = |part: String| URL_SAFE_NO_PAD.encode(part);
        let signed = format!(
            "{}.{}",
            encode(header.to_string()),
            encode(claims.to_string())
        );
        let signature = self.key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
