//! The end of a file that grows: bytes are written and hashed in one step, within the budget of the spool.

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use coral_schema::oci::Hasher;

use crate::store::StoreError;
use crate::store::space::Space;

/// How far a file was at some moment, to go on from there.
#[derive(Debug, Clone)]
pub struct Mark {
    /// Length, bytes.
    pub(in crate::store) offset: u64,
    /// Has seen exactly the first `offset` bytes.
    pub(in crate::store) hasher: Hasher,
}

/// A file, and the hash of what is in it.
#[derive(Debug)]
pub(in crate::store) struct Tail {
    pub(in crate::store) file: Arc<File>,
    /// Length of the file, bytes.
    pub(in crate::store) offset: u64,
    /// Has seen exactly the first `offset` bytes.
    pub(in crate::store) hasher: Hasher,
}

impl Tail {
    /// Of an empty file.
    pub(in crate::store) fn new(file: File, hasher: Hasher) -> Self {
        Self {
            file: Arc::new(file),
            offset: 0,
            hasher,
        }
    }

    /// Of a file that was at `mark` once, to its present end; `None` when it has not those bytes. They are read again
    /// unless their writer `is_trusted`. Blocking.
    pub(in crate::store) fn take_up(
        file: File,
        mark: Mark,
        is_trusted: bool,
    ) -> io::Result<Option<Self>> {
        let is_right =
            file.metadata()?.len() >= mark.offset && (is_trusted || has_bytes(&file, &mark)?);
        if !is_right {
            return Ok(None);
        }
        let Mark { offset, mut hasher } = mark;
        let rest = hash_file(&file, &mut hasher, offset..u64::MAX)?;
        Ok(Some(Self {
            file: Arc::new(file),
            offset: offset + rest,
            hasher,
        }))
    }

    /// Where it is now.
    pub(in crate::store) fn mark(&self) -> Mark {
        Mark {
            offset: self.offset,
            hasher: self.hasher.clone(),
        }
    }

    /// Writes and hashes the next bytes. Blocking.
    ///
    /// On an error the first bytes may have been kept, as the offset says; the rest was not.
    pub(in crate::store) fn append(
        &mut self,
        space: &Space,
        chunks: &[Bytes],
    ) -> Result<(), StoreError> {
        let wanted = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let granted = space.claim_spool(wanted);
        let before = self.offset;
        let result = self.write(chunks, granted);
        let written = self.offset - before;
        space.release_spool(granted - written);
        if result.is_err() {
            // Nothing that the hash has not seen may stay: a later fill would take it for content. If this fails, too,
            // the digest will not match then, and the part is dropped.
            let _ = self.file.set_len(self.offset);
        }
        result.map_err(StoreError::io("write to the spool"))?;
        if written < wanted {
            return Err(StoreError::Full);
        }
        Ok(())
    }

    /// Writes the first `length` bytes of the chunks.
    fn write(&mut self, chunks: &[Bytes], mut length: u64) -> io::Result<()> {
        let mut slices = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let take = usize::try_from(length).map_or(chunk.len(), |left| left.min(chunk.len()));
            length -= take as u64;
            slices.push(IoSlice::new(&chunk[..take]));
        }
        let mut slices = &mut slices[..];
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let written = match rustix::io::pwritev(&self.file, slices, self.offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            hash(&mut self.hasher, slices, written);
            self.offset += written as u64;
            IoSlice::advance_slices(&mut slices, written);
        }
        Ok(())
    }
}

/// Are the bytes up to the mark those that its hash has seen? Blocking.
fn has_bytes(file: &File, mark: &Mark) -> io::Result<bool> {
    let seen = mark.hasher.clone().finish();
    let mut hasher = Hasher::new(seen.algorithm());
    hash_file(file, &mut hasher, 0..mark.offset)?;
    Ok(hasher.finish() == seen)
}

/// Hashes the bytes of `range`, as far as the file has them, and says how many. Blocking.
pub(in crate::store) fn hash_file(
    file: &File,
    hasher: &mut Hasher,
    range: Range<u64>,
) -> io::Result<u64> {
    let (mut buffer, mut offset) = (vec![0; 256 << 10], range.start);
    while offset < range.end {
        let left = usize::try_from(range.end - offset).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        match file.read_at(&mut buffer[..wanted], offset) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(offset - range.start)
}

/// Hashes the first `length` bytes of the slices.
fn hash(hasher: &mut Hasher, slices: &[IoSlice<'_>], mut length: usize) {
    for slice in slices {
        let part = &slice[..slice.len().min(length)];
        hasher.update(part);
        length -= part.len();
    }
}
