//! Pull secrets: who reads them, and where they never are.

use super::*;

const SECRETS: &str = "GET /api/v1/namespaces/ml/secrets";

fn secret(password: &str) -> Value {
    let config = json!({ "auths": { "docker.io": { "username": "u", "password": password } } });
    let data = k8s_openapi::ByteString(config.to_string().into());
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "hub", "namespace": "ml" },
        "type": "kubernetes.io/dockerconfigjson", "data": { ".dockerconfigjson": data },
    })
}

#[tokio::test(start_paused = true)]
async fn l29_l30_a_secret_is_read_by_name_and_stands_in_no_object() {
    let scene = Scene::new();
    scene.node("node1");
    scene.server.put("secrets", "ml", &secret("hidden-one"));
    let secrets = json!({ "imagePullSecrets": [{ "name": "hub" }, { "name": "hub" }] });
    scene.image_cache(&["nginx"], &secrets);
    scene.lead(true);
    scene.until_told("node1", 1).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(scene.server.asked(SECRETS).len(), 1, "once for both");
    assert_eq!(
        scene.server.asked(&format!("{SECRETS}/hub?")).len(),
        1,
        "by name"
    );
    // It rotates, and is gone.
    scene.server.put("secrets", "ml", &secret("hidden-two"));
    sleep(Duration::from_mins(5)).await;
    assert!((5..=7).contains(&scene.server.asked(SECRETS).len()));
    scene.server.delete("secrets", "ml", "hub");
    sleep(Duration::from_mins(2)).await;
    for (kind, namespace, name) in [("imagecaches", "ml", "a"), ("nodecaches", "", "node1")] {
        let object = scene.server.get(kind, namespace, name).unwrap();
        assert!(!object.to_string().contains("hidden"), "{object}");
    }
    let node = scene.server.get("nodecaches", "", "node1").unwrap();
    assert!(
        !node.to_string().contains("hub"),
        "not even its name: {node}"
    );
    // Nobody names it any more.
    let before = scene.server.asked(SECRETS).len();
    scene.image_cache(&["nginx"], &json!({ "imagePullSecrets": null }));
    sleep(Duration::from_mins(5)).await;
    assert!(scene.server.asked(SECRETS).len() <= before + 1);
}

/// The registry of these tests serves nothing: nodes need every login, where they may have it.
#[tokio::test(start_paused = true)]
async fn l32_copies_for_nodes_rotate_and_go() {
    let mut scene = Scene::new();
    scene.node_pull_secrets = Some("copies".to_owned());
    scene.node("node1");
    scene.server.put("secrets", "ml", &secret("hidden-one"));
    scene.image_cache(
        &["nginx"],
        &json!({ "imagePullSecrets": [{ "name": "hub" }] }),
    );
    scene.lead(true);
    let copied = || {
        let secret = scene.server.get("secrets", "coral", "copies")?;
        let secret: k8s_openapi::api::core::v1::Secret = serde_json::from_value(secret).unwrap();
        Some(secret.data.unwrap_or_default())
    };
    let until = async |what: &str| {
        for _ in 0..300 {
            let copied = copied().and_then(|mut data| data.remove("ml.a"));
            let text = copied.map(|data| String::from_utf8(data.0).unwrap());
            if text.unwrap_or_default().contains(what) {
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
        panic!("{what} was not copied: {:?}", copied());
    };
    until("hidden-one").await;
    until("docker.io/library/nginx").await;
    scene.server.put("secrets", "ml", &secret("hidden-two"));
    until("hidden-two").await;
    scene.image_cache(&["nginx"], &json!({ "imagePullSecrets": null }));
    sleep(Duration::from_secs(30)).await;
    assert_eq!(copied().unwrap().len(), 0, "nobody needs it any more");
    let writes = scene.server.writes();
    let writes = writes.iter().filter(|it| it.contains("/secrets/copies"));
    assert_eq!(writes.count(), 3);
}
