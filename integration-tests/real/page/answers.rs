//! Answers that no registry of ours gives, or not all at once.

use serde_json::{Value, json};

/// A script that answers the page's requests for these paths itself, as far as they are given here.
pub(super) fn answering(answers: &Value) -> String {
    format!(
        "{{ const answers = {answers}, real = window.fetch;
        window.fetch = async (path, options) => {{
          const name = Object.keys(answers).find((name) => String(path).includes(name));
          return name ? new Response(JSON.stringify(answers[name])) : real(path, options);
        }}; }}"
    )
}

/// What an upstream or a client could put into answers, were there no grammar of names.
pub(super) fn hostile(markup: &str) -> Value {
    let mut answers = everything();
    let status = &mut answers["api/v1/status"];
    status["config"] = json!({ "state": "refused", "error": markup });
    status["index"] = json!({ "state": markup });
    status["version"] = markup.into();
    for transfer in status["transfers"].as_array_mut().unwrap() {
        transfer["repository"] = markup.into();
        transfer["state"] = markup.into();
    }
    for upstream in status["upstreams"].as_array_mut().unwrap() {
        upstream["name"] = markup.into();
        upstream["endpoints"][0]["lastError"] = markup.into();
    }
    let image = json!({ "repository": markup, "tag": markup, "digest": markup, "held": 1, "lastUse": markup });
    answers["api/v1/images"] = json!({ "images": [image], "truncated": true });
    answers
}

/// Every state at once.
pub(super) fn everything() -> Value {
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let long = "registry.example.test/an-organisation-with-a-long-name/and-a-repository-that-has-a-longer-one/component";
    let transfer = |digit, state: &str, size: Value| {
        json!({
            "digest": digest(digit), "repository": long, "size": size, "watermark": 123_456_789, "rate": 12_345_678,
            "secondsLeft": 3333, "readers": 12, "state": state,
        })
    };
    let endpoint = |open: bool, error: Value| {
        json!({
            "url": "https://registry.example.test:5000", "breakerOpen": open, "inFlight": 12, "ratelimitRemaining": 76,
            "lastError": error,
        })
    };
    let upstream = |name: &str, endpoint: Value| json!({ "name": name, "endpoints": [endpoint] });
    let image = |digit: &str, tag: &str, held: u64| {
        json!({
            "repository": long, "tag": tag, "digest": digest(digit), "held": held, "lastUse": "2026-01-31T12:00:00Z",
        })
    };
    let sized = json!(987_654_321);
    json!({
        "api/v1/status": {
            "version": "0.1.0", "started": "2026-01-31T12:00:00Z", "ready": true,
            "disk": { "used": 96_u64 << 30, "limit": 100_u64 << 30, "free": 1 << 30, "degraded": true },
            "config": { "state": "refused", "error": "config.yaml:3:5: unknown key `endpoint`, did you mean `endpoints`?" },
            "index": { "state": "rebuilding" },
            "transfers": [
                transfer("1", "queued", sized.clone()), transfer("2", "connecting", Value::Null),
                transfer("3", "running", sized.clone()), transfer("4", "verifying", sized.clone()),
                transfer("5", "published", sized.clone()), transfer("6", "failed", sized),
            ],
            "upstreams": [
                upstream("a.example", endpoint(true, json!("connection refused (os error 111), which-is-a-long-word".repeat(4)))),
                upstream("b.example", endpoint(false, json!("the answer is 500"))),
                upstream("c.example", endpoint(false, Value::Null)),
            ],
        },
        "api/v1/images": {
            "images": [image("7", "1.27.4-alpine", 123_456_789), image("8", "latest", 0), image("9", &"v".repeat(128), 1 << 40)],
            "truncated": true,
        },
    })
}
