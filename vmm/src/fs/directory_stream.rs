//! An open directory and the names that were read from it but not yet handed out.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::limits::NAME_BYTES;
use super::wire::{Entry, Wire};

/// How much one `getdents64` reads.
const BUFFER_BYTES: usize = 32 * 1024;
/// The length of `struct linux_dirent64` before the name: inode, offset, record length, type.
const RECORD_HEADER: usize = 19;
/// The longest such record: a name of 255 bytes and its NUL, rounded up to 8 bytes.
const LONGEST_RECORD: usize = (RECORD_HEADER + NAME_BYTES + 1).next_multiple_of(8);

/// An open directory. It need not have a descriptor all the time: on the host, one of a directory that overlayfs merges
/// holds a whole listing in memory of the kernel's that no cgroup counts (fs/overlayfs/readdir.c). So a server keeps a
/// few, and a directory that has been closed is opened again when it is read on.
///
/// Offsets mean the same in both where the directory has not changed meanwhile, or its file system derives them from names.
/// Overlayfs counts entries, so that a name that goes would shift those after it: hence the name that comes next is remembered and
/// found again.
#[derive(Debug)]
pub(super) struct DirectoryStream {
    node: u64,
    descriptor: Option<OwnedFd>,
    /// The offset from which the host will read next, if that is known.
    position: Option<u64>,
    /// The offset from which the guest is going to read on, as it was told.
    told: u64,
    /// Where that is in the directory as it is open now.
    found: u64,
    /// While it is closed: the name that comes next.
    upcoming: Option<CString>,
}

impl DirectoryStream {
    /// The directory `node`, which has just been opened.
    pub(super) fn new(node: u64, descriptor: OwnedFd) -> Self {
        Self { node, descriptor: Some(descriptor), position: Some(0), told: 0, found: 0, upcoming: None }
    }

    /// Which directory.
    pub(super) fn node(&self) -> u64 {
        self.node
    }

    /// Whether it has a descriptor.
    pub(super) fn is_open(&self) -> bool {
        self.descriptor.is_some()
    }

    /// Its descriptor.
    ///
    /// # Errors
    /// `EBADF` when it has none.
    pub(super) fn descriptor(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.descriptor.as_ref().map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    /// Gives the descriptor up.
    pub(super) fn close(&mut self) {
        let Some(descriptor) = self.descriptor.take() else { return };
        // Who has read nothing yet begins at the beginning.
        if self.found != 0 {
            self.upcoming = name_at(descriptor.as_fd(), self.found);
        }
    }

    /// Takes a new descriptor of the same directory, and finds in it where the guest reads on.
    pub(super) fn reopen(&mut self, descriptor: OwnedFd) {
        if let Some(name) = self.upcoming.take()
            && name_at(descriptor.as_fd(), self.found).as_ref() != Some(&name)
        {
            // A name that is gone, too, leaves nothing to go by but the offset.
            self.found = offset_of(descriptor.as_fd(), &name).unwrap_or(self.found);
        }
        self.position = None;
        self.descriptor = Some(descriptor);
    }

    /// The guest reads from `offset` on: puts the host's position there.
    fn seek(&mut self, offset: u64) -> Result<(), Errno> {
        if offset != self.told {
            (self.told, self.found) = (offset, offset);
        }
        if self.position != Some(self.found) || self.found == 0 {
            rustix::fs::seek(self.descriptor()?, SeekFrom::Start(self.found))?;
            self.position = Some(self.found);
        }
        Ok(())
    }
}

/// Names that one `getdents64` returned. There is one buffer for all open directories, so that a guest cannot make
/// the host hold a buffer for each: a second reader throws away what the first has not fetched, and the first one's
/// next request reads it again.
#[derive(Debug)]
pub(super) struct DirectoryBuffer {
    bytes: Vec<u8>,
    filled: usize,
    consumed: usize,
    /// Which directory the names belong to, and at which offset the next one lies.
    owner: Option<(u64, u64)>,
}

impl DirectoryBuffer {
    /// An empty buffer.
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), filled: 0, consumed: 0, owner: None }
    }

    /// Makes the names from `offset` on of the directory with handle `number` the next ones.
    ///
    /// # Errors
    /// What `lseek` returned.
    pub(super) fn begin(
        &mut self,
        number: u64,
        stream: &mut DirectoryStream,
        offset: u64,
    ) -> Result<(), Errno> {
        // A listing from the start must show the directory as it is now.
        if offset != 0 && self.owner == Some((number, offset)) {
            return Ok(());
        }
        self.forget();
        stream.seek(offset)?;
        self.owner = Some((number, offset));
        Ok(())
    }

    /// The next name, without consuming it; `None` at the end of the directory.
    ///
    /// # Errors
    /// What `getdents64` returned; `EIO` when it returned something else than records.
    pub(super) fn peek(&mut self, stream: &mut DirectoryStream) -> Result<Option<(Entry<'_>, &CStr)>, Errno> {
        if self.consumed >= self.filled && self.fill(stream)? == 0 {
            return Ok(None);
        }
        let bytes = self.bytes.get(self.consumed..self.filled).unwrap_or_default();
        let record = Record::parse(bytes).ok_or(Errno::IO)?;
        Ok(Some((record.entry(), record.name)))
    }

    /// Consumes the name that [`peek`](Self::peek) returned.
    pub(super) fn advance(&mut self, stream: &mut DirectoryStream) {
        let bytes = self.bytes.get(self.consumed..self.filled).unwrap_or_default();
        match Record::parse(bytes) {
            Some(record) => {
                self.consumed += record.length;
                self.owner = self.owner.map(|(number, _)| (number, record.next_offset));
                (stream.told, stream.found) = (record.next_offset, record.next_offset);
            }
            None => self.forget(),
        }
    }

    /// Throws away what there is.
    pub(super) fn forget(&mut self) {
        self.filled = 0;
        self.consumed = 0;
        self.owner = None;
    }

    fn fill(&mut self, stream: &mut DirectoryStream) -> Result<usize, Errno> {
        self.bytes.resize(BUFFER_BYTES, 0);
        // What was there is not returned again should there be an error.
        (self.filled, self.consumed) = (0, 0);
        self.filled = read_records(stream.descriptor()?, &mut self.bytes)?;
        stream.position = self.last_offset().or(stream.position);
        Ok(self.filled)
    }

    /// The offset after the last name in the buffer.
    fn last_offset(&self) -> Option<u64> {
        let mut rest = self.bytes.get(..self.filled)?;
        let mut offset = None;
        while let Some(record) = Record::parse(rest) {
            offset = Some(record.next_offset);
            rest = rest.get(record.length..)?;
        }
        offset
    }
}

/// `struct linux_dirent64`.
struct Record<'a> {
    inode: u64,
    next_offset: u64,
    length: usize,
    file_type: u8,
    name: &'a CStr,
}

impl<'a> Record<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        let inode = u64::take(&mut rest).ok()?;
        let next_offset = u64::take(&mut rest).ok()?;
        let length = usize::from(u16::take(&mut rest).ok()?);
        let name = bytes.get(RECORD_HEADER..length)?;
        Some(Self {
            inode,
            next_offset,
            length,
            file_type: *rest.first()?,
            name: CStr::from_bytes_until_nul(name).ok()?,
        })
    }

    fn entry(&self) -> Entry<'a> {
        Entry {
            inode: self.inode,
            next_offset: self.next_offset,
            file_type: u32::from(self.file_type),
            name: self.name.to_bytes(),
        }
    }
}

/// The name at `offset`, if there is one.
fn name_at(directory: BorrowedFd<'_>, offset: u64) -> Option<CString> {
    rustix::fs::seek(directory, SeekFrom::Start(offset)).ok()?;
    let mut buffer = [0; LONGEST_RECORD];
    let filled = read_records(directory, &mut buffer).ok()?;
    Some(Record::parse(buffer.get(..filled)?)?.name.to_owned())
}

/// Where `name` is, if it is there.
fn offset_of(directory: BorrowedFd<'_>, name: &CStr) -> Option<u64> {
    let mut offset = rustix::fs::seek(directory, SeekFrom::Start(0)).ok()?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let filled = read_records(directory, &mut buffer).ok().filter(|filled| *filled > 0)?;
        let mut rest = buffer.get(..filled)?;
        while let Some(record) = Record::parse(rest) {
            if record.name == name {
                return Some(offset);
            }
            offset = record.next_offset;
            rest = rest.get(record.length..)?;
        }
    }
}

fn read_records(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the pointer and the length are those of one exclusively borrowed buffer, and the kernel writes at most
    // `length` bytes.
    let result = unsafe {
        libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    };
    super::operations::io_result(result)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn stream(path: &std::path::Path) -> DirectoryStream {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        DirectoryStream::new(1, rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap())
    }

    fn take(
        buffer: &mut DirectoryBuffer,
        number: u64,
        stream: &mut DirectoryStream,
        offset: u64,
        count: usize,
    ) -> Vec<(String, u64)> {
        buffer.begin(number, stream, offset).unwrap();
        let mut names = Vec::new();
        while names.len() < count {
            let Some((entry, _)) = buffer.peek(stream).unwrap() else { break };
            names.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.next_offset));
            buffer.advance(stream);
        }
        names
    }

    #[test]
    fn readers_that_take_turns_each_see_every_name_once() {
        let directory = tempfile::tempdir().unwrap();
        let expected: BTreeSet<String> = (0..500).map(|number| format!("file-{number}")).collect();
        for name in &expected {
            std::fs::write(directory.path().join(name), b"").unwrap();
        }
        let mut buffer = DirectoryBuffer::new();
        let mut streams = [stream(directory.path()), stream(directory.path())];
        let mut seen: [Vec<String>; 2] = Default::default();
        let mut offsets = [0, 0];
        let mut done = [false, false];
        while done != [true, true] {
            for reader in 0..2 {
                let names = take(
                    &mut buffer,
                    reader as u64 + 1,
                    &mut streams[reader],
                    offsets[reader],
                    7 + 30 * reader,
                );
                done[reader] = names.is_empty();
                for (name, next) in names {
                    offsets[reader] = next;
                    seen[reader].push(name);
                }
            }
        }
        for names in seen {
            let listed: BTreeSet<String> = names.iter().cloned().collect();
            assert_eq!(listed.len(), names.len(), "no name twice");
            let files: BTreeSet<String> =
                listed.into_iter().filter(|name| name != "." && name != "..").collect();
            assert_eq!(files, expected);
        }
    }

    #[test]
    fn a_listing_from_the_start_shows_new_names() {
        let directory = tempfile::tempdir().unwrap();
        let mut buffer = DirectoryBuffer::new();
        let mut stream = stream(directory.path());
        assert_eq!(take(&mut buffer, 1, &mut stream, 0, 1).len(), 1);
        std::fs::write(directory.path().join("new"), b"").unwrap();
        let names = take(&mut buffer, 1, &mut stream, 0, 10);
        assert!(names.iter().any(|(name, _)| name == "new"), "{names:?}");
    }

    #[test]
    fn records_cut_short_end_the_listing() {
        let mut bytes = Vec::new();
        1_u64.put(&mut bytes);
        2_u64.put(&mut bytes);
        24_u16.put(&mut bytes);
        bytes.extend_from_slice(b"\x04name\0");
        assert_eq!(bytes.len(), 24);
        assert_eq!(Record::parse(&bytes).unwrap().name, c"name");
        for length in 0..24 {
            assert!(Record::parse(&bytes[..length]).is_none(), "{length}");
        }
        // A name without an end, and a record shorter than its own header.
        bytes[23] = b'x';
        assert!(Record::parse(&bytes).is_none());
        bytes[16] = 3;
        assert!(Record::parse(&bytes).is_none());
    }
}
