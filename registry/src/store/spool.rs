//! A file that grows while a blob arrives: written and hashed in one step, readable by others meanwhile.
//!
//! `spool/<alg>-<hex>.part` holds the bytes, `….state` beside it the hash state at some offset. The bytes of a part file
//! up to [`Spool::offset`] are exactly those that the hash has seen, whatever went wrong. After a restart the part is
//! taken up again once its bytes have been read and found to be those of the state; [`super::run`] says when.
//!
//! Everything that says *blocking* touches the disk: callers run it in `spawn_blocking`.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use coral_schema::oci::{Digest, Hasher};

use self::folder::Claim;
use self::state::SavedState;
use self::tail::Tail;
use super::StoreError;
use super::reader::FileReader;

pub(super) mod folder;
pub(super) mod state;
pub(super) mod tail;

/// The part file of one digest, held by one writer. Dropping it keeps the file, to be taken up again.
#[derive(Debug)]
pub struct Spool {
    claim: Claim,
    tail: Tail,
    size: Option<u64>,
    origins: Vec<String>,
    resumed: bool,
}

impl Spool {
    fn new(claim: Claim, tail: Tail) -> Self {
        Self {
            claim,
            tail,
            size: None,
            origins: Vec::new(),
            resumed: false,
        }
    }

    /// What the content should be.
    pub fn digest(&self) -> &Digest {
        self.claim.digest()
    }

    /// How many bytes are there.
    pub fn offset(&self) -> u64 {
        self.tail.offset
    }

    /// The hash of the first [`Spool::offset`] bytes.
    pub fn hasher(&self) -> Hasher {
        self.tail.hasher.clone()
    }

    /// Were there bytes of an earlier fill, which [`Spool::reset`] has not dropped?
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Where the bytes of an earlier fill came from, as it last told [`Spool::save_state`].
    pub fn origins(&self) -> &[String] {
        &self.origins
    }

    /// Length of the whole content, bytes, if an origin has said so.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Notes the length of the whole content.
    pub fn set_size(&mut self, size: Option<u64>) {
        self.size = size;
    }

    /// Reads the bytes up to the offset, also while it grows.
    pub fn reader(&self) -> FileReader {
        let buffers = self.claim.folder().buffers().clone();
        FileReader::new(Arc::clone(&self.tail.file), buffers)
    }

    /// Writes and hashes the next bytes. Blocking.
    ///
    /// On an error the first bytes may have been kept, as the offset says; the rest was not.
    pub fn append(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        self.tail.append(self.claim.folder().space(), chunks)
    }

    /// Saves what is needed to go on after a restart: call it every 16 MiB or so, which bounds what is hashed again.
    /// The origins lie on the disk as they are: no credentials, no signed queries. Blocking.
    pub fn save_state(&mut self, origins: &[String]) -> Result<(), StoreError> {
        self.origins = origins.to_vec();
        self.write_state()
            .map_err(StoreError::io("save the state of the spool"))
    }

    fn write_state(&self) -> io::Result<()> {
        let folder = self.claim.folder();
        let mark = self.tail.mark();
        let state = SavedState::new(folder.run(), &mark, self.size, &self.origins);
        state.write(&folder.state_path(self.digest()))
    }

    /// Drops all bytes, to start again; they may have come from several origins. Blocking.
    ///
    /// Readers of the old bytes must be stopped first: they would go on with the new ones.
    pub fn reset(&mut self) -> Result<(), StoreError> {
        let folder = self.claim.folder();
        // The state goes first: its hash must never be taken for that of the bytes to come.
        folder
            .remove_state(self.digest())
            .and_then(|()| self.tail.file.set_len(0))
            .map_err(StoreError::io("empty the spool"))?;
        folder.space().release_spool(self.tail.offset);
        self.tail.offset = 0;
        self.tail.hasher = Hasher::new(self.digest().algorithm());
        self.resumed = false;
        self.save_state(&[])
    }

    /// Removes the files. Blocking. Readers that have them open keep them.
    pub fn discard(self) -> Result<(), StoreError> {
        let folder = self.claim.folder();
        folder
            .remove(self.digest())
            .map_err(StoreError::io("remove a part file"))
    }

    /// The file, for the store to publish; whoever has a [`VerifiedSpool`](super::VerifiedSpool) may call this.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.tail.file
    }
}

#[cfg(test)]
mod tests {
    use super::folder::SpoolFolder;
    use super::*;
    use crate::store::buffers::Buffers;
    use crate::store::run::Run;
    use crate::store::space::{Limits, Space};

    fn folder() -> (tempfile::TempDir, Arc<SpoolFolder>) {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(File::open(folder.path()).unwrap(), Limits::default()).unwrap();
        let path = folder.path().to_owned();
        let run = Run::begin().unwrap();
        let spools = SpoolFolder::open(path, Arc::new(space), Buffers::default(), run).unwrap();
        (folder, Arc::new(spools))
    }

    /// More pieces than one system call takes, and empty ones among them.
    #[test]
    fn many_small_chunks_are_written_in_order() {
        let (_folder, folder) = folder();
        let chunks: Vec<Bytes> = (0..5000_usize)
            .map(|number| Bytes::from(vec![u8::try_from(number % 256).unwrap(); number % 4]))
            .collect();
        let content: Vec<u8> = chunks.iter().flatten().copied().collect();
        let digest = Digest::sha256(&content);
        let mut spool = folder.spool(&digest).unwrap();
        spool.append(&chunks).unwrap();
        spool.append(&[]).unwrap();
        spool.append(&[Bytes::new(), Bytes::new()]).unwrap();
        assert_eq!(std::fs::read(folder.part_path(&digest)).unwrap(), content);
        spool.verify(&digest).unwrap();
    }

    /// H-04: what the operating system says decides which error it is, and the hash has seen what was kept: nothing.
    #[rstest::rstest]
    #[case("/dev/full", true)]
    #[case("/dev/null", false)]
    fn h04_a_failed_write_is_not_hashed(#[case] device: &str, #[case] full: bool) {
        let (_folder, folder) = folder();
        let digest = Digest::sha256(b"x");
        let mut spool = folder.spool(&digest).unwrap();
        // Without the right to write, /dev/null refuses like a broken disk.
        let file = File::options().read(true).write(full).open(device).unwrap();
        spool.tail.file = Arc::new(file);
        let error = spool.append(&[Bytes::from_static(b"x")]).unwrap_err();
        assert_eq!(matches!(error, StoreError::Full), full, "{error}");
        assert_eq!(spool.offset(), 0);
        assert_eq!(spool.hasher().finish(), Digest::sha256(b""));
        assert_eq!(folder.space().spool_bytes(), 0);
    }

    #[test]
    fn what_is_known_of_a_fill_comes_back() {
        let (_folder, folder) = folder();
        let digest = Digest::sha256(b"whole");
        let mut spool = folder.spool(&digest).unwrap();
        assert!(!spool.resumed());
        spool.set_size(Some(5));
        spool.append(&[Bytes::from_static(b"who")]).unwrap();
        let origins = ["a".to_owned(), "b".to_owned()];
        spool.save_state(&origins).unwrap();
        drop(spool);
        let spool = folder.spool(&digest).unwrap();
        assert_eq!(
            (spool.offset(), spool.size(), spool.resumed()),
            (3, Some(5), true)
        );
        assert_eq!(spool.origins(), origins);
    }
}
