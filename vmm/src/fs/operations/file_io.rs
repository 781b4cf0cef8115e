//! Open files: OPEN, CREATE, TMPFILE, READ, WRITE, FLUSH, FSYNC and RELEASE.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Caller, io_result};
use crate::fs::buffers::Segments;
use crate::fs::cache_policy::Place;
use crate::fs::file_system::FileSystem;
use crate::fs::handle_store::{Handle, OpenFile};
use crate::fs::host::open_beneath;
use crate::fs::implicit_files::Access;
use crate::fs::limits::TRANSFER_BYTES;
use crate::fs::wire::{
    CreateIn, EntryOut, FSYNC_DATA_ONLY, FsyncIn, OPEN_KILL_SUIDGID, OpenIn, OpenOut, OpenOutFlags, ReadIn,
    WRITE_CACHE, WRITE_KILL_SUIDGID, WriteIn,
};

/// The flags of the guest's `open` that reach the host's. Their values are the same on both sides (x86-64).
const PASSED_ON: OFlags = OFlags::ACCMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::DIRECT)
    .union(OFlags::NOATIME)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);

impl FileSystem {
    /// Opens the regular file `node`.
    ///
    /// # Errors
    /// `ENOSYS` where opens go unannounced: the guest does not ask again; `EISDIR` for a directory, `EINVAL` for anything else that is not a regular file; `ENFILE` when the guest has
    /// open as much as it may; else what the host returned.
    pub(in crate::fs) fn open(&mut self, node: u64, request: &OpenIn) -> Result<OpenOut, Errno> {
        if self.implicit_opens {
            return Err(Errno::NOSYS);
        }
        self.open_announced(node, request)
    }

    fn open_announced(&mut self, node: u64, request: &OpenIn) -> Result<OpenOut, Errno> {
        let inode = self.inodes.peek(node)?;
        match inode.file_type() {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        let place = inode.place();
        let flags = self.host_flags(request.flags)?;
        if flags.contains(OFlags::TRUNC) {
            self.credentials.keep_set_id(request.open_flags & OPEN_KILL_SUIDGID == 0)?;
        }
        let descriptor = self.open_node(node, flags)?;
        self.opened(node, descriptor, flags, place)
    }

    /// Makes and opens a regular file, or opens it if it is there already.
    ///
    /// # Errors
    /// `EEXIST` when it is there and `O_EXCL` was asked for; else as [`open`](Self::open) and what the host returned.
    pub(in crate::fs) fn create(
        &mut self,
        parent: u64,
        name: &CStr,
        request: &CreateIn,
        caller: Caller,
    ) -> Result<(EntryOut, OpenOut), Errno> {
        let flags = self.host_flags(request.flags)?;
        self.act_as(caller, request.umask, request.mode)?;
        self.require_room_to_open()?;
        let directory = self.inodes.directory_to_add_to(parent)?;
        let mode = Mode::from_raw_mode(request.mode & 0o7777);
        // O_EXCL, so that nothing but a file that was made here is opened: what is there may be a fifo.
        let made = open_beneath(directory, name, flags | OFlags::CREATE | OFlags::EXCL, mode);
        match made {
            Ok(descriptor) => self.made_and_opened(parent, name, descriptor, flags),
            Err(Errno::EXIST) if !OFlags::from_bits_retain(request.flags).contains(OFlags::EXCL) => {
                let entry = self.lookup(parent, name)?;
                let request = OpenIn { flags: request.flags, open_flags: request.open_flags };
                match self.open_announced(entry.node, &request) {
                    Ok(open) => Ok((entry, open)),
                    Err(error) => {
                        self.forget(entry.node, 1);
                        Err(error)
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Makes and opens a regular file without a name in the directory `parent`.
    ///
    /// # Errors
    /// What the host returned.
    pub(in crate::fs) fn tmpfile(
        &mut self,
        parent: u64,
        request: &CreateIn,
        caller: Caller,
    ) -> Result<(EntryOut, OpenOut), Errno> {
        let mut flags = self.host_flags(request.flags)? - OFlags::TRUNC;
        flags |= OFlags::from_bits_retain(request.flags) & OFlags::EXCL;
        self.act_as(caller, request.umask, request.mode)?;
        let mode = Mode::from_raw_mode(request.mode & 0o7777);
        self.require_room_to_open()?;
        let directory = self.inodes.directory_to_add_to(parent)?;
        let descriptor = open_beneath(directory, c".", flags | OFlags::TMPFILE, mode)?;
        self.made_and_opened(parent, c"", descriptor, flags)
    }

    /// Reads from an open file straight into `into`, from `begin` on, and returns how many bytes that was: not more
    /// than was agreed on for one request.
    ///
    /// # Errors
    /// `EBADF` or `EISDIR` for a handle that is not an open file's; else what `preadv` returned.
    pub(in crate::fs) fn read(
        &mut self,
        node: u64,
        request: &ReadIn,
        into: &Segments<'_>,
        begin: usize,
    ) -> Result<usize, Errno> {
        let offset = i64::try_from(request.offset).map_err(|_| Errno::INVAL)?;
        let length = request.size.min(TRANSFER_BYTES) as usize;
        into.io_vectors(begin, length, &mut self.io_vectors);
        let count = vector_count(&self.io_vectors)?;
        let file = self.open_file(node, request.handle, Access::Read)?;
        file.follow(OFlags::from_bits_retain(request.flags))?;
        let file = file.as_fd().as_raw_fd();
        // SAFETY: each vector lies in memory that `into` borrows for longer than this call and that Rust code
        // accesses as volatile memory only; the kernel writes to the vectors and to nothing else.
        let result = unsafe { libc::preadv64(file, self.io_vectors.as_ptr(), count, offset) };
        io_result(result as libc::c_long)
    }

    /// Writes to an open file straight from `from`, from `begin` on, and returns how many bytes that was: not more than
    /// was agreed on for one request.
    ///
    /// # Errors
    /// `EBADF` or `EISDIR` for a handle that is not an open file's; else what `pwritev` returned.
    pub(in crate::fs) fn write(
        &mut self,
        node: u64,
        request: &WriteIn,
        from: &Segments<'_>,
        begin: usize,
    ) -> Result<usize, Errno> {
        self.credentials.keep_set_id(request.write_flags & WRITE_KILL_SUIDGID == 0)?;
        let mut flags = OFlags::from_bits_retain(request.flags);
        if self.session.writeback || request.write_flags & WRITE_CACHE != 0 {
            // The guest has worked out the offset already, and another open file's flags may lend their name.
            flags -= OFlags::APPEND;
        }
        let offset = i64::try_from(request.offset).map_err(|_| Errno::INVAL)?;
        let length = request.size.min(TRANSFER_BYTES) as usize;
        from.io_vectors(begin, length, &mut self.io_vectors);
        let count = vector_count(&self.io_vectors)?;
        let file = self.open_file(node, request.handle, Access::Write)?;
        file.follow(flags)?;
        let file = file.as_fd().as_raw_fd();
        // SAFETY: each vector lies in memory that `from` borrows for longer than this call; the kernel only reads it.
        let result = unsafe { libc::pwritev64(file, self.io_vectors.as_ptr(), count, offset) };
        io_result(result as libc::c_long)
    }

    /// Brings an open file to disk.
    ///
    /// # Errors
    /// `EBADF` or `EISDIR` for a handle that is not an open file's; else what `fsync` returned.
    pub(in crate::fs) fn fsync(&mut self, node: u64, request: &FsyncIn) -> Result<(), Errno> {
        let file = self.open_file(node, request.handle, Access::Read)?;
        match request.flags & FSYNC_DATA_ONLY {
            0 => rustix::fs::fsync(file),
            _ => rustix::fs::fdatasync(file),
        }
    }

    /// Closes an open file.
    ///
    /// # Errors
    /// `EBADF` or `EISDIR` for a handle that is not an open file's.
    pub(in crate::fs) fn release(&mut self, handle: u64) -> Result<(), Errno> {
        self.handles.file(handle)?;
        self.handles.remove(handle).map(drop)
    }

    /// The host's flags for those of the guest's `open`.
    fn host_flags(&self, flags: u32) -> Result<OFlags, Errno> {
        let mut flags = OFlags::from_bits_retain(flags) & PASSED_ON;
        let access = flags & OFlags::ACCMODE;
        if access == OFlags::ACCMODE {
            return Err(Errno::INVAL);
        }
        if self.session.writeback {
            // The guest does its own appending.
            flags -= OFlags::APPEND;
        }
        if (self.session.writeback || self.implicit_opens) && access == OFlags::WRONLY {
            // The guest reads the rest of a page that it writes a part of, or reads by the same open file.
            flags = (flags - OFlags::ACCMODE) | OFlags::RDWR;
        }
        Ok(flags)
    }

    fn require_room_to_open(&self) -> Result<(), Errno> {
        match !self.implicit_opens && self.handles.is_full() {
            true => Err(Errno::NFILE),
            false => Ok(()),
        }
    }

    fn opened(
        &mut self,
        node: u64,
        descriptor: OwnedFd,
        flags: OFlags,
        place: Place,
    ) -> Result<OpenOut, Errno> {
        let file = OpenFile::new(descriptor, flags);
        let handle = if self.implicit_opens {
            self.keep_open(node, file)?;
            0
        } else {
            self.handles.insert(Handle::File(file))?
        };
        let mut open_flags = OpenOutFlags::NOFLUSH;
        if self.cache_policy.inode(place).keep_contents {
            open_flags |= OpenOutFlags::KEEP_CACHE;
        }
        Ok(OpenOut { handle, flags: open_flags.bits(), backing_id: 0 })
    }

    fn made_and_opened(
        &mut self,
        parent: u64,
        name: &CStr,
        descriptor: OwnedFd,
        flags: OFlags,
    ) -> Result<(EntryOut, OpenOut), Errno> {
        let inode = self.descriptors.reopen(&descriptor, OFlags::PATH)?;
        let entry = self.entry(parent, name, inode)?;
        let place = self.inodes.peek(entry.node)?.place();
        match self.opened(entry.node, descriptor, flags, place) {
            Ok(open) => Ok((entry, open)),
            Err(error) => {
                self.forget(entry.node, 1);
                Err(error)
            }
        }
    }
}

/// The number of vectors as `preadv` takes it.
fn vector_count(vectors: &[libc::iovec]) -> Result<libc::c_int, Errno> {
    libc::c_int::try_from(vectors.len()).map_err(|_| Errno::INVAL)
}
