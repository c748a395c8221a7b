//! The secret of this registry: signs the tokens that it gives out, and names what must not be remembered as it is.
//!
//! It lies in the data folder, so that a client which pushes through a restart is still known after it. Whoever may read
//! that folder may read everything in it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, crypto};
use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Clones are the same key.
#[derive(Clone)]
pub struct Key(Arc<Pair>);

struct Pair {
    signs: EncodingKey,
    checks: DecodingKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// The one in `file`, or a new one that is written there. Blocks.
    pub fn keep(file: &Path) -> io::Result<Self> {
        match File::open(file) {
            Ok(open) => {
                let mut bytes = Vec::new();
                open.take(LENGTH as u64 + 1).read_to_end(&mut bytes)?;
                // Shorter: its writer was killed.
                if bytes.len() == LENGTH {
                    return Ok(Self::of(&bytes));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let bytes = random()?;
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        options.open(file)?.write_all(&bytes)?;
        Ok(Self::of(&bytes))
    }

    /// A new one that nobody else has. Blocks.
    pub fn random() -> io::Result<Self> {
        Ok(Self::of(&random()?))
    }

    fn of(bytes: &[u8]) -> Self {
        Self(Arc::new(Pair {
            signs: EncodingKey::from_secret(bytes),
            checks: DecodingKey::from_secret(bytes),
        }))
    }

    /// A name for `parts` that tells nothing about them, and that nobody else can make (HMAC-SHA-256).
    pub(super) fn seal(&self, parts: &[&[u8]]) -> String {
        // The first byte stands in no token, so that a seal never is the signature of one.
        let mut message = vec![0];
        for part in parts {
            message.extend((part.len() as u64).to_be_bytes());
            message.extend_from_slice(part);
        }
        crypto::sign(&message, &self.0.signs, ALGORITHM).expect("HMAC takes any bytes")
    }

    /// A token that says `claims` (RFC 7519).
    pub(super) fn sign(&self, claims: &impl Serialize) -> String {
        let header = Header::new(ALGORITHM);
        jsonwebtoken::encode(&header, claims, &self.0.signs).expect("plain data serialises")
    }

    /// What a token of ours says, if `audience` is whom it is for and it is still good.
    pub(super) fn open<T: DeserializeOwned>(&self, token: &str, audience: &str) -> Option<T> {
        let mut validation = Validation::new(ALGORITHM);
        // Our own clock wrote the times.
        validation.leeway = 0;
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        let data = jsonwebtoken::decode(token, &self.0.checks, &validation);
        data.ok().map(|data| data.claims)
    }
}

fn random() -> io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    // The call itself: libraries look for the C library's by name, which a static program does not have, and then for a
    // device file, which an image from scratch does not have. So few bytes come at once (getrandom(2)).
    let filled = retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))?;
    if filled < LENGTH {
        return Err(io::Error::other("the system gives too few random bytes"));
    }
    Ok(bytes)
}

/// Bytes of a key: as many as its hashes have (RFC 7518, section 3.2).
const LENGTH: usize = 32;
const ALGORITHM: Algorithm = Algorithm::HS256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_key_outlives_the_process_and_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let seal = |key: &Key| key.seal(&[b"a"]);
        let first = Key::keep(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(seal(&first), seal(&Key::keep(&file).unwrap()));
        assert_ne!(seal(&first), seal(&Key::random().unwrap()));
        std::fs::write(&file, b"cut").unwrap();
        let second = Key::keep(&file).unwrap();
        let kept = std::fs::read(&file).unwrap();
        assert_eq!(kept.len(), LENGTH, "one that was cut can be guessed");
        assert_ne!(seal(&first), seal(&second));
        assert_eq!(seal(&second), seal(&Key::keep(&file).unwrap()));
        assert_eq!(format!("{second:?}"), "Key");
    }

    #[test]
    fn parts_are_not_run_together() {
        let key = Key::random().unwrap();
        assert_ne!(key.seal(&[b"ab", b"c"]), key.seal(&[b"a", b"bc"]));
    }
}
