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
