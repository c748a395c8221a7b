//! The API server, or the operator, away for long.

use super::*;

/// Both sides of every node's story are told again afterwards: nothing that is there is written again.
#[tokio::test(start_paused = true)]
async fn l18_the_api_server_comes_back_to_no_storm() {
    const NODES: usize = 100;
    let scene = Scene::new();
    for number in 0..NODES {
        scene.node(&format!("node{number:03}"));
    }
    scene.image_cache(&["nginx"], &json!({}));
    scene.lead(true);
    scene.until_told("node099", 1).await;
    for number in 0..NODES {
        scene.warm(&format!("node{number:03}"));
    }
    scene
        .until("warm", || scene.condition("NodesReady") == "True Warm")
        .await;
    sleep(Duration::from_secs(10)).await;

    // Everything has to be written, and nothing can be.
    scene.server.break_down(Some(""));
    scene.image_cache(&["nginx", "alpine"], &json!({}));
    sleep(Duration::from_secs(5)).await;
    let away = Instant::now();
    sleep(Duration::from_mins(30)).await;
    let tried = scene.server.asked("PATCH /apis/coral.dev");
    let tried = tried.iter().filter(|at| **at >= away).count();
    assert!(tried <= 2 * 30 + 30, "{tried} tries in half an hour");

    scene.server.break_down(None);
    let back = Instant::now();
    let all = || {
        (0..NODES).all(|number| {
            let told = scene.told(&format!("node{number:03}"));
            told.is_some_and(|told| told.len() == 2)
        })
    };
    scene.until("all told", all).await;
    let writes = scene.server.asked(NODE_CACHE);
    let writes: Vec<Instant> = writes.into_iter().filter(|at| *at >= back).collect();
    assert_eq!(writes.len(), NODES, "each once");
    let spread = *writes.last().unwrap() - writes[0];
    assert!(spread >= Duration::from_millis(900), "{spread:?}");
}

/// Who was away for a day finds other nodes, another wish, and its lease's successor's work: it does what differs.
#[tokio::test(start_paused = true)]
async fn l22_an_operator_that_was_away_for_a_day_does_what_differs() {
    let scene = Scene::new();
    for number in 0..20 {
        scene.node(&format!("node{number:02}"));
    }
    scene.image_cache(&["nginx"], &json!({}));
    let first = scene.lead(true);
    scene.until_told("node19", 1).await;
    for number in 0..20 {
        scene.warm(&format!("node{number:02}"));
    }
    scene
        .until("warm", || scene.condition("NodesReady") == "True Warm")
        .await;
    sleep(Duration::from_secs(10)).await;
    first.abort();
    sleep(Duration::from_hours(24)).await;
    scene.server.delete("nodes", "", "node07");
    scene.node("node20");
    let failed = json!([{ "ref": "nginx", "state": "Failed", "reason": "NotFound" }]);
    scene.report("node03", &json!({ "images": failed }));

    let before = scene.server.asked(NODE_CACHE).len();
    scene.lead(true);
    scene.until_told("node20", 1).await;
    scene.until("gone", || scene.told("node07").is_none()).await;
    let failed = || {
        let object = scene.server.get("imagecaches", "ml", "a").unwrap();
        object["status"]["nodes"]["failed"] == 1
    };
    scene.until("told in the status", failed).await;
    sleep(Duration::from_mins(5)).await;
    let written = scene.server.asked(NODE_CACHE).len() - before;
    assert_eq!(written, 1, "the node that joined");
}
