//! Files in responses without a copy through this process: the kernel hands their pages to the socket (sendfile(2)).
//!
//! hyper has no hook for that (hyperium/hyper#140), but it passes bodies on untouched. So a body yields bytes that stand
//! for a part of a file, all of them slices of one block of memory that nobody ever reads, and [`Socket`](super::Socket)
//! knows them by their address: in their place it sends the part. Sending the block itself would be worse than anything
//! that this saves, so whatever does not fit exactly breaks the connection before a byte leaves: bytes of the block
//! without a part, a part without them, or another length than was promised.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use hyper::body::Bytes;

/// What bytes that stand for a file are slices of. It is never touched, so it takes no memory; as a constant it would be a
/// megabyte of each program's file.
static BLOCK: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; FileSender::MOST]));

/// Sends parts of files over one connection; an extension of its requests, where there is neither TLS nor HTTP/2. Clones
/// are the same.
#[derive(Debug, Clone, Default)]
pub struct FileSender(Arc<Mutex<VecDeque<Part>>>);

/// What is still to be sent of a part of a file.
#[derive(Debug, Clone)]
pub(super) struct Part {
    file: Arc<File>,
    offset: u64,
    left: usize,
}

/// What a write begins with.
#[derive(Debug)]
pub(super) enum Next {
    /// So many buffers of ordinary bytes.
    Buffers(usize),
    /// A part of a file.
    Part(Part),
}

impl FileSender {
    /// Longest part, bytes: one call that neither waits nor keeps others waiting.
    pub const MOST: usize = 1 << 20;

    /// Bytes of a response body that stand for `length` bytes of `file` from `offset` on, at most [`FileSender::MOST`].
    /// They must be the very next bytes that the body of the running request yields. Reading them gives zeros.
    pub fn stand_in(&self, file: Arc<File>, offset: u64, length: usize) -> Bytes {
        let length = length.min(Self::MOST);
        if length > 0 {
            self.parts().push_back(Part {
                file,
                offset,
                left: length,
            });
        }
        BLOCK.slice(..length)
    }

    /// What to write first of `buffers`.
    pub(super) fn next(&self, buffers: &[IoSlice<'_>]) -> io::Result<Next> {
        let parts = self.parts();
        let place = buffers.iter().position(|buffer| is_stand_in(buffer));
        match (place, parts.front()) {
            (None, None) => Ok(Next::Buffers(buffers.len())),
            (Some(place), Some(part)) if buffers[place].len() == part.left => {
                let before = &buffers[..place];
                Ok(if before.iter().all(|buffer| buffer.is_empty()) {
                    Next::Part(part.clone())
                } else {
                    Next::Buffers(place)
                })
            }
            _ => Err(io::Error::other(
                "a response does not keep the order of the files in it",
            )),
        }
    }

    /// `sent` bytes of the first part have gone.
    pub(super) fn advance(&self, sent: usize) {
        let mut parts = self.parts();
        if let Some(part) = parts.front_mut() {
            part.offset += sent as u64;
            part.left = part.left.saturating_sub(sent);
            if part.left == 0 {
                parts.pop_front();
            }
        }
    }

    fn parts(&self) -> MutexGuard<'_, VecDeque<Part>> {
        self.0.lock().expect("nothing panics while it holds this")
    }
}

impl Part {
    /// Sends what `socket` takes now.
    pub(super) fn send(&self, socket: impl AsFd) -> io::Result<usize> {
        let mut offset = self.offset;
        match rustix::fs::sendfile(socket, &self.file, Some(&mut offset), self.left)? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a file ends before the bytes that were promised of it",
            )),
            sent => Ok(sent),
        }
    }
}

/// Does it lie in the block? Nothing else can: it is not writable, and no allocation overlaps it.
fn is_stand_in(buffer: &IoSlice<'_>) -> bool {
    !buffer.is_empty() && BLOCK.as_ptr_range().contains(&buffer.as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> Arc<File> {
        use std::io::Write as _;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    #[test]
    fn ordinary_bytes_pass() {
        let sender = FileSender::default();
        let buffers = [IoSlice::new(b"head"), IoSlice::new(&[0; 64])];
        assert!(matches!(sender.next(&buffers), Ok(Next::Buffers(2))));
        assert!(matches!(sender.next(&[]), Ok(Next::Buffers(0))));
    }

    #[test]
    fn a_part_takes_the_place_of_its_bytes() {
        let (sender, file) = (FileSender::default(), file(b"content"));
        let bytes = sender.stand_in(Arc::clone(&file), 3, 4);
        let buffers = [
            IoSlice::new(b"head"),
            IoSlice::new(&bytes),
            IoSlice::new(b"tail"),
        ];
        assert!(matches!(sender.next(&buffers), Ok(Next::Buffers(1))));
        let Ok(Next::Part(part)) = sender.next(&buffers[1..]) else {
            panic!("no part");
        };
        assert_eq!((part.offset, part.left), (3, 4));
        // The kernel took one byte of them.
        sender.advance(1);
        let rest = [IoSlice::new(&bytes[1..]), IoSlice::new(b"tail")];
        let Ok(Next::Part(part)) = sender.next(&rest) else {
            panic!("no part");
        };
        assert_eq!((part.offset, part.left), (4, 3));
        sender.advance(3);
        assert!(matches!(sender.next(&rest[1..]), Ok(Next::Buffers(1))));
    }

    /// The zeros never leave, and nothing overtakes a part.
    #[test]
    fn whatever_does_not_fit_is_refused() {
        let (sender, file) = (FileSender::default(), file(b"content"));
        let stray = BLOCK.slice(..4);
        assert!(sender.next(&[IoSlice::new(&stray)]).is_err());
        let bytes = sender.stand_in(file, 0, 4);
        // As if somebody had copied it.
        let copy = bytes.to_vec();
        for buffers in [
            vec![IoSlice::new(b"head")],
            vec![IoSlice::new(b"head"), IoSlice::new(&copy)],
            vec![IoSlice::new(&bytes[..3])],
            vec![IoSlice::new(b"head"), IoSlice::new(&bytes[1..])],
            vec![],
        ] {
            assert!(sender.next(&buffers).is_err(), "{buffers:?}");
        }
        assert!(sender.next(&[IoSlice::new(&bytes)]).is_ok());
    }

    #[test]
    fn a_part_is_never_longer_than_the_block() {
        let (sender, file) = (FileSender::default(), file(b""));
        let bytes = sender.stand_in(Arc::clone(&file), 0, usize::MAX);
        assert_eq!(bytes.len(), FileSender::MOST);
        assert!(sender.next(&[IoSlice::new(&bytes)]).is_ok());
        let none = FileSender::default();
        assert!(none.stand_in(file, 0, 0).is_empty());
        assert!(none.next(&[IoSlice::new(b"next")]).is_ok());
    }
}
