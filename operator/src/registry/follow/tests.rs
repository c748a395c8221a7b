use std::slice::from_ref;

use coral_schema::admin::LentLogin;
use coral_schema::admin::{PrefetchReason, PrefetchState};
use coral_schema::oci::Digest;
use coral_schema::oci::docker_config::DockerLogin;

use super::job::LOOK;
use super::object::PINS;
use super::*;
use crate::image_cache::resources::Pins;
use crate::image_cache::secrets::Lending;

fn key(name: &str) -> ObjectKey {
    ObjectKey {
        namespace: "ml".to_owned(),
        name: name.to_owned(),
    }
}

fn request(images: &[&str], platform: &str) -> PrefetchRequest {
    PrefetchRequest {
        images: images.iter().map(|&image| image.to_owned()).collect(),
        platforms: vec![platform.parse().unwrap()],
        priority: 0,
        refresh: false,
    }
}

fn wanted(prefetch: Vec<PrefetchRequest>) -> CacheRequests {
    CacheRequests {
        prefetch,
        pins: Pins {
            source: "operator/ml/a".to_owned(),
            images: vec!["nginx".to_owned()],
            frozen: Vec::new(),
            expires: "2026-01-31T12:00:00Z".parse().unwrap(),
        },
        lending: lending(&[]),
    }
}

fn lending(tokens: &[&str]) -> Lending {
    let logins = tokens.iter().map(|token| LentLogin {
        repository: "docker.io/library/nginx".to_owned(),
        login: DockerLogin::RegistryToken((*token).into()),
    });
    Lending::new("operator/ml/a".to_owned(), logins.collect())
}

fn image(reference: &str, state: PrefetchState) -> PrefetchImage {
    PrefetchImage {
        state,
        digest: Some(Digest::sha256(reference.as_bytes())),
        size_bytes: 7,
        bytes_done: 1,
        bytes_total: 10,
        ..PrefetchImage::queued(reference)
    }
}

fn status(state: PrefetchState, images: Vec<PrefetchImage>) -> Answer {
    Answer::Progress(PrefetchStatus {
        id: "1".to_owned(),
        state,
        images,
    })
}

fn away() -> RegistryError {
    RegistryError::Away("refused".to_owned())
}

/// A follower that knows its registry.
fn reachable(now: Instant) -> Follower {
    let mut follower = Follower::new(now);
    assert_eq!(follower.ask(8, now), [Question::Registries]);
    let answer = Ok(Answer::Registries(Vec::new()));
    let affected = follower.answer(&Question::Registries, answer, now);
    assert_eq!(affected, Affected::All);
    follower
}

/// Asks and answers pins and starts, up to the job that runs.
fn started(follower: &mut Follower, now: Instant) -> Question {
    let questions = follower.ask(8, now);
    assert!(
        matches!(&questions[..], [Question::Pin(..)]),
        "{questions:?}"
    );
    follower.answer(&questions[0], Ok(Answer::Done), now);
    let questions = follower.ask(8, now);
    assert!(
        matches!(&questions[..], [Question::Start(..)]),
        "{questions:?}"
    );
    assert!(follower.ask(8, now).is_empty(), "one question at a time");
    follower.answer(&questions[0], Ok(Answer::Started("1".to_owned())), now);
    Question::Progress(key("a"), "1".to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_job_is_posted_and_looked_at_until_it_is_over() {
    let start = Instant::now();
    let mut follower = reachable(start);
    follower.want(
        &key("a"),
        wanted(vec![request(&["nginx"], "linux/amd64")]),
        start,
    );
    let look = started(&mut follower, start);

    let now = follower.next().unwrap();
    assert_eq!(follower.ask(8, now), from_ref(&look));
    let running = status(
        PrefetchState::Running,
        vec![image("nginx", PrefetchState::Running)],
    );
    assert_eq!(
        follower.answer(&look, Ok(running), now),
        Affected::One(key("a"))
    );
    let facts = follower.facts(&key("a"), now);
    assert_eq!(facts.images["nginx"].state, PrefetchState::Running);
    assert_eq!(facts.away, None);

    let now = now + LOOK;
    assert_eq!(follower.ask(8, now), from_ref(&look));
    let done = status(
        PrefetchState::Done,
        vec![image("nginx", PrefetchState::Done)],
    );
    follower.answer(&look, Ok(done), now);
    // The same wishes once more ask nothing.
    follower.want(
        &key("a"),
        wanted(vec![request(&["nginx"], "linux/amd64")]),
        now,
    );
    assert_eq!(follower.ask(8, now), []);
    assert_eq!(follower.next(), Some(start + REGISTRIES));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_job_is_posted_again_and_keeps_what_is_known() {
    let start = Instant::now();
    let mut follower = reachable(start);
    follower.want(
        &key("a"),
        wanted(vec![request(&["nginx"], "linux/amd64")]),
        start,
    );
    let look = started(&mut follower, start);
    let running = status(
        PrefetchState::Running,
        vec![image("nginx", PrefetchState::Running)],
    );
    follower.answer(&look, Ok(running), start);
    let now = start + LOOK;
    assert_eq!(follower.ask(8, now), from_ref(&look));
    follower.answer(&look, Err(RegistryError::Forgotten), now);
    assert!(matches!(&follower.ask(8, now)[..], [Question::Start(..)]));
    assert_eq!(follower.facts(&key("a"), now).images.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_less_and_less_often() {
    let start = Instant::now();
    let mut follower = reachable(start);
    follower.want(
        &key("a"),
        wanted(vec![request(&["nginx"], "linux/amd64")]),
        start,
    );
    let look = started(&mut follower, start);
    let mut waits = Vec::new();
    let mut now = start;
    for _ in 0..7 {
        let mut failed = image("nginx", PrefetchState::Failed);
        failed.reason = Some(PrefetchReason::NotFound);
        follower.answer(&look, Ok(status(PrefetchState::Failed, vec![failed])), now);
        let due = follower.objects[&key("a")].jobs[0].due.unwrap();
        waits.push((due - now).as_secs());
        now = due;
        let questions = follower.ask(8, now);
        let start = questions
            .iter()
            .find(|question| matches!(question, Question::Start(..)))
            .unwrap();
        follower.answer(start, Ok(Answer::Started("1".to_owned())), now);
        if questions.contains(&Question::Registries) {
            let answer = Ok(Answer::Registries(Vec::new()));
            follower.answer(&Question::Registries, answer, now);
        }
    }
    assert_eq!(waits, [15, 30, 60, 120, 240, 300, 300]);
}

#[tokio::test(start_paused = true)]
async fn while_it_is_away_only_one_question_goes_out_and_then_all_jobs_again() {
    let start = Instant::now();
    let mut follower = reachable(start);
    follower.want(
        &key("a"),
        wanted(vec![request(&["nginx"], "linux/amd64")]),
        start,
    );
    let look = started(&mut follower, start);
    let done = status(
        PrefetchState::Done,
        vec![image("nginx", PrefetchState::Done)],
    );
    follower.answer(&look, Ok(done), start);

    let now = start + REGISTRIES;
    assert_eq!(follower.ask(8, now), [Question::Registries]);
    let affected = follower.answer(&Question::Registries, Err(away()), now);
    assert_eq!(affected, Affected::All);
    let later = now + PROBE;
    assert_eq!(follower.next(), Some(later));
    assert_eq!(follower.ask(8, later), [Question::Registries]);
    let affected = follower.answer(&Question::Registries, Err(away()), later);
    assert_eq!(affected, Affected::None, "nothing new");
    // What it said of images stands.
    let facts = follower.facts(&key("a"), later);
    assert_eq!(facts.away, Some(PROBE));
    assert_eq!(facts.images["nginx"].state, PrefetchState::Done);

    let back = later + PROBE;
    follower.ask(8, back);
    let answer = Ok(Answer::Registries(Vec::new()));
    assert_eq!(
        follower.answer(&Question::Registries, answer, back),
        Affected::All
    );
    started(&mut follower, back);
}

#[tokio::test(start_paused = true)]
async fn l24_a_refresh_is_posted_once_however_often_it_is_built() {
    let start = Instant::now();
    let mut follower = reachable(start);
    let plain = request(&["nginx"], "linux/amd64");
    let refresh = PrefetchRequest {
        refresh: true,
        ..plain.clone()
    };
    follower.want(&key("a"), wanted(vec![plain.clone()]), start);
    let look = started(&mut follower, start);
    let done = || {
        status(
            PrefetchState::Done,
            vec![image("nginx", PrefetchState::Done)],
        )
    };
    follower.answer(&look, Ok(done()), start);

    // Until it counts as handled every look asks for it again.
    follower.want(&key("a"), wanted(vec![refresh.clone()]), start);
    follower.want(&key("a"), wanted(vec![refresh.clone()]), start);
    assert!(!follower.took(&key("a")));
    let questions = follower.ask(8, start);
    let [Question::Start(_, asked)] = &questions[..] else {
        panic!("{questions:?}");
    };
    assert!(asked.refresh);
    let answer = Ok(Answer::Started("1".to_owned()));
    let affected = follower.answer(&questions[0], answer, start);
    assert_eq!(affected, Affected::One(key("a")), "its status says so");
    assert!(follower.took(&key("a")));
    follower.want(&key("a"), wanted(vec![refresh.clone()]), start);
    follower.answer(&look, Ok(done()), start);
    follower.want(&key("a"), wanted(vec![plain]), start);
    assert_eq!(follower.ask(8, start), []);
    // The next one is another one.
    follower.want(&key("a"), wanted(vec![refresh]), start);
    assert!(!follower.took(&key("a")));
    assert_eq!(follower.ask(8, start).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn l32_logins_are_lent_first_renewed_replaced_and_taken_back() {
    let start = Instant::now();
    let mut follower = reachable(start);
    let wanted = |tokens: &[&str]| CacheRequests {
        lending: lending(tokens),
        ..wanted(vec![request(&["nginx"], "linux/amd64")])
    };
    follower.want(&key("a"), wanted(&["one"]), start);
    let lend = |tokens: &[&str]| Question::Lend(key("a"), lending(tokens));
    assert_eq!(follower.ask(8, start), [lend(&["one"])]);
    // It may not lend: it may still ask for the rest.
    let denied = RegistryError::Denied {
        status: 403,
        reason: "not here".to_owned(),
    };
    follower.answer(&lend(&["one"]), Err(denied), start);
    assert!(follower.is_reachable());
    let problem = follower.facts(&key("a"), start).lending.unwrap();
    assert!(problem.contains("not here"), "{problem}");
    let look = started(&mut follower, start);
    let failed = status(
        PrefetchState::Failed,
        vec![image("nginx", PrefetchState::Failed)],
    );
    follower.answer(&look, Ok(failed), start);

    // As soon as it may, what failed is tried again.
    let now = start + BUSY;
    assert_eq!(follower.ask(8, now), [lend(&["one"])]);
    follower.answer(&lend(&["one"]), Ok(Answer::Done), now);
    assert_eq!(follower.facts(&key("a"), now).lending, None);
    assert!(matches!(&follower.ask(8, now)[..], [Question::Start(..)]));
    let start_question = Question::Start(key("a"), request(&["nginx"], "linux/amd64"));
    follower.answer(&start_question, Ok(Answer::Started("2".to_owned())), now);

    assert_eq!(
        follower.objects[&key("a")].lend_due,
        Some(now + object::RENEW)
    );
    assert!(object::RENEW * 2 < LENT_FOR);
    follower.want(&key("a"), wanted(&["two", "three"]), now);
    assert_eq!(follower.ask(8, now), [lend(&["two", "three"])], "rotated");
    follower.answer(&lend(&["two", "three"]), Ok(Answer::Done), now);
    follower.want(&key("a"), wanted(&[]), now);
    let take_back = Question::TakeBack("operator/ml/a".to_owned());
    assert_eq!(follower.ask(8, now)[0], take_back);
    follower.answer(&take_back, Ok(Answer::Done), now);

    follower.want(&key("a"), wanted(&["four"]), now);
    follower.ask(8, now);
    follower.answer(&lend(&["four"]), Ok(Answer::Done), now);
    follower.forget(&key("a"), "operator/ml/a".to_owned(), now);
    assert!(
        follower.ask(8, now).contains(&take_back),
        "the object is gone"
    );
}

#[tokio::test(start_paused = true)]
async fn pins_are_renewed_and_go_with_the_object() {
    let start = Instant::now();
    let mut follower = reachable(start);
    follower.want(&key("a"), wanted(Vec::new()), start);
    let questions = follower.ask(8, start);
    assert!(matches!(&questions[..], [Question::Pin(_, source, _)] if source == "operator/ml/a"));
    follower.answer(&questions[0], Ok(Answer::Done), start);

    let mut more = wanted(Vec::new());
    more.pins.images.push("alpine".to_owned());
    follower.want(&key("a"), more, start);
    let questions = follower.ask(8, start);
    assert!(matches!(&questions[..], [Question::Pin(_, _, pin)] if pin.images.len() == 2));
    follower.answer(&questions[0], Ok(Answer::Done), start);
    assert_eq!(follower.objects[&key("a")].next(), Some(start + PINS));

    follower.forget(&key("a"), "operator/ml/a".to_owned(), start);
    let unpin = Question::Unpin("operator/ml/a".to_owned());
    assert_eq!(follower.ask(8, start), from_ref(&unpin));
    let busy = RegistryError::Busy {
        status: 503,
        reason: String::new(),
    };
    follower.answer(&unpin, Err(busy), start);
    assert_eq!(follower.ask(8, start), []);
    assert_eq!(follower.ask(8, start + BUSY), from_ref(&unpin));
    follower.answer(&unpin, Ok(Answer::Done), start);
    assert_eq!(follower.next(), Some(start + REGISTRIES));
}

#[tokio::test(start_paused = true)]
async fn an_image_for_two_platforms_is_there_when_both_are() {
    let start = Instant::now();
    let mut follower = reachable(start);
    let prefetch = vec![
        request(&["nginx"], "linux/amd64"),
        request(&["nginx"], "linux/arm64"),
    ];
    follower.want(&key("a"), wanted(prefetch), start);
    let jobs = &mut follower.objects.get_mut(&key("a")).unwrap().jobs;
    jobs[0].images = vec![image("nginx", PrefetchState::Done)];
    jobs[1].images = vec![PrefetchImage {
        missing_platforms: vec!["linux/arm64".parse().unwrap()],
        ..image("nginx", PrefetchState::Running)
    }];
    let facts = follower.facts(&key("a"), start);
    assert_eq!(facts.images["nginx"].state, PrefetchState::Running);
    assert_eq!(facts.images["nginx"].bytes_total, 20);
    assert_eq!(facts.images["nginx"].size_bytes, 7);
    assert_eq!(facts.images["nginx"].missing_platforms.len(), 1);
}
