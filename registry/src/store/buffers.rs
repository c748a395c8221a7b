//! The memory that file content passes through on its way to clients: a bounded pool, and small buffers beside it.

use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Semaphore;

/// How much one read takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferSize {
    /// For slow clients, of which there may be many: memory of its own.
    Small,
    /// From the pool: what costs the least CPU per byte (`crates.md` section 4).
    Large,
}

impl BufferSize {
    /// Length, bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Small => 16 << 10,
            Self::Large => 256 << 10,
        }
    }
}

/// The buffers of the whole process. Clones share them.
#[derive(Clone)]
pub struct Buffers(Arc<Shared>);

struct Shared {
    pool: Mutex<Pool>,
    /// Reads that may wait for the disk at the same time.
    disk_reads: Arc<Semaphore>,
}

struct Pool {
    /// Initialised once and never cleared: a buffer shows only what was last read into it.
    idle: Vec<Box<[u8]>>,
    /// How many more may be made.
    unmade: usize,
}

impl Buffers {
    /// Large buffers of at most `memory` bytes in all, made when they are first needed.
    pub fn new(memory: usize) -> Self {
        Self(Arc::new(Shared {
            pool: Mutex::new(Pool {
                idle: Vec::new(),
                unmade: memory / BufferSize::Large.bytes(),
            }),
            disk_reads: Arc::new(Semaphore::new(DISK_READS)),
        }))
    }

    pub(super) fn disk_reads(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.disk_reads)
    }

    /// A buffer for a read of `length` bytes, or for the first part of it. Never waits: a small buffer is the way out
    /// when the pool is empty.
    pub(super) fn take(&self, length: u64) -> Buffer {
        let small = BufferSize::Small.bytes();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > small
            && let Some(data) = self.0.pool.lock().expect(NO_PANIC).take()
        {
            let length = length.min(data.len() - PAGE);
            let pool = Some(self.clone());
            return Buffer { data, length, pool };
        }
        let length = length.min(small);
        Buffer {
            data: vec![0; length].into(),
            length,
            pool: None,
        }
    }
}

impl Pool {
    fn take(&mut self) -> Option<Box<[u8]>> {
        self.idle.pop().or_else(|| {
            self.unmade = self.unmade.checked_sub(1)?;
            Some(vec![0; BufferSize::Large.bytes() + PAGE].into())
        })
    }
}

impl Default for Buffers {
    /// What `registry.md` section 4 says: 64 MiB.
    fn default() -> Self {
        Self::new(64 << 20)
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").finish_non_exhaustive()
    }
}

/// A buffer in use; goes back to the pool that it is from when dropped.
pub(super) struct Buffer {
    data: Box<[u8]>,
    length: usize,
    pool: Option<Buffers>,
}

impl Buffer {
    /// The place to read into. It starts on a page: the kernel's copy is several times slower into a buffer that lies
    /// a few bytes behind one, as the allocator's do.
    pub(super) fn space(&mut self) -> &mut [u8] {
        let start = self.start();
        &mut self.data[start..start + self.length]
    }

    fn start(&self) -> usize {
        if self.pool.is_some() {
            self.data.as_ptr().align_offset(PAGE)
        } else {
            0
        }
    }

    /// The first `length` bytes, which have been read into it.
    pub(super) fn into_bytes(mut self, length: usize) -> Bytes {
        self.length = length;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        let start = self.start();
        &self.data[start..start + self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(buffers) = &self.pool {
            let data = std::mem::take(&mut self.data);
            buffers.0.pool.lock().expect(NO_PANIC).idle.push(data);
        }
    }
}

/// A page of memory, bytes. `align_offset` stays below it.
const PAGE: usize = 4096;

/// As many as there are steps that hash and write (`registry.md` section 4): more only makes a disk seek.
const DISK_READS: usize = 64;

const NO_PANIC: &str = "nothing panics while it holds the pool";

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: u64 = BufferSize::Large.bytes() as u64;

    #[test]
    fn an_empty_pool_gives_small_buffers_and_refills() {
        let buffers = Buffers::new(2 * BufferSize::Large.bytes());
        let first = buffers.take(LARGE).into_bytes(BufferSize::Large.bytes());
        let _second = buffers.take(LARGE);
        let mut third = buffers.take(LARGE);
        assert_eq!(third.space().len(), BufferSize::Small.bytes());

        let slice = first.slice(10..20);
        drop(first);
        assert!(buffers.take(LARGE).pool.is_none(), "a slice still holds it");
        drop(slice);
        assert!(buffers.take(LARGE).pool.is_some());
        assert_eq!(buffers.0.pool.lock().unwrap().unmade, 0);
    }

    #[test]
    fn short_reads_leave_the_pool_alone() {
        let buffers = Buffers::default();
        for length in [1, 5000, BufferSize::Small.bytes()] {
            let mut buffer = buffers.take(length as u64);
            assert_eq!(buffer.space().len(), length);
            assert!(buffer.pool.is_none());
        }
        let mut buffer = buffers.take(BufferSize::Small.bytes() as u64 + 1);
        assert!(buffer.pool.is_some());
        assert_eq!(buffer.space().len(), BufferSize::Small.bytes() + 1);
        assert_eq!(
            buffers.take(u64::MAX).space().len(),
            BufferSize::Large.bytes()
        );
    }
}
