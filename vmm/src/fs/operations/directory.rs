//! OPENDIR, READDIR, READDIRPLUS, RELEASEDIR and FSYNCDIR.

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::fs::directory_stream::DirectoryStream;
use crate::fs::file_system::FileSystem;
use crate::fs::handle_store::Handle;
use crate::fs::wire::{
    EntryOut, FSYNC_DATA_ONLY, FsyncIn, OpenOut, OpenOutFlags, ReadIn, Wire, put_directory_entry,
};

/// Whether names come alone or with a lookup each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum Listing {
    /// `READDIR`.
    Names,
    /// `READDIRPLUS`.
    Entries,
}

impl FileSystem {
    /// Opens the directory `node`.
    ///
    /// # Errors
    /// `ENOTDIR` for anything else; `ENFILE` when the guest has open as much as it may; else what the host returned.
    pub(in crate::fs) fn opendir(&mut self, node: u64) -> Result<OpenOut, Errno> {
        let place = self.inodes.directory(node)?.place();
        let descriptor = self.open_node(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let handle = self.handles.insert(Handle::Directory(DirectoryStream::new(node, descriptor)))?;
        let mut flags = OpenOutFlags::empty();
        if self.cache_policy.names_in(place).keep_directories {
            flags |= OpenOutFlags::CACHE_DIR | OpenOutFlags::KEEP_CACHE;
        }
        Ok(OpenOut { handle, flags: flags.bits(), backing_id: 0 })
    }

    /// Appends to `out` as many names of an open directory as fit into `room` bytes.
    ///
    /// # Errors
    /// `EINVAL` when not even one name fits; `EBADF` or `ENOTDIR` for a handle that is not an open directory's; else
    /// what the host returned. Names that come before the error are returned without it.
    pub(in crate::fs) fn readdir(
        &mut self,
        node: u64,
        request: &ReadIn,
        listing: Listing,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let begin = out.len();
        let room = room.min(usize::try_from(request.size).unwrap_or(usize::MAX));
        self.open_directory(request.handle)?;
        let stream = self.handles.directory(request.handle)?;
        self.directory_buffer.begin(request.handle, stream, request.offset)?;
        loop {
            match self.next_entry(node, request.handle, listing, begin + room, out) {
                Ok(Next::Entry) => {}
                Ok(Next::End) => return Ok(()),
                Ok(Next::NoRoom) if out.len() == begin => return Err(Errno::INVAL),
                Ok(Next::NoRoom) => return Ok(()),
                Err(error) if out.len() == begin => return Err(error),
                Err(_) => return Ok(()),
            }
        }
    }

    /// Closes an open directory.
    ///
    /// # Errors
    /// `EBADF` for an unknown handle, `ENOTDIR` for that of a file.
    pub(in crate::fs) fn releasedir(&mut self, handle: u64) -> Result<(), Errno> {
        self.handles.directory(handle)?;
        self.handles.remove(handle).map(drop)
    }

    /// Brings an open directory to disk.
    ///
    /// # Errors
    /// `EBADF` or `ENOTDIR` for a handle that is not an open directory's; else what `fsync` returned.
    pub(in crate::fs) fn fsyncdir(&mut self, request: &FsyncIn) -> Result<(), Errno> {
        let directory = self.open_directory(request.handle)?.descriptor()?;
        match request.flags & FSYNC_DATA_ONLY {
            0 => rustix::fs::fsync(directory),
            _ => rustix::fs::fdatasync(directory),
        }
    }

    fn next_entry(
        &mut self,
        node: u64,
        handle: u64,
        listing: Listing,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<Next, Errno> {
        let stream = self.handles.directory(handle)?;
        let Some((entry, name)) = self.directory_buffer.peek(stream)? else { return Ok(Next::End) };
        let length = match listing {
            Listing::Names => entry.wire_length(),
            Listing::Entries => EntryOut::SIZE + entry.wire_length(),
        };
        if out.len() + length > limit {
            return Ok(Next::NoRoom);
        }
        if listing == Listing::Entries {
            // An entry without a node is a name alone: for "." and "..", which the guest knows by itself, and for
            // what cannot be looked up now.
            let (inode, name) = (entry.inode, name.to_owned());
            let looked_up = match name.to_bytes() {
                b"." | b".." => EntryOut::default(),
                _ => self.entry_of_listing(node, &name, inode).unwrap_or_default(),
            };
            looked_up.put(out);
        }
        let stream = self.handles.directory(handle)?;
        if let Some((entry, _)) = self.directory_buffer.peek(stream)? {
            put_directory_entry(&entry, out);
        }
        self.directory_buffer.advance(stream);
        Ok(Next::Entry)
    }
}

enum Next {
    Entry,
    End,
    NoRoom,
}
