//! The files of users and of tokens: pure parsers. What is wrong is told with its line, never with what stands there.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use bcrypt::HashParts;
use coral_schema::oci::{Algorithm, Digest};
use serde_saphyr::Spanned;

use super::super::identity::is_name;

/// Users and the bcrypt hashes of their passwords.
pub(super) type Passwords = BTreeMap<String, String>;
/// Names of tokens and the SHA-256 digests of the tokens.
pub(super) type Tokens = BTreeMap<String, Digest>;

/// `user:hash` in each line, as `htpasswd -B` writes it. Empty lines and those that begin with `#` mean nothing.
pub(super) fn htpasswd(text: &str) -> Result<Passwords, Vec<String>> {
    let (mut users, mut problems) = (Passwords::new(), Vec::new());
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let added = user(line).and_then(|(name, hash)| {
            match users.insert(name.to_owned(), hash.to_owned()) {
                None => Ok(()),
                Some(_) => {
                    Err("this user stands in a line before, too; remove one of them".to_owned())
                }
            }
        });
        if let Err(problem) = added {
            problems.push(format!("line {}: {problem}", number + 1));
        }
    }
    if problems.is_empty() {
        Ok(users)
    } else {
        Err(problems)
    }
}

fn user(line: &str) -> Result<(&str, &str), String> {
    let parts = line.split_once(':').filter(|(name, _)| is_name(name));
    let (name, hash) =
        parts.ok_or("this is no user; a line is user:hash, as htpasswd -B writes it")?;
    let parts = HashParts::from_str(hash).map_err(|_| {
        "the password is not hashed by bcrypt, and nothing else is accepted; write it with htpasswd -B"
    })?;
    let cost = parts.get_cost();
    if cost > MOST_COST {
        return Err(format!(
            "the cost of the hash is {cost}, and a login would take seconds; {MOST_COST} is the most, 10 is usual"
        ));
    }
    Ok((name, hash))
}

/// YAML: `name: token`, or `name: sha256:<hex of its SHA-256>`.
pub(super) fn tokens(text: &str) -> Result<Tokens, Vec<String>> {
    let entries: BTreeMap<String, Spanned<String>> = match text.trim() {
        "" => BTreeMap::new(),
        _ => serde_saphyr::from_str(text).map_err(|error| {
            let line = error.location().map_or_else(String::new, |at| format!("line {}: ", at.line()));
            vec![format!(
                "{line}this is no YAML mapping of names to tokens, each once; a line is name: token, or name: sha256:<hex>"
            )]
        })?,
    };
    let (mut tokens, mut problems) = (Tokens::new(), Vec::new());
    for (name, entry) in entries {
        match token(&name, &entry.value) {
            Ok(digest) if tokens.values().any(|other| *other == digest) => {
                problems.push(at(&entry, "this token stands here under another name, too"));
            }
            Ok(digest) => {
                tokens.insert(name, digest);
            }
            Err(problem) => problems.push(at(&entry, &problem)),
        }
    }
    if problems.is_empty() {
        Ok(tokens)
    } else {
        problems.sort();
        Err(problems)
    }
}

fn at(entry: &Spanned<String>, problem: &str) -> String {
    format!("line {}: {problem}", entry.defined.line())
}

fn token(name: &str, text: &str) -> Result<Digest, String> {
    if !is_name(name) {
        return Err("a name is not empty and has no colon".to_owned());
    }
    if text.starts_with("sha256:") {
        let digest = text.parse().ok();
        let digest = digest.filter(|digest: &Digest| digest.algorithm() == Algorithm::Sha256);
        return digest
            .ok_or_else(|| "sha256: is followed by 64 digits, 0 to 9 and a to f".to_owned());
    }
    let is_sendable = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.len() < LEAST_LENGTH || !is_sendable {
        return Err(format!(
            "a token has at least {LEAST_LENGTH} letters, digits or signs and no blanks; make one with openssl rand -hex 20"
        ));
    }
    Ok(Digest::sha256(text.as_bytes()))
}

/// Twice as long with each more: 14 takes about a second.
const MOST_COST: u32 = 14;
/// Shorter ones can be guessed.
const LEAST_LENGTH: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$04$C6UzMDM.H6dfI/f/IKcEe.7uRRZOlhVVVHhjEVqNiWpHyCrZSFyDW";

    #[test]
    fn users_and_nothing_else() {
        let text = format!(
            "# people\n\nann:{HASH}\r\n  bob:{}\n",
            HASH.replace("2y", "2b")
        );
        let users = htpasswd(&text).unwrap();
        assert_eq!(users.keys().collect::<Vec<_>>(), ["ann", "bob"]);
        assert_eq!(users["ann"], HASH);
        assert!(htpasswd("").unwrap().is_empty());
    }

    #[test]
    fn wrong_lines_are_numbered_and_never_quoted() {
        let costly = HASH.replace("$04$", "$15$");
        let lines = [
            "ann:{SHA}hunter2hunter2=",
            "bob:$apr1$hunter2$hunter2",
            "cat:hunter2",
            "hunter2",
            ":hunter2",
            &format!("dan:{costly}"),
            &format!("eve:{HASH}"),
            &format!("eve:{HASH}"),
            &format!("fay:{}", &HASH[..50]),
        ];
        let problems = htpasswd(&lines.join("\n")).unwrap_err();
        let numbers: Vec<_> = problems
            .iter()
            .filter_map(|problem| problem.split(':').next())
            .collect();
        let expected = [1, 2, 3, 4, 5, 6, 8, 9].map(|number| format!("line {number}"));
        assert_eq!(numbers, expected);
        assert!(
            problems[0].contains("htpasswd -B") && problems[5].contains("15"),
            "{problems:?}"
        );
        let all = problems.join("\n");
        assert!(
            !["hunter2", "eve", "ann"]
                .iter()
                .any(|text| all.contains(text)),
            "{all}"
        );
    }

    #[test]
    fn tokens_are_kept_as_their_digests() {
        let digest = Digest::sha256(b"0123456789012345678901");
        let text = format!(
            "ci: 0123456789012345678901\nbot: \"{}\"\n",
            Digest::sha256(b"x")
        );
        let found = tokens(&text).unwrap();
        assert_eq!((found["ci"], found["bot"]), (digest, Digest::sha256(b"x")));
        assert!(tokens("\n").unwrap().is_empty());
    }

    #[rstest::rstest]
    #[case("ci: hunter2\n", "line 1: ")]
    #[case("a: 01234567890123456789\nci: hunter2hunter2 hunter2\n", "line 2: ")]
    #[case("ci: sha256:hunter2hunter2hunter2\n", "line 1: ")]
    #[case("\"a:hunter2\": 01234567890123456789\n", "line 1: ")]
    #[case("a: 01234567890123456789\na: hunter2hunter2hunter2\n", "line 2: ")]
    #[case("a: hunter2hunter2hunter2\nb: hunter2hunter2hunter2\n", "line 2: ")]
    #[case("- hunter2\n", "line 1: ")]
    #[case("hunter2\n", "line 1: ")]
    #[case("{ hunter2", "line ")]
    #[case("a: { hunter2: b }\n", "line 1: ")]
    fn wrong_tokens_are_placed_and_never_quoted(#[case] text: &str, #[case] place: &str) {
        let problems = tokens(text).unwrap_err();
        assert!(problems[0].starts_with(place), "{problems:?}");
        assert!(!problems.join("").contains("hunter2"), "{problems:?}");
    }
}
