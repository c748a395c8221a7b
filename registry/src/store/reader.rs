//! Reads files for clients: from the page cache at once, from the disk on a blocking thread.

use std::fs::File;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coral_schema::process::serve::FileSender;
use rustix::io::ReadWriteFlags;

use super::StoreError;
use super::buffers::{Buffer, Buffers};

/// Reads a file that may still grow. Clones share the open file, which outlives its name.
#[derive(Debug, Clone)]
pub struct FileReader {
    file: Arc<File>,
    buffers: Buffers,
}

impl FileReader {
    pub(super) fn new(file: Arc<File>, buffers: Buffers) -> Self {
        Self { file, buffers }
    }

    /// Some of the `max` bytes that the file is known to have at `offset`: at least one (unless `max` is 0), and at most
    /// what fits a buffer. Up to [`BufferSize::Small`](super::BufferSize) they get memory of their own; what is longer
    /// comes from the pool, so a caller with a slow client asks for no more than that.
    ///
    /// A file without those bytes is [`StoreError::Damaged`].
    pub async fn read_at(&self, offset: u64, max: u64) -> Result<Bytes, StoreError> {
        if max == 0 {
            return Ok(Bytes::new());
        }
        let mut buffer = self.buffers.take(max);
        match self.read_cached(buffer.space(), offset) {
            Ok(read) if read > 0 => Ok(buffer.into_bytes(read)),
            // Not in the page cache, or not to be had this way: the disk tells what is the matter.
            _ => self.read_disk(buffer, offset).await,
        }
    }

    /// Bytes in whose place `sender` sends the first part of the `length` bytes at `offset` straight from the page cache;
    /// `None` when that would wait for the disk. A look at some pages is all there is: one of those between them that is
    /// gone costs the thread a single read.
    pub fn stand_in(&self, sender: &FileSender, offset: u64, length: u64) -> Option<Bytes> {
        let length = length.min(FileSender::MOST as u64);
        let last = offset.checked_add(length)?.checked_sub(1)?;
        let mut looked_at = (offset..last).step_by(LOOK_EVERY).chain([last]);
        let is_cached = |at| self.read_cached(&mut [0], at) == Ok(1);
        looked_at.all(is_cached).then(|| {
            let length = usize::try_from(length).unwrap_or(FileSender::MOST);
            sender.stand_in(Arc::clone(&self.file), offset, length)
        })
    }

    fn read_cached(&self, space: &mut [u8], offset: u64) -> rustix::io::Result<usize> {
        let mut slices = [IoSliceMut::new(space)];
        rustix::io::preadv2(&self.file, &mut slices, offset, ReadWriteFlags::NOWAIT)
    }

    async fn read_disk(&self, mut buffer: Buffer, offset: u64) -> Result<Bytes, StoreError> {
        let (disk_reads, file) = (self.buffers.disk_reads(), Arc::clone(&self.file));
        let read = async {
            let turn = disk_reads.acquire_owned().await.map_err(io::Error::other)?;
            let read = tokio::task::spawn_blocking(move || -> io::Result<Bytes> {
                // Held by the thread, not by the caller, who may give up before the disk answers.
                let _turn = turn;
                file.read_exact_at(buffer.space(), offset)?;
                let length = buffer.space().len();
                Ok(buffer.into_bytes(length))
            });
            read.await.map_err(io::Error::other)?
        };
        let read = tokio::time::timeout(DISK_DEADLINE, read).await;
        match read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(StoreError::Damaged(
                format!("a file ends before the bytes at {offset}").into(),
            )),
            read => read.map_err(StoreError::io("read")),
        }
    }
}

/// A blob, open for reading. It stays readable when the blob is removed.
#[derive(Debug)]
pub struct StoredBlob {
    reader: FileReader,
    size: u64,
}

impl StoredBlob {
    pub(super) fn new(reader: FileReader, size: u64) -> Self {
        Self { reader, size }
    }

    /// Length when it was opened, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads the same open file.
    pub fn reader(&self) -> FileReader {
        self.reader.clone()
    }

    /// Some of the next `len_hint` bytes from `offset` on, as [`FileReader::read_at`]; empty only at the end. A file that
    /// got shorter than its size is [`StoreError::Damaged`].
    pub fn read(
        &self,
        offset: u64,
        len_hint: usize,
    ) -> impl Future<Output = Result<Bytes, StoreError>> + Send {
        let rest = self.size.saturating_sub(offset);
        self.reader.read_at(offset, rest.min(len_hint as u64))
    }

    /// As [`FileReader::stand_in`], of what is left from `offset` on.
    pub fn stand_in(&self, sender: &FileSender, offset: u64, length: u64) -> Option<Bytes> {
        let rest = self.size.saturating_sub(offset);
        self.reader.stand_in(sender, offset, rest.min(length))
    }

    /// Has the blob been removed since it was opened?
    pub(super) fn is_removed(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = self.reader.file.metadata();
        metadata.is_ok_and(|metadata| metadata.nlink() == 0)
    }
}

/// The kernel reads files ahead, and takes their pages back, in runs of at least this many bytes.
const LOOK_EVERY: usize = 64 << 10;

/// A disk that is silent for longer fails the read: clients lose patience at about the same time.
const DISK_DEADLINE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::BufferSize;
    use std::io::Write as _;

    fn content(length: usize) -> Vec<u8> {
        (0..length)
            .map(|at| u8::try_from(at * 31 % 251).unwrap())
            .collect()
    }

    fn reader(content: &[u8]) -> FileReader {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        FileReader::new(Arc::new(file), Buffers::default())
    }

    async fn read_all(blob: &StoredBlob, len_hint: usize) -> Result<Vec<u8>, StoreError> {
        let mut read = Vec::new();
        loop {
            let next = blob.read(read.len() as u64, len_hint).await?;
            if next.is_empty() {
                return Ok(read);
            }
            assert!(next.len() <= len_hint);
            read.extend_from_slice(&next);
        }
    }

    #[rstest::rstest]
    #[case(0)]
    #[case(1)]
    #[case(BufferSize::Large.bytes())]
    #[case(3 * BufferSize::Large.bytes() + 17)]
    #[tokio::test]
    async fn reads_what_is_there(#[case] length: usize) {
        let content = content(length);
        let blob = StoredBlob::new(reader(&content), length as u64);
        for len_hint in [
            1000,
            BufferSize::Small.bytes(),
            BufferSize::Large.bytes(),
            1 << 30,
        ] {
            assert!(read_all(&blob, len_hint).await.unwrap() == content);
        }
        assert!(blob.read(u64::MAX, 10).await.unwrap().is_empty());
    }

    /// The same bytes come from the disk, and from a pool that is used up.
    #[tokio::test]
    async fn the_slow_ways_read_the_same() {
        let content = content(BufferSize::Large.bytes() + 5);
        let mut reader = reader(&content);
        for memory in [0, 64 << 20] {
            reader.buffers = Buffers::new(memory);
            let mut read = Vec::new();
            while read.len() < content.len() {
                let buffer = reader.buffers.take((content.len() - read.len()) as u64);
                read.extend_from_slice(&reader.read_disk(buffer, read.len() as u64).await.unwrap());
            }
            assert!(read == content);
        }
    }

    #[tokio::test]
    async fn a_growing_file_is_read_up_to_what_is_there() {
        let reader = reader(b"begin");
        assert_eq!(reader.read_at(0, 5).await.unwrap(), "begin");
        assert!(matches!(
            reader.read_at(5, 3).await,
            Err(StoreError::Damaged(_))
        ));
        reader.file.write_all_at(b"end", 5).unwrap();
        assert_eq!(reader.read_at(5, 3).await.unwrap(), "end");
        assert_eq!(reader.read_at(8, 0).await.unwrap(), "");
    }

    /// What is not in the page cache is not left to the kernel: it would make a thread of the runtime wait.
    #[test]
    fn only_cached_bytes_have_a_stand_in() {
        let sender = FileSender::default();
        let reader = reader(&content(3 * FileSender::MOST));
        let whole = reader.stand_in(&sender, 5, u64::MAX >> 1).unwrap();
        assert_eq!(whole.len(), FileSender::MOST);
        let end = 3 * FileSender::MOST as u64;
        assert!(reader.stand_in(&sender, end - 4, 4).is_some());
        assert!(
            reader.stand_in(&sender, end - 4, 5).is_none(),
            "past the end"
        );
        assert!(reader.stand_in(&sender, 0, 0).is_none());

        reader.file.sync_all().unwrap();
        rustix::fs::fadvise(&reader.file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        if reader.read_cached(&mut [0], 1 << 20).is_err() {
            assert!(reader.stand_in(&sender, 0, end).is_none());
        }
    }

    /// H-43: a file that is shorter than it should be never looks complete.
    #[rstest::rstest]
    #[case(0)]
    #[case(1)]
    #[case(BufferSize::Large.bytes())]
    #[case(2 * BufferSize::Large.bytes() - 1)]
    #[tokio::test]
    async fn h43_a_shorter_file_is_damaged(#[case] left: usize) {
        let size = 2 * BufferSize::Large.bytes();
        let reader = reader(&content(size));
        reader.file.set_len(left as u64).unwrap();
        let blob = StoredBlob::new(reader, size as u64);
        let read = read_all(&blob, BufferSize::Large.bytes()).await;
        assert!(matches!(read, Err(StoreError::Damaged(_))));
    }
}
