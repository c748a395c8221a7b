//! Who calls, as far as it was proved, and for what the proof was made. Pure.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::rules::Verb;
use crate::name::RepoKey;

/// Somebody whom rules can name. Prints as the configuration writes it, and parses back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// No login.
    Anonymous,
    /// A user of `users.htpasswd`.
    User(Arc<str>),
    /// A token of `users.tokens`.
    Token(Arc<str>),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str(ANONYMOUS),
            Self::User(name) => write!(f, "{USER}{name}"),
            Self::Token(name) => write!(f, "{TOKEN}{name}"),
        }
    }
}

/// The text names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectError;

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let named = |prefix| {
            let name = text.strip_prefix(prefix)?;
            is_name(name).then(|| Arc::from(name))
        };
        if text == ANONYMOUS {
            return Ok(Self::Anonymous);
        }
        let user = named(USER).map(Self::User);
        user.or_else(|| named(TOKEN).map(Self::Token))
            .ok_or(SubjectError)
    }
}

/// May a user or a token be called so? A user's name ends at a colon (RFC 7617, section 2).
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|letter: char| letter == ':' || letter.is_control())
}

/// The sender of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    subject: Subject,
    /// What a token of ours was made for; `None`: whatever the subject may.
    scopes: Option<Scopes>,
}

impl Caller {
    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self::logged_in(Subject::Anonymous)
    }

    /// Who proved it just now.
    pub(super) fn logged_in(subject: Subject) -> Self {
        Self {
            subject,
            scopes: None,
        }
    }

    /// Who has a token of ours.
    pub(super) fn with_token(subject: Subject, scopes: Scopes) -> Self {
        Self {
            subject,
            scopes: Some(scopes),
        }
    }

    /// Who.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Has nobody logged in?
    pub fn is_anonymous(&self) -> bool {
        self.subject == Subject::Anonymous
    }

    /// Did the request show a token of ours, anonymous or not?
    pub fn has_token(&self) -> bool {
        self.scopes.is_some()
    }

    /// Is what the request shows good for this?
    pub(super) fn covers(&self, repo: &RepoKey, verb: Verb) -> bool {
        let scopes = self.scopes.as_ref();
        scopes.is_none_or(|scopes| scopes.cover(repo, verb))
    }

    /// Is it good for a list of repositories?
    pub(super) fn covers_catalog(&self) -> bool {
        self.scopes.as_ref().is_none_or(|scopes| scopes.catalog)
    }
}

/// What a token of ours is for. Prints as the `scope` of the token specification, canonical names in it, and parses back;
/// what is not known there is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scopes {
    catalog: bool,
    repositories: Vec<(RepoKey, Vec<Verb>)>,
}

impl Scopes {
    /// Reads scopes as clients send them; `resolve` says which repository a name means.
    pub fn parse<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        resolve: impl Fn(&str) -> Option<RepoKey>,
    ) -> Self {
        let mut scopes = Self::default();
        for text in texts.into_iter().flat_map(str::split_whitespace) {
            // A name may hold a port.
            let parts = text.split_once(':');
            let parts = parts.and_then(|(kind, rest)| Some((kind, rest.rsplit_once(':')?)));
            match parts {
                Some(("registry", ("catalog", _))) => scopes.catalog = true,
                Some(("repository", (name, actions))) => {
                    if let Some(repo) = resolve(name) {
                        scopes.repositories.push((repo, verbs(actions)));
                    }
                }
                _ => {}
            }
        }
        scopes
    }

    fn cover(&self, repo: &RepoKey, verb: Verb) -> bool {
        let mut of_repo = self.repositories.iter().filter(|(scope, _)| scope == repo);
        of_repo.any(|(_, verbs)| verbs.contains(&verb))
    }
}

fn verbs(actions: &str) -> Vec<Verb> {
    if actions.split(',').any(|action| action == "*") {
        return Verb::ALL.to_vec();
    }
    let verbs = Verb::ALL.into_iter();
    verbs
        .filter(|verb| actions.split(',').any(|action| action == verb.name()))
        .collect()
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.catalog {
            f.write_str("registry:catalog:* ")?;
        }
        for (repo, verbs) in &self.repositories {
            let verbs: Vec<_> = verbs.iter().map(|verb| verb.name()).collect();
            write!(f, "repository:{repo}:{} ", verbs.join(","))?;
        }
        Ok(())
    }
}

const ANONYMOUS: &str = "anonymous";
const USER: &str = "user:";
const TOKEN: &str = "token:";

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(text: &str) -> Scopes {
        Scopes::parse([text], |name| name.parse().ok())
    }

    #[rstest::rstest]
    #[case("anonymous", true)]
    #[case("user:ci", true)]
    #[case("token:deploy bot", true)]
    #[case("user:", false)]
    #[case("user:a:b", false)]
    #[case("ci", false)]
    #[case("", false)]
    fn subjects_print_as_they_are_written(#[case] text: &str, #[case] good: bool) {
        let subject: Result<Subject, _> = text.parse();
        assert_eq!(
            subject.map(|subject| subject.to_string()).ok(),
            good.then(|| text.to_owned())
        );
    }

    #[test]
    fn a_token_is_good_for_its_scopes_only() {
        let text = "repository:team/app:pull,push repository:registry.internal:5000/x:pull nonsense repository:a";
        let caller = Caller::with_token(Subject::User("ci".into()), scopes(text));
        let covers = |repo: &str, verb| caller.covers(&repo.parse().unwrap(), verb);
        assert!(covers("team/app", Verb::Pull) && covers("team/app", Verb::Push));
        assert!(covers("registry.internal:5000/x", Verb::Pull));
        assert!(!covers("team/app", Verb::Delete) && !covers("team/app2", Verb::Pull));
        assert!(!caller.covers_catalog());

        let login = Caller::logged_in(Subject::User("ci".into()));
        assert!(login.covers(&"team/app".parse().unwrap(), Verb::Delete) && login.covers_catalog());
    }

    #[rstest::rstest]
    #[case("repository:team/app:*", "repository:team/app:pull,push,delete ")]
    #[case("registry:catalog:*", "registry:catalog:* ")]
    #[case("repository(plugin):x:pull repository:x:shine", "repository:x: ")]
    #[case("", "")]
    fn scopes_print_as_they_parse(#[case] text: &str, #[case] printed: &str) {
        let parsed = scopes(text);
        assert_eq!(parsed.to_string(), printed);
        assert_eq!(scopes(printed), parsed);
    }
}
