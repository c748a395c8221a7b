//! Users and tokens, from files that are looked at again and again.
//!
//! A change is taken as a whole or not at all: files with mistakes leave in force what was, are logged once per content
//! and shown in the status. What a file says goes no further than this module; others learn who somebody is.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use coral_schema::oci::Digest;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use self::files::{Passwords, Tokens};
use super::identity::Subject;
use super::key::Key;

mod files;

/// Configuration `users`. Equal values mean that nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsersConfig {
    /// Users with bcrypt hashes.
    pub htpasswd: Option<PathBuf>,
    /// Names of tokens with the tokens, or their SHA-256.
    pub tokens: Option<PathBuf>,
    /// Where clients get tokens, if not at the host that they asked.
    pub realm: Option<Url>,
}

/// Who may log in, at this moment.
#[derive(Debug)]
pub struct Users {
    config: UsersConfig,
    key: Key,
    table: ArcSwap<Table>,
    seen: Mutex<Seen>,
}

/// Everything in it is as good as a login, or a hash of one.
#[derive(Default)]
struct Table {
    passwords: HashMap<String, SecretString>,
    /// The most expensive hash: what is tried for unknown users.
    decoy: Option<SecretString>,
    /// By seals, so that the time a look-up takes tells nothing about tokens.
    tokens: HashMap<String, Arc<str>>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}

#[derive(Debug, Default)]
struct Seen {
    /// Digest of what was read last; `None` when nothing could be.
    content: Option<Digest>,
    /// Why that is not in force.
    problem: Option<Arc<str>>,
}

/// What is wrong with the files of users: the key of the configuration that names one, and a sentence. For checking a
/// configuration; a file that is not there is reported elsewhere. Blocks.
pub fn mistakes(config: &UsersConfig) -> Vec<(&'static str, String)> {
    let read =
        |file: &Option<PathBuf>| Some(read(file.as_deref()?).ok()?.expose_secret().to_owned());
    let passwords = read(&config.htpasswd).map(|text| files::htpasswd(&text).map(|_| ()));
    let tokens = read(&config.tokens).map(|text| files::tokens(&text).map(|_| ()));
    let problems = |key, found: Option<Result<(), Vec<String>>>| {
        let problems = found.and_then(Result::err).unwrap_or_default();
        problems.into_iter().map(move |problem| (key, problem))
    };
    problems(HTPASSWD, passwords)
        .chain(problems(TOKENS, tokens))
        .collect()
}

impl Users {
    /// Reads the files. While one cannot be used nobody can log in. Blocks.
    pub fn new(config: UsersConfig, key: Key) -> Self {
        let users = Self {
            config,
            key,
            table: ArcSwap::default(),
            seen: Mutex::default(),
        };
        users.look();
        users
    }

    /// What they were made of.
    pub fn config(&self) -> &UsersConfig {
        &self.config
    }

    /// Why what the files say now is not in force, if that is so.
    pub fn problem(&self) -> Option<Arc<str>> {
        self.seen().problem.clone()
    }

    /// Takes over what the files say if they have changed. Blocks.
    pub(super) fn look(&self) {
        let read = self.read();
        let mut seen = self.seen();
        let content = read.as_ref().ok().map(|(content, _)| *content);
        if content.is_some() && content == seen.content {
            return;
        }
        seen.content = content;
        match read.and_then(|(_, parsed)| parsed) {
            Ok((passwords, tokens)) => {
                let (users, count) = (passwords.len(), tokens.len());
                self.table
                    .store(Arc::new(Table::new(passwords, tokens, &self.key)));
                seen.problem = None;
                tracing::info!(users, tokens = count, "the users are in force");
            }
            Err(problem) => {
                let problem: Arc<str> = problem.into();
                if seen.problem.as_ref() != Some(&problem) {
                    tracing::error!(
                        "the users are not taken over, and those from before stay:\n{problem}"
                    );
                }
                seen.problem = Some(problem);
            }
        }
    }

    /// The hash of a user's password; for an unknown user one that takes as long to check, and `false`.
    pub(super) fn password(&self, user: &str) -> (SecretString, bool) {
        let table = self.table.load();
        if let Some(hash) = table.passwords.get(user) {
            return (hash.clone(), true);
        }
        let decoy = table.decoy.clone().unwrap_or_else(|| DECOY.into());
        (decoy, false)
    }

    /// Whose token this is.
    pub(super) fn token(&self, token: &str) -> Option<Subject> {
        let digest = Digest::sha256(token.as_bytes());
        let table = self.table.load();
        let name = table.tokens.get(&seal_token(&self.key, &digest))?;
        Some(Subject::Token(Arc::clone(name)))
    }

    /// A name for what `subject` logs in with: another one as soon as that is changed, none when it is taken away.
    pub(super) fn proof(&self, subject: &Subject) -> Option<String> {
        let table = self.table.load();
        let secret = match subject {
            Subject::Anonymous => "",
            Subject::User(name) => table.passwords.get(&**name)?.expose_secret(),
            Subject::Token(name) => {
                let mut tokens = table.tokens.iter();
                tokens.find(|(_, other)| *other == name)?.0
            }
        };
        let subject = subject.to_string();
        Some(
            self.key
                .seal(&[b"proof", subject.as_bytes(), secret.as_bytes()]),
        )
    }

    /// Both files: the digest of what they hold, and what it means. Errors say which file, and quote nothing.
    #[expect(
        clippy::type_complexity,
        reason = "two steps that can fail, one after the other"
    )]
    fn read(&self) -> Result<(Digest, Result<(Passwords, Tokens), String>), String> {
        let UsersConfig {
            htpasswd, tokens, ..
        } = &self.config;
        let empty = || Ok(SecretString::default());
        let htpasswd = htpasswd.as_deref().map_or_else(empty, read)?;
        let tokens = tokens.as_deref().map_or_else(empty, read)?;
        let (htpasswd, tokens) = (htpasswd.expose_secret(), tokens.expose_secret());
        let both = [htpasswd, tokens].map(|text| Digest::sha256(text.as_bytes()).to_string());
        let parsed = match (files::htpasswd(htpasswd), files::tokens(tokens)) {
            (Ok(passwords), Ok(tokens)) => Ok((passwords, tokens)),
            (passwords, tokens) => Err(self.problems(passwords.err(), tokens.err())),
        };
        Ok((Digest::sha256(both.concat().as_bytes()), parsed))
    }

    fn problems(&self, htpasswd: Option<Vec<String>>, tokens: Option<Vec<String>>) -> String {
        let UsersConfig {
            htpasswd: users,
            tokens: names,
            ..
        } = &self.config;
        let mut lines = Vec::new();
        for (file, problems) in [(users, htpasswd), (names, tokens)] {
            let Some(file) = file else { continue };
            let problems = problems.unwrap_or_default().into_iter();
            lines.extend(problems.map(|problem| format!("{}: {problem}", file.display())));
        }
        lines.join("\n")
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn new(passwords: Passwords, tokens: Tokens, key: &Key) -> Self {
        let cost = |hash: &&String| hash.get(4..6).and_then(|cost| cost.parse::<u32>().ok());
        let decoy = passwords.values().max_by_key(cost).cloned();
        let seal = |(name, digest): (String, Digest)| (seal_token(key, &digest), name.into());
        Self {
            decoy: decoy.map(Into::into),
            passwords: passwords
                .into_iter()
                .map(|(name, hash)| (name, hash.into()))
                .collect(),
            tokens: tokens.into_iter().map(seal).collect(),
        }
    }
}

fn seal_token(key: &Key, digest: &Digest) -> String {
    key.seal(&[b"token", digest.to_string().as_bytes()])
}

fn read(file: &Path) -> Result<SecretString, String> {
    let problem = |problem: String| format!("{}: {problem}", file.display());
    let mut bytes = Vec::new();
    let opened =
        File::open(file).and_then(|open| open.take(LONGEST_FILE + 1).read_to_end(&mut bytes));
    opened.map_err(|error| problem(error.to_string()))?;
    if bytes.len() as u64 > LONGEST_FILE {
        return Err(problem("it is longer than 1 MiB".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|_| problem("it is not text".to_owned()))?;
    Ok(text.into())
}

const HTPASSWD: &str = "users.htpasswd";
const TOKENS: &str = "users.tokens";
/// Longest file of either kind, bytes: more than ten thousand users.
const LONGEST_FILE: u64 = 1 << 20;
/// Of no password that anybody knows, with the usual cost.
const DECOY: &str = "$2b$10$abcdefghijklmnopqrstuuWbBiL6uZ3ESgbWVMFVfVmCmkmIcsBCu";

#[cfg(test)]
mod tests;
