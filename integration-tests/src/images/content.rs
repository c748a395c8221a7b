//! Bytes by offset: literal ones, or pseudo-random ones of any length that need no memory of their own.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use coral_schema::oci::{Algorithm, Digest, Hasher};

/// The bytes of a blob.
#[derive(Debug, Clone)]
pub enum Content {
    /// These bytes.
    Literal(Bytes),
    /// Pseudo-random bytes; equal seed and length mean equal bytes.
    Generated {
        /// Which bytes.
        seed: u64,
        /// How many.
        length: u64,
    },
}

impl Content {
    /// Literal bytes.
    pub fn of(bytes: impl Into<Bytes>) -> Self {
        Self::Literal(bytes.into())
    }

    /// `length` pseudo-random bytes.
    pub fn generated(seed: u64, length: u64) -> Self {
        Self::Generated { seed, length }
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Literal(bytes) => bytes.len() as u64,
            Self::Generated { length, .. } => *length,
        }
    }

    /// No bytes at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of the bytes from `offset` on, without a copy: at most `limit`, at least one unless the end is reached.
    pub fn chunk(&self, offset: u64, limit: usize) -> Bytes {
        let left = self.len().saturating_sub(offset).min(limit as u64);
        match self {
            _ if left == 0 => Bytes::new(),
            Self::Literal(bytes) => {
                let start = to_usize(offset);
                bytes.slice(start..start + to_usize(left))
            }
            Self::Generated { seed, .. } => {
                let within = to_usize(offset % SEGMENT);
                let count = to_usize(left).min(to_usize(SEGMENT) - within);
                let start = to_usize(mix(seed ^ mix(offset / SEGMENT)) % POOL) + within;
                RANDOM.slice(start..start + count)
            }
        }
    }

    /// All chunks in order.
    pub fn chunks(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut offset = 0;
        std::iter::from_fn(move || {
            let chunk = self.chunk(offset, to_usize(SEGMENT));
            offset += chunk.len() as u64;
            (!chunk.is_empty()).then_some(chunk)
        })
    }

    /// All bytes in memory: for small contents.
    pub fn read_all(&self) -> Bytes {
        match self {
            Self::Literal(bytes) => bytes.clone(),
            Self::Generated { .. } => {
                let mut all = BytesMut::new();
                self.chunks()
                    .for_each(|chunk| all.extend_from_slice(&chunk));
                all.freeze()
            }
        }
    }

    /// The SHA-256 digest, computed once per process for each generated content.
    pub fn digest(&self) -> Digest {
        let Self::Generated { seed, length } = *self else {
            return self.digest_by(Algorithm::Sha256);
        };
        let known = || DIGESTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = known().get(&(seed, length)) {
            return *digest;
        }
        let digest = self.digest_by(Algorithm::Sha256);
        known().insert((seed, length), digest);
        digest
    }

    /// The digest by another algorithm.
    pub fn digest_by(&self, algorithm: Algorithm) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        self.chunks().for_each(|chunk| hasher.update(&chunk));
        hasher.finish()
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("lengths of chunks fit into memory")
}

/// splitmix64's output function: the same number for the same number, and nothing like it.
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Generated content is a row of slices of this length, each from a place in [`RANDOM`] that depends on seed and
/// position: no two segments of a content are alike, so bytes served from a wrong offset do not pass for right ones.
const SEGMENT: u64 = 1 << 20;
/// Where a segment may start.
const POOL: u64 = 16 << 20;

static RANDOM: LazyLock<Bytes> = LazyLock::new(|| {
    let words = (POOL + SEGMENT) / 8;
    let mut bytes = Vec::with_capacity(to_usize(POOL + SEGMENT));
    (0..words).for_each(|word| bytes.extend_from_slice(&mix(word).to_le_bytes()));
    bytes.into()
});

static DIGESTS: LazyLock<Mutex<HashMap<(u64, u64), Digest>>> = LazyLock::new(Mutex::default);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_bytes_depend_on_seed_and_offset_only() {
        let content = Content::generated(1, (2 << 20) + 5);
        let all = content.read_all();
        assert_eq!(all.len() as u64, content.len());
        assert_eq!(
            content.chunk((2 << 20) - 2, 100),
            all[(2 << 20) - 2..2 << 20]
        );
        assert_eq!(content.chunk(2 << 20, 100), all[2 << 20..]);
        assert_ne!(all[..100], all[1 << 20..][..100]);
        assert_ne!(Content::generated(2, 100).read_all(), all[..100]);
        assert_eq!(content.digest(), Digest::sha256(&all));
    }
}
