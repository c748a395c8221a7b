//! Content digests: `sha256:<64 hex>` and `sha512:<128 hex>`, lower case (OCI image specification, descriptor.md).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::digest::common::hazmat::SerializableState as _;

/// A registered digest algorithm. Others are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, the algorithm of nearly all content.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of a digest, bytes.
    pub fn output_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(name: &str) -> Result<Self, DigestError> {
        match name {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(DigestError::Algorithm),
        }
    }
}

/// A parsed digest. Its text form is canonical, so two equal digests have equal texts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    /// The first [`Algorithm::output_len`] bytes count, the rest is zero.
    bytes: [u8; 64],
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `algorithm:hex` shape.
    #[error("a digest looks like sha256:<64 hex digits>")]
    Shape,
    /// Neither sha256 nor sha512.
    #[error("digest algorithm is not supported; sha256 and sha512 are")]
    Algorithm,
    /// Wrong length, upper case, or not hexadecimal.
    #[error("a {} digest has {} lower-case hex digits", .0.name(), .0.output_len() * 2)]
    Encoding(Algorithm),
}

impl Digest {
    /// The digest of `content`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// The SHA-256 digest of `content`.
    pub fn sha256(content: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, content)
    }

    /// The digest whose raw bytes these are; their number says by which algorithm.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let algorithm = [Algorithm::Sha256, Algorithm::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.output_len() == bytes.len())?;
        Some(Self::from_output(algorithm, bytes))
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw bytes, 32 or 64 of them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.output_len()]
    }

    /// The part after the colon.
    pub fn hex(&self) -> String {
        self.with_hex(str::to_owned)
    }

    /// Every answer prints a digest, so it is done without a heap.
    fn with_hex<T>(&self, take: impl FnOnce(&str) -> T) -> T {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 128];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        let text = &text[..2 * self.bytes().len()];
        take(std::str::from_utf8(text).expect("hex digits are ASCII"))
    }

    fn from_output(algorithm: Algorithm, output: &[u8]) -> Self {
        let mut bytes = [0; 64];
        bytes[..output.len()].copy_from_slice(output);
        Self { algorithm, bytes }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::Shape)?;
        let algorithm: Algorithm = name.parse()?;
        let malformed = DigestError::Encoding(algorithm);
        if hex.len() != algorithm.output_len() * 2 {
            return Err(malformed);
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let (high, low) = (nibble(pair[0]), nibble(pair[1]));
            let (Some(high), Some(low)) = (high, low) else {
                return Err(malformed);
            };
            *byte = high << 4 | low;
        }
        Ok(Self { algorithm, bytes })
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm.name())?;
        f.write_str(":")?;
        self.with_hex(|hex| f.write_str(hex))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes a stream; its state can be saved, so that a broken download goes on without reading again.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Digest::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Digest::new()),
        })
    }

    /// Adds the next bytes.
    pub fn update(&mut self, content: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => sha2::Digest::update(state, content),
            State::Sha512(state) => sha2::Digest::update(state, content),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => {
                Digest::from_output(Algorithm::Sha256, &sha2::Digest::finalize(state))
            }
            State::Sha512(state) => {
                Digest::from_output(Algorithm::Sha512, &sha2::Digest::finalize(state))
            }
        }
    }

    /// The inner state, to go on later with [`Hasher::restore`]. Holds no content.
    pub fn save(&self) -> Vec<u8> {
        match &self.0 {
            State::Sha256(state) => state.serialize().to_vec(),
            State::Sha512(state) => state.serialize().to_vec(),
        }
    }

    /// A hasher as it was when `state` was saved; `None` when `state` is not one of this algorithm.
    pub fn restore(algorithm: Algorithm, state: &[u8]) -> Option<Self> {
        Some(Self(match algorithm {
            Algorithm::Sha256 => {
                State::Sha256(sha2::Sha256::deserialize(&state.try_into().ok()?).ok()?)
            }
            Algorithm::Sha512 => {
                State::Sha512(sha2::Sha512::deserialize(&state.try_into().ok()?).ok()?)
            }
        }))
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_empty_digests() {
        assert_eq!(
            Digest::sha256(b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert!(
            Digest::of(Algorithm::Sha512, b"")
                .hex()
                .starts_with("cf83e1357eefb8bd")
        );
    }

    #[rstest::rstest]
    #[case("", DigestError::Shape)]
    #[case("sha256", DigestError::Shape)]
    #[case("md5:d41d8cd98f00b204e9800998ecf8427e", DigestError::Algorithm)]
    #[case(
        "SHA256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        DigestError::Algorithm
    )]
    #[case("sha256:baddigeststring", DigestError::Encoding(Algorithm::Sha256))]
    #[case(
        "sha256:E3B0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        DigestError::Encoding(Algorithm::Sha256)
    )]
    fn refuses(#[case] text: &str, #[case] error: DigestError) {
        assert_eq!(text.parse::<Digest>(), Err(error));
    }

    #[rstest::rstest]
    #[case(Algorithm::Sha256)]
    #[case(Algorithm::Sha512)]
    fn a_saved_state_goes_on(#[case] algorithm: Algorithm) {
        let content: Vec<u8> = (0..1000_u32).flat_map(u32::to_le_bytes).collect();
        for cut in [0, 1, 63, 64, 65, 127, 128, 1000, content.len()] {
            let mut first = Hasher::new(algorithm);
            first.update(&content[..cut]);
            let mut second = Hasher::restore(algorithm, &first.save()).expect("own state");
            second.update(&content[cut..]);
            assert_eq!(
                second.finish(),
                Digest::of(algorithm, &content),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn raw_bytes_go_both_ways() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"x");
            assert_eq!(Digest::from_bytes(digest.bytes()), Some(digest));
        }
        assert_eq!(Digest::from_bytes(&[0; 33]), None);
    }

    #[test]
    fn a_foreign_state_is_refused() {
        assert!(Hasher::restore(Algorithm::Sha256, b"").is_none());
        assert!(
            Hasher::restore(Algorithm::Sha256, &Hasher::new(Algorithm::Sha512).save()).is_none()
        );
    }
}
