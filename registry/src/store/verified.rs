//! What only a passed check can make. [`BlobStore`](super::BlobStore) takes nothing else.

use bytes::Bytes;
use coral_schema::oci::Digest;

use super::reader::FileReader;
use super::spool::Spool;

/// The bytes are not those that the digest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the content has the digest {computed}")]
pub struct DigestMismatch {
    /// The digest that the bytes have.
    pub computed: Digest,
}

/// A complete part file whose content has its digest.
#[derive(Debug)]
pub struct VerifiedSpool(Spool);

impl VerifiedSpool {
    /// What it is.
    pub fn digest(&self) -> &Digest {
        self.0.digest()
    }

    /// Length, bytes.
    pub fn size(&self) -> u64 {
        self.0.offset()
    }

    /// Reads it; goes on to work after its publication.
    pub fn reader(&self) -> FileReader {
        self.0.reader()
    }

    pub(super) fn into_spool(self) -> Spool {
        self.0
    }
}

impl Spool {
    /// Is the content complete and what `expected` says? If not, the spool comes back, to be reset or discarded.
    pub fn verify(self, expected: &Digest) -> Result<VerifiedSpool, (Box<Self>, DigestMismatch)> {
        let computed = self.hasher().finish();
        if computed == *expected && computed == *self.digest() {
            Ok(VerifiedSpool(self))
        } else {
            Err((Box::new(self), DigestMismatch { computed }))
        }
    }
}

/// A manifest's bytes as received, which have its digest.
#[derive(Debug, Clone)]
pub struct VerifiedManifest {
    digest: Digest,
    bytes: Bytes,
}

impl VerifiedManifest {
    /// Hashes `bytes`.
    pub fn check(bytes: Bytes, expected: &Digest) -> Result<Self, DigestMismatch> {
        let computed = Digest::of(expected.algorithm(), &bytes);
        if computed == *expected {
            Ok(Self {
                digest: computed,
                bytes,
            })
        } else {
            Err(DigestMismatch { computed })
        }
    }

    /// What it is.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The bytes, as received.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coral_schema::oci::Algorithm;

    #[test]
    fn only_the_right_bytes_make_a_manifest() {
        let bytes = Bytes::from_static(b"{ \"a\":1,\"a\":2 }\n");
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, &bytes);
            let manifest = VerifiedManifest::check(bytes.clone(), &digest).unwrap();
            assert_eq!((manifest.bytes(), manifest.digest()), (&bytes, &digest));
            let flipped = Bytes::from_static(b"{ \"a\":1,\"a\":3 }\n");
            let mismatch = VerifiedManifest::check(flipped.clone(), &digest).unwrap_err();
            assert_eq!(mismatch.computed, Digest::of(algorithm, &flipped));
        }
    }
}
