use super::*;

fn spec(registries: &[&str]) -> Mirror {
    Mirror {
        url: "http://10.96.0.10:5000".to_owned(),
        ca_bundle: None,
        registries: registries.iter().map(|&name| name.to_owned()).collect(),
    }
}

#[rstest::rstest]
#[case::unknown(&["docker.io"], None, None)]
#[case::nothing_wished_for(&[], Some(true), Some(Reason::Removed))]
#[case::silent(&["docker.io"], Some(false), Some(Reason::Removed))]
fn files_are_not_written(
    #[case] registries: &[&str],
    #[case] alive: Option<bool>,
    #[case] expected: Option<Reason>,
) {
    let reason = match decide(Some(&spec(registries)), alive) {
        Decision::Wait => None,
        Decision::Withdraw(reason, _) => Some(reason),
        Decision::Write(wanted) => panic!("{wanted:?}"),
    };
    assert_eq!(reason, expected);
}

#[test]
fn names_that_are_no_hosts_are_left_out() {
    let spec = spec(&["Docker.io", "..", "r.test:5000", "a]b"]);
    let Decision::Write(wanted) = decide(Some(&spec), Some(true)) else {
        panic!("not written");
    };
    let names: Vec<_> = wanted.registries.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["docker.io", "r.test:5000"]);
}

#[test]
fn a_url_that_cannot_be_written_is_a_problem_and_withdraws() {
    let spec = Mirror {
        url: "http://a\"]:1".to_owned(),
        ..spec(&["docker.io"])
    };
    let decision = decide(Some(&spec), Some(true));
    assert!(matches!(decision, Decision::Withdraw(Reason::Internal, _)));
}

#[test]
fn what_needs_a_person_is_said_with_the_lines_to_paste() {
    let lines = || Some("location = \"cache\"\n".to_owned());
    let mut outcome = Outcome::default();
    outcome.written("a.test".to_owned());
    outcome.foreign("b.test".to_owned(), "ca.crt".to_owned(), lines());
    outcome.foreign("c.test".to_owned(), "_default".to_owned(), lines());
    outcome.foreign("d.test".to_owned(), "hosts.toml".to_owned(), None);
    let state = standing(&outcome, MirrorState::default());
    assert_eq!(state.reason, Some(Reason::NotOurs));
    assert_eq!(
        state.message,
        "b.test is left alone: ca.crt is not ours (and 1 more registries); to use the cache there, paste:\n\
         location = \"cache\"\n"
    );
    let leads: Vec<_> = state.leads.iter().map(String::as_str).collect();
    assert_eq!(leads, ["a.test", "d.test"]);
}
