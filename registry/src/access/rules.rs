//! The administrator's rules: who may do what with which repositories. Pure. Rules only allow; what none of them allows
//! is refused, but for what the anonymous public may read upstream.

use super::identity::Subject;
use crate::name::{RepoKey, UpstreamName};
use crate::upstream::RepositoryPattern;

/// What can be done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Read manifests, blobs, tags and referrers.
    Pull,
    /// Upload, and set tags.
    Push,
    /// Delete tags, manifests and blobs.
    Delete,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pull, Self::Push, Self::Delete];

    /// As the configuration and scopes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Everybody, with or without a login (`anonymous`).
    Everybody,
    /// Everybody with a login (`authenticated`).
    Authenticated,
    /// One user or token.
    One(Subject),
}

impl Who {
    fn is(&self, subject: &Subject) -> bool {
        match self {
            Self::Everybody => true,
            Self::Authenticated => *subject != Subject::Anonymous,
            Self::One(one) => one == subject,
        }
    }
}

/// Repositories of one upstream, or hosted ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Repositories {
    /// `None`: hosted.
    pub upstream: Option<UpstreamName>,
    /// Which of them.
    pub pattern: RepositoryPattern,
}

impl Repositories {
    fn hold(&self, repo: &RepoKey) -> bool {
        let name = repo.repository().as_str();
        self.upstream.as_ref() == repo.upstream() && self.pattern.0.matches(name)
    }
}

/// One entry of `access`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// One of these …
    pub subjects: Vec<Who>,
    /// … with one of these repositories …
    pub repositories: Vec<Repositories>,
    /// … may do this.
    pub verbs: Vec<Verb>,
}

impl Rule {
    /// Is it about anybody who has to log in?
    pub fn needs_login(&self) -> bool {
        self.subjects.iter().any(|who| *who != Who::Everybody)
    }

    fn names(&self, repo: &RepoKey) -> bool {
        self.repositories.iter().any(|some| some.hold(repo))
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    anonymous_push: bool,
}

impl Rules {
    /// These; `anonymous_push`: whoever reaches us may do everything with hosted repositories.
    pub fn new(rules: Vec<Rule>, anonymous_push: bool) -> Self {
        Self {
            rules,
            anonymous_push,
        }
    }

    /// May `subject` do it?
    pub(super) fn allow(&self, subject: &Subject, repo: &RepoKey, verb: Verb) -> bool {
        if self.anonymous_push && repo.is_hosted() {
            return true;
        }
        self.rules.iter().any(|rule| {
            let is_meant = rule.subjects.iter().any(|who| who.is(subject));
            is_meant && rule.verbs.contains(&verb) && rule.names(repo)
        })
    }

    /// Is anybody allowed more after a login?
    pub(super) fn need_login(&self) -> bool {
        self.rules.iter().any(Rule::needs_login)
    }

    /// Should who may not do it be asked to log in? Says nothing about what there is: of all hosted repositories the same.
    pub(super) fn want_login(&self, repo: &RepoKey) -> bool {
        if repo.is_hosted() {
            return self.need_login();
        }
        let mut about = self.rules.iter().filter(|rule| rule.names(repo));
        about.any(Rule::needs_login)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Glob;

    fn rule(who: Who, upstream: Option<&str>, pattern: &str, verbs: &[Verb]) -> Rule {
        let pattern = RepositoryPattern(Glob::new(pattern, true).unwrap());
        let upstream = upstream.map(|name| name.parse().unwrap());
        Rule {
            subjects: vec![who],
            repositories: vec![Repositories { upstream, pattern }],
            verbs: verbs.to_vec(),
        }
    }

    fn user(name: &str) -> Subject {
        Subject::User(name.into())
    }

    fn rules() -> Rules {
        let rules = vec![
            rule(Who::Everybody, None, "open/**", &[Verb::Pull]),
            rule(Who::Authenticated, None, "team/**", &[Verb::Pull]),
            rule(
                Who::One(user("ci")),
                None,
                "team/*",
                &[Verb::Push, Verb::Delete],
            ),
            rule(
                Who::One(user("ci")),
                Some("ghcr.io"),
                "company/**",
                &[Verb::Pull],
            ),
        ];
        Rules::new(rules, false)
    }

    #[rstest::rstest]
    #[case("anonymous", "open/app", [true, false, false])]
    #[case("user:ci", "open/app", [true, false, false])]
    #[case("anonymous", "team/app", [false, false, false])]
    #[case("user:dev", "team/app", [true, false, false])]
    #[case("token:ci", "team/app", [true, false, false])]
    #[case("user:ci", "team/app", [true, true, true])]
    #[case("user:ci", "team/a/b", [true, false, false])]
    #[case("user:ci", "teams/app", [false, false, false])]
    #[case("user:ci", "ghcr.io/company/app", [true, false, false])]
    #[case("user:dev", "ghcr.io/company/app", [false, false, false])]
    #[case("user:ci", "quay.io/company/app", [false, false, false])]
    #[case("user:ci", "company/app", [false, false, false])]
    // A pattern without an upstream is about hosted repositories, however it ends.
    #[case("user:ci", "ghcr.io/team/app", [false, false, false])]
    fn what_no_rule_allows_is_refused(
        #[case] subject: &str,
        #[case] repo: &str,
        #[case] expected: [bool; 3],
    ) {
        let (subject, repo) = (subject.parse().unwrap(), repo.parse().unwrap());
        let rules = rules();
        assert_eq!(
            Verb::ALL.map(|verb| rules.allow(&subject, &repo, verb)),
            expected
        );
    }

    #[test]
    fn anonymous_push_is_about_hosted_repositories() {
        let rules = Rules::new(Vec::new(), true);
        let allowed =
            |repo: &str, verb| rules.allow(&Subject::Anonymous, &repo.parse().unwrap(), verb);
        assert!(Verb::ALL.into_iter().all(|verb| allowed("team/app", verb)));
        assert!(!allowed("ghcr.io/team/app", Verb::Pull));
        assert!(!rules.need_login());
    }

    #[rstest::rstest]
    #[case("team/app", true)]
    #[case("nowhere/at/all", true)]
    #[case("ghcr.io/company/app", true)]
    #[case("ghcr.io/other/app", false)]
    fn who_may_not_is_asked_to_log_in_where_that_may_help(#[case] repo: &str, #[case] asked: bool) {
        assert_eq!(rules().want_login(&repo.parse().unwrap()), asked);
        let open = Rules::new(vec![rule(Who::Everybody, None, "**", &[Verb::Pull])], false);
        assert!(!open.want_login(&repo.parse().unwrap()));
    }
}
