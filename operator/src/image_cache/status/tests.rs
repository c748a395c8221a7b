use std::time::Duration;

use coral_schema::admin::{PrefetchReason, PrefetchState};
use coral_schema::crd::node_cache::{ImageState, PurgeResult};
use rstest::rstest;

use super::*;
use crate::image_cache::validate::validate;
use crate::test_support::{EVERYWHERE, World, image_cache, object};

const IMAGE: &str = "nginx:1.27";
/// The cache does not serve its registry.
const OTHER: &str = "other.test/team/app:1";

fn condition<'a>(status: &'a ImageCacheStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let mut conditions = status.conditions.iter();
    let found = conditions
        .find(|condition| condition.type_ == kind)
        .unwrap();
    (&found.status, &found.reason, &found.message)
}

fn short<'a>(status: &'a ImageCacheStatus, kind: &str) -> (&'a str, &'a str) {
    let (is, reason, _) = condition(status, kind);
    (is, reason)
}

fn settled(world: &mut World, object: &ValidatedImageCache) -> ImageCacheStatus {
    world.reconcile(object);
    world.write();
    world.finish_pulls(PurgeResult::Purged);
    world.reconcile(object)
}

#[test]
fn a_rollout_tells_its_story() {
    let mut world = World::with_nodes(12);
    let object = object(
        "a",
        &format!("{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 5}}"),
    );
    let mut told = Vec::new();
    let mut tell = |world: &mut World| {
        let status = world.reconcile(&object);
        world.write();
        let nodes = status.nodes;
        let order: Vec<&str> = status
            .conditions
            .iter()
            .map(|condition| condition.type_.as_str())
            .collect();
        assert_eq!(
            order,
            [
                "Ready",
                "Reconciling",
                "Stalled",
                "CacheReady",
                "NodesReady",
                "Drifted"
            ]
        );
        let ready = condition(&status, "Ready");
        told.push(format!(
            "{} {}: {} | {}/{} pulling {} waiting {} failed {} skipped {}",
            ready.0,
            ready.1,
            ready.2,
            nodes.ready,
            nodes.desired,
            nodes.pulling,
            nodes.waiting,
            nodes.failed,
            nodes.skipped
        ));
    };
    tell(&mut world);
    world.progress(IMAGE, PrefetchState::Running, None);
    tell(&mut world);
    world.cached(IMAGE);
    world.say("n000", IMAGE, ImageState::Pulling);
    tell(&mut world);
    for node in ["n000", "n001", "n002"] {
        world.say(node, IMAGE, ImageState::Ready);
    }
    world.say("n003", IMAGE, ImageState::Failed);
    tell(&mut world);
    world.set_ready("n011", false);
    for _ in 0..3 {
        world.finish_pulls(PurgeResult::Purged);
        tell(&mut world);
    }
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn l21_no_matching_node_is_ready() {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    let object = object(
        "a",
        "sets: [{name: a, images: [nginx:1.27], nodes: {selector: {matchLabels: {pool: none}}}}]",
    );
    let status = world.reconcile(&object);
    assert_eq!(short(&status, "Ready"), ("True", "NoMatchingNodes"));
    let warnings = warnings(&world.assign(&object), &status);
    assert_eq!(warnings[0].0, Reason::NoMatchingNodes);
    // The next edit is seen, whatever was said before.
    let edited = crate::test_support::object("a", EVERYWHERE);
    assert_eq!(
        short(&world.reconcile(&edited), "Ready"),
        ("False", "Warming")
    );
}

#[test]
fn only_the_cache() {
    let mut world = World::with_nodes(1);
    let object = object("a", "sets: [{name: a, images: [nginx:1.27]}]");
    assert_eq!(short(&world.reconcile(&object), "Ready").0, "False");
    world.cached(IMAGE);
    let status = world.reconcile(&object);
    assert_eq!(short(&status, "Ready"), ("True", "Warm"));
    assert_eq!(status.nodes.desired, 0);
}

/// The cache has nothing to do with it: it is waited for on nodes, and missed in the cache only when they fail.
#[rstest]
#[case::auto("")]
#[case::as_the_runtime_would("registryPolicy: Default")]
fn what_the_cache_does_not_serve_is_warm_when_nodes_hold_it(#[case] policy: &str) {
    let mut world = World::with_nodes(2);
    world.cached(IMAGE);
    let refused = Some(PrefetchReason::Unauthorized);
    world.progress(OTHER, PrefetchState::Failed, refused);
    let images = format!("sets: [{{name: a, images: [\"{IMAGE}\", \"{OTHER}\"], nodes: {{}}}}]");
    let object = object("a", &format!("{images}\n{policy}"));
    let status = world.reconcile(&object);
    assert_eq!(short(&status, "Stalled").0, "False");
    let cache = condition(&status, "CacheReady");
    let said = "1 of 1 images in the cache; 1 of registries that it does not serve";
    assert_eq!(cache, ("True", "Warm", said));
    assert_eq!(short(&status, "Ready"), ("False", "Warming"));
    world.write();
    world.say("n000", OTHER, ImageState::Failed);
    let status = world.reconcile(&object);
    let reasons: Vec<&str> = status
        .failures
        .iter()
        .map(|it| it.reason.as_str())
        .collect();
    assert_eq!(reasons, ["NotFound", "Unauthorized"]);
    assert_eq!(short(&status, "Stalled").0, "True");
    world.say("n000", OTHER, ImageState::Ready);
    for _ in 0..3 {
        world.reconcile(&object);
        world.write();
        world.finish_pulls(PurgeResult::Purged);
    }
    let status = world.reconcile(&object);
    assert_eq!(short(&status, "Ready"), ("True", "Warm"));
    assert!(status.failures.is_empty());
    // Another operator, while the cache is away (L22).
    world.cache.registries = None;
    assert_eq!(world.reconcile(&object), status);
}

#[rstest]
#[case::by_way_of_the_cache_only("nodes: {}}]\nregistryPolicy: MirrorOnly")]
#[case::in_the_cache_only("}]")]
fn what_the_cache_does_not_serve_and_has_to_is_told(#[case] rest: &str) {
    let mut world = World::with_nodes(1);
    let refused = Some(PrefetchReason::Unauthorized);
    world.progress(OTHER, PrefetchState::Failed, refused);
    let sets = format!("sets: [{{name: a, images: [\"{OTHER}\"], {rest}");
    let status = world.reconcile(&object("a", &sets));
    assert_eq!(short(&status, "Ready"), ("False", "Unauthorized"));
    assert_eq!(short(&status, "Stalled"), ("True", "Unauthorized"));
    let message = &status.failures[0].message;
    assert!(
        message.contains("add the registry to the cache's upstreams"),
        "{message}"
    );
}

#[test]
fn a_name_that_no_node_has() {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    let object = object(
        "a",
        "sets: [{name: a, images: [nginx:1.27], nodes: {names: [n000, n009]}}]",
    );
    let status = settled(&mut world, &object);
    assert_eq!(short(&status, "Ready"), ("False", "NodeNotFound"));
    assert_eq!(short(&status, "Stalled"), ("True", "NodeNotFound"));
    assert_eq!(status.failures[0].sample_nodes, ["n009"]);
}

#[rstest]
#[case(PrefetchReason::NotFound, "NotFound", true)]
#[case(PrefetchReason::RateLimited, "RateLimited", false)]
#[case(PrefetchReason::UpstreamUnavailable, "UpstreamUnavailable", false)]
fn temporary_reasons_never_stall(
    #[case] from: PrefetchReason,
    #[case] reason: &str,
    #[case] stalled: bool,
) {
    let mut world = World::with_nodes(1);
    world.progress(IMAGE, PrefetchState::Failed, Some(from));
    let status = world.reconcile(&object("a", EVERYWHERE));
    assert_eq!(short(&status, "CacheReady"), ("False", reason));
    assert_eq!(
        short(&status, "Stalled").0,
        if stalled { "True" } else { "False" }
    );
    assert_eq!(
        short(&status, "Reconciling").0,
        if stalled { "False" } else { "True" }
    );
    let failure = &status.failures[0];
    assert_eq!((failure.nodes, failure.reason.as_str()), (0, reason));
    assert!(failure.message.contains(failure.reason.remedy()));
}

#[test]
fn l17_failures_do_not_grow_with_nodes_or_images() {
    let mut world = World::with_nodes(30);
    let images: Vec<String> = (0..25).map(|index| format!("i{index:02}:1")).collect();
    let object = object(
        "a",
        &format!(
            "sets: [{{name: a, images: ['{}'], nodes: {{}}}}]\nregistryPolicy: Default\nrollout: {{maxConcurrentNodes: 30}}",
            images.join("', '")
        ),
    );
    world.reconcile(&object);
    world.write();
    for node in 0..30 {
        for image in &images {
            let name = format!("n{node:03}");
            world.say(&name, image, ImageState::Failed);
            let long = "x".repeat(1000);
            world
                .answer(&name)
                .images
                .iter_mut()
                .for_each(|image| image.message = Some(long.clone()));
        }
    }
    let status = world.reconcile(&object);
    assert_eq!((status.failures.len(), status.nodes.failed), (20, 30));
    for failure in &status.failures {
        assert_eq!((failure.nodes, failure.sample_nodes.len()), (30, 3));
        assert!(
            failure.message.chars().count() <= 256
                && failure.message.ends_with(failure.reason.remedy())
        );
    }
    assert_eq!(status.entries[0].failed_nodes, 30);
    let before = serde_json::to_string(&status).unwrap();
    world.pass(Duration::from_mins(1));
    let again = serde_json::to_string(&world.reconcile(&object)).unwrap();
    assert_eq!(again, before, "nothing changed, nothing is written");
}

#[test]
fn every_reason_fits_into_a_message() {
    for reason in Reason::ALL {
        let text = failures::sentence(Some(&"é".repeat(500)), *reason);
        assert!(text.chars().count() <= 256 && text.ends_with(reason.remedy()));
    }
}

#[test]
fn times_change_with_the_status_only() {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    let object = object("a", EVERYWHERE);
    let first = world.reconcile(&object).conditions[0].clone();
    world.pass(Duration::from_mins(1));
    world.progress(IMAGE, PrefetchState::Running, None);
    assert_eq!(
        world.reconcile(&object).conditions[0].last_transition_time,
        first.last_transition_time
    );
    world.cached(IMAGE);
    let ready = settled(&mut world, &object).conditions[0].clone();
    assert_eq!(
        (ready.status.as_str(), ready.observed_generation),
        ("True", Some(1))
    );
    assert!(ready.last_transition_time > first.last_transition_time);
}

#[rstest]
#[case(false, 4, 0)]
#[case(false, 5, 1)]
#[case(true, 1, 0)]
#[case(true, 2, 1)]
fn silent_warmers_count_as_failed(#[case] never: bool, #[case] minutes: u32, #[case] failed: u32) {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    let object = object("a", EVERYWHERE);
    world.reconcile(&object);
    world.write();
    world.look();
    if !never {
        world.answer("n000");
        world.stored.get_mut("n000").unwrap().metadata.generation = Some(2);
        world.look();
    }
    world.pass(Duration::from_mins(1) * minutes);
    let status = world.reconcile(&object);
    assert_eq!(status.nodes.failed, failed);
    if failed == 1 {
        assert_eq!(status.failures[0].reason, Reason::WarmerSilent);
        assert_eq!(short(&status, "Ready"), ("False", "WarmerSilent"));
        assert_eq!(short(&status, "Stalled").0, "False");
    }
}

#[test]
fn l12_another_digest_under_the_tag_is_drift_and_ready() {
    let mut world = World::with_nodes(2);
    world.cached(IMAGE);
    let object = object(
        "a",
        &format!("{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 2}}"),
    );
    settled(&mut world, &object);
    let held = coral_schema::oci::Digest::sha256(b"older").to_string();
    world.answer("n001").images[0].digest = Some(held);
    let status = world.reconcile(&object);
    assert_eq!(short(&status, "Ready"), ("True", "Warm"));
    let (is, reason, message) = condition(&status, "Drifted");
    assert_eq!((is, reason), ("True", "Drifted"));
    assert!(
        message.contains("n001") && message.contains(IMAGE),
        "{message}"
    );
}

#[test]
fn l22_a_restart_keeps_the_status_until_nodes_reported() {
    let mut world = World::with_nodes(10);
    world.cached(IMAGE);
    let object = object(
        "a",
        &format!("{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 10}}"),
    );
    let warm = settled(&mut world, &object);
    assert_eq!(warm.nodes.ready, 10);

    // The cache's jobs are unknown to a new process, and the reports were lost.
    world.wishes = crate::node_cache::wishes::Wishes::default();
    world.cache.images.clear();
    for stored in world.stored.values_mut() {
        stored.status = None;
    }
    world.uptime = Duration::from_secs(5);
    assert_eq!(world.reconcile(&object), warm);
    world.finish_pulls(PurgeResult::Purged);
    assert_eq!(
        world.reconcile(&object),
        warm,
        "what the cache held, it holds"
    );
    for stored in world.stored.values_mut() {
        stored.status = None;
    }
    world.uptime = SETTLING;
    assert_eq!(world.reconcile(&object).nodes.ready, 0);
}

#[test]
fn a_refresh_does_not_make_it_unready() {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    let object = object("a", EVERYWHERE);
    settled(&mut world, &object);
    for (state, reason) in [
        (PrefetchState::Queued, None),
        (PrefetchState::Running, None),
        (
            PrefetchState::Failed,
            Some(PrefetchReason::UpstreamUnavailable),
        ),
        (PrefetchState::Done, Some(PrefetchReason::Stale)),
    ] {
        world.progress(IMAGE, state, reason);
        assert_eq!(
            short(&world.reconcile(&object), "Ready"),
            ("True", "Warm"),
            "{state:?}"
        );
    }
    world.progress(IMAGE, PrefetchState::Failed, Some(PrefetchReason::NotFound));
    assert_eq!(
        short(&world.reconcile(&object), "Ready"),
        ("False", "NotFound")
    );
}

#[test]
fn l24_a_refresh_is_asked_for_by_a_value() {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    let mut asked = object("a", EVERYWHERE);
    asked.refresh_request = Some("monday".to_owned());
    let status = world.reconcile(&asked);
    assert_eq!(status.last_handled_refresh.as_deref(), Some("monday"));
    let first = status.last_refresh.clone();
    assert!(first.is_some());
    world.pass(Duration::from_mins(1));
    assert_eq!(
        world.reconcile(&asked).last_refresh,
        first,
        "the annotation stays, and is handled"
    );
    asked.refresh_request = Some("tuesday".to_owned());
    let status = world.reconcile(&asked);
    assert_eq!(status.last_handled_refresh.as_deref(), Some("tuesday"));
    assert!(status.last_refresh > first);
    assert_eq!(world.stored.len(), 0, "nodes are told nothing by it");
}

#[test]
fn what_cannot_be_evaluated_says_every_mistake() {
    let object = image_cache(
        "a",
        "sets: [{name: a, images: ['quay.io/A/b', nginx], nodes: {taintPolicy: Bend}}]\nregistryPolicy: Later",
    );
    let mistakes = validate(&object).unwrap_err();
    let status = invalid(3, &mistakes, None, "2026-06-01T12:00:00Z".parse().unwrap());
    assert_eq!(short(&status, "Stalled"), ("True", "InvalidSpec"));
    insta::assert_snapshot!(condition(&status, "Ready").2);
}

#[test]
fn suspended_says_so() {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    let object = object("a", &format!("{EVERYWHERE}\nsuspend: true"));
    let status = world.reconcile(&object);
    assert_eq!(short(&status, "Ready"), ("False", "Suspended"));
    assert_eq!(short(&status, "Reconciling"), ("False", "Suspended"));
}

#[test]
fn what_is_not_ready_is_skipped() {
    let mut world = World::with_nodes(2);
    world.cached(IMAGE);
    world.set_ready("n001", false);
    let status = settled(&mut world, &object("a", EVERYWHERE));
    assert_eq!(
        (
            status.nodes.desired,
            status.nodes.ready,
            status.nodes.skipped
        ),
        (1, 1, 1)
    );
    assert_eq!(short(&status, "Ready"), ("True", "Warm"));
}

/// Nobody waits for them, but nothing is known to be warm either.
#[test]
fn where_all_nodes_are_away_nothing_is_warm() {
    let mut world = World::with_nodes(2);
    world.cached(IMAGE);
    let object = object(
        "a",
        &format!("{EVERYWHERE}\nrollout: {{maxConcurrentNodes: 2}}"),
    );
    assert_eq!(
        short(&settled(&mut world, &object), "Ready"),
        ("True", "Warm")
    );
    for node in ["n000", "n001"] {
        world.set_ready(node, false);
    }
    let status = world.reconcile(&object);
    assert_eq!((status.nodes.desired, status.nodes.skipped), (0, 2));
    assert_eq!(short(&status, "NodesReady"), ("False", "NodeNotReady"));
    assert_eq!(short(&status, "CacheReady"), ("True", "Warm"));
    let (is, reason, message) = condition(&status, "Ready");
    assert_eq!((is, reason), ("False", "NodeNotReady"));
    assert!(message.contains("2 not ready, skipped"), "{message}");
    assert_eq!(short(&status, "Stalled").0, "False", "it passes by itself");
    world.set_ready("n001", true);
    assert_eq!(
        short(&world.reconcile(&object), "Ready"),
        ("True", "Warm"),
        "the other one is skipped"
    );
}

/// A node of each architecture; the image is for one of them, and one node pulls at a time.
fn for_one_of_two_platforms() -> World {
    let mut world = World::new();
    world.add_node("a-arm", &[("kubernetes.io/arch", "arm64")]);
    world.add_node("b-amd", &[]);
    world.cached(IMAGE);
    lack(&mut world, "linux/arm64");
    world
}

fn lack(world: &mut World, platform: &str) {
    let image = world.cache.images.get_mut(IMAGE).unwrap();
    image.missing_platforms = vec![platform.parse().unwrap()];
}

#[test]
fn an_image_for_some_of_the_platforms_says_which_are_missing() {
    let mut world = for_one_of_two_platforms();
    let object = object("a", EVERYWHERE);
    let status = settled(&mut world, &object);
    assert_eq!(
        world.told(IMAGE),
        ["b-amd"],
        "the other node is not waited for"
    );
    assert_eq!((status.nodes.ready, status.nodes.failed), (1, 1));
    assert_eq!(short(&status, "CacheReady"), ("False", "PlatformMissing"));
    assert_eq!(short(&status, "NodesReady"), ("False", "PlatformMissing"));
    assert_eq!(short(&status, "Ready"), ("False", "PlatformMissing"));
    assert_eq!(short(&status, "Stalled"), ("True", "PlatformMissing"));
    let [failure] = &status.failures[..] else {
        panic!("{:?}", status.failures);
    };
    assert_eq!(failure.reason, Reason::PlatformMissing);
    assert_eq!(
        (failure.nodes, &failure.sample_nodes[..]),
        (1, &["a-arm".to_owned()][..])
    );
    assert!(
        failure
            .message
            .starts_with("it has no image for linux/arm64; ")
            && failure.message.ends_with(Reason::PlatformMissing.remedy()),
        "{}",
        failure.message
    );
    let told = world.explain(&object).join("\n");
    assert!(
        told.contains("no image for linux/arm64")
            && told.contains("node a-arm: nginx:1.27: left out"),
        "{told}"
    );

    // The image was pushed for the other platform, too.
    world.cached(IMAGE);
    assert_eq!(
        short(&settled(&mut world, &object), "Ready"),
        ("True", "Warm")
    );
}

/// Its manifests are known bit by bit: a node that was told before does not keep its slot.
#[test]
fn a_node_without_a_platform_gives_its_slot_back() {
    let mut world = for_one_of_two_platforms();
    world.progress(IMAGE, PrefetchState::Running, None);
    let object = object("a", EVERYWHERE);
    world.reconcile(&object);
    world.write();
    assert_eq!(world.told(IMAGE), ["a-arm"]);
    lack(&mut world, "linux/arm64");
    world.reconcile(&object);
    world.write();
    assert_eq!(world.told(IMAGE), ["a-arm", "b-amd"]);
}

#[test]
fn what_the_tag_means_upstream_is_told_where_the_cache_could_not_follow() {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    let object = object("a", EVERYWHERE);
    let entry = |status: &ImageCacheStatus| status.entries[0].clone();
    let first = entry(&settled(&mut world, &object));
    assert!(first.digest.is_some());
    assert_eq!(first.upstream_digest, None, "it is the same");

    let moved = coral_schema::oci::Digest::sha256(b"newer");
    world.progress(IMAGE, PrefetchState::Done, Some(PrefetchReason::Stale));
    world.cache.images.get_mut(IMAGE).unwrap().upstream_digest = Some(moved);
    let status = world.reconcile(&object);
    assert_eq!(entry(&status).digest, first.digest);
    assert_eq!(entry(&status).upstream_digest, Some(moved.to_string()));
    assert_eq!(short(&status, "Ready"), ("True", "Warm"));

    // Nobody can say anything else.
    for (state, reason) in [
        (PrefetchState::Queued, None),
        (PrefetchState::Running, None),
        (PrefetchState::Done, Some(PrefetchReason::Stale)),
    ] {
        world.progress(IMAGE, state, reason);
        let known = entry(&world.reconcile(&object)).upstream_digest;
        assert_eq!(known, Some(moved.to_string()), "{state:?}");
    }
    // The cache followed.
    world.cached(IMAGE);
    world.cache.images.get_mut(IMAGE).unwrap().digest = Some(moved);
    let status = world.reconcile(&object);
    assert_eq!(entry(&status).digest, Some(moved.to_string()));
    assert_eq!(entry(&status).upstream_digest, None);
}

#[test]
fn l12_a_node_drifts_from_what_the_tag_means_upstream() {
    let mut world = World::with_nodes(1);
    world.cached(IMAGE);
    let object = object("a", EVERYWHERE);
    settled(&mut world, &object);
    let held = coral_schema::oci::Digest::sha256(IMAGE.as_bytes());
    world.answer("n000").images[0].digest = Some(held.to_string());
    let status = world.reconcile(&object);
    assert_eq!(short(&status, "Drifted").0, "False");
    let image = world.cache.images.get_mut(IMAGE).unwrap();
    image.upstream_digest = Some(coral_schema::oci::Digest::sha256(b"newer"));
    let status = world.reconcile(&object);
    assert_eq!(short(&status, "Drifted"), ("True", "Drifted"));
}

/// What failed on a node is tried again when a person asks, once for each request.
#[test]
fn l24_a_request_starts_the_count_of_tries_anew() {
    let mut world = World::with_nodes(2);
    world.cached(IMAGE);
    let spec = format!(
        "{EVERYWHERE}\nretry: {{limit: 1}}\nrefresh: {{interval: 0s}}\nrollout: {{maxConcurrentNodes: 2}}"
    );
    let mut asked = object("a", &spec);
    world.reconcile(&asked);
    world.write();
    world.say("n000", IMAGE, ImageState::Ready);
    world.say("n001", IMAGE, ImageState::Failed);
    let revisions = |world: &mut World, object: &ValidatedImageCache| {
        world.reconcile(object);
        world.write();
        let of = |name: &str| world.stored[name].spec.images[0].revision;
        [of("n000"), of("n001")]
    };
    assert_eq!(revisions(&mut world, &asked), [0, 0], "the limit stands");
    asked.refresh_request = Some("monday".to_owned());
    assert_eq!(revisions(&mut world, &asked), [0, 1]);
    world.say("n001", IMAGE, ImageState::Failed);
    assert_eq!(revisions(&mut world, &asked), [0, 1], "once");
    world.say("n001", IMAGE, ImageState::Evicted);
    asked.refresh_request = Some("tuesday".to_owned());
    assert_eq!(revisions(&mut world, &asked), [0, 2]);
}
